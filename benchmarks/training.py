"""A training step beside plain TRL's, on the same rows, the same model and the same machine.

    python -m benchmarks.training [--small] [--rounds 5] [--quantization nf4] [--clock cpu]
                                  [--checkpointing] [--llamafactory PYTHON]

A Phi-3 of 58 million weights (hidden 512, 8 layers, the real 32k vocabulary), 999 real instruction
rows packed to 512, batches of four, LoRA r=16 on all linear layers, bfloat16. The contestants take
turns within each round, each for a few steps; the result is the median of the rounds' ratios.
Peak memory is that of a process of its own for each. The peers are called as their users call them
(`--checkpointing` is what both do unless told otherwise, and then we do too), LLaMA-Factory by an
interpreter of its own, since it needs other versions of the libraries. On a machine that others use
at the same time, `--clock cpu` takes one thread and its processor time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from benchmarks.harness import (
    DATA,
    Bars,
    Contestant,
    Goal,
    Report,
    Table,
    command_line,
    medians,
    parser,
    publish,
    ratio,
    take_turns,
)
from benchmarks.llama_factory import LlamaFactory, llamafactory
from phi3lora.config import RunConfig

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TRL, OURS, MATRIX = "plain TRL", "phi3lora", "matrix units"
FACTORY = "LLaMA-Factory"
FULL = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
SMALL = {**FULL, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def main(argv: list[str] | None = None) -> None:
    """Measure and publish; or, as a process of its own, one contestant's memory."""
    arguments = _arguments(argv)
    if arguments.clock == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.alone:
            return print(json.dumps(alone(arguments.alone, arguments, Path(folder))))
        report = measure(arguments, Path(folder))
    return publish(report, arguments.out)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, rounds=5)
    made.add_argument("--steps", type=int, default=2, help="steps of a turn")
    made.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    made.add_argument("--quantization", default="none", choices=["none", "nf4"])
    made.add_argument("--dropout", type=float, default=0.0, help="of the adapter; PEFT's own is 0")
    made.add_argument(
        "--checkpointing",
        action="store_true",
        help="gradient checkpointing for all, the peers' own default",
    )
    made.add_argument("--llamafactory", metavar="PYTHON", help="an interpreter that has it")
    made.add_argument("--alone", choices=[TRL, OURS], help="the peak memory of one contestant")
    made.set_defaults(given=sys.argv[1:] if argv is None else argv)
    return made.parse_args(argv)


def measure(arguments: argparse.Namespace, folder: Path) -> Report:
    """All contestants in turn, and what the machine's matrix units could do."""
    base, rows = prepared(arguments, folder)
    makers = {TRL: partial(trainer, False), OURS: partial(trainer, True)}
    trainers = {name: make(base, rows, arguments, folder) for name, make in makers.items()}
    tokens = _tokens(trainers[OURS], rows)
    operations = 4.0 * _weights(trainers[OURS].model) * tokens
    turns: dict[str, Contestant] = {
        **{name: partial(steps, made) for name, made in trainers.items()},
        MATRIX: partial(_matrix_seconds, operations, CLOCKS[arguments.clock]),
    }
    with _factory(arguments, base, folder) as peers:
        turns |= {name: peer.step for name, peer in peers.items()}
        taken = take_turns(turns, arguments.rounds)
    peaks = {name: _peak(name, arguments.given) for name in trainers}
    peaks |= {name: float(peer.facts["peak"]) for name, peer in peers.items()}
    return _report(arguments, taken, peaks, tokens, {n: p.facts for n, p in peers.items()})


@contextmanager
def _factory(
    arguments: argparse.Namespace, base: Path, folder: Path
) -> Iterator[dict[str, LlamaFactory]]:
    """LLaMA-Factory in an environment of its own, where there is one."""
    if not arguments.llamafactory:
        yield {}
        return
    wishes = {
        "clock": arguments.clock,
        "steps": arguments.steps,
        "folder": str(folder),
        "base": str(base),
        "rows": str(DATA / "alpaca_en_demo.json"),
        "length": config(arguments, base).training_config.max_length,
        "checkpointing": arguments.checkpointing,
    }
    with llamafactory(arguments.llamafactory, wishes) as peer:
        yield {FACTORY: peer}


def _report(
    arguments: argparse.Namespace,
    taken: dict[str, list[float]],
    peaks: dict[str, float],
    tokens: float,
    peers: dict[str, dict[str, Any]],
) -> Report:
    seconds = medians(taken)
    faster, limit = ratio(taken, TRL, OURS), ratio(taken, MATRIX, OURS)
    rows = [
        [
            name,
            f"{seconds[name]:.2f} s",
            f"{tokens / seconds[name]:,.0f}",
            f"{seconds[TRL] / seconds[name]:.1f}×",
            f"{peaks[name] / 2**20:,.0f} MiB" if name in peaks else "—",
        ]
        for name in seconds
    ]
    quantized = arguments.quantization != "none"
    goals = [Goal("times as fast as plain TRL", faster, 2.0 if quantized else 5.0, "least", "×")]
    if not quantized:
        goals.append(Goal("of the measured matrix limit", 100 * limit, 40, "least", " %"))
    memory = peaks[OURS] / peaks[TRL]
    goals.append(Goal("of TRL's peak memory", 100 * memory, 100, "most", " %"))
    if FACTORY in taken:
        than_factory = ratio(taken, FACTORY, OURS)
        goals.append(Goal("times as fast as LLaMA-Factory", than_factory, 2.5, "least", "×"))
    notes = ["Processor time of one thread."] if arguments.clock == "cpu" else []
    if FACTORY in peers:
        versions = ", ".join(f"{k} {v}" for k, v in peers[FACTORY]["versions"].items())
        notes.append(
            f"LLaMA-Factory with {versions}; neat packing keeps documents apart, as TRL and we do."
        )
    kinds = {f"-{arguments.quantization}": quantized, "-checkpointing": arguments.checkpointing}
    name = "training" + "".join(kind for kind, meant in kinds.items() if meant)
    title = "A training step" + (" on a 4-bit base (QLoRA)" if quantized else "")
    title += ", with gradient checkpointing" if arguments.checkpointing else ""
    return Report(
        name=name,
        title=title,
        about=" ".join((__doc__ or "").split("\n\n")[2].split()),
        command=command_line("benchmarks.training", arguments.given),
        tables=[
            Table(
                "One step", ["", "time", "tokens/s", "against TRL", "peak"], rows, " ".join(notes)
            )
        ],
        goals=goals,
        pictures=[Bars("One training step", "s", {k: [v] for k, v in seconds.items()})],
        figures={"taken": taken, "faster": faster, "limit": limit, "peaks": peaks, "peers": peers},
    )


# The contestants


def config(arguments: argparse.Namespace, base: Path) -> RunConfig:
    """What both train."""
    return RunConfig().with_values(
        {
            "model.path": str(base),
            "model.dtype": "bfloat16",
            "model.quantization": arguments.quantization,
            "data.path": str(DATA / "alpaca_en_demo.json"),
            "data.test_size": 0,
            "data.max_rows": 60 if arguments.small else None,
            "peft_config.lora_dropout": arguments.dropout,
            "training_config.packing": True,
            "training_config.gradient_checkpointing": arguments.checkpointing,
            "training_config.max_length": 128 if arguments.small else 512,
            "training_config.per_device_train_batch_size": 4,
            "training_config.max_steps": arguments.steps,
            "training_config.learning_rate": 1e-4,
            "training_config.log_level": "error",
            "training_config.save_strategy": "no",
            "training_config.eval_strategy": "no",
        }
    )


def prepared(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Dataset]:
    """A base with random weights and the real vocabulary, and the rows, rendered."""
    from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

    from phi3lora.data.preparation import prepare
    from phi3lora.models.loading import load_tokenizer

    base = folder / "base"
    vocabulary = DATA / "phi-3-mini-4k-instruct"
    torch.manual_seed(0)
    shape = SMALL if arguments.small else FULL
    settings = Phi3Config(
        vocab_size=32064, max_position_embeddings=4096, pad_token_id=32000, **shape
    )
    Phi3ForCausalLM(settings).to(torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(vocabulary).save_pretrained(base)
    data = prepare(config(arguments, base), load_tokenizer(str(base)), cache_folder=folder)
    return base, data.train


def trainer(
    ours: bool, base: Path, rows: Dataset, arguments: argparse.Namespace, folder: Path
) -> Any:
    """TRL's own trainer, with the arguments a user gives it, or ours."""
    from trl import SFTConfig, SFTTrainer

    from phi3lora.lora.adapters import attach_adapter
    from phi3lora.models.loading import load_model, load_tokenizer
    from phi3lora.training.fast.trainer import FastTrainer

    made = config(arguments, base)
    on_cpu = not torch.cuda.is_available()
    return (FastTrainer if ours else SFTTrainer)(
        model=attach_adapter(load_model(made.model, for_training=True), made),
        args=SFTConfig(
            str(folder / "checkpoints"),
            use_cpu=on_cpu,
            **{**made.training_config.arguments(), "bf16": True, "disable_tqdm": True},
        ),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        processing_class=load_tokenizer(str(base)),
        callbacks=[Clock(CLOCKS[arguments.clock])],
    )


class Clock(TrainerCallback):
    """Seconds from the first step's begin to the last one's end."""

    began = ended = 0.0

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.began = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended = self.now()


def steps(trainer: Any) -> float:
    """Train a few steps; seconds of one."""
    trainer.train()
    clock = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Clock))
    return (clock.ended - clock.began) / trainer.args.max_steps


def _weights(model: Any) -> int:
    """Weights that are multiplied: all but the embedding, which is looked up, and the adapter."""
    base = model.get_base_model()
    linear = [m for m in base.modules() if isinstance(m, torch.nn.Linear)]
    frozen = {id(m): m.in_features * m.out_features for m in linear if m.in_features > 64}
    return sum(frozen.values())


def _tokens(trainer: Any, rows: Dataset) -> float:
    """Tokens of a step, on average."""
    total = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    return total / len(trainer.train_dataset) * trainer.args.per_device_train_batch_size


def _matrix_seconds(operations: float, now: Callable[[], float]) -> float:
    """Seconds of so many operations in large bfloat16 products: what cannot be beaten.

    Four for each weight and token: two forward, two for the gradient of the layer's input. A
    frozen weight needs none of its own.
    """
    size = 2048 if operations > 1e10 else 256
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    times = []
    for _ in range(5):
        began = now()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(now() - began)
    return min(times) * operations / (2 * size**3)


# Memory


def alone(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The peak of this process after two turns of one contestant."""
    from phi3lora.training.trainer import peak_memory

    base, rows = prepared(arguments, folder)
    steps(trainer(name == OURS, base, rows, arguments, folder))
    return {"peak": float(peak_memory())}


def _peak(name: str, given: list[str]) -> float:
    """The same, in a process of its own that is given the same arguments."""
    command = [sys.executable, "-m", "benchmarks.training", *given, "--alone", name]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(ended.stdout.strip().splitlines()[-1])["peak"])


if __name__ == "__main__":
    main()
