"""Two answers to one prompt and who won, as arenas and our own votes have them.

A tie teaches nothing about which is better; of two bad answers `method: kto` learns that both are.
"""

from __future__ import annotations

from typing import Any

from phi3lora.data.cells import text_of
from phi3lora.data.conversation import Detected, Message, Row, Unusable, Writes
from phi3lora.data.formats import preference
from phi3lora.data.shape import SYSTEM, Columns, Format, Judged

TIE, BOTH_BAD = "a tie: neither answer is better", "both answers are bad: neither is better"
_FIRST = {"a", "model_a", "answer_a", "response_a", "left", "first", "0"}
_SECOND = {"b", "model_b", "answer_b", "response_b", "right", "second", "1"}
_TIES = {"tie", "draw", "equal", "both"}
_BAD = {"both bad", "both_bad", "tie (bothbad)", "tie_bothbad", "bothbad", "neither"}


def sides(row: Row, columns: Columns) -> list[Judged]:
    """The columns in the order that the row's winner says; two bad answers are one each.

    Raises:
        Unusable: a tie, or no winner that is known.
    """
    first, second = columns["first"], columns["second"]
    won = _winner(row.get(columns["winner"]))
    if won == "bad":
        return [(None, first), (None, second)]
    return [(first, second) if won == "first" else (second, first)]


def _winner(value: Any) -> str:
    said = text_of(value).strip().lower()
    if said in _TIES:
        raise Unusable(TIE)
    for meaning, names in (("first", _FIRST), ("second", _SECOND), ("bad", _BAD)):
        if said in names:
            return meaning
    raise Unusable("no winner that is known")


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """The better answer, or the side that `messages` names."""
    columns = detected.columns
    if "messages" not in columns:
        better, _ = sides(row, columns)[0]
        if better is None:
            raise Unusable(BOTH_BAD)
        columns = {**columns, "messages": better}
    chosen = Detected(detected.format, columns, detected.roles, detected.reason)
    return preference.read(row, chosen, writes)


FORMAT = Format(
    name="comparison",
    meaning="two answers to one prompt and who won a row",
    learns="which is better, by `method: dpo`; the better one, by `sft`",
    example=(
        {
            "prompt": "Who are you?",
            "answer_a": "A pirate, matey!",
            "answer_b": "A robot.",
            "winner": "a",
        },
    ),
    required={
        "first": ("answer_a", "response_a", "conversation_a", "response_0", "answer_0"),
        "second": ("answer_b", "response_b", "conversation_b", "response_1", "answer_1"),
        "winner": ("winner", "preference", "better_response_id", "choice"),
    },
    optional={"prompt": ("prompt", "question", "instruction", "input"), **SYSTEM},
    read=read,
    sides=sides,
)
