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
LAST_FRAME = 1.0  # seconds that a new conversation waits for the answer that it replaces
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
    """Settings that an address names, as far as the page's fields can be set to that."""
    found: dict[str, Any] = {}
    for name in SETTINGS:
        kind, slider = type(getattr(Options, name)), SETTINGS[name].slider
        try:
            value = kind(query[name])
            Options(**{name: value}).check()
        except (KeyError, ValueError, OverflowError, ConfigError):
            continue
        if slider is None or slider[0] <= value <= slider[1]:
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


class Flag(threading.Event):
    """Raised to end one answer.

    Attributes:
        left: nobody wants to see how it ends: its conversation is gone from the page.
        over: raised once nothing more of it is shown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left, self.over = False, threading.Event()


class Stops:
    """Who pressed Stop, by session; an answer checks it between tokens.

    A page shows one answer at a time: `begin` leaves the one before. It is called before the page
    offers Stop, so that no Stop is lost.
    """

    def __init__(self) -> None:
        self._flags: dict[str, Flag] = {}

    def begin(self, session: str) -> Flag:
        """A fresh flag for this session's answer."""
        self.leave(session)
        self._flags[session] = Flag()
        return self._flags[session]

    def stop(self, session: str) -> None:
        """Raise the session's flag."""
        if flag := self._flags.get(session):
            flag.set()

    def leave(self, session: str) -> None:
        """Raise it, and wait a moment for the last frame: what is shown next stays."""
        if flag := self._flags.get(session):
            flag.left = True
            flag.set()
            flag.over.wait(LAST_FRAME)

    def end(self, session: str, flag: Flag) -> None:
        """Forget the flag, unless a newer answer has replaced it."""
        flag.over.set()
        if self._flags.get(session) is flag:
            del self._flags[session]
