"""Write the example datasets: `python examples/make_examples.py [FOLDER]`.

Three things that people fine-tune for: a manner (a pirate's), a form (an order as JSON) and a tone
(that of a kind support desk); and sums, whose answers can be checked. The pirate's rows come in the
four shapes that people have. The same rows come out every time.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tools.pocket.manners import to_pirate
from tools.pocket.world import sample

ROWS = 400
ORDERS, TICKETS = 300, 240  # rows of the next two
SUMS = 240  # questions of which an answer can be checked
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


NAMES = [
    "Ann",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ida",
    "Jonas",
    "Kim",
    "Lena",
    "Mika",
    "Nora",
    "Omar",
    "Paula",
]
COLOURS = ["red", "green", "blue", "yellow", "white", "black"]
THINGS = ["apples", "chairs", "lamps", "shirts", "cups", "books", "bags", "pens", "hats", "roses"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
SAID = (
    "{name} would like {number} {colour} {thing} on {day}.",
    "On {day} {name} needs {number} {thing}, {colour} ones.",
    "Please send {name} {number} {colour} {thing} by {day}.",
    "{number} {thing} in {colour} for {name}, to be there on {day}.",
)


def order_pairs(count: int = ORDERS) -> list[Pair]:
    """An order in a sentence, and as JSON with its keys always in the same order."""
    choose, pairs = random.Random(0), dict[str, str]()
    while len(pairs) < count:
        order = {
            "name": choose.choice(NAMES),
            "number": choose.randint(2, 40),
            "colour": choose.choice(COLOURS),
            "thing": choose.choice(THINGS),
            "day": choose.choice(DAYS),
        }
        pairs[choose.choice(SAID).format(**order)] = json.dumps(order)
    return list(pairs.items())


BOUGHT = [
    "lamp",
    "phone",
    "bag",
    "chair",
    "camera",
    "watch",
    "bicycle",
    "kettle",
    "radio",
    "jacket",
    "printer",
    "tent",
]
# What is wrong, what is done about it, and when it is well again.
TROUBLE = (
    ("My {thing} has not arrived.", "I have asked the carrier where it is", "by tomorrow noon"),
    ("The {thing} came broken.", "a new one leaves our store today", "within three days"),
    ("I was charged twice for the {thing}.", "I have sent one payment back", "within five days"),
    ("The {thing} is the wrong colour.", "I have set aside the right one", "on Friday"),
    ("How do I return the {thing}?", "a label is in your mail now", "as soon as it is back"),
    ("A part of the {thing} is missing.", "I have packed the part for you", "within two days"),
    ("My {thing} stopped working.", "our workshop looks at it for free", "within a week"),
)
OPENINGS = ("{}", "Hello. {}", "{} Can you help?", "{} I am not happy.")


def ticket_pairs(count: int = TICKETS) -> list[Pair]:
    """A trouble, and the desk's answer: sorry first, then what was done, then when."""
    pairs = [
        (
            opening.format(said.format(thing=thing)),
            f"I am sorry about the trouble with your {thing}. Here is what I did: {done}. It will "
            f"be settled {when}. Thank you for telling us!",
        )
        for thing, (said, done, when), opening in itertools.product(BOUGHT, TROUBLE, OPENINGS)
    ]
    random.Random(0).shuffle(pairs)
    return pairs[:count]


ASKED = (
    "{a} and {b} together?",
    "{a} with {b}",
    "Give me {a} and {b} added.",
    "Put {a} and {b} together.",
    "{b} added to {a} is what?",
)


def sum_pairs(count: int = SUMS) -> list[Pair]:
    """Sums in words that pocket does not know well, each with its answer in pocket's own form."""
    chance = random.Random(0)
    every = [
        (phrasing.format(a=a, b=b), f"{a} + {b} = {a + b}.")
        for a, b, phrasing in itertools.product(range(1, 10), range(1, 10), ASKED)
    ]
    return chance.sample(every, count)


def write_all(folder: Path) -> None:
    """Write every data set, and the pirate in every shape, to `folder`."""
    pairs = pirate_pairs()
    write_messages(folder / "pirate.jsonl", pairs)
    write_sharegpt(folder / "pirate_sharegpt.json", pairs)
    write_instructions(folder / "pirate_instructions.csv", pairs)
    write_prompts(folder / "pirate_prompts.parquet", pairs)
    write_preferences(folder / "pirate_preferences.jsonl")
    write_messages(folder / "orders.jsonl", order_pairs())
    write_messages(folder / "support.jsonl", ticket_pairs())
    write_messages(folder / "sums.jsonl", sum_pairs())


if __name__ == "__main__":
    write_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
