"""Apps and other programs in processes of their own: a port, a start and an end to wait for.

with program([sys.executable, "app.py", "--port", str(port)], address, folder / "app.log"):
    ...

A busy machine is slow, and a test of what a program does is no test of the clock: whoever waits
for one waits `PATIENCE`.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds
PORTS = range(12_000, 32_000)  # below those that a system gives to whoever asks for any


def free_port() -> int:
    """A port that nobody listens on.

    One that the system gave away and took back may be anybody's a moment later: a browser's, for
    a connection of its own.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@contextmanager
def program(
    command: Sequence[str], address: str, log: Path, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that answers at an address, for the length of a block; it ends with its forks."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, **options
        )
    try:
        wait_until_up(address, process, log)
        yield process
    finally:
        end(process)


def wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once it answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=30).close()
            return
        except OSError:  # nobody there yet, or 503
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and take with it what it leaves behind."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
