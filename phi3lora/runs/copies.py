"""A run's copy on the Hub: kept while it computes, and brought back when the disk is gone.

with copied(run, emit, token) as copy:
    copy.begin()                  # now it computes
    compute(run, emit=copy, …)    # each checkpoint that is saved is sent in the background

run = restore(store, "ann/phi3lora-20261121-093000-4f1a2b", token, owner)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phi3lora.config import RunConfig
from phi3lora.data.sources import names_no_file
from phi3lora.errors import HubError, RunError
from phi3lora.events import Emit, Event, Notice, Saved
from phi3lora.hub.backup import (
    Backup,
    RunNote,
    check_portable,
    check_rows,
    fetch_run,
    settle,
)
from phi3lora.lora.result import find_result
from phi3lora.runs.permission import may_read
from phi3lora.runs.store import ID, LOCAL, Run, RunState, RunStore, fill
from phi3lora.settings import Settings


class Copy:
    """Passes events on, and has every saved checkpoint sent."""

    def __init__(
        self,
        run: Run,
        emit: Emit,
        token: str | None,
        settings: Settings,
        every: float | None = None,
    ) -> None:
        self._run, self._emit, self._token, self._settings = run, emit, token, settings
        self._every = every
        self._backup: Backup | None = None

    def __call__(self, event: Event) -> None:
        self._emit(event)
        if self._backup is not None and isinstance(event, Saved):
            self._backup.saved(event.path)

    def begin(self) -> None:
        """Start sending, if the config asks for it."""
        run = self._run
        if not run.config.hub.backup:
            return
        if self._token is None:
            self._notify("The run is not backed up: nobody was signed in when it was started.")
            return
        note = RunNote(run.id, run.title, run.state.created)
        rows = rows_to_send(run, self._settings)
        self._backup = Backup(
            run.folder,
            note,
            run.config,
            self._token,
            self._notify,
            rows=rows,
            every=self._every,
        )

    def send(self, path: str, seconds: float) -> None:
        """Have a checkpoint sent, and wait for it, so many seconds at most."""
        if self._backup is not None:
            self._backup.saved(path)
            self._backup.settle(seconds)

    def sign_in(self, token: str) -> None:
        """Go on with another token: the owner has signed in again."""
        self._token = token
        if self._backup is not None:
            self._backup.sign_in(token)

    def finish(self) -> None:
        """Send the last state, and wait for it."""
        if self._backup is not None:
            self._backup.finish()

    def _notify(self, message: str) -> None:
        self._emit(Notice(message=message, level="warning"))


@contextmanager
def copied(
    run: Run, emit: Emit, token: str | None, settings: Settings, every: float | None = None
) -> Iterator[Copy]:
    """The run's copy, finished when the block is left, however that is.

    Args:
        every: seconds after which events are sent without a checkpoint; None for never.
    """
    copy = Copy(run, emit, token, settings, every)
    try:
        yield copy
    finally:
        copy.finish()


def rows_to_send(run: Run, settings: Settings) -> Path | None:
    """The run's file of rows, which would be gone with the disk; None unless it is its owner's."""
    return _rows(run.config, run.owner, settings, run.folder)


def _rows(config: RunConfig, owner: str, settings: Settings, folder: Path | None) -> Path | None:
    path = Path(config.data.path)
    mine = path.is_absolute() and may_read(str(path), owner, settings, folder)
    return path.resolve() if mine and path.is_file() else None


def rows_that_leave(
    config: RunConfig, owner: str, settings: Settings, folder: Path | None = None
) -> Path | None:
    """The file of rows that goes along where a run computes elsewhere; None where it needs none.

    Raises HubError where the run names what can only be had on this machine.
    """
    check_portable(config)
    rows = _rows(config, owner, settings, folder)
    if rows is None and not names_no_file(config.data.path):
        raise HubError(
            f"The data, {config.data.path!r}, is no single file, and only one goes along with a "
            "run: put it on the Hub as a dataset, and name that."
        )
    check_rows(rows)
    return rows


def restore(store: RunStore, repo: str, token: str, owner: str = LOCAL) -> Run:
    """The run as it was last backed up, in a folder of its own; not started.

    Raises RunError where that run is here already, HubError where it cannot be fetched.
    """
    runs = store.settings.runs_folder
    runs.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".restored-", dir=runs))
    try:
        note = fetch_run(repo, token, beside)
        if not ID.fullmatch(note.id):
            raise RunError(f"{repo} names its run {note.id!r}, which is no run's id.")
        home = runs / note.id
        if home.exists():
            raise RunError(f"Run {note.id} is here already; resume it, or delete it first.")
        settle(beside, home)
        config, _ = RunConfig.from_yaml(beside / "config.yaml")
        fill(beside, config, _state(note, beside, config, owner))
        beside.rename(home)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return store.get(note.id, owner)


def _state(note: RunNote, folder: Path, config: RunConfig, owner: str) -> RunState:
    done = find_result(folder, config).whole
    return RunState(
        id=note.id,
        owner=owner,
        title=note.title,
        created=note.created,
        status="finished" if done else "stopped",
        outcome="finished" if done else None,
        message="" if done else "Brought back from the Hub; resume it to go on.",
    )
