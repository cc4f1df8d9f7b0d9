"""Whether a run lives: its worker holds a lock in the run's folder, and the system takes it back.

    descriptor = take(folder)      None where somebody holds it
    is_held(folder)
    holder(folder)                 the process that was started with it

A lock ends with the process that holds it, however that ends. Nothing depends on a process's
number, which is used again, or on a clock, which may be set. Whoever starts a worker takes the
lock and hands the open file over, so that no moment is without a holder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
import time
from pathlib import Path

LOCK = "worker.lock"
POLL_SECONDS = 0.01
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def take(folder: Path, seconds: float = 0.5, name: str = LOCK) -> int | None:
    """The lock as an open file that children may inherit; None where another holds it.

    Args:
        seconds: for which a holder is waited for; whoever asks `is_held` holds it for a moment.
    """
    deadline = time.monotonic() + seconds
    descriptor = os.open(lock_file(folder, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
        time.sleep(POLL_SECONDS)


def sign(descriptor: int, pid: int) -> None:
    """Write down which process holds the lock, for people and for signals."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(pid).encode(), 0)


def is_held(folder: Path, name: str = LOCK) -> bool:
    """Whether a worker lives on this folder."""
    try:
        descriptor = os.open(lock_file(folder, name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def holder(folder: Path) -> int | None:
    """The process that holds the lock; None where nobody does."""
    if not is_held(folder):
        return None
    try:
        return int(lock_file(folder, LOCK).read_bytes())
    except (OSError, ValueError):
        return None


def lock_file(folder: Path, name: str) -> Path:
    """The file that is locked: in the folder, or where its file system has no locks, beside it.

    A mounted bucket has none. Then the lock stands among this machine's temporary files, which
    says as much: a worker lives on one machine.
    """
    if _has_locks(str(folder.stat().st_dev), folder):
        return folder / name
    places = Path(tempfile.gettempdir()) / f"locks-of-phi3lora-{os.getuid()}"
    places.mkdir(mode=0o700, exist_ok=True)
    return places / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}-{name}"


_known: dict[str, bool] = {}  # by device: file systems do not change while they are mounted


def _has_locks(device: str, folder: Path) -> bool:
    if device not in _known:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _known[device] = True
        except OSError as error:
            _known[device] = error.errno not in NO_LOCKS
        finally:
            os.close(descriptor)
    return _known[device]
