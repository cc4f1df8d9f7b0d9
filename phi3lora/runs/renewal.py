"""A new token for a run that is at work: its owner has signed in again.

    with renewable(folder, copy.sign_in):     in the worker, which listens meanwhile
    renew(folder, token)                      in the app; whether the worker took it

A sign-in ends after hours and a training may not. The token goes from process to process through
a socket that has no file (Linux), so it touches no disk. Each side asks the system who the other
is: the app gives it to the process that holds the run's lock, the worker takes it from its own
user. Elsewhere than on Linux nothing is handed over, and the backup waits for the next resume.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from phi3lora.runs import life

SECONDS = 5.0  # for one side to hear the other
LONGEST = 16_384  # bytes of a token
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


@contextmanager
def renewable(folder: Path, take: Callable[[str], None]) -> Iterator[None]:
    """Call `take` with every token that arrives for this run, until the block ends."""
    if sys.platform != "linux":
        yield
        return
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(_address(folder))
        except OSError:  # another worker of this run still listens
            yield
            return
        listening.listen()
        thread = threading.Thread(target=_listen, args=(listening, take), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(SECONDS)


def renew(folder: Path, token: str) -> bool:
    """Hand a token to the worker of this run; False where none listens."""
    if sys.platform != "linux":
        return False
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        try:
            connection.connect(_address(folder))
            if _peer(connection)[0] != life.holder(folder):
                return False
            connection.sendall(token.encode())
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b"y"
        except OSError:
            return False


def _listen(listening: socket.socket, take: Callable[[str], None]) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:  # it is over
            return
        with connection:
            connection.settimeout(SECONDS)
            try:
                if _peer(connection)[1] == os.getuid() and (token := _read(connection)):
                    take(token)
                    connection.sendall(b"y")
            except OSError:  # gone half-way
                continue


def _read(connection: socket.socket) -> str:
    """What is sent until the end; nothing where it is too long or no text."""
    data = b""
    while (part := connection.recv(LONGEST)) and len(data) <= LONGEST:
        data += part
    return data.decode("ascii", "ignore").strip() if len(data) <= LONGEST else ""


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the system says."""
    option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(option)
    return pid, uid


def _address(folder: Path) -> str:
    """A name in the kernel's own space; the leading NUL says so."""
    return "\0phi3lora-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
