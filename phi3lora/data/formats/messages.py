"""Lists of turns with a role and a content, as OpenAI, TRL and most chat sets have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi3lora.data.cells import keys_of, list_in, messages_from, turns_in
from phi3lora.data.conversation import TOOLS, Detected, Message, Row, Unusable, Writes
from phi3lora.data.shape import SYSTEM, Columns, Format, Seen
from phi3lora.data.tools import definitions

LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_TEXTS = LISTS[:-1]  # lists of plain texts too; `turns` of texts are often questions alone


def find(seen: Seen) -> Columns | None:
    """The column with turns; values decide, the name only breaks a tie."""
    found = dict(seen.mapping)
    if system := seen.named(*SYSTEM["system"]):
        found.setdefault("system", system)
    if tools := seen.named("tools", "functions"):
        found.setdefault("tools", tools)
    if "messages" in found:
        return found
    holding, named = seen.holding_turns(), seen.named(*LISTS)
    if named in holding or (named and seen.chosen):
        return {"messages": str(named), **found}
    if len(holding) == 1:
        return {"messages": holding[0], **found}
    texts = seen.named(*_TEXTS)
    return {"messages": texts, **found} if texts and _texts(seen, texts) else None


def _texts(seen: Seen, column: str) -> bool:
    """Whether a column holds lists of texts, as LIMA has them."""
    lists = [turns for value in seen.values(column) if (turns := list_in(value))]
    return bool(lists) and all(isinstance(text, str) for turns in lists for text in turns)


def read(row: Row, detected: Detected, writes: Writes) -> list[Message]:
    """The turns of a row; its tools stand at the system message."""
    tools = definitions(row.get(detected.columns["tools"])) if "tools" in detected.columns else ""
    if tools and not writes.tools:
        raise Unusable(TOOLS)
    messages = messages_from(row.get(detected.columns["messages"]), detected.roles, writes)
    if not tools:
        return messages
    if not messages or messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": ""})
    messages[0]["tools"] = tools
    return messages


def first_turn(seen: Seen, column: str) -> Mapping[str, Any]:
    """The first turn there is; an empty one where no row has any."""
    return next((turns[0] for value in seen.values(column) if (turns := turns_in(value))), {})


def reason(seen: Seen, columns: Columns) -> str:
    """Which keys the turns of this column have, in a sentence."""
    column = columns["messages"]
    if _texts(seen, column):
        return f"{column!r} holds lists of texts: a person's and an answer in turn."
    keys = keys_of(first_turn(seen, column))
    return f"{column!r} holds lists of turns with {keys[0]} and {keys[1]}."


FORMAT = Format(
    name="messages",
    meaning="a list of turns a row",
    learns="every answer of the assistant, but those with `weight: 0`",
    example=(
        {
            "messages": [
                {"role": "user", "content": "Who are you?"},
                {"role": "assistant", "content": "A pirate, matey!"},
            ]
        },
    ),
    required={"messages": LISTS},
    optional={**SYSTEM, "tools": ("tools", "functions")},
    read=read,
    find=find,
    reason=reason,
)
