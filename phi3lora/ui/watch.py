"""What the server does beside Gradio, where it is known who asks: see `guard` for the outer layer.

    launch(app_kwargs=beside(pulse, app.callers))

An idle page asks `/pulse` every few seconds. The answer is a short fingerprint; only when it
differs does the page call Gradio, so that a hundred open pages cost next to nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3lora.app.callers import Callers
from phi3lora.app.uploads import NO_ROOM, has_room
from phi3lora.ui.frame import PICTURE, Frame, Preview
from phi3lora.ui.guard import UPLOAD, read_body, refuse, replay
from phi3lora.ui.owners import CALLS, Owners
from phi3lora.ui.picture import picture
from phi3lora.ui.senders import Turns
from phi3lora.ui.sessions import BROWSER, page_account, page_token, session_of, session_token

Pulse = Callable[[Request], str]
UnderWay = Callable[[], Iterable[HTTPConnection]]
FRESH = 0.8  # seconds for which an answer serves everybody who asks the same
KEPT = 1024
FILE = "/gradio_api/file"
HOUR = 3600.0
HOURLY_BYTES = 4 * 2**30  # that one visitor of a Space may upload within an hour
MCP = "/gradio_api/mcp"
LONG = ("/v1/", MCP)  # answers to programs
MOST_CALLS = 16  # of one sender on a Space that are worked on or wait; a page makes a few
REMEMBERED = 10_000  # uploads whose owner is known
OTHERS = "This page was opened under another sign-in. Load it again."


class BrowserCookie:
    """Gives each browser a name of its own, by which the token it brought is found again.

    The name is signed by this process: one that somebody else made up is taken for none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._secret = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a page's answer brings the cookie where there is none."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._signed(session_of(HTTPConnection(scope)).browser):
            await self.app(scope, receive, send)
            return
        scope = without_browser(scope)
        name = secrets.token_urlsafe(24)
        cookie = f"{BROWSER}={name}.{self._sign(name)}; Path=/; HttpOnly; SameSite=Lax"

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["method"] == "GET":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("set-cookie", cookie)
            await send(message)

        await self.app(scope, receive, answer)

    def _sign(self, name: str) -> str:
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()

    def _signed(self, value: str) -> bool:
        name, _, signature = value.rpartition(".")
        return hmac.compare_digest(self._sign(name).encode(), signature.encode())


class NoBrowserCookie:
    """On a Space a sign-in says who somebody is: a browser's name is one that they made up."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without it."""
        if scope["type"] == "http":
            scope = without_browser(scope)
        await self.app(scope, receive, send)


def without_browser(scope: Scope) -> Scope:
    """A request without the cookie that names a browser."""
    kept = [(k, v) for k, v in scope["headers"] if k != b"cookie"]
    others = "; ".join(
        part.strip()
        for part in Headers(scope=scope).get("cookie", "").split(";")
        if part.strip() and part.partition("=")[0].strip() != BROWSER
    )
    return {**scope, "headers": [*kept, (b"cookie", others.encode("latin-1", "replace"))]}


def without_cookies(scope: Scope) -> Scope:
    """An agent's request, known by its token alone.

    Gradio passes what an agent sends on to calls of one session, which is nobody's for that.
    """
    kept = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
    return {**scope, "headers": kept, "session": {}}


class Visits:
    """What depends on who asks: signing out, sessions, uploads and their files, and turns.

    Args:
        under_way: requests whose calls have not ended.
    """

    def __init__(self, app: ASGIApp, callers: Callers, under_way: UnderWay = tuple) -> None:
        self.app, self.callers, self._under_way = app, callers, under_way
        self._turns = Turns()
        self._begun = Owners()
        self._owners: OrderedDict[str, set[str]] = OrderedDict()  # of an upload, by its path
        self._sizes: dict[str, list[tuple[float, int]]] = {}  # (when, bytes) by visitor
        self._coming = 0  # bytes of uploads that have begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401, 403 or 413."""
        if scope["type"] != "http":  # the server's own start and end, too
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith(MCP):
            scope = without_cookies(scope)
        connection = HTTPConnection(scope)
        if path.rstrip("/") == "/logout":
            await self._sign_out(connection, receive, send)
        elif path == UPLOAD:
            await self._upload(connection, receive, send)
        elif path.startswith(FILE) and not self._may_read(path, visitor_of(connection)):
            await refuse("This file was uploaded by somebody else.")(scope, receive, send)
        elif path.startswith(CALLS) and scope["method"] == "POST":
            await self._call(connection, receive, send)
        elif path.startswith(CALLS) and not self._begun.admit(
            connection, None, account_of(connection)
        ):
            await refuse(OTHERS)(scope, receive, send)
        else:
            await self._in_turn(connection, receive, send)

    async def _in_turn(self, connection: HTTPConnection, receive: Receive, send: Send) -> None:
        """Pass a request on; an answer that takes long, and calls the app itself, has no turn."""
        scope = connection.scope
        if scope["path"].startswith(LONG):
            await self.app(scope, receive, send)
        else:
            await self._turns.answer(sender(connection), self.app, scope, receive, send)

    async def _sign_out(self, connection: HTTPConnection, receive: Receive, send: Send) -> None:
        """End the session here too: a copy of its cookie is good for nothing any more."""
        scope = connection.scope
        if connection.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            await refuse("Sign out on the page itself.")(scope, receive, send)
            return
        if token := page_token(connection):
            self.callers.signed_out.end(token)
        await self.app(scope, receive, send)

    async def _upload(self, connection: HTTPConnection, receive: Receive, send: Send) -> None:
        """Take a file; on a Space only within its sender's quota, and while the disk has room."""
        scope, who = connection.scope, visitor_of(connection)
        if self.callers.signed_out.ended(page_token(connection)):
            who = ""
        length = connection.headers.get("content-length", "")
        size = int(length[:18]) if length.isdecimal() else None
        if self.callers.settings.on_space and (no := self._refused_upload(who, size)):
            await no(scope, receive, send)
            return
        said = b""

        async def answer(message: Message) -> None:
            nonlocal said
            if message["type"] == "http.response.body":
                said += message.get("body", b"")
                if not message.get("more_body"):
                    self._remember(said, who)
            await send(message)

        self._coming += size or 0
        try:
            await self.app(scope, receive, answer)
        finally:
            self._coming -= size or 0

    def _refused_upload(self, who: str, size: int | None) -> Response | None:
        """What a visitor of a Space is told whose file is not taken; None where it is."""
        if not who:
            return refuse("Sign in first; files are uploaded to train on.", 401)
        if size is not None and not has_room(Path(get_upload_folder()), self._coming + size):
            return refuse(NO_ROOM, 507)
        if size is None or not self._within_quota(who, size):
            return refuse(
                f"At most {HOURLY_BYTES // 2**30} GB are uploaded within an hour, by requests that "
                "say their length.",
                413,
            )
        return None

    async def _call(self, connection: HTTPConnection, receive: Receive, send: Send) -> None:
        """Pass a handler's call on, unless it names a file that its sender has not uploaded."""
        body, who = await read_body(receive), visitor_of(connection)
        account = account_of(connection)
        if not self._begun.admit(connection, body, account):
            await refuse(OTHERS)(connection.scope, receive, send)
            return
        if any(who not in self._owners.get(settled(path), ()) for path in files_in(body or b"")):
            answer = refuse("A file is named that was not uploaded in this session; drop it again.")
            await answer(connection.scope, receive, send)
            return
        if self.callers.settings.on_space and self._calls_of(sender(connection)) >= MOST_CALLS:
            told = f"{MOST_CALLS} calls of yours have not ended; wait for one, or close a page."
            await JSONResponse({"detail": told}, 503)(connection.scope, receive, send)
            return
        again = receive if body is None else replay(body, receive)
        await self._in_turn(connection, again, self._begun.noting(send, account))

    def _calls_of(self, who: str) -> int:
        return sum(sender(request) == who for request in self._under_way())

    def _within_quota(self, who: str, size: int) -> bool:
        now = time.monotonic()
        lately = [(when, of) for when, of in self._sizes.get(who, []) if now - when < HOUR]
        if sum(of for _, of in lately) + size > HOURLY_BYTES:
            return False
        if len(self._sizes) > REMEMBERED:
            self._sizes.clear()
        self._sizes[who] = [*lately, (now, size)]
        return True

    def _remember(self, answer: bytes, who: str) -> None:
        """Whose the files are that an upload's answer names."""
        try:
            paths = json.loads(answer)
        except ValueError:
            return  # refused, in words
        for path in paths if isinstance(paths, list) else []:
            key = settled(str(path))
            self._owners.setdefault(key, set()).add(who)
            self._owners.move_to_end(key)
        while len(self._owners) > REMEMBERED:
            self._owners.popitem(last=False)

    def _may_read(self, path: str, who: str) -> bool:
        owners = self._owners.get(settled(path.removeprefix(FILE).lstrip("=/")))
        return owners is None or who in owners


def files_in(body: bytes) -> list[str]:
    """The files that a call hands to Gradio, which fetches those that are addresses."""
    if b"FileData" not in body and b"\\u" not in body:  # most calls name none
        return []
    try:
        values = json.loads(body)
    except ValueError:
        return []  # refused by Gradio
    found, left = [], [values]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            meta = value.get("meta")
            if isinstance(meta, dict) and meta.get("_type") == "gradio.FileData":
                found.append(str(value.get("path", "")))
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return found


def settled(path: str) -> str:
    """One spelling of a file's path."""
    try:
        return str(Path("/", path).resolve())
    except (OSError, RuntimeError, ValueError):
        return ""


def visitor_of(connection: HTTPConnection) -> str:
    """What tells a visitor from others, before the Hub is asked who they are; empty for nobody.

    An account is one visitor, however often it signs in. A program's token counts for nothing here:
    it may be made up, and another each time.
    """
    token = page_token(connection)
    if token is None:
        return session_of(connection).browser
    account = page_account(connection)
    return hashlib.sha256((f"account {account}" if account else token).encode()).hexdigest()


def account_of(connection: HTTPConnection) -> str:
    """As `visitor_of`, of who signed in; empty for a browser, whose cookie comes with its pages.

    Of two tabs that are opened at once the second one's cookie is kept, for both.
    """
    return "" if page_token(connection) is None else visitor_of(connection)


def sender(connection: HTTPConnection) -> str:
    """A visitor, or the address that a request came from; a proxy adds it as the last one."""
    forwarded = connection.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    client = connection.client.host if connection.client else ""
    return visitor_of(connection) or forwarded or client


async def _picture(preview: Preview, request: Request) -> Response:
    """The picture of a link to a comparison."""
    shared = await run_in_threadpool(preview, request)
    if shared is None:
        return PlainTextResponse("There is no picture of this.", status_code=404)
    drawn = await run_in_threadpool(picture, shared)
    return Response(
        drawn, media_type="image/png", headers={"Cache-Control": "private, max-age=600"}
    )


def beside(
    pulse: Pulse,
    callers: Callers,
    more: Sequence[Route] = (),
    opened: Callable[[], None] = lambda: None,
    preview: Preview = lambda request: None,
    under_way: UnderWay = tuple,
) -> dict[str, Any]:
    """Arguments of the FastAPI app: who asks, the route that idle pages ask, and `more` routes.

    On one's own machine each browser gets a name, by which its token is found. `opened` is told
    of each first page. What `preview` says of a link to a comparison stands in its page's head, and
    in its picture. `under_way` are the requests whose calls have not ended.
    """
    answers: dict[tuple[str, str], tuple[float, str]] = {}

    async def answer(request: Request) -> PlainTextResponse:
        # A thread costs more than all the rest, so who asks the same within a second shares one.
        token = hashlib.sha256((session_token(request) or "").encode()).hexdigest()
        asked = f"{visitor_of(request)} {token}", request.query_params.get("run", "")
        kept = answers.get(asked)
        if kept is None or time.monotonic() - kept[0] > FRESH:
            if len(answers) >= KEPT:
                answers.clear()
            kept = answers[asked] = (
                time.monotonic(),
                await run_in_threadpool(pulse, request),
            )
        return PlainTextResponse(kept[1], headers={"Cache-Control": "no-store"})

    frame = Middleware(Frame, opened=opened, preview=preview)
    browsers = NoBrowserCookie if callers.settings.on_space else BrowserCookie
    visits = Middleware(Visits, callers=callers, under_way=under_way)
    return {
        "middleware": [Middleware(browsers), visits, frame],
        "routes": [Route("/pulse", answer), Route(PICTURE, partial(_picture, preview)), *more],
    }
