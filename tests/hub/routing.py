"""How a request finds its repo, its revision and its caller."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from . import access
from .access import Caller
from .store import PREFIX, Commit, HubError, Repo, Store

Handler = Callable[..., Any]

#: Beginnings of addresses that are never a person's name.
RESERVED = {"api", "oauth", "lfs", "cdn", "avatars", "buckets", ".well-known"}


class UnknownRoute(Exception):
    """The Hub has no answer for this address: 404, and it is listed."""


def get_store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


Hub = Annotated[Store, Depends(get_store)]


async def get_caller(request: Request, store: Hub) -> Caller:
    return access.identify(store, request.headers.get("authorization"))


Who = Annotated[Caller, Depends(get_caller)]


def kind_of(request: Request) -> str:
    """ "model", "dataset" or "space", from the beginning of the path."""
    parts = request.url.path.strip("/").split("/")
    plural = parts[1] if parts[0] == "api" else parts[0]
    return plural.removesuffix("s") if plural in ("datasets", "spaces") else "model"


async def visible_repo(request: Request, store: Hub, caller: Who) -> Repo:
    ns, name = request.path_params["ns"], request.path_params["name"]
    if ns in RESERVED:
        raise UnknownRoute
    return access.find(store, caller, kind_of(request), f"{ns}/{name}")


async def readable_repo(caller: Who, repo: VisibleRepo) -> Repo:
    access.check_content(caller, repo)
    return repo


async def writable_repo(caller: Who, repo: VisibleRepo) -> Repo:
    access.check_write(caller, repo)
    return repo


VisibleRepo = Annotated[Repo, Depends(visible_repo)]
ReadableRepo = Annotated[Repo, Depends(readable_repo)]
WritableRepo = Annotated[Repo, Depends(writable_repo)]


def api(router: APIRouter, path: str, *methods: str) -> Callable[[Handler], Handler]:
    """Serve ``/api/models/{ns}/{name}`` + path, and the same for datasets and Spaces."""

    def register(handler: Handler) -> Handler:
        for plural in ("models", "datasets", "spaces"):
            full = f"/api/{plural}/{{ns}}/{{name}}{path}"
            router.add_api_route(full, handler, methods=list(methods or ("GET",)))
        return handler

    return register


def web(router: APIRouter, path: str, *methods: str) -> Callable[[Handler], Handler]:
    """Serve ``/{ns}/{name}`` + path, ``/datasets/…`` and ``/spaces/…``, longest prefix first."""

    def register(handler: Handler) -> Handler:
        for prefix in sorted(PREFIX.values(), key=len, reverse=True):
            full = f"/{prefix}{{ns}}/{{name}}{path}"
            router.add_api_route(full, handler, methods=list(methods or ("GET",)))
        return handler

    return register


def split_revision(repo: Repo, rest: str) -> tuple[str, str]:
    """``"refs/pr/1/a/b.txt"`` → ``("refs/pr/1", "a/b.txt")``; a name may hold slashes."""
    names = [name for name in (*repo.refs, *repo.tags) if "/" in name]
    for name in sorted(names, key=len, reverse=True):
        if rest == name or rest.startswith(name + "/"):
            return name, rest[len(name) + 1 :]
    match = re.match(r"(refs/[^/]+/[^/]+|[^/]+)/?(.*)", rest, re.DOTALL)
    if match is None:
        raise HubError(404, f"Invalid rev id: {rest}", "RevisionNotFound")
    return match.group(1), match.group(2)


def find_commit(repo: Repo, rest: str) -> tuple[Commit, str]:
    """The commit and the path behind it. Raises: HubError RevisionNotFound."""
    revision, path = split_revision(repo, rest)
    return repo.resolve(revision), path.strip("/")


def flag(request: Request, name: str) -> bool:
    """A true-or-false query parameter, in the spellings of the client."""
    return request.query_params.get(name, "").lower() in ("1", "true")
