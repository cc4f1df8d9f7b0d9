"""Two answers for the price of one: base and tuned together, beside one answer alone.

    python -m benchmarks.chat [--size pocket|58m|mini] [--dtype float32|bfloat16] [--rounds 9]

Prints a table and writes docs/benchmarks/chat.json. The contestants take turns within each round,
and the figures are medians over the rounds. The peers are called as their users call them:
`generate` of transformers, and PEFT's batch of mixed adapters.

- `together / alone`: time of both answers from one pass over one of them alone. Goal: 1.15.
- `tenth / first turn`: time to the first token of both columns. Goal: 1.5.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from phi3lora.chat.options import Options
from phi3lora.chat.serving import Column, Serving
from phi3lora.config import ModelConfig
from phi3lora.models.loading import check_base, load_model
from phi3lora.models.pocket import CHECKPOINT

RESULT = Path(__file__).parent.parent / "docs" / "benchmarks" / "chat.json"
SIZES = {
    "58m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "mini": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32},
}
QUESTION = "What is the capital of France, and what is the opposite of warm? Tell me both."
TURN = 16  # new tokens of an answer in the middle of a conversation, at most
Contestant = Callable[[], float]


def main() -> None:
    """Measure every size asked for, print the table, keep the figures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    results = []
    for size in arguments.size:
        for dtype in arguments.dtype:
            with tempfile.TemporaryDirectory() as folder:
                results.append(measure(size, dtype, arguments, Path(folder)))
                print_table(results[-1])
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"machine": _machine(), "results": results}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--size", nargs="+", default=["pocket", "58m"], choices=["pocket", *SIZES])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each answer")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def measure(size: str, dtype: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All contestants on one model: medians in seconds, and the ratios."""
    base = _base(size, dtype, arguments.quantization, folder)
    adapter_folder = _adapter(base, folder / "adapter")
    serving = Serving.open(base, lambda _: None)
    stops, serving._stops = serving._stops, set()  # equal lengths for everybody
    contestants = {
        **_ours(serving, adapter_folder, arguments.tokens),
        **_peers(base, adapter_folder, arguments.tokens),
    }
    for contestant in contestants.values():
        contestant()  # warm up
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, contestant in contestants.items():
            taken[name].append(contestant())
    serving._stops = stops
    first, tenth = _turns(serving, adapter_folder, arguments.rounds)
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    return {
        "size": size,
        "parameters": check_base(base.path).parameters,
        "dtype": dtype,
        "quantization": arguments.quantization,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "seconds": seconds,
        "together_over_base_alone": _ratio(taken, "together", "base alone"),
        "together_over_tuned_alone": _ratio(taken, "together", "tuned alone"),
        "together_over_generate": _ratio(taken, "together", "transformers, base alone"),
        "peft_batch_over_generate": _ratio(taken, "PEFT, mixed batch", "transformers, base alone"),
        "first_turn": first,
        "tenth_turn": tenth,
        "tenth_over_first": tenth / first,
    }


def _ours(serving: Serving, folder: Path, tokens: int) -> dict[str, Contestant]:
    adapter = serving.adapter(folder)

    def answer(*adapters: Any) -> Contestant:
        def contestant() -> float:
            columns = [_ask(serving, [QUESTION], used, tokens) for used in adapters]
            return _timed(lambda: _run(serving, columns))

        return contestant

    return {
        "base alone": answer(None),
        "tuned alone": answer(adapter),
        "together": answer(None, adapter),
    }


def _peers(base: ModelConfig, folder: Path, tokens: int) -> dict[str, Contestant]:
    """`generate`, with the same number of tokens in and out."""
    from peft import PeftModel

    model = load_model(base, for_training=False)
    tuned = PeftModel.from_pretrained(load_model(base, for_training=False), folder).eval()
    prompt = torch.full((1, 32), 7, device=model.device)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def generate(model: Any, rows: int, **more: Any) -> Contestant:
        ids = prompt.repeat(rows, 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        return lambda: _timed(lambda: model.generate(**inputs, **options, **more))

    return {
        "transformers, base alone": generate(model, 1),
        "PEFT, tuned alone": generate(tuned, 1),
        "PEFT, mixed batch": generate(tuned, 2, adapter_names=["__base__", "default"]),
    }


def _turns(serving: Serving, folder: Path, rounds: int) -> tuple[float, float]:
    """Seconds to the first token of both columns, in the first and in the tenth turn."""
    adapter = serving.adapter(folder)
    first, tenth = [], []
    for number in range(rounds):
        conversations: list[list[Any]] = [[], []]
        for turn in range(10):
            question = {"role": "user", "content": f"{number} {turn} {QUESTION}"}
            for messages in conversations:
                messages.append(question)
            taken, columns = _first_tokens(serving, conversations, adapter)
            _run(serving, columns)
            for messages, column in zip(conversations, columns, strict=True):
                serving.keep(column)
                messages.append({"role": "assistant", "content": column.stream.text})
            if turn in {0, 9}:
                (first if turn == 0 else tenth).append(taken)
        serving._idle.clear()
    return statistics.median(first), statistics.median(tenth)


def _first_tokens(
    serving: Serving, conversations: list[list[Any]], adapter: Any
) -> tuple[float, list[Column]]:
    began = time.perf_counter()
    columns = [
        serving.start(messages, used, Options(max_new_tokens=TURN))
        for messages, used in zip(conversations, (None, adapter), strict=True)
    ]
    while not all(column.new for column in columns):
        serving.step(columns)
    return time.perf_counter() - began, columns


def _ask(serving: Serving, words: list[str], adapter: Any, tokens: int) -> Column:
    messages: list[Any] = [{"role": "user", "content": text} for text in words]
    return serving.start(messages, adapter, Options(max_new_tokens=tokens))


def _run(serving: Serving, columns: list[Column]) -> None:
    while open_ := [column for column in columns if not column.done]:
        serving.step(open_)


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _ratio(taken: dict[str, list[float]], one: str, other: str) -> float:
    """Median of the rounds' ratios: what slows a whole round down falls out."""
    return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))


def _base(size: str, dtype: str, quantization: str, folder: Path) -> ModelConfig:
    """The pocket Phi-3, or a Phi-3 of another size with random weights."""
    if size == "pocket":
        return ModelConfig(path="pocket", dtype=dtype, quantization=quantization)
    from transformers import Phi3Config, Phi3ForCausalLM

    shutil.copytree(CHECKPOINT, folder / "base")
    config = Phi3Config(
        **SIZES[size],
        vocab_size=32064,
        num_attention_heads=SIZES[size]["hidden_size"] // (96 if size == "mini" else 64),
        max_position_embeddings=4096,
        sliding_window=2047,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if size == "mini" else torch.float32)
    try:
        Phi3ForCausalLM(config).save_pretrained(folder / "base")
    finally:
        torch.set_default_dtype(torch.float32)
    return ModelConfig(path=str(folder / "base"), dtype=dtype, quantization=quantization)


def _adapter(base: ModelConfig, folder: Path) -> Path:
    """LoRA of rank 16 on all linear layers, with random weights."""
    from peft import LoraConfig, get_peft_model

    names = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=names, init_lora_weights=False)
    tuned = get_peft_model(load_model(base, for_training=False), lora)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def print_table(result: dict[str, Any]) -> None:
    """One block for each model."""
    millions = result["parameters"] / 1e6
    print(f"\n{result['size']} ({millions:.1f} M, {result['dtype']}, {result['quantization']})")
    for name, seconds in result["seconds"].items():
        each = seconds / result["tokens"] * 1000
        print(f"  {name:28} {seconds:8.3f} s   {each:7.2f} ms a token")
    print(f"  {'together / base alone':28} {result['together_over_base_alone']:8.2f}   goal 1.15")
    print(f"  {'together / tuned alone':28} {result['together_over_tuned_alone']:8.2f}   goal 1.15")
    print(f"  {'together / generate of base':28} {result['together_over_generate']:8.2f}")
    print(f"  {'PEFT mixed / generate':28} {result['peft_batch_over_generate']:8.2f}")
    print(f"  {'first token, turn 1':28} {result['first_turn'] * 1000:8.1f} ms")
    print(f"  {'first token, turn 10':28} {result['tenth_turn'] * 1000:8.1f} ms")
    print(f"  {'tenth / first turn':28} {result['tenth_over_first']:8.2f}   goal 1.5")


if __name__ == "__main__":
    main()
