"""What the Compare page sends with a question, whose side is which, and who pressed Stop."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phi3lora.app.comparing import Sides, draw_sides
from phi3lora.chat.options import Options
from phi3lora.ui.compare_show import Message
from phi3lora.ui.widgets import text_of


@dataclass(frozen=True)
class Ask:
    """What the page sends with a question, in the order of its components."""

    message: str
    left: list[Message]
    right: list[Message]
    adapter: str | None
    blind: bool
    before: Sides
    system: str
    sampling: dict[str, Any]

    @classmethod
    def sent(cls, values: Sequence[Any], sampling: Iterable[str]) -> Ask:
        """As a page, or a program in its name, sent it. Raises DataError where a text is none."""
        message, left, right, adapter, blind, before, system = values[:7]
        return cls(
            text_of(message),
            left,
            right,
            None if adapter is None else text_of(adapter),
            bool(blind),
            before,
            text_of(system),
            dict(zip(sampling, values[7:], strict=True)),
        )

    def options(self) -> Options:
        """How to sample. A field that was emptied has its default."""
        given = sampled(list(self.sampling), list(self.sampling.values()))
        return Options((self.system or "").strip(), **given)

    def sides(self) -> Sides:
        """Of a new pair of answers; they are drawn once, when a blind conversation begins."""
        drawn = draw_sides(blind=self.blind)
        return replace(drawn, left=self.before.left) if self.left else drawn


def sampled(names: list[str], values: list[Any]) -> dict[str, Any]:
    """Settings that were given, whole numbers as such."""
    given = {n: value for n, value in zip(names, values, strict=True) if value is not None}
    for name, value in given.items():
        whole = isinstance(getattr(Options, name), int)
        if whole and isinstance(value, float) and value.is_integer():
            given[name] = int(value)
    return given


class Stops:
    """Who pressed Stop, by session; an answer checks it between tokens."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}

    def begin(self, session: str) -> threading.Event:
        """A fresh flag for this session's answer."""
        self._events[session] = threading.Event()
        return self._events[session]

    def stop(self, session: str) -> None:
        """Raise the session's flag."""
        if event := self._events.get(session):
            event.set()

    def end(self, session: str, event: threading.Event) -> None:
        """Forget the flag, unless a newer answer has replaced it."""
        if self._events.get(session) is event:
            del self._events[session]
