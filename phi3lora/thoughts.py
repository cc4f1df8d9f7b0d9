"""What a model thought before it answered, apart from the answer.

    split_thoughts("<think>\\nTwo and two.\\n</think>\\n\\nFour.")    # thoughts, answer, closed

Models that think (Phi-4-reasoning) write their thoughts between two marks at the beginning of an
answer. Whoever shows an answer folds them away; the conversation keeps them, as the training does.
"""

from __future__ import annotations

from dataclasses import dataclass

OPENING, CLOSING = "<think>", "</think>"


@dataclass(frozen=True)
class Answer:
    """An answer taken apart; `closed` is False while the model thinks still."""

    thoughts: str
    said: str
    closed: bool = True


def split_thoughts(text: str) -> Answer:
    """Thoughts and answer; a text that does not begin with thoughts is all answer."""
    opening, mark, rest = text.partition(OPENING)
    if not mark or opening.strip():
        return Answer("", text)
    thoughts, mark, said = rest.partition(CLOSING)
    return Answer(thoughts.strip(), said.lstrip(), bool(mark))


def join_thoughts(thoughts: str, said: str) -> str:
    """Both as the model reads them in the next turn, and as a training on them writes them."""
    return f"{OPENING}\n{thoughts}\n{CLOSING}\n\n{said}" if thoughts else said
