"""Runs that were put into the bin: out of the list, and brought back on request for 30 days.

    discard(store, run)
    discarded(store, owner)              newest first
    recover(store, run_id, owner)        the run, as it was
    empty(store, owner)                  for good, now

A run of the bin lies in `runs/.bin/ID`. A run in a folder that somebody named leaves a link there;
its folder is never touched.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from phi3lora.errors import RunError
from phi3lora.runs import life
from phi3lora.runs.store import ACTIVE, ID, Run, RunStore, damaged_run, read_state

BIN = ".bin"
KEPT_DAYS = 30


def discard(store: RunStore, run: Run) -> None:
    """Take a run out of the list. RunError while it computes or waits, or cannot be moved."""
    home = store.settings.runs_folder / run.id
    over = run.refresh().status not in ACTIVE  # asked first: who holds the lock seems to run
    held = life.take(run.folder) if over else None
    if held is None:
        raise RunError(f"Run {run.id} is not over; stop it first, then delete it.")
    try:
        place = _folder(store) / run.id
        place.parent.mkdir(mode=0o700, exist_ok=True)
        home.rename(place)
        os.utime(place, follow_symlinks=False)  # the days count from now
    except OSError as error:
        raise RunError(f"Run {run.id} cannot be put into the bin: {error}.") from None
    finally:
        os.close(held)


def discarded(store: RunStore, owner: str) -> list[Run]:
    """The owner's runs in the bin, the last one that was put there first."""
    found = []
    for place in _places(store):
        state = read_state(place)
        run = Run(place, state) if state else damaged_run(place, store.settings.on_space)
        if run is not None and run.owner == owner:
            found.append((place.lstat().st_mtime, run))
    return [run for _, run in sorted(found, key=lambda item: item[0], reverse=True)]


def recover(store: RunStore, run_id: str, owner: str) -> Run:
    """Put a run back into the list. RunError where the bin holds none of that id for its owner."""
    run = next((run for run in discarded(store, owner) if run.id == run_id), None)
    if run is None:
        raise RunError(
            f"There is no run {run_id!r} in the bin; `phi3lora runs bin` names those there are."
        )
    try:
        (_folder(store) / run_id).rename(store.settings.runs_folder / run_id)
    except OSError as error:
        raise RunError(f"Run {run_id} cannot be brought back: {error}.") from None
    return store.get(run_id, owner)


def empty(store: RunStore, owner: str) -> int:
    """Remove the owner's runs in the bin for good; how many there were. Raises RunError."""
    runs = discarded(store, owner)
    try:
        for run in runs:
            _remove(run.folder)
    except OSError as error:
        raise RunError(f"The bin cannot be emptied: {error}.") from None
    return len(runs)


def expire(store: RunStore, days: float = KEPT_DAYS) -> list[Path]:
    """Remove what has been in the bin for that long, whoever's it was; what was removed."""
    gone = []
    for place in _places(store):
        if time.time() - place.lstat().st_mtime > days * 86_400:
            try:
                _remove(place)
            except OSError:
                continue  # it stays, and is tried again when the app next starts
            gone.append(place)
    return gone


def _folder(store: RunStore) -> Path:
    return store.settings.runs_folder / BIN


def _places(store: RunStore) -> list[Path]:
    try:
        return [place for place in _folder(store).iterdir() if ID.fullmatch(place.name)]
    except OSError:
        return []


def _remove(place: Path) -> None:
    if place.is_symlink():  # a folder that somebody named stays theirs
        place.unlink()
    else:
        shutil.rmtree(place)
