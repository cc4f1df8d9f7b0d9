"""Two answers for the price of one: base and tuned together, beside one answer alone.

    python -m benchmarks.chat [--size pocket 58m mini] [--dtype float32 bfloat16] [--rounds 9]

The contestants take turns within each round, and the figures are medians over the rounds. The peers
are called as their users call them: `generate` of transformers, and PEFT's batch of mixed adapters.
`mini` is a full-size Phi-3-mini with random weights, for a GPU; on a CPU with `--no-peers`, which
hold copies of the model of their own.

- `together / alone`: time of both answers from one pass over one of them alone.
- `tenth / first turn`: time to the first token of both columns.
- `of the memory's rate`, on a GPU: every weight but the embedding's is read once a token, whoever
  asks; that many bytes a second, over those that the card copies (read and written) in a second.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
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
    timed,
)
from phi3lora.chat.options import Options
from phi3lora.chat.replay import Replay
from phi3lora.chat.serving import Column, Serving
from phi3lora.config import ModelConfig
from phi3lora.models.base import check_base
from phi3lora.models.loading import load_model
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.training.estimate import BYTES, FOUR_BITS

SIZES = {
    "58m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "mini": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32},
}
QUESTION = "What is the capital of France, and what is the opposite of warm? Tell me both."
TURN = 16  # new tokens of an answer in the middle of a conversation, at most
BASE, TUNED, BOTH = "base alone", "tuned alone", "together"
GRAPH = "together, CUDA graph"
MIB = 2**20
GENERATE, MIXED = "transformers, base alone", "PEFT, mixed batch"
RATIOS = (
    (BOTH, BASE),
    (BOTH, TUNED),
    (GRAPH, BOTH),
    (BOTH, GENERATE),
    (MIXED, GENERATE),
)


def main(argv: list[str] | None = None) -> None:
    """Measure every model asked for, print, keep."""
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    results = []
    for size in arguments.size:
        for dtype in arguments.dtype:
            with tempfile.TemporaryDirectory() as folder:
                results.append(measure(size, dtype, arguments, Path(folder)))
    command = command_line("benchmarks.chat", sys.argv[1:] if argv is None else argv)
    publish(_report(arguments, results, command), arguments.out)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__, rounds=9)
    made.add_argument("--size", nargs="+", default=["pocket", "58m"], choices=["pocket", *SIZES])
    made.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    made.add_argument("--quantization", default="none")
    made.add_argument("--tokens", type=int, default=64, help="new tokens of each answer")
    made.add_argument("--threads", type=int, default=0)
    made.add_argument("--no-peers", action="store_true", help="where memory holds one model only")
    arguments = made.parse_args(argv)
    if arguments.small:
        arguments.size, arguments.dtype = ["pocket"], ["float32"]
        arguments.rounds, arguments.tokens, arguments.threads = 1, 8, 1
    return arguments


def measure(size: str, dtype: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All contestants on one model: medians in seconds, and the ratios."""
    base = _base(size, dtype, arguments.quantization, folder)
    adapter_folder = _adapter(base, folder / "adapter")
    serving = Serving.open(base, lambda _: None)
    stops, serving._stops = serving._stops, set()  # equal lengths for everybody
    contestants = _ours(serving, adapter_folder, arguments.tokens)
    if not arguments.no_peers:
        contestants |= _peers(base, adapter_folder, arguments.tokens)
    taken = take_turns(contestants, arguments.rounds)
    serving._stops = stops
    first, tenth = _turns(serving, adapter_folder, arguments.rounds)
    read = _weights_read(base) * arguments.tokens  # bytes behind a pair of answers
    seconds = medians(taken)
    pair = min(seconds[name] for name in (BOTH, GRAPH) if name in seconds)
    return {
        "of_the_memorys_rate": read / pair / _memory_rate(),
        "size": size,
        "parameters": check_base(base.path).parameters,
        "dtype": dtype,
        "quantization": arguments.quantization,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "seconds": seconds,
        "ratios": {
            f"{one} / {other}": ratio(taken, one, other)
            for one, other in RATIOS
            if {one, other} <= taken.keys()
        },
        "first_turn": first,
        "tenth_turn": tenth,
        "tenth_over_first": tenth / first,
    }


def _weights_read(base: ModelConfig) -> float:
    """Bytes of the weights that one pass reads: of the embedding it takes a row for each token."""
    info = check_base(base.path)
    table = info.vocabulary * info.hidden  # as large as the head, or the head itself
    layers = info.parameters - table * (1 if info.tied else 2)
    element = BYTES[base.dtype]
    four_bits = FOUR_BITS[base.double_quantization]
    return table * element + layers * (element if base.quantization == "none" else four_bits)


def _memory_rate() -> float:
    """Bytes a second that a copy reads and writes: the best of five."""
    on_gpu = torch.cuda.is_available()
    source = torch.zeros((1024 if on_gpu else 32) * MIB, device="cuda" if on_gpu else "cpu")
    target = torch.empty_like(source)
    taken = [timed(lambda: target.copy_(source)) for _ in range(6)]
    return 2 * source.nbytes / min(taken[1:])


def _ours(serving: Serving, folder: Path, tokens: int) -> dict[str, Contestant]:
    adapter = serving.adapter(folder)

    def answer(*adapters: Any) -> Contestant:
        def contestant() -> float:
            columns = [_ask(serving, [QUESTION], used, tokens) for used in adapters]
            return timed(lambda: _run(serving, columns))

        return contestant

    found = {BASE: answer(None), TUNED: answer(adapter), BOTH: answer(None, adapter)}
    if serving.model.device.type == "cuda":
        found[GRAPH] = partial(_replayed, serving, found[BOTH])
    return found


def _replayed(serving: Serving, contestant: Contestant) -> float:
    """The same with `PHI3LORA_CHAT_GRAPH=1`, recording included."""
    serving.replay = Replay(serving.model, serving.router)
    try:
        return contestant()
    finally:
        serving.replay = None


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
        return lambda: timed(lambda: model.generate(**inputs, **options, **more))

    return {
        GENERATE: generate(model, 1),
        "PEFT, tuned alone": generate(tuned, 1),
        MIXED: generate(tuned, 2, adapter_names=["__base__", "default"]),
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


def _report(arguments: argparse.Namespace, results: list[dict[str, Any]], command: str) -> Report:
    models = [_model(result) for result in results]
    names = list(results[0]["seconds"])
    answers = [
        [model, *(f"{result['seconds'][name]:.3f} s" for name in names)]
        for model, result in zip(models, results, strict=True)
    ]
    kinds = list(results[0]["ratios"])
    ratios = [
        [model, *(f"{result['ratios'][kind]:.2f}" for kind in kinds)]
        for model, result in zip(models, results, strict=True)
    ]
    turns = [
        [
            model,
            f"{1000 * result['first_turn']:.1f} ms",
            f"{1000 * result['tenth_turn']:.1f} ms",
            f"{result['tenth_over_first']:.2f}",
        ]
        for model, result in zip(models, results, strict=True)
    ]
    shares = [
        [model, f"{result['of_the_memorys_rate']:.0%}"]
        for model, result in zip(models, results, strict=True)
    ]
    shown = {name: [result["seconds"][name] for result in results] for name in names}
    kind = "-gpu" if torch.cuda.is_available() else "-full" if arguments.no_peers else ""
    return Report(
        name=f"chat{kind}",
        title="Two answers for the price of one",
        about=f"Answers of {arguments.tokens} tokens, {torch.get_num_threads()} threads; medians "
        f"of {arguments.rounds} rounds. `together` is both columns of Compare from one pass.",
        command=command,
        tables=[
            Table("One answer, or both", ["", *names], answers),
            Table("Ratios", ["", *kinds], ratios),
            Table("To the first token of both", ["", "first turn", "tenth turn", "ratio"], turns),
            Table("Both answers, of the memory's rate", ["", "share"], shares),
        ],
        goals=[] if arguments.small else _goals(models, results),
        pictures=[Bars("One answer, or both", "seconds", shown, models)],
        figures={"results": results},
    )


def _model(result: dict[str, Any]) -> str:
    millions, quantized = result["parameters"] / 1e6, result["quantization"]
    dtype = result["dtype"] if quantized == "none" else quantized
    return f"{millions:,.1f} M, {dtype}"


def _goals(models: list[str], results: list[dict[str, Any]]) -> list[Goal]:
    """For the largest base: a toy's time goes into Python, not into weights."""
    largest = max(result["parameters"] for result in results)
    goals = []
    for model, result in zip(models, results, strict=True):
        if result["parameters"] == largest:
            base, tuned = (result["ratios"][f"{BOTH} / {alone}"] for alone in (BASE, TUNED))
            turns = result["tenth_over_first"]
            if torch.cuda.is_available():
                share = 100 * result["of_the_memorys_rate"]
                goals.append(Goal(f"Of the memory's rate, {model}", share, 60, "least", " %"))
            goals += [
                Goal(
                    f"Both answers over the base's alone, {model}",
                    base,
                    1.15,
                    "most",
                    "×",
                    "The base's answer alone does without the adapter's products; both cannot.",
                ),
                Goal(f"Both answers over the tuned one alone, {model}", tuned, 1.15, "most", "×"),
                Goal(f"First token, tenth turn over first, {model}", turns, 1.5, "most", "×"),
            ]
    return goals


if __name__ == "__main__":
    main()
