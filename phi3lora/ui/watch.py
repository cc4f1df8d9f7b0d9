"""What the server does beside Gradio: refuse foreign requests, and say cheaply what changed.

    launch(app_kwargs=beside(pulse, own_hosts()))

An idle page asks `/pulse` every few seconds. The answer is a short fingerprint; only when it
differs does the page call Gradio, so that a hundred open pages cost next to nothing.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3lora.ui.sessions import BROWSER, session_token

Pulse = Callable[[Request], str]
FRESH = 0.8  # seconds for which an answer serves everybody who asks the same
KEPT = 1024
SAFE = {"GET", "HEAD", "OPTIONS"}


class OriginGuard:
    """Refuses a state-changing request that another site's page sent in the visitor's name.

    A request without an Origin comes from a program, which has no cookies to abuse.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str] = frozenset()) -> None:
        self.app = app
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] == "http" and scope["method"] not in SAFE and self._foreign(scope):
            message = "This request came from another site's page; open the app itself.\n"
            await PlainTextResponse(message, status_code=403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _foreign(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None:
            return False
        host = urlsplit(origin).netloc.lower()
        return host != headers.get("host", "").lower() and host not in self.allowed


class BrowserCookie:
    """Gives each browser a name of its own, by which the token it brought is found again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a page's answer brings the cookie where there is none."""
        cookies = Headers(scope=scope).get("cookie", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or scope["method"] != "GET" or f"{BROWSER}=" in cookies:
            await self.app(scope, receive, send)
            return
        cookie = f"{BROWSER}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax"

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", cookie)
            await send(message)

        await self.app(scope, receive, answer)


def own_hosts() -> frozenset[str]:
    """Names under which a Space's proxy is reached; a comma-separated list."""
    names = os.environ.get("SPACE_HOST", "")
    return frozenset(name.strip().lower() for name in names.split(",") if name.strip())


def beside(pulse: Pulse, allowed: frozenset[str], tell_apart: bool = False) -> dict[str, Any]:
    """Arguments of the FastAPI app: the guard, and the route that idle pages ask.

    With `tell_apart` each browser gets a name, by which its token is found.
    """
    answers: dict[tuple[str | None, str], tuple[float, str]] = {}

    async def answer(request: Request) -> PlainTextResponse:
        # A thread costs more than all the rest, so who asks the same within a second shares one.
        asked = session_token(request), request.query_params.get("run", "")
        known = answers.get(asked)
        if known is None or time.monotonic() - known[0] > FRESH:
            if len(answers) >= KEPT:
                answers.clear()
            known = answers[asked] = (time.monotonic(), await run_in_threadpool(pulse, request))
        return PlainTextResponse(known[1], headers={"Cache-Control": "no-store"})

    cookies = [Middleware(BrowserCookie)] if tell_apart else []
    return {
        "middleware": [Middleware(OriginGuard, allowed=allowed), *cookies],
        "routes": [Route("/pulse", answer)],
    }
