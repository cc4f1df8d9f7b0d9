"""Workers that start in no time, and die where a trial says.

A worker spends four fifths of a short run on imports. Here it is forked from a process that has
imported everything; from then on it is the worker that the app starts, with the same lock, the same
log and the same code.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from phi3lora.events import EventLog
from phi3lora.runs import worker
from phi3lora.runs.backends import local

# What changes the disk; a run is killed between two of these.
OPERATIONS: list[tuple[Any, str]] = [
    *((os, name) for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "open")),
    (torch, "save"),
    (shutil, "rmtree"),
    (EventLog, "emit"),
]
COUNTED = "operations"
Hook = Callable[[Path], None]


@dataclass
class Forked:
    """What the backend needs of a process that it has started."""

    pid: int
    stdin: io.BytesIO = field(default_factory=io.BytesIO)

    def wait(self) -> None:
        """Take its exit status, so that no dead child lingers."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


@contextmanager
def forked_workers(hook: Hook | None = None) -> Iterator[None]:
    """Workers that are started in this block are forked; `hook` runs in each of them first."""

    def start(folder: Path, lock: int, environment: dict[str, str], module: str) -> Forked:
        pid = os.fork()
        if pid == 0:
            _be_worker(folder, lock, environment, hook)
        return Forked(pid)

    before: Any = local._start
    local._start = start  # type: ignore[assignment]
    try:
        yield
    finally:
        local._start = before


def _be_worker(folder: Path, lock: int, environment: dict[str, str], hook: Hook | None) -> None:
    status = 70
    try:
        os.setsid()
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(source, target)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["worker", str(folder), str(lock)]
        if hook is not None:
            hook(folder)
        status = worker.main()
    except BaseException:  # noqa: BLE001 - a forked child must not go on as its parent
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


# What a hook may do


def counting(wanted: int | None) -> Hook:
    """Kill the process before its n-th operation on the disk; None counts them into a file."""

    def hook(folder: Path) -> None:
        count, tally = 0, os.open(folder.parent / f".{COUNTED}", os.O_WRONLY | os.O_CREAT)

        def counted(function: Any) -> Any:
            def before(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == wanted:
                    os.kill(os.getpid(), signal.SIGKILL)
                os.pwrite(tally, f"{count:6d}".encode(), 0)
                return function(*arguments, **named)

            return before

        for owner, name in OPERATIONS:
            setattr(owner, name, counted(getattr(owner, name)))

    return hook


def operations(folder: Path) -> int:
    """How many operations the last counted worker made."""
    return int((folder.parent / f".{COUNTED}").read_text())


def stepping_clock(seconds: float) -> Hook:
    """Let the wall clock jump to and fro by so many seconds, every few times it is asked."""

    def hook(folder: Path) -> None:
        real, asked = time.time, 0

        def wrong() -> float:
            nonlocal asked
            asked += 1
            return real() + (seconds if asked // 3 % 2 else -seconds)

        time.time = wrong

    return hook
