"""Who may speak to the app at all: asked of every request before Gradio sees it.

    rules = rules_for(settings, host)
    http_server.Server = guarded(rules)      # before Gradio starts its server
    rules.key                                what the address must carry, beyond loopback

The guard is the outermost layer, so that nothing of Gradio answers a request that it refuses. What
needs to know who is signed in is inside, in `watch`.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import re
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from gradio import http_server
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3lora.serve.protocol import ApiError
from phi3lora.settings import Settings
from phi3lora.ui.sessions import TOKEN_HEADERS

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
KEY_COOKIE = "phi3lora-key"
NO_KEY = "Give the key that the terminal shows as the API key."
SAFE = {"GET", "HEAD", "OPTIONS"}
MAX_BODY = 5_000_000  # bytes of anything but an upload
DEEPEST = 100  # levels of JSON that a request may nest
BODY_SECONDS, HEADER_SECONDS = 30.0, 15.0
UPLOAD = "/gradio_api/upload"
# Strings, which may hold brackets, and brackets. An unfinished string ends the text: linear time.
BRACKETS = re.compile(rb'"(?:[^"\\]+|\\.)*"?|[\[\]{}]', re.DOTALL)
# Routes of Gradio's that no page of ours uses. Refused, so that no fault of theirs is ours.
CLOSED = re.compile(
    r"/(?:monitoring|svelte|gradio_api/(?:proxy=|component_server|custom_component|deep_link|dev/|"
    r"monitoring|process_recording|profiling|run-history|stream|vibe-|undo-vibe|api/|run/|"
    r"mcp(?!/?\Z)|token|file[=/]*\w+:))",  # file=https:… fetches an address, from inside
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rules:
    """What the guard asks.

    Attributes:
        hosts: names under which the app may be reached; None for any.
        own: names that count as the app's own origin, beside the one a request came to.
        key: must be in the address once, or in the cookie that it leaves; None for nobody.
        hub: addresses of the Hub that a page may show images of, and be framed by.
    """

    hosts: frozenset[str] | None = LOOPBACK
    own: frozenset[str] = frozenset()
    key: str | None = field(default=None, repr=False)
    hub: str = ""

    @property
    def policy(self) -> str:
        """The Content-Security-Policy. Scripts and styles are Gradio's and ours, inline too."""
        return (
            f"img-src 'self' data: blob: {self.hub}; connect-src 'self' data: blob:; "
            f"form-action 'self'; frame-ancestors 'self' {self.hub}; base-uri 'self'; "
            "object-src 'none'"
        )


def rules_for(settings: Settings, host: str) -> Rules:
    """On a Space its proxy says who is reached; elsewhere only one's own machine is, by its names.

    Beyond loopback neighbours are strangers: they need the key that the terminal shows.
    """
    own = own_hosts()
    if settings.on_space:
        return Rules(hosts=None, own=own, hub="https://huggingface.co https://*.huggingface.co")
    if is_loopback(host):
        return Rules(hosts=LOOPBACK | own | {bracketed(host)}, own=own)
    everywhere = host in ("", "0.0.0.0", "::", "[::]")
    names = None if everywhere else LOOPBACK | own | {bracketed(host)}
    return Rules(hosts=names, own=own, key=secrets.token_urlsafe(24))


def own_hosts() -> frozenset[str]:
    """Names by which a proxy before the app is reached: a Space's, or PHI3LORA_HOSTS."""
    names = f"{os.environ.get('SPACE_HOST', '')},{os.environ.get('PHI3LORA_HOSTS', '')}"
    return frozenset(name.strip().lower() for name in names.split(",") if name.strip())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """As a Host header has it: IPv6 in brackets."""
    return f"[{host.strip('[]')}]" if ":" in host else host.lower()


def name_of(host: str) -> str:
    """A Host header without its port."""
    return re.sub(r":\d*\Z", "", host.strip().lower())


class Guard:
    """The outermost layer: refuses in words, and adds the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        answer = self._refusal(scope)
        if scope["type"] == "websocket":  # no page of ours opens one
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = self.rules.policy
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "same-origin"
            await send(message)

        body: bytes | None = None
        if answer is None and scope["method"] not in SAFE and scope["path"] != UPLOAD:
            body = await read_body(receive)
            answer = refused_body(body)
        if answer is not None:
            await answer(scope, receive, with_headers)
            return
        await self.app(scope, receive if body is None else replay(body, receive), with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if len(headers.getlist("host")) != 1 or not self._own_host(headers.get("host", "")):
            return refuse(
                "This name is not the app's; open it as http://localhost or by the name that "
                "--host gave it. Names of a proxy before it go into PHI3LORA_HOSTS."
            )
        if scope["type"] == "websocket":
            return refuse("There is no such connection here.")
        if CLOSED.match(scope["path"]):
            return refuse("There is nothing here.", 404)
        if self._foreign(headers):
            if scope["method"] not in SAFE or "access-control-request-method" in headers:
                return refuse("This request came from another site's page; open the app itself.")
            # Nothing is told to another site's page: without an Origin, Gradio adds no CORS.
            scope["headers"] = [(k, v) for k, v in scope["headers"] if k != b"origin"]
        return self._without_key(scope, headers)

    def _own_host(self, host: str) -> bool:
        return self.rules.hosts is None or name_of(host) in self.rules.hosts

    def _foreign(self, headers: Headers) -> bool:
        """Whether another site's page asks. A program sends no Origin, and no cookies to abuse."""
        origins = headers.getlist("origin")
        if not origins:
            return False
        try:
            host = urlsplit(origins[0]).netloc.lower()
        except ValueError:
            return True
        named = host == headers.get("host", "").lower() or host in self.rules.own
        return len(origins) > 1 or not host or not named

    def _without_key(self, scope: Scope, headers: Headers) -> Response | None:
        """What somebody without the key is told; how one who brings it goes on."""
        key = self.rules.key
        if key is None or same(cookie(headers, KEY_COOKIE), key) or own_start(scope):
            return None
        if any(same(headers.get(name, "").removeprefix("Bearer "), key) for name in TOKEN_HEADERS):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["method"] != "GET" or not same(dict(query).get("token", ""), key):
            if scope["path"].startswith("/v1/"):
                return JSONResponse(ApiError(401, NO_KEY, code="invalid_api_key").body(), 401)
            return refuse("Open the address that the terminal shows, with its token.", 401)
        left = urlencode([(name, value) for name, value in query if name != "token"])
        # One slash: `//elsewhere` would be another site.
        path = "/" + scope["path"].lstrip("/\\")
        answer = RedirectResponse(f"{path}?{left}" if left else path, 303)
        answer.set_cookie(KEY_COOKIE, key, httponly=True, samesite="lax")
        return answer


def refuse(message: str, status: int = 403) -> Response:
    """A sentence, and nothing that a page of another site could use."""
    return PlainTextResponse(f"{message}\n", status_code=status)


def same(given: str, key: str) -> bool:
    """Equal, found out in a time that does not tell how far they agree."""
    return hmac.compare_digest(given.encode(), key.encode())


def own_start(scope: Scope) -> bool:
    """Gradio asks itself whether it is up; it says nothing to whoever else asks."""
    client = scope.get("client") or ("", 0)
    return scope["path"] == "/gradio_api/startup-events" and is_loopback(client[0])


def cookie(headers: Headers, name: str) -> str:
    """A cookie's value; empty where there is none."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None where it is too large, comes too slowly, or its sender has gone."""

    async def read() -> bytes | None:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY:
                return None
            if not message.get("more_body"):
                return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        return None


def refused_body(body: bytes | None) -> Response | None:
    """What is wrong with a body, if something is."""
    if body is None:
        return refuse(f"A request has at most {MAX_BODY // 10**6} MB, sent without a pause.", 413)
    if body.count(b"[") + body.count(b"{") > DEEPEST and depth(body) > DEEPEST:
        return refuse(f"A request nests at most {DEEPEST} levels.", 400)
    return None


def depth(text: bytes) -> int:
    """How deep brackets nest in JSON, strings left out."""
    deepest = level = 0
    for match in BRACKETS.finditer(text):
        mark = match.group()
        level += (mark in (b"[", b"{")) - (mark in (b"]", b"}"))
        deepest = max(deepest, level)
    return deepest


def replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read once more; afterwards what the connection says."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def impatient(protocol: type[Any]) -> type[Any]:
    """uvicorn's protocol, that hangs up on who does not finish a request's headers."""

    class Impatient(protocol):
        _timer: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._timer is not None:
                self._timer.cancel()

        def _watch(self) -> None:
            if not self._waiting():
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = None
            elif self._timer is None:
                self._timer = self.loop.call_later(HEADER_SECONDS, self._hang_up)

        def _waiting(self) -> bool:
            return self.cycle is None or bool(self.cycle.response_complete)

        def _hang_up(self) -> None:
            self._timer = None
            if self._waiting():
                self.transport.close()

    return Impatient


SERVER = http_server.Server


def guarded(rules: Rules) -> type[Any]:
    """Gradio's server with the guard before its app."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    class Guarded(SERVER):
        def __init__(self, config: Any, *arguments: Any, **named: Any) -> None:
            super().__init__(config, *arguments, **named)
            config.app = Guard(config.app, rules)
            config.http = impatient(AutoHTTPProtocol)

    return Guarded
