"""What is checked before a launch: how it went, what was found, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["green", "amber", "red"]


@dataclass(frozen=True)
class Fix:
    """A remedy that a program can apply: what a button says, and the options it sets.

    config.with_values(fix.values)
    """

    label: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One check: its name, how it went, what was found, and the remedy if there is one.

    Attributes:
        fixes: ways to mend it by changing options; any one of them, or several in turn.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""
    fixes: tuple[Fix, ...] = ()
