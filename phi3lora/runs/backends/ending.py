"""The end of a worker that does not end by itself: SIGTERM, and if that does not help, SIGKILL.

    python -m phi3lora.runs.backends.ending FOLDER PID SECONDS REASON

A worker that hangs inside a library hears nobody. Nothing is lost but the steps since the last
checkpoint, and the run can be resumed. The process is signalled only while it holds the lock of
that run, so a number that was given to another process since does no harm.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from phi3lora.runs import life
from phi3lora.runs.store import changed, open_run

LAST_SECONDS = 30.0  # for a save after SIGTERM
POLL_SECONDS = 0.5
LOCK = ".ending-{}.lock"  # one of us is enough for a reason


def end(folder: Path, pid: int, seconds: float, last: float = LAST_SECONDS) -> bool:
    """End the worker `pid` of a run if it still holds it after so many seconds.

    Returns whether force was used.
    """
    if _gone(folder, pid, seconds):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if _gone(folder, pid, last):
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _gone(folder, pid, last)
    _write_down(folder)
    return True


def _gone(folder: Path, pid: int, seconds: float) -> bool:
    """Wait for a worker to let go of its run; False where it still holds it."""
    deadline = time.monotonic() + seconds
    while life.holder(folder) == pid:
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(POLL_SECONDS, max(seconds, 0.01)))
    return True


def _write_down(folder: Path) -> None:
    """Say in the state what happened; whoever holds the lock may write it."""
    lock = life.take(folder)
    if lock is None:
        return
    try:
        changed(
            open_run(folder),
            status="stopped",
            message="Ended by force: it did not end by itself. Resume it to go on from the last "
            "checkpoint.",
            exit_status=1,
            ended=time.time(),
        )
    finally:
        os.close(lock)


def main() -> int:
    """End the worker named in the arguments."""
    folder, pid, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    lock = life.take(folder, name=LOCK.format(sys.argv[4]))
    if lock is not None:
        end(folder, pid, seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
