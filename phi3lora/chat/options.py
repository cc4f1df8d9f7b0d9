"""How an answer is sampled, and what is heard of it while it grows.

    options = Options(temperature=0.7, top_k=50, seed=1)
    options.check()
    SETTINGS["top_k"].help           what a flag and a slider say about it

Each setting is described once, here: flags, sliders and checks derive from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from phi3lora.data.rendering import SystemMessages
from phi3lora.errors import ConfigError, Problem

Side = Literal["base", "tuned"]
BOTH: tuple[Side, Side] = ("base", "tuned")
BASE = "base"  # what people call the base itself beside adapters, whose name is empty below


@dataclass(frozen=True)
class Setting:
    """A sampling option as a flag and a slider show it.

    Attributes:
        title: on the page.
        help: a whole sentence.
        expected: the values that are allowed, in words; `allows` says so of one.
        slider: lowest and highest value and step of a slider; None for a number field.
    """

    title: str
    help: str
    expected: str
    allows: Callable[[Any], bool]
    slider: tuple[float, float, float] | None = None


def _setting(default: Any, *values: Any, **named: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(*values, **named)})


@dataclass(frozen=True)
class Options:
    """Settings of one reply.

    The order in which they are applied is transformers': penalty, temperature, top-k, top-p, min-p.
    Each column draws from its own sequence of random numbers, so what one says never depends on
    the other.
    """

    system: str = ""  # put before the conversation; empty for none
    temperature: float = _setting(
        0.0,
        "Temperature",
        "Sampling temperature; 0 always takes the likeliest token.",
        "0 or more",
        lambda value: value >= 0,
        slider=(0, 2, 0.05),
    )
    top_p: float = _setting(
        1.0,
        "Top-p",
        "Sample from the smallest set of tokens that holds this share of the probability.",
        "above 0, at most 1",
        lambda value: 0 < value <= 1,
        slider=(0.05, 1, 0.05),
    )
    max_new_tokens: int = _setting(
        256,
        "Longest answer",
        "An answer that has not ended by itself is cut after this many tokens.",
        "from 1 to 1,000,000",
        lambda value: 1 <= value <= 1_000_000,
        slider=(16, 2048, 16),
    )
    seed: int = _setting(
        0,
        "Seed",
        "The same seed gives the same answer.",
        "from 0 to 2^63 - 1",
        lambda value: 0 <= value < 2**63,
    )
    top_k: int = _setting(
        0,
        "Top-k",
        "Sample from this many of the likeliest tokens; 0 samples from all.",
        "from 0 to 1,000,000",
        lambda value: 0 <= value <= 1_000_000,
        slider=(0, 200, 1),
    )
    min_p: float = _setting(
        0.0,
        "Min-p",
        "Leave out tokens that are less likely than this share of the likeliest one.",
        "from 0 to 1",
        lambda value: 0 <= value <= 1,
        slider=(0, 1, 0.01),
    )
    repetition_penalty: float = _setting(
        1.0,
        "Repetition penalty",
        "Above 1, tokens of the prompt and the answer so far become less likely; 1 is off.",
        "above 0, at most 100",
        lambda value: 0 < value <= 100,
        slider=(1, 2, 0.05),
    )
    strength: float = _setting(
        1.0,
        "Adapter strength",
        "How much of the adapter's change is added: 0 is the base, 1 as it was trained, 1.5 more.",
        "from 0 to 1.5",
        lambda value: 0 <= value <= 1.5,
        slider=(0, 1.5, 0.05),
    )
    against_strength: float = _setting(
        1.0,
        "Other's strength",
        "The same for the adapter that stands in the base's place, where one is named.",
        "from 0 to 1.5",
        lambda value: 0 <= value <= 1.5,
        slider=(0, 1.5, 0.05),
    )

    tools: str = ""  # what may be called, as JSON; it stands at the system message
    system_messages: SystemMessages = "merge"  # where the template has no place for `system`

    def first(self) -> dict[str, str]:
        """What stands before every conversation; tools are told in a form, and not counted."""
        return {"role": "system", "content": self.system}

    def strength_of(self, side: Side) -> float:
        """How much of a column's adapter is added, where it has one."""
        return self.strength if side == "tuned" else self.against_strength

    @property
    def filters(self) -> bool:
        """Whether more than temperature and top-p shapes what is drawn."""
        return bool(self.top_k or self.min_p)

    def check(self) -> None:
        """Raise ConfigError that names every value out of bounds."""
        problems = []
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            whole = not isinstance(getattr(Options, name), int) or isinstance(value, int)
            if not (number and whole and setting.allows(value)):
                what = repr(value)[:40]
                problems.append(Problem(name, f"expected {setting.expected}, got {what}."))
        if problems:
            raise ConfigError(problems)


SETTINGS: dict[str, Setting] = {
    one.name: one.metadata["setting"] for one in fields(Options) if one.metadata
}


@dataclass(frozen=True)
class Pair:
    """Both answers as far as they have come.

    Attributes:
        base, tuned: the text so far; a column that was not asked for stays empty.
        done_base, done_tuned: nothing more will come.
        stopped_base, stopped_tuned: the answer ended by itself, with one of the model's stop
            tokens; False while it grows, at the limit, and after a cancel.
        tokens_base, tokens_tuned: new tokens so far, the stop token included.
        prompt_base, prompt_tuned: tokens of the conversation that is answered, template included.
        note: what is being waited for: the queue, or the model that is loaded.
    """

    base: str = ""
    tuned: str = ""
    done_base: bool = False
    done_tuned: bool = False
    stopped_base: bool = False
    stopped_tuned: bool = False
    tokens_base: int = 0
    tokens_tuned: int = 0
    prompt_base: int = 0
    prompt_tuned: int = 0
    note: str = ""

    @property
    def done(self) -> bool:
        """Both columns are complete."""
        return self.done_base and self.done_tuned
