"""Votes of the blind mode: which of two answers somebody liked better, without knowing whose.

    book = VoteBook(settings.home / "votes.jsonl")
    book.record(Vote(adapter="runs/pirate", pair="8f2c…", choice="left", left="tuned"))
    book.tally("runs/pirate").win_rate

The file is only ever appended to. Who voted is not kept; what was said is, where the voter agreed
or sits at their own machine: such votes are rows to train on (`Vote.row`).
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any, Literal, get_args

from phi3lora.chat.options import Side
from phi3lora.errors import RunError

Choice = Literal["left", "right", "tie", "both bad"]


@dataclass(frozen=True)
class Vote:
    """One choice between two answers.

    Attributes:
        adapter: what was compared with its base; any name that stays the same.
        pair: which two answers; one vote is counted for each.
        choice: as it was made, of what was shown on which side.
        left: who stood on the left.
        prompt: the question, for whoever reads the file.
        time: seconds since 1970.
        left_said, right_said: the whole conversation of each side, its last turn the answer that
            was voted on; empty where the voter did not agree to have it kept.
        settings: how both were sampled.
        model: the base that both stand on.
        against: what stood in the base's place; empty for the base itself.
    """

    adapter: str
    pair: str
    choice: Choice
    left: Side
    prompt: str = ""
    time: float = field(default_factory=time.time)
    left_said: list[dict[str, str]] = field(default_factory=list)
    right_said: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    against: str = ""

    @property
    def winner(self) -> Side | None:
        """Whose answer was liked better; None for a tie or two bad ones."""
        if self.choice not in {"left", "right"}:
            return None
        right: Side = "base" if self.left == "tuned" else "tuned"
        return self.left if self.choice == "left" else right

    @property
    def order(self) -> tuple[Side, Side]:
        """Who stood left and right."""
        return ("base", "tuned") if self.left == "base" else ("tuned", "base")

    def row(self) -> dict[str, Any] | None:
        """The vote as a row of the format `comparison`; None where what was said was not kept."""
        if not self.left_said or not self.right_said:
            return None
        names = {"base": self.against or self.model or "base", "tuned": self.adapter}
        return {
            "conversation_a": self.left_said,
            "conversation_b": self.right_said,
            "winner": {"left": "a", "right": "b"}.get(self.choice, self.choice),
            "model_a": names[self.order[0]],
            "model_b": names[self.order[1]],
            "settings": self.settings,
            "time": round(self.time),
        }


@dataclass(frozen=True)
class Tally:
    """The votes about one adapter, counted; `base` is whatever stood in the base's place."""

    tuned: int = 0
    base: int = 0
    ties: int = 0
    both_bad: int = 0

    def with_turned(self, other: Tally) -> Tally:
        """Both together, where the other one has the two the other way round."""
        return Tally(
            self.tuned + other.base,
            self.base + other.tuned,
            self.ties + other.ties,
            self.both_bad + other.both_bad,
        )

    def plus(self, vote: Vote) -> Tally:
        """The tally with this vote counted in."""
        name = vote.winner or ("ties" if vote.choice == "tie" else "both_bad")
        return replace(self, **{name: getattr(self, name) + 1})

    @property
    def votes(self) -> int:
        return self.tuned + self.base + self.ties + self.both_bad

    @property
    def win_rate(self) -> float | None:
        """Share of the votes with a winner that the tuned model won; None without any."""
        decided = self.tuned + self.base
        return self.tuned / decided if decided else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the win rate (Wilson 1927); 0 to 1 without votes."""
        decided, z = self.tuned + self.base, 1.96
        if not decided:
            return 0.0, 1.0
        share, scale = self.tuned / decided, 1 + z * z / decided
        middle = (share + z * z / (2 * decided)) / scale
        spread = z * sqrt(share * (1 - share) / decided + (z / (2 * decided)) ** 2) / scale
        return max(0.0, middle - spread), min(1.0, middle + spread)

    @property
    def verdict(self) -> Literal["better", "worse", "cannot tell"]:
        """Whether the interval leaves a half on one side."""
        low, high = self.interval
        return "better" if low > 0.5 else "worse" if high < 0.5 else "cannot tell"

    def in_words(self) -> str:
        """`wins 71% (95 % interval 58% to 82%), better`, or that it cannot tell."""
        if self.win_rate is None:
            return "cannot be told apart yet: no vote had a winner"
        low, high = self.interval
        say = "which cannot tell them apart" if self.verdict == "cannot tell" else self.verdict
        return f"wins {self.win_rate:.0%} (95 % interval {low:.0%} to {high:.0%}), {say}"


class VoteBook:
    """All votes, in one file; safe for several processes.

    What was read is kept counted: a vote costs what was written since the last one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read = 0  # bytes of the file that are counted, whole lines
        self._counted: dict[tuple[str, str], Tally] = {}  # by adapter, and what it stood against
        self._pairs: set[tuple[str, str]] = set()  # (adapter, pair)

    def record(self, vote: Vote) -> None:
        """Write a vote down.

        Raises RunError for a choice that there is not, and for a pair that was voted on before.
        """
        if vote.choice not in get_args(Choice) or vote.left not in get_args(Side):
            raise RunError(
                f"A vote: expected {', '.join(get_args(Choice))}, got {vote.choice!r} "
                f"(left {vote.left!r})."
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed
            self._catch_up()
            if (vote.adapter, vote.pair) in self._pairs:
                raise RunError("These two answers were voted on already. Ask something new.")
            line = json.dumps(asdict(vote), ensure_ascii=False).encode() + b"\n"
            file.write(line if _ends_whole(file.tell(), self._path) else b"\n" + line)

    def votes(self, adapter: str) -> list[Vote]:
        """All votes an adapter took part in, in order, one for each pair of answers."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found: dict[str, Vote] = {}
        for line in lines:
            vote = _parse(line)
            if vote is not None and adapter in filter(None, (vote.adapter, vote.against)):
                found.setdefault(vote.pair, vote)
        return list(found.values())

    def tally(self, adapter: str, against: str = "") -> Tally:
        """What people thought of an adapter beside its base, or beside another adapter."""
        with self._lock:
            self._catch_up()
            found = self._counted.get((adapter, against), Tally())
            if against in ("", adapter):
                return found
            return found.with_turned(self._counted.get((against, adapter), Tally()))

    def _catch_up(self) -> None:
        """Count what was written since; lines that cannot be read are passed over."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._read:  # another file by this name
                    self._read, self._counted, self._pairs = 0, {}, set()
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            vote = _parse(line)
            if vote is not None and (vote.adapter, vote.pair) not in self._pairs:
                self._pairs.add((vote.adapter, vote.pair))
                names = (vote.adapter, vote.against)
                self._counted[names] = self._counted.get(names, Tally()).plus(vote)


def _parse(line: bytes) -> Vote | None:
    try:
        vote = Vote(**json.loads(line))
    except (ValueError, TypeError):
        return None
    known = vote.choice in get_args(Choice) and vote.left in get_args(Side)
    return vote if known else None


def _ends_whole(size: int, path: Path) -> bool:
    """Whether the last line was written to its end."""
    if not size:
        return True
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
