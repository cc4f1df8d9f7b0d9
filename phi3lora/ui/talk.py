"""A conversation with base and tuned: turns of one question and two answers.

talk = talk.plus(Turn("Who?", draw_sides(blind=True), hidden=True))
talk.messages("base")                 what the base is asked with, as chat messages
read_talk(text)                       as a browser kept it, or None

Each answer has its variants; the one that is shown is the one the conversation goes on from.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from phi3lora.app.comparing import Sides
from phi3lora.chat.options import BASE as BASE
from phi3lora.chat.options import Pair, Side

LONGEST = 1_000_000  # characters of a conversation that a browser sends back
MOST_TURNS = 200
SHORTEST = 0.01  # seconds of an answer whose speed is told; what came at once has none
ROUNDS = 5  # of a blind game


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        rate: tokens a second; 0 where nobody measured.
        how: in what it differs from the first answer, such as `seed 3`.
    """

    text: str = ""
    tokens: int = 0
    ended: bool = True
    rate: float = 0.0
    how: str = ""


@dataclass(frozen=True)
class Turn:
    """One question and what both said.

    Attributes:
        sides: who stands left; names are hidden until somebody voted.
        base, tuned: the variants of each answer; none where a side was not asked.
        at_base, at_tuned: which variant is shown.
        kept: whether these answers were kept with the run, and nobody was asked now.
        vote: whose answer was liked better, `tie` or `both bad`; empty before.
        settings: how it was asked, where that differs from the defaults.
        adapter, against: the names of what was asked; those of the conversation where empty.
        titles: what to call base and tuned, or what stands in their places.
    """

    question: str
    sides: Sides = field(default_factory=Sides)
    base: tuple[Said, ...] = ()
    tuned: tuple[Said, ...] = ()
    at_base: int = 0
    at_tuned: int = 0
    hidden: bool = False
    kept: bool = False
    vote: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    adapter: str = ""
    against: str = ""
    titles: tuple[str, str] = ("Base", "Tuned")

    def title(self, side: Side) -> str:
        """What to call a side."""
        return self.titles[0 if side == "base" else 1]

    def variants(self, side: Side) -> tuple[Said, ...]:
        """All answers of a side."""
        return self.base if side == "base" else self.tuned

    def shown(self, side: Side) -> Said | None:
        """The answer of a side that is on the page."""
        variants, at = self.variants(side), self.at_base if side == "base" else self.at_tuned
        return variants[min(max(at, 0), len(variants) - 1)] if variants else None

    def turned(self, side: Side, by: int) -> Turn:
        """With the next or the last variant of a side."""
        count, at = len(self.variants(side)), self.at_base if side == "base" else self.at_tuned
        changes: dict[str, Any] = {f"at_{side}": (at + by) % count if count else 0}
        return replace(self, **changes)

    def heard(self, side: Side, said: Said, place: int) -> Turn:
        """With an answer as far as it has come, as variant number `place`."""
        variants = (*self.variants(side)[:place], said)
        changes: dict[str, Any] = {side: variants, f"at_{side}": place}
        return replace(self, **changes)


@dataclass(frozen=True)
class Talk:
    """A conversation about one adapter and its base, or what else it is compared with."""

    adapter: str = ""
    turns: tuple[Turn, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    against: str = ""
    third: str = ""

    @property
    def names(self) -> list[str]:
        """What takes part: two, or the three of a tournament; an empty one is the base."""
        third = [] if not self.third else ["" if self.third == BASE else self.third]
        return list(dict.fromkeys([self.adapter, self.against, *third]))

    def plus(self, turn: Turn) -> Talk:
        """One more turn; an answer that was kept with the run is no part of a conversation."""
        return replace(self, turns=(*(one for one in self.turns if not one.kept), turn))

    def with_last(self, turn: Turn) -> Talk:
        """The last turn as it is now."""
        return replace(self, turns=(*self.turns[:-1], turn))

    @property
    def last(self) -> Turn | None:
        """The newest turn, whether it is answered or not; None before the first question."""
        return self.turns[-1] if self.turns else None

    def messages(self, side: Side) -> list[dict[str, Any]]:
        """The conversation as one side had it, to its last question.

        A vote ends a conversation: the next question begins another, with the same history of none
        for both, so that what is voted on differs in the answer alone.
        """
        said: list[dict[str, Any]] = []
        voted = [place for place, turn in enumerate(self.turns[:-1]) if turn.vote]
        for turn in self.turns[voted[-1] + 1 if voted else 0 :]:
            said.append({"role": "user", "content": turn.question})
            if turn is not self.last and (answer := turn.shown(side)):
                said.append({"role": "assistant", "content": answer.text})
        return said

    @property
    def votes(self) -> list[str]:
        """The votes of this conversation, oldest first."""
        return [turn.vote for turn in self.turns if turn.vote]

    def to_json(self) -> str:
        """As the browser keeps it; empty where there is nothing to keep."""
        own = [turn for turn in self.turns if not turn.kept]
        return json.dumps(asdict(replace(self, turns=tuple(own)))) if own else ""


_READER = TypeAdapter(Talk)


def read_talk(text: str) -> Talk | None:
    """A conversation that a browser kept; None where it cannot be read."""
    if not text or len(text) > LONGEST:
        return None
    try:
        talk = _READER.validate_json(text)
    except (ValidationError, ValueError, RecursionError):
        return None
    usable = all(turn.base and not turn.hidden for turn in talk.turns)
    return talk if usable and 0 < len(talk.turns) <= MOST_TURNS else None


def answer_of(pair: Pair, side: Side, how: str, first: Pair, seconds: float) -> Said:
    """What one side has said so far.

    Args:
        first: what both had said when the first token was seen, `seconds` ago: the speed is that of
            the tokens since. An answer that came all at once has none.
    """
    tokens = getattr(pair, f"tokens_{side}")
    since = tokens - getattr(first, f"tokens_{side}")
    timed = getattr(pair, f"done_{side}") and since > 0 and seconds > SHORTEST
    rate = since / seconds if timed else 0.0
    ended = bool(getattr(pair, f"stopped_{side}"))
    return Said(getattr(pair, side), tokens, ended, round(rate, 1), how)
