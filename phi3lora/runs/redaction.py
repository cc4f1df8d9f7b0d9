"""Keep tokens out of whatever a run writes down.

redact("401 for hf_abcdefghijklmnopqrstuv")   →   "401 for hf_…"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TextIO

from phi3lora.events import Event

HIDDEN = "hf_…"
# User tokens are letters and digits; those of OAuth hold a JSON web token with dots and dashes.
TOKEN = re.compile(r"\bhf_(?:[A-Za-z0-9]{16,}|(?:oauth|jwt)_[A-Za-z0-9._\-]{16,})")


def redact(text: str, secret: str | None = None) -> str:
    """The text without this secret and without anything that looks like a Hub token."""
    if secret:
        text = text.replace(secret, HIDDEN)
    return TOKEN.sub(HIDDEN, text)


def redact_event(event: Event, secret: str | None = None) -> Event:
    """The event with redacted texts."""
    changes: dict[str, Any] = {
        name: redact(value, secret) for name, value in vars(event).items() if isinstance(value, str)
    }
    return replace(event, **changes)


class RedactedStream:
    """A text stream that hides tokens before it writes; everything else is the stream's own."""

    def __init__(self, stream: TextIO, secret: str | None = None) -> None:
        self._stream = stream
        self._secret = secret

    def write(self, text: str) -> int:
        self._stream.write(redact(text, self._secret))
        self._stream.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
