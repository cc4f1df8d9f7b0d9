"""The few pages that a person meets in a browser: a repo, a person, a picture."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from . import access
from .routing import Hub, UnknownRoute, VisibleRepo, Who, web
from .store import Repo

router = APIRouter()

_TOP = (
    "<!doctype html><meta charset=utf-8><title>{title}</title>"
    "<body style='font:16px system-ui;max-width:50rem;margin:3rem auto;line-height:1.6'>"
    "<p><a href='/'>The Hub on loopback</a></p><h1>{title}</h1>"
)


@router.get("/avatars/{name}.svg")
async def avatar(name: str) -> Response:
    letter = escape(name[:1].upper())
    svg = (
        "<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'>"
        "<rect width='64' height='64' rx='32' fill='#888'/><text x='32' y='42' font-size='28' "
        f"text-anchor='middle' fill='#fff' font-family='sans-serif'>{letter}</text></svg>"
    )
    return Response(svg, media_type="image/svg+xml")


@router.get("/favicon.ico")
async def favicon() -> Response:
    return Response(status_code=204)


@router.get("/")
async def home(store: Hub, caller: Who) -> HTMLResponse:
    rows = "".join(
        f"<li><a href='/{repo.prefix}{repo.id}'>{escape(repo.prefix + repo.id)}</a></li>"
        for repo in store.repos.values()
        if access.sees(caller, repo)
    )
    return HTMLResponse(_TOP.format(title="Repos") + f"<ul>{rows}</ul>")


@router.get("/{user}")
async def person(store: Hub, user: str) -> HTMLResponse:
    if user not in store.users:
        raise UnknownRoute
    return HTMLResponse(_TOP.format(title=escape(user)))


@web(router, "")
@web(router, "/tree/{rest:path}")
@web(router, "/commit/{rest:path}")
@web(router, "/discussions/{rest:path}")
async def repo_page(request: Request, repo: VisibleRepo, rest: str = "main") -> HTMLResponse:
    is_commit = "/commit/" in request.url.path
    return HTMLResponse(show(repo, rest if is_commit else "main"))


def show(repo: Repo, revision: str) -> str:
    """A repo's files and its README, as plain text."""
    commit = repo.resolve(revision)
    base = f"/{repo.prefix}{repo.id}/resolve/{commit.oid}"
    rows = "".join(
        f"<li><a href='{base}/{quote(path)}'>{escape(path)}</a> ({entry.size} B)</li>"
        for path, entry in sorted(commit.tree.items())
    )
    marks = ", ".join(name for name in ("private", "gated") if getattr(repo, name))
    readme = commit.tree.get("README.md")
    text = repo.content(readme).decode("utf-8", "replace") if readme and not repo.gated else ""
    return (
        _TOP.format(title=escape(repo.prefix + repo.id))
        + f"<p>{marks} {escape(commit.title)} ({commit.oid[:7]})</p><ul>{rows}</ul>"
        + f"<pre style='white-space:pre-wrap'>{escape(text)}</pre>"
    )
