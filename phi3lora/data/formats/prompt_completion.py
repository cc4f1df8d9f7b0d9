"""A prompt and its completion, each a text or, as TRL has them, a list of messages."""

from __future__ import annotations

from phi3lora.data.cells import cell, earlier_turns, messages_from, turns_in
from phi3lora.data.conversation import Detected, Message, Role, Row, Writes
from phi3lora.data.shape import CONTEXT, SYSTEM, Format, question

_SIDES: dict[str, Role] = {"prompt": "user", "completion": "assistant"}


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """Both sides in turn, behind what was said before."""
    columns = detected.columns
    messages: list[Message] = []
    if "history" in columns:
        messages += earlier_turns(row.get(columns["history"]), detected.roles)
    for side, role in _SIDES.items():
        turns = turns_in(row.get(columns[side]))
        if turns:
            messages += messages_from(turns, detected.roles, writes)
            continue
        text = cell(row, columns, side)
        if side == "prompt" and "context" in columns and text.strip():
            text = question((cell(row, columns, "context"), text))
        messages.append({"role": role, "content": text})
    return messages


FORMAT = Format(
    name="prompt_completion",
    meaning="a prompt and its answer a row",
    learns="the completion, unless the row says `label: false`",
    example=({"prompt": "Who are you?", "completion": "A pirate, matey!"},),
    required={
        "prompt": ("prompt", "input", "user", "human"),
        "completion": ("completion", "response", "output", "answer", "assistant", "target"),
    },
    optional={"context": CONTEXT, "history": ("history",), **SYSTEM},
    read=read,
)
