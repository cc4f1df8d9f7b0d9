"""Alpaca's instruction, optional input, and output."""

from __future__ import annotations

from phi3lora.data.cells import cell, earlier_turns
from phi3lora.data.conversation import Detected, Message, Row, Writes
from phi3lora.data.shape import CONTEXT, SYSTEM, Format, pair, question


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """The input, where there is one, follows the instruction after an empty line."""
    columns = detected.columns
    parts = (cell(row, columns, part) for part in ("context", "instruction", "input"))
    messages = pair(question(parts), cell(row, columns, "output"))
    if "history" not in columns:
        return messages
    return [*earlier_turns(row.get(columns["history"]), detected.roles), *messages]


FORMAT = Format(
    name="instruction",
    meaning="an instruction and its answer a row",
    learns="the output",
    example=({"instruction": "Add the numbers.", "input": "2, 3", "output": "5"},),
    required={
        "instruction": ("instruction", "instructions"),
        "output": ("output", "response", "completion", "answer", "target"),
    },
    optional={
        "input": ("input", "context", "passage"),
        "context": CONTEXT,
        "history": ("history",),
        **SYSTEM,
    },
    read=read,
)
