"""A better and a worse answer to one prompt, as UltraFeedback, HH-RLHF and Orca have them.

Learning from both is what `method: dpo`, `orpo` and `kto` do. Training on the better side alone is
asked for, not guessed: `data.columns: {messages: chosen}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi3lora.data.cells import cell, messages_from, role_of, text_of, turns_in
from phi3lora.data.conversation import Detected, Message, Row, Unusable, Writes
from phi3lora.data.marks import transcript
from phi3lora.data.shape import SYSTEM, Columns, Format, Judged, Seen, by_name
from phi3lora.errors import DataError

_BETTER = ("chosen", "preferred", "better", "chosen_response", "response_chosen")
_WORSE = ("rejected", "dispreferred", "worse", "rejected_response", "response_rejected")


def find(seen: Seen) -> Columns | None:
    """Both sides where they are compared; else the better one, once it was asked for.

    Raises:
        DataError: it was not, and no column holds whole conversations either.
    """
    if seen.judged:
        found = by_name(FORMAT, seen)
        return found if "rejected" in found else None
    better, worse = seen.named(*_BETTER), seen.named(*_WORSE)
    if better is None or worse is None:
        return None
    if seen.mapping.get("messages") == better or seen.chosen:
        found = by_name(FORMAT, seen)
        return {name: column for name, column in found.items() if name != "rejected"}
    if seen.mapping or any(_answered(seen, column) for column in seen.holding_turns()):
        return None
    raise DataError(
        f"These rows are preferences: {better!r} is a better and {worse!r} a worse answer to the "
        "same prompt, and training learns from one answer a row. To learn which is better, set "
        "method to dpo; to train on the better one alone, set "
        f"data.columns to `messages: {better}`."
    )


def _answered(seen: Seen, column: str) -> bool:
    """Whether a column, not one of the two sides, holds conversations that end in an answer."""
    if column.strip().lower() in (*_BETTER, *_WORSE):
        return False
    return any(_is_answer(turns[-1]) for v in seen.values(column) if (turns := turns_in(v)))


def _is_answer(turn: Any) -> bool:
    try:
        return messages_from([turn], {})[0]["role"] == "assistant"
    except (Unusable, IndexError):
        return False


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """The better side, behind the prompt where it does not hold that itself."""
    columns = detected.columns
    messages = _side(row.get(columns["messages"]), detected, writes)
    if len(messages) > 1 or "prompt" not in columns:
        return messages
    value = row.get(columns["prompt"])
    if turns := turns_in(value):
        return [*messages_from(turns, detected.roles, writes), *messages]
    return [{"role": "user", "content": cell(row, columns, "prompt")}, *messages]


def sides(row: Row, columns: Columns) -> list[Judged]:
    """Each row has one of either."""
    return [(columns["messages"], columns["rejected"])]


def _side(value: Any, detected: Detected, writes: Writes) -> list[Message]:
    """A list of turns, one turn, a transcript, or the answer alone."""
    if turns_in(value):
        return messages_from(value, detected.roles, writes)
    if isinstance(value, Mapping):
        return messages_from([value], detected.roles, writes)
    text = text_of(value)
    return transcript(text) or [{"role": role_of("assistant", {}), "content": text}]


FORMAT = Format(
    name="preference",
    meaning="a better and a worse answer a row, of which the better one is learnt",
    learns="which is better, by `method: dpo`; the better one, where `data.columns` says "
    "`messages: chosen`",
    example=({"prompt": "Who are you?", "chosen": "A pirate, matey!", "rejected": "A robot."},),
    required={"messages": _BETTER},
    optional={
        "rejected": _WORSE,
        "prompt": ("prompt", "question", "instruction", "input", "conversations", "context"),
        **SYSTEM,
    },
    read=read,
    find=find,
    sides=sides,
)
