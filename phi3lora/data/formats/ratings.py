"""Rated answers: several of one prompt in a row, or one a row, each with a number.

Of each prompt the best-rated answer is paired with the worst-rated one: that is what methods of
preference learn from. Rows of one prompt stand together in every such set that is known, so they
are gathered as they pass, and memory holds those of one prompt.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from phi3lora.data.cells import text_of
from phi3lora.data.conversation import Detected, Message, Row, Unusable, Writes
from phi3lora.data.formats import preference
from phi3lora.data.shape import SYSTEM, Columns, Format, Judged, Seen, by_name

ALIKE = "all answers to the prompt are rated alike"
ALONE = "one rated answer alone, which nothing can be compared with"
_BEST, _WORST, _RATED = "best", "worst", "rated"  # columns of a gathered row
_TEXTS = ("response", "completion", "answer", "text", "content", "output")
_SCORES = ("overall_score", "score", "rating", "reward", "helpfulness")
_LISTS = ("scores", "ratings", "rewards")


def find(seen: Seen) -> Columns | None:
    """By name, where there are numbers: of answers to be judged, or of several in a row."""
    found = by_name(FORMAT, seen)
    if "answers" not in found or seen.named("label", "labels"):
        return None
    rows = [list(_rated(row, found)) for row in seen.rows]
    wanted = seen.judged or seen.chosen or any(len(row) > 1 for row in rows)
    return found if wanted and any(rows) else None


def _rated(row: Row, columns: Columns) -> Iterator[tuple[float, str]]:
    """The answers of a row that have a number: (rating, answer)."""
    answers, numbers = row.get(columns["answers"]), row.get(columns.get("ratings", ""))
    answers, numbers = _listed(answers), _listed(numbers)
    if not isinstance(answers, list):
        answers, numbers = [answers], [numbers]
    if not isinstance(numbers, list):
        numbers = [None] * len(answers)
    for answer, number in zip(answers, numbers, strict=False):
        text, own = _taken_apart(answer)
        rating = _number(own if number is None else number)
        if rating is not None and text.strip():
            yield rating, text


def _listed(value: Any) -> Any:
    """A list that stands in a cell of text, as CSV files have it, as a list."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return list(value) if isinstance(value, tuple) else value


def _taken_apart(answer: Any) -> tuple[str, Any]:
    """An answer and its own number, where it is a mapping that holds both."""
    if not isinstance(answer, Mapping):
        return text_of(answer), None
    text = next((answer[name] for name in _TEXTS if name in answer), "")
    return text_of(text), next((answer[name] for name in _SCORES if name in answer), None)


def _number(value: Any) -> float | None:
    """A rating; None for what is none, such as N/A."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(text_of(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def gather(rows: Iterable[Row], detected: Detected, threads: str) -> Iterator[Row]:
    """A row for each prompt: its best and its worst answer, and how many were rated."""
    columns = detected.columns
    kept = [columns[name] for name in ("prompt", "system") if name in columns]

    def asked(row: Row) -> str:
        return repr([row.get(column) for column in kept])

    for _, group in groupby(rows, asked):
        yield _paired(group, columns, kept)


def _paired(group: Iterable[Row], columns: Columns, kept: list[str]) -> Row:
    """The first of the best and the first of the worst, where they differ."""
    first: Row | None = None
    best: tuple[float, str] | None = None
    worst, number = best, 0
    for row in group:
        first = row if first is None else first
        for one in _rated(row, columns):
            number += 1
            best = one if best is None or one[0] > best[0] else best
            worst = one if worst is None or one[0] < worst[0] else worst
    found: dict[str, Any] = {name: (first or {}).get(name) for name in kept}
    if best is not None and worst is not None:
        differ = best[0] > worst[0]
        found |= {_BEST: best[1], _WORST: worst[1] if differ else None}
    return {**found, _RATED: number}


def sides(row: Row, columns: Columns) -> list[Judged]:
    """The best against the worst. Raises Unusable where there is no such pair."""
    if row[_RATED] < 2:
        raise Unusable(ALONE)
    if row[_WORST] is None:
        raise Unusable(ALIKE)
    return [(_BEST, _WORST)]


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """The best answer, or the side that `messages` names."""
    columns = {"messages": _BEST, **detected.columns}
    if row.get(columns["messages"]) is None:
        raise Unusable("no rated answer")
    chosen = Detected(detected.format, columns, detected.roles, detected.reason)
    return preference.read(row, chosen, writes)


def _reason(seen: Seen, found: Columns) -> str:
    named = " and ".join(repr(found[name]) for name in ("answers", "ratings") if name in found)
    if not seen.judged:
        return f"{named} hold answers with ratings; of each prompt the best-rated one is learnt."
    return (
        f"{named} hold answers with ratings; of each prompt the best-rated answer is paired with "
        "the worst-rated one, and prompts whose answers are all rated alike are left out."
    )


FORMAT = Format(
    name="ratings",
    meaning="answers with a rating each",
    learns="the best-rated answer of each prompt against its worst-rated one, by `method: dpo`; "
    "the best one, by `sft`",
    example=(
        {
            "prompt": "Who are you?",
            "responses": ["A pirate, matey!", "A robot."],
            "scores": [9, 2],
        },
    ),
    required={
        "answers": (
            *("responses", "completions", "answers", "generations", "candidates"),
            *("response", "completion", "answer", "output"),
        ),
    },
    optional={
        "ratings": (*_LISTS, *_SCORES),
        "prompt": ("prompt", "question", "instruction", "input", "query"),
        **SYSTEM,
    },
    read=read,
    find=find,
    reason=_reason,
    gather=gather,
    sides=sides,
)
