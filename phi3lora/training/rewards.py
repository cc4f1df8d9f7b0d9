"""Rewards that can be read: what `method: grpo` gives an answer for.

    rewards = rewards_of(config.grpo_config)
    rewards[0].name, rewards[0].score(Answer(prompt, "3 + 4 = 7.", "3 + 4 = 7."))     # "exact", 1.0
    earned(rewards, answer)                                  # the sum, each by its weight

Each score is 0 to 1, but for a function of one's own, which may give any number. The same rewards
train, and prove that the training helped.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3lora.data.conversation import Message
from phi3lora.errors import ConfigError, Problem, TrainingError
from phi3lora.methods import GRPOSection, compiled


@dataclass(frozen=True)
class Answer:
    """What is rewarded.

    Attributes:
        prompt: the conversation before the answer.
        text: the answer.
        reference: what the data says in its place.
    """

    prompt: list[Message]
    text: str
    reference: str


@dataclass(frozen=True)
class Reward:
    """One thing that an answer earns for."""

    name: str
    weight: float
    score: Callable[[Answer], float]


def rewards_of(section: GRPOSection) -> list[Reward]:
    """What earns anything, in the order of `section.rewarded`.

    Raises ConfigError where the function of one's own cannot be had.
    """
    makers: dict[str, Callable[[], Callable[[Answer], float]]] = {
        "exact": lambda: exact(section.exact_after),
        "pattern": lambda: matching(section.pattern),
        "length": lambda: within(section.length or 1),
        "json": lambda: is_json,
        "function": lambda: own_function(section.function or ""),
    }
    return [
        Reward(name, float(getattr(section, f"{name}_reward")), makers[name]())
        for name in section.rewarded
    ]


def earned(rewards: Sequence[Reward], answer: Answer) -> float:
    """What an answer earns in all."""
    return sum(reward.weight * reward.score(answer) for reward in rewards)


def exact(after: str = "") -> Callable[[Answer], float]:
    """1 for the data's own answer, letter case and white space aside; behind a mark, if named."""

    def proper(text: str) -> str | None:
        _, mark, behind = text.rpartition(after) if after else ("", "found", text)
        return " ".join(behind.casefold().split()) if mark else None

    def score(answer: Answer) -> float:
        said = proper(answer.text)
        return float(said is not None and said == proper(answer.reference))

    return score


def matching(pattern: str) -> Callable[[Answer], float]:
    """1 where the whole answer matches. RE2 takes linear time, whatever the pattern."""
    wanted = compiled(pattern)
    return lambda answer: float(wanted.fullmatch(answer.text.strip()) is not None)


def within(characters: int) -> Callable[[Answer], float]:
    """1 up to so many characters, then less, 0 from twice as many on; an empty answer earns 0."""

    def score(answer: Answer) -> float:
        size = len(answer.text.strip())
        return min(max(2 - size / characters, 0.0), 1.0) if size else 0.0

    return score


def is_json(answer: Answer) -> float:
    """1 for one valid JSON value and nothing beside it."""
    try:
        json.loads(answer.text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's


def own_function(named: str) -> Callable[[Answer], float]:
    """The function of `FILE.py:NAME`, which is called as `NAME(prompt, answer, reference)`.

    `prompt` is a list of messages, the others are texts; it returns a number. Raises ConfigError
    where there is none. The file is Python code that runs here: who may name one, `permission`
    says.
    """
    path, _, name = named.rpartition(":")
    function = getattr(_module(Path(path).expanduser()), name, None)
    if not callable(function):
        raise _unusable(f"{path} has no function {name!r}")

    def score(answer: Answer) -> float:
        try:
            found = function(answer.prompt, answer.text, answer.reference)
        except Exception as error:
            raise TrainingError(
                f"grpo_config.function: {named} failed on the answer {answer.text[:80]!r}: "
                f"{type(error).__name__}: {error}. Mend it, and resume the run."
            ) from error
        if isinstance(found, int | float) and math.isfinite(found):
            return float(found)
        raise TrainingError(
            f"grpo_config.function: expected {named} to return a number for each answer, got "
            f"{str(found)[:80]!r} for {answer.text[:80]!r}. Mend it, and resume the run."
        )

    return score


def _module(file: Path) -> Any:
    """The module that a file holds. Raises ConfigError where it cannot be imported."""
    if file.suffix != ".py" or not file.is_file():
        raise _unusable(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"phi3lora_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise _unusable(f"{file} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in it look themselves up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _unusable(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _unusable(reason: str) -> ConfigError:
    message = f"expected a function of your own as FILE.py:NAME, but {reason}."
    return ConfigError([Problem("grpo_config.function", message)])
