"""How much memory a training holds: of the GPU where there is one, else of the process.

held_memory(), peak_memory()           bytes, now and at most so far
"""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import torch


def held_memory() -> int | None:
    """Bytes that are held now; None where the system does not tell."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_reserved())
    return _of_process("VmRSS")


def peak_memory() -> int:
    """Most bytes held so far."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Not `getrusage` first: a process inherits the peak of the one that started it.
    if (peak := _of_process("VmHWM")) is not None:
        return peak
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found * (1 if platform.system() == "Darwin" else 1024)


def _of_process(name: str) -> int | None:
    """A line of Linux's account of this process, in bytes; None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split(f"{name}:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return None
