"""How a base's chat template writes a conversation, taken apart so that plain code can write it.

marks = marks_of(tokenizer)
marks.open["user"], marks.close          # "<|user|>\n", "<|end|>\n"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phi3lora.data.conversation import Message, Role
from phi3lora.data.rendering import template_parts, writes_system
from phi3lora.errors import ModelError

UNLIKE = (
    "The base's chat template cannot be written into a script: expected every turn to be opened "
    "and closed alike, as Phi-3's are."
)


@dataclass(frozen=True)
class Marks:
    """How a chat template writes a conversation, role by role.

    Attributes:
        start: before everything else, such as `<s>`; mostly empty.
        open: before a message, by its role.
        close: after each message; its first token ends an answer.
        last: after everything.
        strip: whether white space before a content is swallowed.
    """

    start: str
    open: dict[str, str]
    close: str
    last: str
    strip: bool


def marks_of(tokenizer: Any) -> Marks:
    """Take the template apart. ModelError for one that does not write turn after turn alike."""
    turns: list[Role] = ["user", "assistant", "user", "assistant"]
    # A template without a place for system messages has them before the first question.
    roles: list[Role] = ["system", *turns] if writes_system(tokenizer) else turns
    texts, strip, end = _literals(tokenizer, roles)
    first_user = _literals(tokenizer, ["user", "assistant"])[0][0]
    start = tokenizer.bos_token or ""
    start = start if start and first_user.startswith(start) else ""
    opening = {"user": first_user.removeprefix(start)}
    opening |= {roles[0]: texts[0].removeprefix(start)}
    close = texts[-3].removesuffix(opening["user"])
    opening["assistant"] = texts[-4].removeprefix(close)
    last = texts[-1].removeprefix(close)
    again = [start + opening[roles[0]], *(close + opening[role] for role in roles[1:])]
    if not end or not close.startswith(end) or [*again, close + last] != texts:
        raise ModelError(UNLIKE)
    return Marks(start, opening, close, last, strip)


def _literals(tokenizer: Any, roles: list[Role]) -> tuple[list[str], bool, str]:
    """What the template writes around contents; whether they are stripped; what ends an answer."""
    parts = template_parts(tokenizer, [Message(role=role, content="x") for role in roles])
    if parts.strips[1] or parts.joined:
        raise ModelError(UNLIKE)
    return parts.texts, parts.strips[0], parts.end
