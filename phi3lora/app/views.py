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
from dataclasses import dataclass, field

from phi3lora.errors import RunError
from phi3lora.events import (
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
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (step, loss)

    def add(self, event: Event) -> None:
        """Take one more event in."""
        if isinstance(event, Step):
            self._add_step(event)
        elif isinstance(event, Evaluated):
            self.evaluated = event
            self.held_out.append((event.step, event.loss))
        elif isinstance(event, Resumed):
            self._rewind(event.step)
        elif isinstance(event, Notice):
            self.notices.append(event)
        elif isinstance(event, Stage):
            self.stage = event
        elif isinstance(event, Prepared | Loaded | Ended):
            setattr(self, event.kind, event)

    def _add_step(self, event: Step) -> None:
        self.step, self.ended, self.stage = event, None, None
        if event.loss is not None:
            self.losses.append((event.step, event.loss))
        if event.learning_rate is not None:
            self.rates.append((event.step, event.learning_rate))

    def _rewind(self, step: int) -> None:
        """What came after the checkpoint is done again, so it is forgotten."""
        self.ended = None
        for points in (self.losses, self.rates, self.held_out):
            points[:] = [point for point in points if point[0] <= step]


class Follower:
    """Reads each run's new events once, whoever asks."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._views: OrderedDict[str, tuple[int, RunView]] = OrderedDict()
        self._lists: dict[str, tuple[float, str]] = {}

    def view(self, run: Run) -> RunView:
        """What the run's events say so far. The caller reads it and changes nothing."""
        with self._lock:
            offset, view = self._views.pop(run.id, (0, RunView()))
            if offset > run.events_end():
                offset, view = 0, RunView()
            events, offset = run.events(offset)
            for event in events:
                view.add(event)
            self._views[run.id] = (offset, view)
            while len(self._views) > KEPT:
                self._views.popitem(last=False)
            return view

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
        lines = "\n".join(f"{run.id} {run.status} {run.title}" for run in self._store.list(owner))
        pulse = hashlib.sha256(lines.encode()).hexdigest()[:12]
        self._lists[owner] = (now, pulse)
        return pulse
