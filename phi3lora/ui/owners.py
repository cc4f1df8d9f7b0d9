"""Whose a page's session is: its values, its events and its answers are for who began it.

Gradio takes whoever names a session, or an event of one, for its owner. The names are drawn at
random, but they stand in addresses, which get into logs and histories.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Message, Send

REMEMBERED = 10_000  # sessions and events whose owner is known
CALLS = "/gradio_api/"
IN_PATH = ("heartbeat/", "call/")  # of a GET, whose path ends with the name


class Owners:
    """Remembers who began each session; what nobody signed in for is anybody's."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, str] = OrderedDict()

    def admit(self, connection: HTTPConnection, body: bytes | None, who: str) -> bool:
        """Whether a request names nothing of somebody else's; what is new becomes its sender's."""
        named = list(named_in(connection, body))
        if any(self._of.get(name, who) != who for name in named):
            return False
        for name in named:
            self._keep(name, who)
        return True

    def noting(self, send: Send, who: str) -> Send:
        """Passes a call's answer on, and remembers whose the event is that it names."""
        said = b""

        async def answer(message: Message) -> None:
            nonlocal said
            if message["type"] == "http.response.body" and len(said) < 1000:
                said += message.get("body", b"")
                event = _object(said).get("event_id")
                if isinstance(event, str):
                    self._keep(event, who)
            await send(message)

        return answer

    def _keep(self, name: str, who: str) -> None:
        if not who:
            return
        self._of[name] = who
        self._of.move_to_end(name)
        while len(self._of) > REMEMBERED:
            self._of.popitem(last=False)


def named_in(connection: HTTPConnection, body: bytes | None) -> Iterator[str]:
    """The sessions and events that a request names."""
    yield from filter(None, connection.query_params.getlist("session_hash"))
    path = connection.scope["path"].removeprefix(CALLS)
    if connection.scope["method"] == "GET" and path.startswith(IN_PATH):
        yield path.rstrip("/").rpartition("/")[2]
    values = _object(body or b"")
    for key in ("session_hash", "event_id"):
        if isinstance(name := values.get(key), str) and name:
            yield name


def _object(body: bytes) -> dict[str, Any]:
    """The object that a body is; an empty one where it is none."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
