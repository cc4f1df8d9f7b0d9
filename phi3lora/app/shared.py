"""Answers that a link to a comparison shows before anybody opens it: title, words and a picture.

asked = Asked("example:pirate", "", "Who are you?", ())
recent.put(asked, Shared(…)); recent.get(asked)

Nothing is computed for who only looks at a link: what is shown was answered here lately, or stands
in the report of what is compared.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEPT = 256  # answers to links that are remembered
LONGEST = 2_000  # characters of a question or an answer that are remembered


@dataclass(frozen=True)
class Asked:
    """What a link names: subjects, a question, and how it is asked."""

    adapter: str
    against: str = ""
    question: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Shared:
    """A question and what both said to it.

    Attributes:
        titles: what the two are called, in the order of `answers`.
    """

    question: str
    titles: tuple[str, str]
    answers: tuple[str, str]


def asked_of(
    adapter: str, against: str = "", question: str = "", settings: Mapping[str, Any] | None = None
) -> Asked:
    """A link's parts, the same for the same link."""
    return Asked(adapter, against, question.strip(), tuple(sorted((settings or {}).items())))


class Recent:
    """The last answers to what links may ask; safe from any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Asked, Shared] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, asked: Asked, shared: Shared) -> None:
        """Remember an answer, unless it is too long to be a picture."""
        if max(map(len, (shared.question, *shared.answers))) > LONGEST:
            return
        with self._lock:
            self._kept[asked] = shared
            self._kept.move_to_end(asked)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def get(self, asked: Asked) -> Shared | None:
        """What was said to it lately."""
        with self._lock:
            return self._kept.get(asked)
