"""A question and its answer, with the text that it is about: SQuAD, SQL, RAG, mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi3lora.data.cells import cell, earlier_turns, text_of
from phi3lora.data.conversation import Detected, Message, Row, Writes
from phi3lora.data.shape import CONTEXT, SYSTEM, Format, pair, question


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """The context stands before the question, an input behind it."""
    columns = detected.columns
    parts = (cell(row, columns, part) for part in ("context", "question", "input"))
    messages = pair(question(parts), text_of(_first(row.get(columns["answer"]))))
    if "history" not in columns:
        return messages
    return [*earlier_turns(row.get(columns["history"]), detected.roles), *messages]


def _first(answer: Any) -> Any:
    """The first of several answers, as SQuAD has them: `{"text": ["Paris"], …}`, or a list."""
    if isinstance(answer, Mapping):
        answer = answer.get("text", answer)
    several = isinstance(answer, list | tuple) and all(isinstance(one, str) for one in answer)
    return (answer[0] if answer else "") if several else answer


FORMAT = Format(
    name="question_answer",
    meaning="a question and its answer a row",
    learns="the answer; of several answers the first",
    example=(
        {"context": "Polly is a parrot.", "question": "Who is Polly?", "answer": "A parrot."},
    ),
    required={
        "question": ("question", "query", "problem", "q"),
        "answer": ("answer", "response", "solution", "reply", "output", "answers", "a"),
    },
    optional={"context": CONTEXT, "input": ("input",), "history": ("history",), **SYSTEM},
    read=read,
)
