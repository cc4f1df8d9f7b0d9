"""Which column holds what: what a table has, what is read as what, and a guess where nothing fits.

    found = columns_of(config.data, token)
    found.columns, found.rows          to choose from, and the first rows beside them
    found.question, found.answer       what is read now, or a guess
    found.mapping(question, answer)    as `data.columns` takes it

Formats whose rows hold whole conversations have nothing to choose; `found.asked` is False for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phi3lora.config import DataConfig
from phi3lora.data.detection import ASKS, SAYS, detect, named
from phi3lora.data.sources import open_source
from phi3lora.errors import DataError

SHOWN_ROWS, SHOWN_COLUMNS, LONGEST_CELL = 3, 40, 160
# Formats of one question and one answer a row, and their names for the two.
PAIRS = {
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
    "instruction": ("instruction", "output"),
}


@dataclass(frozen=True)
class Columns:
    """A table's columns, and which of them are read.

    Attributes:
        columns: all there are, as many as can be shown.
        rows: the first rows, each cell as text and cut.
        question, answer: columns that are read, or guessed; empty where there is no telling.
        parts: what `data.columns` calls the two.
        asked: whether there is something to choose: rows of one question and one answer.
        guessed: whether no format fits by itself, so that the guess has to be put into the config.
        given: what `data.columns` says of other parts.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    question: str = ""
    answer: str = ""
    parts: tuple[str, str] = PAIRS["prompt_completion"]
    asked: bool = False
    guessed: bool = False
    given: Mapping[str, str] = field(default_factory=dict)

    def mapping(self, question: str | None, answer: str | None) -> dict[str, str]:
        """`data.columns` for these two, beside the other parts that were named."""
        chosen = dict(zip(self.parts, (question, answer), strict=True))
        return {**self.given, **{part: name for part, name in chosen.items() if name}}


def columns_of(data: DataConfig, token: str | None = None) -> Columns:
    """What is in the first rows of the data that a config names.

    A mapping whose columns do not exist here is one for other data, and left aside. Raises
    DataError or HubError where there are no rows to be had.
    """
    source = open_source(data, token=token)
    names, head = source.columns, source.head
    rows = [{name: _cell(row.get(name)) for name in names} for row in head[:SHOWN_ROWS]]
    mapping = {part: name for part, name in data.columns.items() if name in names}
    try:
        found = detect(names, head, format=data.format, mapping=mapping, roles=data.roles)
    except DataError:
        return _guess(names, rows, head)
    parts = PAIRS.get(found.format)
    if parts is None or len(names) < 2:
        return Columns(names[:SHOWN_COLUMNS], rows)
    question, answer = (found.columns.get(part, "") for part in parts)
    given = {part: name for part, name in mapping.items() if part not in parts}
    return Columns(names[:SHOWN_COLUMNS], rows, question, answer, parts, asked=True, given=given)


def _guess(
    names: Sequence[str], rows: list[dict[str, str]], head: Sequence[Mapping[str, Any]]
) -> Columns:
    """By the columns' names, else the first two that hold words."""
    texts = [name for name in names if _holds_words([row.get(name) for row in head])]
    answer = named(texts, SAYS)
    question = named([name for name in texts if name != answer], ASKS)
    left = [name for name in texts if name not in (question, answer)]
    question = question or (left.pop(0) if left else "")
    answer = answer or (left.pop(0) if left else "")
    whole = bool(question and answer)
    return Columns(
        list(names[:SHOWN_COLUMNS]), rows, question, answer, asked=len(texts) > 1, guessed=whole
    )


def _holds_words(values: Sequence[Any]) -> bool:
    """Whether most cells are text of more than a number or a name's length."""
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    spaced = sum(any(letter.isspace() for letter in text.strip()) for text in texts)
    wide = sum(len(text) > 3 and not text.isascii() for text in texts)  # no spaces in Chinese
    return max(spaced, wide) * 2 > len(values)


def _cell(value: Any) -> str:
    text = " ".join(("" if value is None else str(value)).split())
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…"
