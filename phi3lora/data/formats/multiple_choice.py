"""A question with choices, as MMLU, ARC, CommonsenseQA and RACE have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi3lora.data.cells import cell, list_in, text_of
from phi3lora.data.conversation import Detected, Message, Row, Unusable, Writes
from phi3lora.data.shape import CONTEXT, SYSTEM, Columns, Format, Seen, by_name, pair, question

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def find(seen: Seen) -> Columns | None:
    """By name, where the choices are lists."""
    found = by_name(FORMAT, seen)
    if "choices" not in found or not any(_texts(v) for v in seen.values(found["choices"])):
        return None
    return found


def _texts(choices: Any) -> list[str]:
    """The choices as texts; `{"text": […], "label": […]}` is how ARC writes them."""
    if isinstance(choices, Mapping):
        choices = choices.get("text")
    found = list_in(choices) or []
    if found and all(isinstance(one, Mapping) for one in found):
        found = [one.get("text") for one in found]
    return [text_of(one) for one in found][: len(LETTERS)]


def _labels(choices: Any) -> list[str]:
    """What the answer calls each choice, where the choices say so."""
    labels = choices.get("label") if isinstance(choices, Mapping) else None
    return [text_of(one) for one in list_in(labels) or []]


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """The choices stand under the question with letters; the answer is a letter and its text."""
    columns = detected.columns
    cellful = row.get(columns["choices"])
    choices = _texts(cellful)
    if len(choices) < 2:
        raise Unusable("fewer than two choices")
    right = _place(row.get(columns["answer"]), choices, _labels(cellful))
    lines = [f"{LETTERS[i]}. {text}" for i, text in enumerate(choices)]
    asked = question((cell(row, columns, "context"), cell(row, columns, "question")))
    return pair(f"{asked}\n\n" + "\n".join(lines) if asked else "", lines[right])


def _place(answer: Any, choices: list[str], labels: list[str]) -> int:
    """Which choice is right: by number from 0, by letter, by its label, or by its text.

    Raises:
        Unusable: it is none of them.
    """
    said = text_of(answer).strip()
    names: list[list[str]] = [labels, choices, [str(i) for i in range(len(choices))]]
    names.insert(1, list(LETTERS[: len(choices)]))
    for known in names:
        if said in known:
            return known.index(said)
    raise Unusable("the answer is none of the choices")


FORMAT = Format(
    name="multiple_choice",
    meaning="a question, its choices and the right one a row",
    learns="the letter and the text of the right choice",
    example=({"question": "Which one flies?", "choices": ["A parrot", "An anchor"], "answer": 0},),
    required={
        "question": ("question", "question_stem", "query"),
        "choices": ("choices", "options"),
        "answer": ("answer", "answerkey", "answer_key", "correct_answer", "answer_index", "label"),
    },
    optional={"context": CONTEXT, **SYSTEM},
    read=read,
    find=find,
)
