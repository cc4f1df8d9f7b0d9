"""What processes that were killed left behind: removed when the app starts.

    for path in sweep(settings): ...

Only what is older than a day, and what no living process holds, goes: half-written files, run
folders that never became runs or were being deleted, copies for a download, locks of caches.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from phi3lora.runs import life
from phi3lora.runs.store import ID, damaged_run
from phi3lora.settings import Settings

OLD_SECONDS = 86_400.0
TAKEN_SECONDS = 4 * 3600.0  # after which a download was made and taken: pages serve a copy of it
DOWNLOAD = "phi3lora-download-"
WITHIN_RUN = (".*.part", "*.unfinished", "merged-*", ".backup")


def sweep(settings: Settings, old: float = OLD_SECONDS) -> list[Path]:
    """Remove leftovers; returns what was removed. What cannot be removed stays, without a word."""
    gone = []
    for path in _leftovers(settings):
        if _is_older(path, old) and _remove(path):
            gone.append(path)
    return gone


def folder_for_download() -> Path:
    """A temporary folder for a file to take away; those that were taken long ago go."""
    for path in Path(tempfile.gettempdir()).glob(f"{DOWNLOAD}*"):
        if _is_older(path, TAKEN_SECONDS):
            _remove(path)
    return Path(tempfile.mkdtemp(prefix=DOWNLOAD))


def _leftovers(settings: Settings) -> Iterator[Path]:
    yield from Path(tempfile.gettempdir()).glob("phi3lora-*")
    cache = settings.cache_folder
    yield from cache.glob("**/prepared/*.part")
    yield from (lock for lock in cache.glob("**/*.lock") if not _is_locked(lock))
    with suppress(FileNotFoundError):
        for folder in settings.runs_folder.iterdir():
            yield from _of_a_run(folder)


def _of_a_run(folder: Path) -> Iterator[Path]:
    """A folder that is no run, or what a killed worker left in one."""
    if life.is_held(folder):
        return
    hidden = folder.name.startswith((".new-", ".restored-")) or ID.fullmatch(folder.name[1:])
    no_run = ID.fullmatch(folder.name) and damaged_run(folder) is None
    if hidden or (no_run and not (folder / "state.json").exists()):
        yield folder
        return
    if ID.fullmatch(folder.name):
        for pattern in WITHIN_RUN:
            yield from folder.glob(pattern)


def _is_older(path: Path, seconds: float) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and time.time() - status.st_mtime > seconds


def _is_locked(file: Path) -> bool:
    """Whether a process holds a lock file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _remove(path: Path) -> bool:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        return False
    return True
