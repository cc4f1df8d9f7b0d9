"""Starting, stopping and resuming runs, in order.

    queue = Queue(settings)
    run = queue.submit(store.create(config), token)
    queue.position(run)          # 1: next; None: not waiting
    queue.stop(run); queue.resume(run, token)

Each submitted run has a process of its own that waits for its turn, the oldest first, so the
queue outlives the app.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import suppress
from pathlib import Path

from phi3lora.errors import LimitError, RunError
from phi3lora.files import write_whole
from phi3lora.runs.backends import backend_of
from phi3lora.runs.permission import check_paths
from phi3lora.runs.store import ACTIVE, RESUMABLE, Run, RunStore, changed
from phi3lora.settings import Settings

DAY = 86_400.0  # seconds


class Queue:
    """Starts, stops, resumes and brings back the runs of an installation, by their backends."""

    def __init__(self, settings: Settings, store: RunStore | None = None) -> None:
        self.settings = settings
        self.store = store or RunStore(settings)
        self._lock = threading.Lock()

    def submit(self, run: Run, token: str | None = None, *, accept_changes: bool = False) -> Run:
        """Queue a run. LimitError if its owner has as many unfinished ones as allowed.

        Args:
            accept_changes: go on even if data, base or versions are not those of the first start.
        """
        with self._lock:
            run = run.refresh()
            if run.status in ACTIVE:
                raise RunError(f"Run {run.id} is already {run.status}.")
            self._check_unfinished(run.owner)
            check_paths(run.config, run.owner, self.settings, run.folder)
            starts = self._starts_today(run.owner)
            started = self._start(run, token, accept_changes)
            self._remember(run.owner, [*starts, time.time()])
            return started

    def _start(self, run: Run, token: str | None, accept_changes: bool) -> Run:
        backend = backend_of(run.state.backend)

        def begin() -> None:
            run.stop_file.unlink(missing_ok=True)
            changed(
                run,
                status="queued",
                message="",
                exit_status=None,
                device=backend.offers(run.config),
                queued=time.time(),
                started=None,
                ended=None,
                changes=[],
                accept_changes=accept_changes,
            )

        try:
            backend.start(run.folder, self.settings, token, begin)
        except OSError as error:
            with suppress(OSError):  # nobody holds the run, so it is not shown as waiting
                message = f"Its process could not be started: {error}."
                changed(run.refresh(), status="failed", message=message)
            raise RunError(f"Run {run.id} could not be started: {error}.") from None
        return run.refresh()

    def resume(self, run: Run, token: str | None = None, *, accept_changes: bool = False) -> Run:
        """Queue a run that ended before its time; it goes on where it was saved.

        So does a finished one whose result is damaged: it is written again.
        """
        self.check_resumable(run)
        return self.submit(run, token, accept_changes=accept_changes)

    def check_resumable(self, run: Run) -> None:
        """Raises RunError for a run that has nothing to go on with."""
        run = run.refresh()
        lost = run.status == "finished" and run.result.damage is not None
        if run.status not in RESUMABLE and not lost:
            next_step = "start a new one" if run.status == "finished" else "there is nothing to do"
            raise RunError(f"Run {run.id} is {run.status}; {next_step}.")

    def stop(self, run: Run) -> Run:
        """Ask a run to save and stop; one that waits leaves the queue.

        One that does not answer is ended by force in the end (`Settings.stop_seconds`).
        """
        run = run.refresh()
        if run.status not in ACTIVE:
            hint = "; resume it or delete it" if run.status in RESUMABLE else ""
            raise RunError(f"Run {run.id} is {run.status}, so it cannot be stopped{hint}.")
        run.stop_file.touch()
        backend_of(run.state.backend).stop(run.folder, self.settings.stop_seconds)
        return run.refresh()

    def cancel(self, run: Run) -> Run:
        """Take a waiting run out of the queue. RunError if it has begun."""
        if run.refresh().state.status != "queued":
            raise RunError(f"Run {run.id} is {run.status} and not waiting; stop it instead.")
        return self.stop(run)

    def position(self, run: Run) -> int | None:
        """Its place among those that wait for the same device, from 1; None if it does not wait.

        The Hub does not say how many wait for its machines.
        """
        if run.state.backend == "jobs":
            return None
        ids = [waiting.id for waiting in waiting_runs(self.store, run.refresh().state.device)]
        return ids.index(run.id) + 1 if run.id in ids else None

    def check_limits(self, owner: str) -> None:
        """Raises LimitError where this person may start no other run now."""
        self._check_unfinished(owner)
        self._starts_today(owner)

    def _check_unfinished(self, owner: str) -> None:
        unfinished = [run for run in self.store.list(owner) if run.status in ACTIVE]
        if len(unfinished) >= self.settings.runs_per_user:
            raise LimitError(
                f"You have {len(unfinished)} unfinished runs and may have "
                f"{self.settings.runs_per_user}; wait for one to end, or stop one."
            )

    def _starts_today(self, owner: str) -> list[float]:
        """When this person started runs within the last 24 hours. LimitError if that is enough."""
        most = self.settings.runs_per_day
        if most is None:
            return []
        try:
            times = json.loads(self._starts(owner).read_text(encoding="utf-8"))
            recent = [float(moment) for moment in times if 0 <= time.time() - moment < DAY]
        except (OSError, ValueError, TypeError):
            recent = []
        if len(recent) >= most:
            wait = (DAY - (time.time() - min(recent))) / 3600
            raise LimitError(
                f"You started {len(recent)} runs within 24 hours, and may start {most}; the next "
                f"one may start in {wait:.1f} hours."
            )
        return recent

    def _remember(self, owner: str, times: list[float]) -> None:
        if self.settings.runs_per_day is None:
            return
        file = self._starts(owner)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(times))

    def _starts(self, owner: str) -> Path:
        """Not in the runs, which can be deleted."""
        name = hashlib.sha256(owner.encode()).hexdigest()[:16]
        return self.settings.home / "starts" / f"{name}.json"


def waiting_runs(store: RunStore, device: str) -> list[Run]:
    """Runs that wait for a kind of device, the next one first."""
    waiting = [run for run in store.all() if run.state.device == device and run.status == "queued"]
    return sorted(waiting, key=lambda run: (run.state.queued or 0.0, run.id))
