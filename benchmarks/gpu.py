"""Full-size Phi-3-mini with random weights: LoRA and QLoRA beside plain TRL and PEFT.

    python -m benchmarks.gpu --method lora [--lengths 1024 2048 4096] [--rounds 2]
    python -m benchmarks.gpu --method qlora
    python -m benchmarks.gpu --method lora --small           the same at toy size, on a CPU too

Nothing is downloaded: the base is made from its configuration, once, in a temporary folder of
8 GB. Rows are random tokens in documents of many lengths, packed; a third of each document carries
no loss. Each turn is a process of its own, which loads the base once and trains a few steps at each
length. Liger's kernels under TRL, and Unsloth, have turns of their own where they are installed; a
contestant that fails is listed with its reason.

The share of the peak counts four operations for each weight and token (two forward, two for the
gradient of the layer's input; a frozen weight needs none) and six for the adapter's, over the rate
of a large bfloat16 product measured in the same process. Attention is not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    REPOSITORY,
    Bars,
    Goal,
    Report,
    Table,
    Taken,
    parser,
    publish,
    synchronize,
)

OURS, TRL, LIGER, UNSLOTH = "phi3lora", "TRL + PEFT", "TRL + Liger", "Unsloth"
NEEDS = {LIGER: "liger_kernel", UNSLOTH: "unsloth"}
MINI = {  # microsoft/Phi-3-mini-4k-instruct
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
TOY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
VOCABULARY = 32064
TOKENS_A_STEP = 8192
WARM_UP = 2  # steps that are not counted
RANK = 16
MIB = 2**20


def main(argv: list[str] | None = None) -> None:
    """Measure, print, keep; or be one turn."""
    arguments = _arguments(argv)
    if arguments.turn:
        return print(json.dumps(turn(arguments)))
    if arguments.make:
        write_base(arguments.make, arguments.small)
        return None
    with tempfile.TemporaryDirectory() as folder:
        arguments.base = arguments.base or _make_base(Path(folder) / "base", arguments.small)
        return publish(measure(arguments), arguments.out)


def _make_base(folder: Path, small: bool) -> Path:
    """In a process of its own: this one would keep the card's memory through all turns."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--make", str(folder)]
    subprocess.run(command + ["--small"] * small, cwd=REPOSITORY, check=True)
    return folder


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, rounds=2)
    made.add_argument("--method", choices=["lora", "qlora"], default="lora")
    made.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    made.add_argument("--tokens", type=int, default=TOKENS_A_STEP, help="tokens of a step")
    made.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    made.add_argument("--steps", type=int, default=6, help="counted steps of a turn")
    made.add_argument("--base", type=Path, help="a base that was made before")
    made.add_argument("--turn", choices=TRAINERS, help=argparse.SUPPRESS)
    made.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args(argv)
    if arguments.small:
        arguments.lengths, arguments.tokens = [64, 128], 256
        arguments.steps, arguments.rounds = 2, 1
    return arguments


def write_base(folder: Path, small: bool) -> Path:
    """A Phi-3 with random weights, saved in bfloat16 beside pocket's tokenizer."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    from phi3lora.models.pocket import CHECKPOINT

    shape = TOY if small else MINI
    config = Phi3Config(
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        sliding_window=2047,
        pad_token_id=0,
        **shape,
    )
    shutil.copytree(CHECKPOINT, folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            Phi3ForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    return folder


def measure(arguments: argparse.Namespace) -> Report:
    """Everybody in turn; who fails once has no further turns."""
    turns: dict[str, list[dict[str, Any]]] = {
        name: [] for name in TRAINERS if name not in NEEDS or importlib.util.find_spec(NEEDS[name])
    }
    failed: dict[str, str] = {}
    for _ in range(arguments.rounds):
        for name in turns:
            if name not in failed:
                told, reason = _in_a_process(name, arguments)
                if told is None:
                    failed[name] = reason
                else:
                    turns[name].append(told)
    for essential in (OURS, TRL):
        if essential in failed:
            raise RuntimeError(f"{essential} failed:\n{failed[essential]}")
    return _report(arguments, {k: v for k, v in turns.items() if k not in failed}, failed)


def _in_a_process(name: str, arguments: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """What one turn measured, or why it failed."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--turn",
        name,
        "--method",
        arguments.method,
        "--base",
        str(arguments.base),
        "--tokens",
        str(arguments.tokens),
        "--lengths",
        *map(str, arguments.lengths),
        "--steps",
        str(arguments.steps),
    ]
    command += ["--checkpointing"] * arguments.checkpointing
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if ended.returncode:
        return None, ended.stderr[-1500:]
    return json.loads(ended.stdout.splitlines()[-1]), ""


# A turn: one contestant, in its own process


def turn(arguments: argparse.Namespace) -> dict[str, Any]:
    """A few steps at each length. Seconds of a step, its tokens, and peak memory in bytes."""
    from phi3lora.models.hardware import use_one_gpu

    use_one_gpu()
    model, make = TRAINERS[arguments.turn](arguments)
    lengths = {}
    for length in arguments.lengths:
        with tempfile.TemporaryDirectory() as folder:
            lengths[str(length)] = _steps(make(length, Path(folder)))
    return {"lengths": lengths, "operations": _operations(model), "rate": _rate()}


def _steps(trainer: Any) -> dict[str, float]:
    """Train, and take the median of the steps after the first few."""
    import torch

    from phi3lora.training.trainer import peak_memory

    clock = _clock()
    trainer.add_callback(clock)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    rows = trainer.train_dataset["input_ids"]
    tokens = sum(map(len, rows)) / len(rows) * trainer.args.per_device_train_batch_size
    seconds = statistics.median(clock.seconds[WARM_UP:])
    return {"seconds": seconds, "tokens": tokens, "peak": float(peak_memory())}


def _clock() -> Any:
    """A callback that takes the time of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            synchronize()
            self._began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            synchronize()
            self.seconds.append(time.perf_counter() - self._began)

    return Clock()


def _operations(model: Any) -> float:
    """Operations for each token: frozen matrices four a weight, the adapter's six."""
    import torch

    total = 0.0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            weights = module.in_features * module.out_features
            total += (6.0 if "lora_" in name else 4.0) * weights
    return total


def _rate() -> float:
    """Operations a second of a large bfloat16 product: the best of five."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(6):
        synchronize()
        began = time.perf_counter()
        a @ b
        synchronize()
        times.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(times[1:])


Maker = Callable[[int, Path], Any]  # (length, folder) → a trainer


def _ours(arguments: argparse.Namespace) -> tuple[Any, Maker]:
    from phi3lora.training.fast.trainer import FastTrainer

    return _prepared(arguments, FastTrainer)


def _plain(arguments: argparse.Namespace, **more: Any) -> tuple[Any, Maker]:
    from trl import SFTTrainer

    return _prepared(arguments, SFTTrainer, **more)


def _prepared(arguments: argparse.Namespace, kind: Any, **more: Any) -> tuple[Any, Maker]:
    """Base and adapter as both have them, and what makes a trainer of a kind."""
    from phi3lora.config import RunConfig
    from phi3lora.lora.adapters import attach_adapter
    from phi3lora.models.loading import load_model, load_tokenizer

    config = RunConfig().with_values(
        {
            "model.path": str(arguments.base),
            "model.dtype": "bfloat16",
            "model.quantization": "nf4" if arguments.method == "qlora" else "none",
            "peft_config.r": RANK,
            "peft_config.lora_dropout": 0.0,
        }
    )
    model = attach_adapter(load_model(config.model, for_training=True), config)
    tokenizer = load_tokenizer(str(arguments.base))
    return model, partial(_trainer, kind, model, tokenizer, arguments, more)


def _trainer(
    kind: Any,
    model: Any,
    tokenizer: Any,
    arguments: argparse.Namespace,
    more: dict[str, Any],
    length: int,
    folder: Path,
) -> Any:
    """A trainer of the same steps on the same rows."""
    import torch
    from trl import SFTConfig

    batch = max(1, arguments.tokens // length)
    args = SFTConfig(
        str(folder),
        per_device_train_batch_size=batch,
        max_length=length,
        packing=True,
        max_steps=WARM_UP + arguments.steps,
        learning_rate=1e-4,
        bf16=True,
        report_to="none",
        save_strategy="no",
        logging_steps=WARM_UP + arguments.steps,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=arguments.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if arguments.checkpointing else None,
        **more,
    )
    rows = documents(length, (WARM_UP + arguments.steps) * batch * length)
    return kind(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


def _unsloth(arguments: argparse.Namespace) -> tuple[Any, Maker]:
    """As its notebooks call it."""
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(arguments.base),
        max_seq_length=max(arguments.lengths),
        load_in_4bit=arguments.method == "qlora",
    )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=0,
        target_modules=names,
        use_gradient_checkpointing="unsloth" if arguments.checkpointing else False,
    )
    from trl import SFTTrainer

    return model, partial(_trainer, SFTTrainer, model, tokenizer, arguments, {})


TRAINERS: dict[str, Callable[[argparse.Namespace], tuple[Any, Maker]]] = {
    TRL: _plain,
    OURS: _ours,
    LIGER: partial(_plain, use_liger_kernel=True),
    UNSLOTH: _unsloth,
}


def documents(length: int, tokens: int) -> Any:
    """Random documents from an eighth of the length to all of it, enough of them when packed."""
    import numpy as np
    from datasets import Dataset

    chance = np.random.default_rng(0)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    total = 0
    while total < tokens * 1.2:
        size = int(chance.integers(max(8, length // 8), length + 1))
        ids = chance.integers(3, 2000, size).tolist()
        rows["input_ids"].append(ids)
        rows["labels"].append([-100] * (size // 3) + ids[size // 3 :])
        total += size
    return Dataset.from_dict(rows)


# The result


def _report(
    arguments: argparse.Namespace, turns: dict[str, list[dict[str, Any]]], failed: dict[str, str]
) -> Report:
    rows, speeds, peaks = [], {}, {}
    for length in map(str, arguments.lengths):
        step: Taken = {k: [t["lengths"][length]["seconds"] for t in v] for k, v in turns.items()}
        for name, kept in turns.items():
            seconds = statistics.median(step[name])
            speed = kept[0]["lengths"][length]["tokens"] / seconds
            peak = max(one["lengths"][length]["peak"] for one in kept) / MIB
            faster = statistics.median(a / b for a, b in zip(step[TRL], step[name], strict=False))
            share = speed * kept[0]["operations"] / max(one["rate"] for one in kept)
            speeds.setdefault(name, []).append(speed)
            peaks.setdefault(name, []).append(peak)
            rows.append(
                [
                    f"{length}, {name}",
                    f"{speed:,.0f}",
                    f"{faster:.2f}×",
                    f"{peak:,.0f} MiB",
                    f"{share:.0%}",
                ]
            )
            if name == OURS:
                theirs = max(one["lengths"][length]["peak"] for one in turns[TRL]) / MIB
                best = (faster, share, peak / theirs)
    size = "toy size" if arguments.small else "3.8 billion weights"
    method = {"lora": "LoRA on bfloat16", "qlora": "QLoRA (nf4)"}[arguments.method]
    lengths = [str(length) for length in arguments.lengths]
    at = f"{method}, length {lengths[-1]}"
    notes = [f"{name} failed: {reason.splitlines()[-1]}" for name, reason in failed.items()]
    return Report(
        name=f"gpu-{arguments.method}" + "-checkpointing" * arguments.checkpointing,
        title=f"Phi-3-mini ({size}), {method}"
        + ", gradient checkpointing" * arguments.checkpointing,
        about=f"Packed rows, {arguments.tokens:,} tokens a step, rank {RANK} on all linear "
        f"layers; medians of {arguments.rounds} rounds of {arguments.steps} steps, each turn a "
        "process of its own.",
        command=f"python -m benchmarks.gpu --method {arguments.method}"
        + " --checkpointing" * arguments.checkpointing
        + " --small" * arguments.small,
        tables=[
            Table(
                "A training step",
                ["length", "tokens/s", "against TRL", "peak memory", "of the matrix rate"],
                rows,
                " ".join(notes),
            ),
        ],
        goals=[]
        if arguments.small
        else [
            Goal(f"Times as fast as plain TRL and PEFT: {at}", best[0], 1.5, "least", "×"),
            Goal(f"Of the bfloat16 rate: {at}", 100 * best[1], 45, "least", " %"),
            Goal(f"Of TRL's peak memory: {at}", 100 * best[2], 100, "most", " %"),
        ],
        pictures=[
            Bars("Tokens a second", "tokens/s", speeds, lengths),
            Bars("Peak memory", "MiB", peaks, lengths),
        ],
        figures={"turns": turns, "failed": failed},
    )


if __name__ == "__main__":
    main()
