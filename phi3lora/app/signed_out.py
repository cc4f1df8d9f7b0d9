"""Sessions that were ended: the cookie of one says for hours that its holder is signed in.

signed_out.end(token)          at sign-out
signed_out.ended(token)        asked before a token is believed, after a restart too
"""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

LASTS = 30 * 24 * 3600.0  # seconds; no token of a session is good for longer


class SignedOut:
    """Tokens that are believed no more, by their hash; written down without the tokens."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._ended: set[str] | None = None

    def end(self, token: str) -> None:
        """Believe this token no more."""
        with self._lock:
            ended = self._read()
            if (key := _key(token)) not in ended:
                ended.add(key)
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="ascii") as file:
                    file.write(f"{key} {time.time():.0f}\n")

    def ended(self, token: str | None) -> bool:
        """Whether its holder signed out."""
        with self._lock:
            return token is not None and _key(token) in self._read()

    def _read(self) -> set[str]:
        """Those of the last weeks, read once."""
        if self._ended is None:
            try:
                lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
            except OSError:
                lines = []
            pairs = [line.split() for line in lines]
            self._ended = {
                pair[0]
                for pair in pairs
                if len(pair) == 2 and pair[1].isdecimal() and time.time() - int(pair[1]) < LASTS
            }
        return self._ended


def _key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
