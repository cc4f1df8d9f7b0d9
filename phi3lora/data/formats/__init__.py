"""The formats of data: each is a module here, and this table is the order in which they are tried.

A new format is a module with a `FORMAT`, and its line in the table.
"""

from __future__ import annotations

from phi3lora.data.formats import (
    comparison,
    conversations,
    instruction,
    messages,
    multiple_choice,
    preference,
    prompt_completion,
    question_answer,
    ratings,
    text,
    threads,
)

_MODULES = (
    preference,
    conversations,
    messages,
    threads,
    multiple_choice,
    instruction,
    prompt_completion,
    question_answer,
    comparison,
    ratings,
    text,
)
FORMATS = {module.FORMAT.name: module.FORMAT for module in _MODULES}
#: Every name that `data.columns` may use for a part.
PARTS = tuple(dict.fromkeys(part for format in FORMATS.values() for part in format.parts))
