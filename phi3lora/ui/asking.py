"""What the Compare page sends with a question, how another answer is asked for, and who stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phi3lora.chat.options import SETTINGS, Options
from phi3lora.errors import ConfigError
from phi3lora.ui.talk import Talk
from phi3lora.ui.widgets import text_of

LONGEST_IN_ADDRESS = 4000  # characters of a question or a system prompt
WARM = 0.7  # temperature of another answer where the first one was the likeliest


@dataclass(frozen=True)
class Ask:
    """What the page sends with a question, in the order of its components."""

    message: str
    talk: Talk
    adapter: str | None
    blind: bool
    against: str
    third: str
    system: str
    sampling: dict[str, Any]

    @classmethod
    def sent(cls, values: Sequence[Any], sampling: Iterable[str]) -> Ask:
        """As a page, or a program in its name, sent it. Raises DataError where a text is none."""
        message, talk, adapter, blind, against, third, system = values[:7]
        return cls(
            text_of(message),
            talk,
            None if adapter is None else text_of(adapter),
            bool(blind),
            text_of(against),
            text_of(third),
            text_of(system),
            dict(zip(sampling, values[7:], strict=True)),
        )

    def options(self) -> Options:
        """How to sample. A field that was emptied has its default."""
        given = sampled(list(self.sampling), list(self.sampling.values()))
        return Options((self.system or "").strip(), **given)


def unusual(options: Options) -> dict[str, Any]:
    """The settings that are not the defaults: what a link to a question carries."""
    values = {name: getattr(options, name) for name in ("system", *SETTINGS)}
    return {name: value for name, value in values.items() if value != getattr(Options, name)}


def from_address(query: Mapping[str, str]) -> dict[str, Any]:
    """Settings that an address names, as far as they may be set to that."""
    found: dict[str, Any] = {}
    for name in SETTINGS:
        kind = type(getattr(Options, name))
        try:
            value = kind(query[name])
            Options(**{name: value}).check()
        except (KeyError, ValueError, OverflowError, ConfigError):
            continue
        found[name] = value
    if system := query.get("system", "")[:LONGEST_IN_ADDRESS]:
        found["system"] = system
    return found


def another(options: Options, number: int) -> tuple[Options, str]:
    """Settings for another answer, and what is different about them.

    The likeliest answer is always the same: at temperature 0 another one is drawn at WARM.
    """
    fresh = replace(options, seed=options.seed + number)
    if options.temperature == 0:
        return replace(fresh, temperature=WARM), f"seed {fresh.seed}, temperature {WARM}"
    return fresh, f"seed {fresh.seed}"


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
