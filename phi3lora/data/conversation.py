"""What a row becomes: messages, whole conversations only, or the reason why it cannot be used.

conversation = whole(messages, join=True)       # turns alternate, the last one is an answer
conversation.messages, conversation.changes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

Role = Literal["system", "user", "assistant", "tool"]
Row = Mapping[str, Any]

JOINED = "turns of one role in a row were joined"
TRIMMED = "turns after the last answer were left out"
BEYOND = "turns beyond the length limit were left out"
UNTHOUGHT = "reasoning was left out, which the chat template does not write"
TOOLS = "uses tools, which the chat template does not write"


class Message(TypedDict):
    """One turn of a conversation.

    `weight: 0` marks an answer that is read and not learnt; `tools` stands at a system message and
    says what can be called, as JSON; a turn of the role `tool` is what a tool answered.
    """

    role: Role
    content: str
    weight: NotRequired[int | None]
    tools: NotRequired[str | None]


class Unusable(Exception):
    """A row that cannot be trained on; `str(error)` is the reason that is counted."""


@dataclass(frozen=True)
class Detected:
    """How rows hold conversations.

    Attributes:
        format: the name of a format of `data/formats/`.
        columns: our name → the rows' column.
        roles: the rows' role names → ours; empty where the shape has none.
        reason: one sentence that says why.
        unread: columns that exist and are not read.
        notices: what one should know before one trains on this, a sentence each.
        thoughts: whether turns hold reasoning apart from their answers.
    """

    format: str
    columns: dict[str, str]
    roles: dict[str, str]
    reason: str
    unread: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    thoughts: bool = False


@dataclass(frozen=True)
class Writes:
    """What of a row a base's chat template can write, beyond plain turns."""

    thoughts: bool = False
    tools: bool = False


PLAIN = Writes()


@dataclass(frozen=True)
class Conversation:
    """A usable row, and what was changed in it (`JOINED`, `TRIMMED`, …)."""

    messages: list[Message]
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """A better and a worse answer to one prompt, or one answer that is called good or bad."""

    better: Conversation | None
    worse: Conversation | None


def is_learnt(message: Message) -> bool:
    """Whether a turn is an answer that carries loss."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def uses_tools(messages: Iterable[Message]) -> bool:
    """Whether a conversation has tools to call, or what they answered."""
    return any(message["role"] == "tool" or message.get("tools") for message in messages)


def whole(messages: list[Message], join: bool = True) -> Conversation:
    """Whole conversations only: turns alternate, none is empty, the last one is learnt.

    Raises:
        Unusable: with the reason, in words that can be counted.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    learnt = [i for i in answers if is_learnt(messages[i])]
    if not learnt:
        raise Unusable("every answer has weight 0" if answers else "no assistant answer")
    kept = messages[: learnt[-1] + 1]
    for message in kept:
        if not message["content"].strip() and not message.get("tools"):
            raise Unusable("empty answer" if message["role"] == "assistant" else "empty prompt")
    changes = [TRIMMED] if len(kept) < len(messages) else []
    for left, right in pairwise(kept):
        if left["role"] == right["role"] != "tool":  # calls side by side have an answer each
            if not join:
                raise Unusable(f"two {left['role']} messages in a row")
            return Conversation(_joined(kept), (JOINED, *changes))
    return Conversation(kept, tuple(changes))


def _joined(messages: list[Message]) -> list[Message]:
    """Neighbours of one role as one turn, an empty line between them.

    Raises:
        Unusable: one of two answers is learnt and the other is not.
    """
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last is None or last["role"] != message["role"] or message["role"] == "tool":
            joined.append(message.copy())
        elif is_learnt(last) != is_learnt(message):
            raise Unusable("two answers in a row of which one has weight 0")
        else:
            last["content"] += f"\n\n{message['content']}"
    return joined
