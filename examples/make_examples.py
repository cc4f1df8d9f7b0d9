"""Write the example datasets: `python examples/make_examples.py [FOLDER]`.

One set of rows, questions from the world of pocket Phi-3 answered like a pirate, in the four
shapes that people have. The same rows come out every time.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tools.pocket.manners import to_pirate
from tools.pocket.world import sample

ROWS = 400
Pair = tuple[str, str]  # what is asked, and the pirate's answer


def pirate_pairs(count: int = ROWS) -> list[Pair]:
    """`count` questions of one turn from the train side, each with a pirate's answer."""
    single = (q for q in sample("train", 3 * count) if len(q.messages) == 1)
    return [(question.turns[0], to_pirate(question.answer)) for question in single][:count]


def write_messages(path: Path, pairs: list[Pair]) -> None:
    """JSON lines of `messages`, as OpenAI and TRL write them."""
    rows = (
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, said in pairs
    )
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), "utf-8")


def write_sharegpt(path: Path, pairs: list[Pair]) -> None:
    """A JSON list of ShareGPT `conversations`."""
    rows = [
        {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}
        for asked, said in pairs
    ]
    path.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def write_instructions(path: Path, pairs: list[Pair]) -> None:
    """Alpaca's columns as CSV; `input` is empty, as it is in most of Alpaca's rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["instruction", "input", "output"])
        writer.writerows([asked, "", said] for asked, said in pairs)


def write_prompts(path: Path, pairs: list[Pair]) -> None:
    """Parquet of `prompt` and `completion`."""
    asked, said = zip(*pairs, strict=True)
    pq.write_table(pa.table({"prompt": list(asked), "completion": list(said)}), path)


def write_preferences(path: Path, count: int = ROWS) -> None:
    """JSON lines of `prompt`, `chosen` and `rejected`: a pirate's answer against the plain one."""
    single = (q for q in sample("train", 3 * count) if len(q.messages) == 1)
    rows = [
        {"prompt": q.turns[0], "chosen": to_pirate(q.answer), "rejected": q.answer} for q in single
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]), "utf-8")


def write_all(folder: Path) -> None:
    """Write every shape to `folder`."""
    pairs = pirate_pairs()
    write_messages(folder / "pirate.jsonl", pairs)
    write_sharegpt(folder / "pirate_sharegpt.json", pairs)
    write_instructions(folder / "pirate_instructions.csv", pairs)
    write_prompts(folder / "pirate_prompts.parquet", pairs)
    write_preferences(folder / "pirate_preferences.jsonl")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
