"""Keep tokens out of whatever a run writes down: its events and its log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TextIO

from phi3lora.events import Event
from phi3lora.redaction import redact


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
