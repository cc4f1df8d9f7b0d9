"""Following runs for many pages at the price of one: events are read once and kept folded.

follower = Follower(store)
view = follower.view(run)      what its events say so far
follower.pulse("local", run.id)      a fingerprint that changes when the page should
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from phi3lora.errors import RunError
from phi3lora.events import (
    Answered,
    Ended,
    Evaluated,
    Event,
    Loaded,
    Notice,
    Prepared,
    Resumed,
    Stage,
    Step,
)
from phi3lora.runs.store import Run, RunStore

KEPT = 64  # runs whose events stay folded in memory
POINTS = 4000  # of a curve, at least, once a run has logged as many
MOST_ANSWERS = 20  # evaluations whose sample answers are shown
LOGGED = (  # figures that not every step has
    *("loss", "learning_rate", "grad_norm", "token_accuracy", "tokens_per_second"),
    *("reward", "reward_margin", "reward_accuracy"),
)
FRESH = 0.8  # seconds for which a list of runs answers everybody's pulse


@dataclass
class RunView:
    """What a run's events say so far."""

    stage: Stage | None = None
    step: Step | None = None
    prepared: Prepared | None = None
    loaded: Loaded | None = None
    ended: Ended | None = None
    evaluated: Evaluated | None = None
    notices: list[Notice] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)  # (step, loss)
    rates: list[tuple[int, float]] = field(default_factory=list)  # (step, learning rate)
    speeds: list[tuple[int, float]] = field(default_factory=list)  # (step, tokens a second)
    memory: list[tuple[int, float]] = field(default_factory=list)  # (step, bytes)
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (step, loss)
    rewards: list[tuple[int, float]] = field(default_factory=list)  # (step, reward or its margin)
    held_out_rewards: list[tuple[int, float]] = field(default_factory=list)
    answers: list[Answered] = field(default_factory=list)  # of the last evaluations
    clock: list[tuple[int, float]] = field(default_factory=list)  # (step, seconds since 1970)

    def add(self, event: Event) -> None:
        """Take one more event in."""
        if isinstance(event, Step):
            self._add_step(event)
        elif isinstance(event, Evaluated):
            self.evaluated = event
            self.held_out.append((event.step, event.loss))
            if (reward := earned(event)) is not None:
                self.held_out_rewards.append((event.step, reward))
        elif isinstance(event, Answered):
            self.answers = [*self.answers, event][-MOST_ANSWERS:]
        elif isinstance(event, Resumed):
            self._rewind(event.step)
        elif isinstance(event, Notice):
            self.notices.append(event)
        elif isinstance(event, Stage):
            self.stage = event
        elif isinstance(event, Prepared | Loaded | Ended):
            setattr(self, event.kind, event)

    def _add_step(self, event: Step) -> None:
        self.step, self.ended, self.stage = kept(event, self.step), None, None
        add_point(self.clock, (event.step, event.time))
        if event.loss is not None:
            add_point(self.losses, (event.step, event.loss))
        if event.learning_rate is not None:
            add_point(self.rates, (event.step, event.learning_rate))
        if event.speed is not None:
            add_point(self.speeds, (event.step, event.speed))
        if event.memory is not None:
            add_point(self.memory, (event.step, float(event.memory)))
        if (reward := earned(event)) is not None:
            add_point(self.rewards, (event.step, reward))

    def _rewind(self, step: int) -> None:
        """What came after the checkpoint is done again, so it is forgotten."""
        self.ended = None
        machine, rewards = (self.speeds, self.memory), (self.rewards, self.held_out_rewards)
        curves = (self.losses, self.rates, self.held_out, self.clock, *machine, *rewards)
        for points in curves:
            points[:] = [point for point in points if point[0] <= step]
        self.answers = [told for told in self.answers if told.step <= step]


def earned(event: Step | Evaluated) -> float | None:
    """What a method that knows rewards says: of own answers, or of better less worse ones."""
    return event.reward if event.reward is not None else event.reward_margin


def kept(step: Step, before: Step | None) -> Step:
    """A step whose figures that were not logged are those of the one before."""
    if before is None:
        return step
    missing = {name: getattr(before, name) for name in LOGGED if getattr(step, name) is None}
    return replace(step, **missing)


def add_point(points: list[tuple[int, float]], point: tuple[int, float]) -> None:
    """Add a point to a curve; a curve of twice as many as are kept loses every second one.

    What is left are the points of every second, fourth, … logged step, and the latest ones.
    """
    points.append(point)
    if len(points) >= 2 * POINTS:
        points[:-1] = points[:-1:2]


@dataclass
class _Seen:
    """A run's events up to an offset, folded; one thread at a time goes on."""

    offset: int = 0
    view: RunView = field(default_factory=RunView)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Follower:
    """Reads each run's new events once, whoever asks."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._views: OrderedDict[str, _Seen] = OrderedDict()
        self._lists: dict[str, tuple[float, str]] = {}

    def view(self, run: Run) -> RunView:
        """What the run's events say so far. The caller reads it and changes nothing.

        A long run is read for seconds: pages of other runs do not wait for it, and who asks for
        the same run waits for the one who reads.
        """
        with self._lock:
            seen = self._views.pop(run.id, None) or _Seen()
            self._views[run.id] = seen
            while len(self._views) > KEPT:
                self._views.popitem(last=False)
        with seen.lock:
            if seen.offset > run.events_end():
                seen.offset, seen.view = 0, RunView()
            events, seen.offset = run.events(seen.offset)
            for event in events:
                seen.view.add(event)
            return seen.view

    def pulse(self, owner: str, run_id: str) -> str:
        """Changes when the owner's list does, or anything of the chosen run."""
        everything = self._list_pulse(owner)
        if not run_id:
            return everything
        try:
            return f"{everything}-{self.run_pulse(self._store.get(run_id, owner))}"
        except RunError:
            return f"{everything}-gone"

    def run_pulse(self, run: Run) -> str:
        """Sizes of what the run writes; the list's pulse has its status."""
        sizes = []
        for name in ("events.jsonl", "log.txt", "report.json"):
            try:
                sizes.append((run.folder / name).stat().st_size)
            except FileNotFoundError:
                sizes.append(0)
        return ".".join(map(str, sizes))

    def _list_pulse(self, owner: str) -> str:
        now = time.monotonic()
        seen = self._lists.get(owner)
        if seen and now - seen[0] < FRESH:
            return seen[1]
        lines = "\n".join(
            f"{run.id} {run.status} {run.title} {run.message}" for run in self._store.list(owner)
        )
        pulse = hashlib.sha256(lines.encode()).hexdigest()[:12]
        self._lists[owner] = (now, pulse)
        return pulse
