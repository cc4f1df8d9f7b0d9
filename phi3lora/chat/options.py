"""How an answer is sampled, and what is heard of it while it grows."""

from __future__ import annotations

from dataclasses import dataclass

from phi3lora.errors import ConfigError, Problem


@dataclass(frozen=True)
class Options:
    """Settings of one reply.

    Attributes:
        system: system prompt, put before the conversation; empty for none.
        temperature: 0 is greedy: always the likeliest token.
        top_p: sample from the smallest set of tokens that holds this share of the probability.
        max_new_tokens: an answer that has not ended by itself is cut here.
        seed: the same seed gives the same answer. Each column draws from its own sequence, so
            what one says never depends on the other.
    """

    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError that names every value out of bounds."""
        wrong = [
            (self.temperature >= 0, "temperature", "0 or more", self.temperature),
            (0 < self.top_p <= 1, "top_p", "above 0, at most 1", self.top_p),
            (self.max_new_tokens >= 1, "max_new_tokens", "1 or more", self.max_new_tokens),
            (0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1", self.seed),
        ]
        problems = [
            Problem(name, f"expected {expected}, got {value}.")
            for fine, name, expected, value in wrong
            if not fine
        ]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Pair:
    """Both answers as far as they have come.

    Attributes:
        base, tuned: the text so far; a column that was not asked for stays empty.
        done_base, done_tuned: nothing more will come.
        stopped_base, stopped_tuned: the answer ended by itself, with one of the model's stop
            tokens; False while it grows, at the limit, and after a cancel.
        tokens_base, tokens_tuned: new tokens so far, the stop token included.
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
    note: str = ""

    @property
    def done(self) -> bool:
        """Both columns are complete."""
        return self.done_base and self.done_tuned
