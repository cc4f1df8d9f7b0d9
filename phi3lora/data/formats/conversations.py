"""ShareGPT's lists of turns: the same as `messages`, with `from` and `value`."""

from __future__ import annotations

from dataclasses import replace

from phi3lora.data.cells import keys_of
from phi3lora.data.formats import messages
from phi3lora.data.shape import Columns, Seen


def find(seen: Seen) -> Columns | None:
    """As for `messages`, where turns are from/value or the format was chosen."""
    found = messages.find(seen)
    if found is None or "messages" not in found:
        return None
    keys = keys_of(messages.first_turn(seen, found["messages"]))
    return found if seen.chosen or keys[0] == "from" else None


FORMAT = replace(
    messages.FORMAT,
    name="conversations",
    learns="every turn of `gpt`, `assistant`, `bing`, …",
    example=(
        {
            "conversations": [
                {"from": "human", "value": "Who are you?"},
                {"from": "gpt", "value": "A pirate, matey!"},
            ]
        },
    ),
    find=find,
)
