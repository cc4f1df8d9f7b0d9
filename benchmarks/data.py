"""Preparing data: ours beside `datasets.map` with `apply_chat_template`, and TRL's own.

    python -m benchmarks.data [--rows 20000] [--rounds 3] [--small]

Short conversations in a JSONL file become tokens and loss mask. Each contestant has a process of
its own and takes turns with the others; libraries and tokenizer are loaded before its clock
starts. Everybody may use all cores, and a second time with the same file, settings and cache shows
what is not done twice. Peak memory is that of the process and its children together, from the
first import on.

- phi3lora: `prepare`, which detects the format and counts what is dropped, cut and leaked.
- datasets.map: `apply_chat_template(tokenize=True)`, tokens without a mask.
- TRL: `SFTTrainer(..., assistant_only_loss=True)`, which tokenizes when it is made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import (
    DATA,
    REPOSITORY,
    Bars,
    Goal,
    Report,
    Table,
    Taken,
    medians,
    parser,
    publish,
    ratio,
)

OURS, MAP, TRL = "phi3lora", "datasets.map", "TRL"
VOCABULARY = DATA / "phi-3-mini-4k-instruct"
MAX_LENGTH = 1024
GROWTH = 10  # times as many rows, to see whether memory grows with them
LOOK = 0.1  # seconds between two looks at memory
MIB = 2**20


def main(argv: list[str] | None = None) -> None:
    """Measure, print, keep; or be one contestant."""
    made = parser(__doc__, rounds=3)
    made.add_argument("--rows", type=int, default=20_000)
    made.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    made.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args(argv)
    if arguments.contestant:
        prepare_once(arguments.contestant, arguments.file, arguments.cache)
        return
    rows, rounds = (300, 1) if arguments.small else (arguments.rows, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        publish(measure(rows, rounds, Path(folder)), arguments.out)


def measure(rows: int, rounds: int, folder: Path) -> Report:
    """Everybody in turn, each round with an empty cache and then with the one it left."""
    file = write_rows(folder / "rows.jsonl", rows)
    first: Taken = {name: [] for name in CONTESTANTS}
    again: Taken = {name: [] for name in CONTESTANTS}
    work: Taken = {name: [] for name in CONTESTANTS}
    memory: Taken = {name: [] for name in CONTESTANTS}
    made: dict[str, dict[str, float]] = {"rows": {}, "tokens": {}}
    for number in range(rounds):
        for name in CONTESTANTS:
            told, peak = in_a_process(name, file, folder / f"{name}-{number}")
            first[name].append(told["seconds"])
            again[name].append(told["again"])
            work[name].append(told["processor"])
            memory[name].append(peak / MIB)
            for count, values in made.items():
                values[name] = told[count]
    more = write_rows(folder / "more.jsonl", rows * GROWTH)
    _, peak = in_a_process(OURS, more, folder / "more")
    report = _report(rows, rounds, first, again, work, memory, peak / MIB)
    report.figures.update(made)
    return report


# The contestants, each in its own process


def in_a_process(name: str, file: Path, cache: Path) -> tuple[dict[str, float], int]:
    """One contestant's seconds, and the most bytes that it and its children held."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.data",
        "--contestant",
        name,
        "--file",
        str(file),
        "--cache",
        str(cache),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    with tempfile.TemporaryFile("w+") as complaints:
        child = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=complaints,
        )
        with Peak(child.pid) as peak:
            out, _ = child.communicate()
        if child.returncode:
            complaints.seek(0)
            raise RuntimeError(f"{name} failed:\n{complaints.read()[-2000:]}")
    told: dict[str, float] = json.loads(out.splitlines()[-1])
    return told, peak.most


class Peak:
    """Watches a process and its children, and keeps the most bytes they held together."""

    def __init__(self, pid: int) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, args=(psutil.Process(pid),))

    def __enter__(self) -> Peak:
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watching.join()

    def _watch(self, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            while not self._ended.is_set() and process.status() != psutil.STATUS_ZOMBIE:
                self.most = max(self.most, held(process))
                self._ended.wait(LOOK)


def held(process: psutil.Process) -> int:
    """Bytes of a process and its children; what they share is counted once, where Linux says."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            full = one.memory_full_info()
            total += getattr(full, "pss", full.rss)
    return total


def prepare_once(name: str, file: Path, cache: Path) -> None:
    """Be a contestant: prepare the file, twice, and print how long it took."""
    cache.mkdir(parents=True, exist_ok=True)
    work = CONTESTANTS[name](file, cache)
    used, began = _processor(), time.perf_counter()
    table = work()
    told = {"seconds": time.perf_counter() - began, "processor": _processor() - used}
    began = time.perf_counter()
    work()
    told["again"] = time.perf_counter() - began
    print(json.dumps({**told, "rows": len(table), "tokens": _count(table)}))


def _count(table: Any) -> int:
    """Tokens in a table of the `datasets` library."""
    import pyarrow.compute

    return int(
        pyarrow.compute.sum(pyarrow.compute.list_value_length(table.data["input_ids"])).as_py()
    )


def _processor() -> float:
    """Processor time of this process and its ended children, in seconds."""
    return sum(os.times()[:4])


def _ours(file: Path, cache: Path) -> Callable[[], Any]:
    import datasets  # noqa: F401

    from phi3lora.config import RunConfig
    from phi3lora.data.preparation import prepare

    tokenizer = _tokenizer()
    config = RunConfig().with_values(
        {
            "data.path": str(file),
            "data.test_size": 0,
            "training_config.max_length": MAX_LENGTH,
            "training_config.eval_strategy": "no",
            "evaluation.enabled": False,
        }
    )

    def work() -> Any:
        return prepare(config, tokenizer, cache_folder=cache).train

    return work


def _map(file: Path, cache: Path) -> Callable[[], Any]:
    tokenizer = _tokenizer()

    def render(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return {"input_ids": tokenizer.apply_chat_template(rows["messages"])["input_ids"]}

    def work() -> Any:
        table: Any = _loaded(file, cache)
        return table.map(render, batched=True, num_proc=os.cpu_count())

    return work


def _trl(file: Path, cache: Path) -> Callable[[], Any]:
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from phi3lora.models.pocket import CHECKPOINT

    tokenizer = _tokenizer()
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    args = SFTConfig(
        str(cache / "out"),
        max_length=MAX_LENGTH,
        assistant_only_loss=True,
        report_to="none",
        dataset_num_proc=os.cpu_count(),
        use_cpu=True,
        bf16=False,
    )

    def work() -> Any:
        table: Any = _loaded(file, cache)
        trainer = SFTTrainer(model, args, train_dataset=table, processing_class=tokenizer)
        return trainer.train_dataset

    return work


def _loaded(file: Path, cache: Path) -> Any:
    """The rows, with nothing kept outside of this contestant's folder."""
    from datasets import load_dataset

    return load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))


CONTESTANTS = {OURS: _ours, MAP: _map, TRL: _trl}


def _tokenizer() -> Any:
    """The real vocabulary where it is at hand, pocket's elsewhere."""
    from transformers import AutoTokenizer

    from phi3lora.models.pocket import CHECKPOINT

    return AutoTokenizer.from_pretrained(VOCABULARY if VOCABULARY.is_dir() else CHECKPOINT)


# The rows


def write_rows(path: Path, rows: int) -> Path:
    """A JSONL file of short conversations, no two alike."""
    source = list(_instructions())
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            asked, answer = source[number % len(source)]
            messages = [
                {"role": "user", "content": f"{asked} ({number})"},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def _instructions() -> Iterator[tuple[str, str]]:
    """Real instruction rows where they are at hand, else words at random, equally long."""
    real = DATA / "alpaca_en_demo.json"
    if real.is_file():
        for row in json.loads(real.read_text(encoding="utf-8")):
            yield f"{row['instruction']} {row['input']}".strip(), row["output"]
        return
    words = ["the", "small", "red", "cat", "sees", "what", "where", "capital", "of", "France"]
    chance = random.Random(0)
    for _ in range(1000):
        yield " ".join(chance.choices(words, k=15)), " ".join(chance.choices(words, k=80))


def _report(
    rows: int, rounds: int, first: Taken, again: Taken, work: Taken, memory: Taken, grown: float
) -> Report:
    seconds, second, processor, peak = (medians(taken) for taken in (first, again, work, memory))
    body = [
        [
            name,
            f"{seconds[name]:.2f} s",
            f"{rows / seconds[name]:,.0f}",
            f"{processor[name]:.2f} s",
            f"{peak[name]:,.0f} MiB",
            f"{second[name]:.2f} s",
            f"{ratio(first, name, OURS):.2f}×",
        ]
        for name in CONTESTANTS
    ]
    growth = [
        [f"{rows:,} rows", f"{peak[OURS]:,.0f} MiB"],
        [f"{rows * GROWTH:,} rows", f"{grown:,.0f} MiB"],
    ]
    vocabulary = "the real Phi-3 vocabulary" if VOCABULARY.is_dir() else "pocket's vocabulary"
    return Report(
        name="data",
        title="Preparing data",
        about=f"{rows:,} short conversations in a JSONL file, {vocabulary}, everybody with all "
        f"cores; medians of {rounds} rounds. `datasets.map` makes tokens alone; TRL and we make "
        "the loss mask too, and we find the format, leaks and cut rows on the way.",
        command=f"python -m benchmarks.data --rows {rows}",
        tables=[
            Table(
                "From file to tokens",
                [
                    "",
                    "time",
                    "rows/s",
                    "processor time",
                    "peak memory",
                    "second time",
                    "time over ours",
                ],
                body,
            ),
            Table(
                "Our peak memory",
                ["", ""],
                growth,
                "The prepared file is mapped, and its pages count here for as long as the system "
                "has no other use for them.",
            ),
        ],
        goals=[
            Goal("As fast as TRL's preparation", ratio(first, TRL, OURS), 1, "least", "×"),
            Goal(
                "As fast as datasets.map without a mask", ratio(first, MAP, OURS), 1, "least", "×"
            ),
            Goal(f"Peak memory of {GROWTH} times the rows", grown / peak[OURS], 1.3, "most", "×"),
            Goal(
                "A second time takes, of the first", second[OURS] / seconds[OURS], 0.2, "most", "×"
            ),
        ],
        pictures=[
            Bars(
                "From file to tokens",
                "seconds",
                {name: [seconds[name], second[name]] for name in CONTESTANTS},
                ["first time", "again"],
            ),
            Bars("Peak memory", "MiB", {name: [peak[name]] for name in CONTESTANTS}),
        ],
        figures={
            "first": first,
            "again": again,
            "processor": work,
            "memory_mib": memory,
            "grown_mib": grown,
        },
    )


if __name__ == "__main__":
    main()
