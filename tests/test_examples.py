"""The example datasets: written by the repository, the same rows in four shapes."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from tools.pocket import world
from tools.pocket.manners import is_pirate

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = (
    "orders.jsonl",
    "pirate.jsonl",
    "pirate_instructions.csv",
    "pirate_preferences.jsonl",
    "pirate_prompts.parquet",
    "pirate_sharegpt.json",
    "sums.jsonl",
    "support.jsonl",
)


@pytest.fixture(scope="module")
def make_examples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_examples", EXAMPLES / "make_examples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_pairs() -> dict[str, list[tuple[str, str]]]:
    """What each file holds, as (asked, said) pairs."""
    lines = (EXAMPLES / "pirate.jsonl").read_text("utf-8").splitlines()
    messages = [json.loads(line)["messages"] for line in lines]
    sharegpt = json.loads((EXAMPLES / "pirate_sharegpt.json").read_text("utf-8"))
    with (EXAMPLES / "pirate_instructions.csv").open(encoding="utf-8", newline="") as file:
        alpaca = list(csv.DictReader(file))
    prompts = pq.read_table(EXAMPLES / "pirate_prompts.parquet").to_pylist()
    return {
        "messages": [(user["content"], answer["content"]) for user, answer in messages],
        "sharegpt": [(h["value"], g["value"]) for h, g in (r["conversations"] for r in sharegpt)],
        "alpaca": [(row["instruction"], row["output"]) for row in alpaca],
        "prompts": [(row["prompt"], row["completion"]) for row in prompts],
    }


def test_the_files_are_what_the_script_writes(make_examples, tmp_path):
    make_examples.write_all(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for name in sorted(set(NAMES) - {"pirate_prompts.parquet"}):
        assert (tmp_path / name).read_bytes() == (EXAMPLES / name).read_bytes(), name
    written = pq.read_table(tmp_path / "pirate_prompts.parquet")
    assert written.equals(pq.read_table(EXAMPLES / "pirate_prompts.parquet"))


def test_the_four_shapes_hold_the_same_rows():
    pairs = read_pairs()
    assert len(pairs["messages"]) >= 300
    assert pairs["messages"] == pairs["sharegpt"] == pairs["alpaca"] == pairs["prompts"]


def test_every_row_is_a_right_answer_of_the_train_side_in_the_pirates_manner():
    learnt = {q.turns: q for q in world.questions("train") if not q.system}
    held_out = {q.turns for q in world.questions("held_out") if not q.system}
    rows = read_pairs()["messages"]
    assert len({asked for asked, _ in rows}) == len(rows)
    for asked, said in rows:
        assert learnt[(asked,)].is_correct(said), asked
        assert is_pirate(said), said
        assert (asked,) not in held_out


def rows_of(name: str) -> list[tuple[str, str]]:
    lines = (EXAMPLES / f"{name}.jsonl").read_text("utf-8").splitlines()
    messages = [json.loads(line)["messages"] for line in lines]
    return [(user["content"], answer["content"]) for user, answer in messages]


def test_every_order_is_json_with_the_same_keys_and_what_the_sentence_says():
    rows = rows_of("orders")
    assert len({asked for asked, _ in rows}) == len(rows) >= 300
    for asked, said in rows:
        order = json.loads(said)
        assert list(order) == ["name", "number", "colour", "thing", "day"]
        assert all(str(value) in asked for value in order.values())


def test_every_ticket_is_answered_with_regret_a_deed_and_thanks():
    rows = rows_of("support")
    assert len({asked for asked, _ in rows}) == len(rows) >= 200
    for _, said in rows:
        assert said.startswith("I am sorry about the trouble with your ")
        assert "Here is what I did: " in said
        assert said.endswith("Thank you for telling us!")


def test_every_sum_is_right_and_in_one_form():
    rows = rows_of("sums")
    assert len({asked for asked, _ in rows}) == len(rows) >= 200
    for asked, said in rows:
        a, plus, b, equals, c = said.removesuffix(".").split()
        assert (plus, equals, int(c)) == ("+", "=", int(a) + int(b))
        assert a in asked
        assert b in asked
