"""Faults on demand, and the log of what was asked: a middleware around the whole Hub.

Every rule has a pattern, a regular expression that is searched for in the path
(``/api/datasets``) or in method and path together (``^PUT /lfs``). A rule without
``times`` stays until ``clear()``.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import unquote

from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass
class Request:
    """One request as the Hub saw it."""

    method: str
    path: str
    query: str
    authorization: str | None
    range: str | None
    status: int | None = None
    sent: int = 0  # bytes of the answer's body

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Rule:
    """What happens to the next ``times`` requests that match."""

    pattern: str
    kind: str  # "fail", "cut", "lose", "slow" or "hold"
    times: int | None = None
    status: int = 503
    retry_after: int | None = None  # seconds
    reset: int | None = None  # seconds until the rate limit's window ends
    message: str | None = None
    after_bytes: int = 0
    seconds: float = 0.0
    event: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Event = field(default_factory=threading.Event)
    hits: int = 0

    def matches(self, request: Request) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        return re.search(self.pattern, request.path) is not None or (
            re.search(self.pattern, str(request)) is not None
        )


class Faults:
    """The rules that are in force, and the requests that came."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.requests: list[Request] = []

    def add(self, rule: Rule) -> Rule:
        self.rules.append(rule)
        return rule

    def clear(self) -> None:
        for rule in self.rules:
            rule.event.set()
        self.rules.clear()

    def take(self, request: Request) -> list[Rule]:
        """The rules for this request, each counted as used once more."""
        found = [rule for rule in self.rules if rule.matches(request)]
        for rule in found:
            rule.hits += 1
        return found

    @contextmanager
    def held(self, pattern: str) -> Iterator[Rule]:
        """Keep matching requests waiting for as long as the block runs.

        ``rule.waiting`` is set when the first has come.
        """
        rule = self.add(Rule(pattern, "hold"))
        try:
            yield rule
        finally:
            self.rules.remove(rule)
            rule.event.set()


class Wire(H11Protocol):
    """uvicorn's protocol, with its connections in reach, so that they can be cut."""

    wires: ClassVar[dict[tuple[str, int], Any]] = {}  # the client's address → its connection

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.wires[transport.get_extra_info("peername")] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.wires.pop(self.transport.get_extra_info("peername"), None)
        super().connection_lost(exc)


class Cut(Exception):
    """The connection was cut on purpose; nothing is left to answer."""


class FaultyApp:
    """The ASGI app that stands before the Hub: logs each request and applies the rules."""

    def __init__(self, app: Any, faults: Faults) -> None:
        self.app = app
        self.faults = faults

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = describe(scope)
        self.faults.requests.append(request)
        send = logged(send, request)
        for rule in self.faults.take(request):
            if rule.kind == "slow":
                await asyncio.sleep(rule.seconds)
            elif rule.kind == "hold":
                rule.waiting.set()
                await asyncio.to_thread(rule.event.wait)
            elif rule.kind == "lose":
                send = losing(scope)
            elif rule.kind == "cut":
                receive, send = cutting(scope, receive, send, rule.after_bytes)
            elif rule.kind == "fail":
                await refuse(scope, receive, send, rule)
                return
        try:
            await self.app(scope, receive, send)
        except Cut:
            return


def describe(scope: dict[str, Any]) -> Request:
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
    return Request(
        method=scope["method"],
        path=unquote(scope["path"]),
        query=scope["query_string"].decode(),
        authorization=headers.get("authorization"),
        range=headers.get("range"),
    )


def logged(send: Any, request: Request) -> Any:
    """Write the answer's status and size into the log as it passes."""

    async def passing(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            request.status = message["status"]
        elif message["type"] == "http.response.body" and request.method != "HEAD":
            request.sent += len(message.get("body", b""))
        await send(message)

    return passing


def cutting(scope: dict[str, Any], receive: Any, send: Any, after: int) -> tuple[Any, Any]:
    """Let ``after`` bytes of the upload, or else of the answer, pass and close the connection."""
    transport = Wire.wires[scope["client"]]
    is_upload = scope["method"] in ("PUT", "POST")
    passed = 0

    async def cut_receive() -> Any:
        nonlocal passed
        message = await receive()
        passed += len(message.get("body", b"")) if is_upload else 0
        if is_upload and passed >= after:
            transport.abort()
            raise Cut
        return message

    async def cut_send(message: dict[str, Any]) -> None:
        nonlocal passed
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or passed + len(body) < after:
            passed += len(body)
            await send(message)
            return
        await send({**message, "body": body[: after - passed], "more_body": True})
        transport.close()  # what was written is still delivered
        raise Cut

    async def send_if_open(message: dict[str, Any]) -> None:
        if not transport.is_closing():
            await send(message)

    return (cut_receive, send_if_open) if is_upload else (receive, cut_send)


def losing(scope: dict[str, Any]) -> Any:
    """The Hub does what was asked, and its answer never arrives."""
    transport = Wire.wires[scope["client"]]

    async def lost(message: dict[str, Any]) -> None:
        transport.abort()
        raise Cut

    return lost


async def refuse(scope: dict[str, Any], receive: Any, send: Any, rule: Rule) -> None:
    """Answer with the rule's status instead of asking the Hub."""
    while scope["method"] in ("PUT", "POST") and (await receive()).get("more_body"):
        pass  # the client wants to finish its upload before it listens
    message = rule.message or {429: "Too Many Requests"}.get(rule.status, "Service unavailable")
    body = json.dumps({"error": message}).encode()
    headers = {"content-type": "application/json", "x-error-message": message}
    headers["content-length"] = str(len(body))
    if rule.retry_after is not None:
        headers["retry-after"] = str(rule.retry_after)
    if rule.reset is not None:
        headers["RateLimit"] = f'"api";r=0;t={rule.reset}'
        headers["RateLimit-Policy"] = '"fixed window";"api";q=1000;w=300'
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": rule.status, "headers": pairs})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
