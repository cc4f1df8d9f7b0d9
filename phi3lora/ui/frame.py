"""What a page is before Gradio draws it: its title, how a link to it looks elsewhere, and 404.

    Middleware(Frame)

Gradio writes its own name, picture and description into every page, and answers an address that
does not exist with JSON; this layer replaces both.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3lora.app.shared import Shared
from phi3lora.ui.languages import language_of, words_of
from phi3lora.ui.skeleton import skeleton

Preview = Callable[[Request], Shared | None]
PICTURE = "/compare.png"
NAME = "phi3lora"
BODY = re.compile(rb"<body[^>]*>")
FAVICON = Path(__file__).with_name("favicon.svg")
SAYS = "Fine-tune Phi-3 with LoRA, prove that it got better, and compare it with its base."
TITLES = {"/": "Train", "/runs": "Runs", "/compare": "Compare"}
# Gradio's words about itself, each a tag over one line or several.
THEIRS = re.compile(rb'<meta\s+(?:property="og:|name="twitter:|name="description")[^>]*?/>')
# Gradio writes no title into the page, but into what its script reads there.
OWN_TITLE = re.compile(rb'"title":"([^"\\<]*)","space_id"')
FONTS = "static/fonts/IBMPlexSans/IBMPlexSans"  # of the theme; late, they break lines anew
BOOT = (
    f"""<link rel="preload" href="{FONTS}-Regular.woff2" as="font" type="font/woff2" crossorigin>
<link rel="preload" href="{FONTS}-Bold.woff2" as="font" type="font/woff2" crossorigin>
"""
    + """<style>
/* The first "loading" is laid over the page; in it, everything would jump as it goes. */
[data-testid="status-tracker"].full { position: fixed !important; inset: 0; }
/* Nor may a bar that our styles, which come later, take away push the page down. */
.nav-holder { display: none !important; }
</style>
<script>
try {
  const root = document.documentElement, kept = localStorage;
  root.dataset.folded = kept.getItem("phi3lora-folded")
    ?? (innerWidth < 1024 ? "step-model step-amount" : "");
} catch {}
</script>"""
)
MISSING = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><title>{title} · phi3lora</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 20vh auto 0; padding: 0 20px;
  max-width: 36rem; background: #f7f8f8; color: #171c1e; }}
a {{ color: #125f5b; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #0f1314; color: #e6eaea; }} a {{ color: #73ccc2; }} }}
</style></head><body><main><h1>{head}</h1>
<p>{says} {pages}</p>
</main></body></html>
"""


class Frame:
    """Rewrites the head of our pages, and says in words that a page does not exist."""

    def __init__(
        self,
        app: ASGIApp,
        opened: Callable[[], None] = lambda: None,
        preview: Preview = lambda request: None,
    ) -> None:
        """`opened` is told of each first page that is asked for, before it is answered; `preview`
        knows what a link to a comparison shows; a Space of one adapter compares at its root."""
        self.app, self._opened, self._preview = app, opened, preview

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; an answer to a browser's look at a page comes back framed."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if scope.get("method") != "GET" or "text/html" not in headers.get("accept", ""):
            await self.app(scope, receive, send)
            return
        if scope["path"] == "/":
            self._opened()
        language = language_of(headers.get("cookie", ""), headers.get("accept-language", ""))
        answer = _Answer(scope["path"], language, send)
        if scope["path"] == "/" or scope["path"].rstrip("/").endswith("/compare"):
            request = Request(scope)
            shared = await run_in_threadpool(self._preview, request)
            answer.link = link_tags(shared, address_of(request)) if shared else ""
        await self.app(scope, receive, answer.take)


class _Answer:
    """One answer on its way: held back while it may have to be rewritten, else passed on."""

    def __init__(self, path: str, language: str, send: Send) -> None:
        self._path, self._language, self._send = path, language, send
        self.link = ""  # what a link to this very page says of it
        self._start: Message = {}
        self._body = b""
        self._kept = False

    async def take(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self._start, self._kept = message, is_page(message)
        if not self._kept:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._finish()

    async def _finish(self) -> None:
        missing = self._start["status"] == 404
        page = (
            missing_at(self._path, self._language)
            if missing
            else head_of(self._body, self._path, self._language, self.link)
        )
        headers = MutableHeaders(raw=list(self._start["headers"]))
        headers["content-length"] = str(len(page))
        headers["content-type"] = "text/html; charset=utf-8"
        headers["vary"] = "accept-language, cookie"
        await self._send({**self._start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": page})


def is_page(start: Message) -> bool:
    """Whether an answer is a page, or says in JSON that there is none."""
    kind = Headers(raw=start["headers"]).get("content-type", "")
    if start["status"] == 404:
        return kind.startswith("application/json")
    return start["status"] == 200 and kind.startswith("text/html")


def missing_at(path: str, language: str = "en") -> bytes:
    """What is read at an address that does not exist, with links that lead back from there."""
    known = words_of(language)

    def say(text: str) -> str:
        return html.escape(known.get(text, text), quote=False)

    up = "./" + "../" * max(path.count("/") - 1, 0)
    links = (f'<a href="{up}{at.strip("/")}">{say(name)}</a>' for at, name in TITLES.items())
    return MISSING.format(
        language=language,
        title=say("Not found"),
        head=say("There is no such page"),
        says=say("This address leads nowhere here. There are three pages:"),
        pages=" · ".join(links),
    ).encode()


def head_of(page: bytes, path: str, language: str = "en", link: str = "") -> bytes:
    """A page with our title, description and words in place of Gradio's.

    Args:
        link: tags of what the address shows, in place of the ones that every page has.
    """
    named, found = TITLES.get(path.rstrip("/") or "/"), OWN_TITLE.search(page)
    if named is None or found is None or b"</head>" not in page:
        return page
    theirs = found[1].decode("utf-8", "replace").strip()  # of a Space for one adapter, its own
    known = words_of(language)
    title = html.escape(f"{known.get(named, named)} · {NAME}" if theirs == NAME else theirs)
    says = html.escape(known.get(SAYS, SAYS))
    plain = (
        f'<meta name="description" content="{says}"><meta property="og:title" content="{title}">'
        f'<meta property="og:description" content="{says}">'
        '<meta name="twitter:card" content="summary">'
    )
    ours = "".join(
        (
            f"<title>{title}</title>",
            link or plain,
            '<meta property="og:type" content="website">',
            BOOT,
            words_script(language),
        )
    )
    framed = THEIRS.sub(b"", page).replace(b"</head>", ours.encode() + b"</head>", 1)
    if (named, theirs) != ("Train", NAME):
        return framed
    first = skeleton(language).encode()
    head, end, body = framed.partition(b"</head>")
    return head + end + BODY.sub(lambda found: found[0] + first, body, count=1)


def address_of(request: Request) -> str:
    """Where the picture of this very link is, as its reader reaches it."""
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    scheme = scheme if scheme in ("http", "https") else request.url.scheme
    place = request.url.path.rstrip("/").removesuffix("/compare")
    return f"{scheme}://{request.url.netloc}{place}{PICTURE}?{request.url.query}"


def link_tags(shared: Shared, picture: str) -> str:
    """How a link to a comparison looks elsewhere: the question, both answers, and a picture."""
    title = html.escape(f"{_short(shared.question, 90)} · {NAME}")
    said = zip(shared.titles, shared.answers, strict=True)
    words = html.escape("  ".join(f"{name}: {_short(text, 140)}" for name, text in said))
    image = html.escape(picture)
    return (
        f'<meta name="description" content="{words}"><meta property="og:title" content="{title}">'
        f'<meta property="og:description" content="{words}">'
        f'<meta property="og:image" content="{image}">'
        f'<meta property="og:image:width" content="1200"><meta property="og:image:height" '
        f'content="630"><meta property="og:image:alt" content="{words}">'
        f'<meta name="twitter:card" content="summary_large_image">'
    )


def _short(text: str, most: int) -> str:
    """One line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def words_script(language: str) -> str:
    """The words of a language, before anything is drawn; Gradio's own words follow it, too."""
    if language == "en":
        return ""
    words = json.dumps(words_of(language), ensure_ascii=False).replace("<", "\\u003c")
    theirs = "zh-TW" if language == "zh-MO" else language
    return (
        f'<script>window.phi3loraLanguage = "{language}"; window.phi3loraWords = {words};'
        f'Object.defineProperty(navigator, "language", {{get: () => "{theirs}"}});</script>'
    )
