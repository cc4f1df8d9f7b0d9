"""Lists of repos: search, filters, sorting, paging; and how a repo is described."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from . import access, cards
from .routing import Hub, Who, flag
from .spaces import runtime
from .store import Commit, HubError, Repo, Store, pointer_text

router = APIRouter()

_COMMON = cards.words(
    """
    author cardData createdAt disabled downloads downloadsAllTime gated lastModified likes
    private resourceGroup sha siblings tags trendingScore usedStorage
    """
)
_MODEL = cards.words(
    """
    baseModels childrenModelCount config evalResults gguf inference inferenceProviderMapping
    library_name mask_token model-index pipeline_tag safetensors spaces transformersInfo
    widgetData
    """
)
#: What ``expand`` may ask for; anything else is refused.
EXPANDABLE = {
    "model": [*_COMMON, *_MODEL],
    "dataset": [*_COMMON, "citation", "description", "mainSize", "paperswithcode_id"],
    "space": [*_COMMON, "datasets", "models", "region", "runtime", "sdk", "subdomain"],
}
#: What a plain row of a list holds.
DEFAULT_FIELDS = cards.words(
    """
    _id id modelId author sha lastModified createdAt private disabled gated downloads likes
    tags trendingScore library_name pipeline_tag description sdk
    """
)
FULL_FIELDS = ["cardData", "siblings"]
SORTS = ("downloads", "likes", "lastModified", "createdAt", "trendingScore")


@router.get("/api/models")
@router.get("/api/datasets")
@router.get("/api/spaces")
async def search(
    request: Request, response: Response, store: Hub, caller: Who
) -> list[dict[str, Any]]:
    kind = request.url.path.rsplit("/", 1)[-1].removesuffix("s")
    query = request.query_params
    seen = (
        repo for repo in store.repos.values() if repo.kind == kind and access.sees(caller, repo)
    )
    found = [describe(repo, repo.head) for repo in seen]
    found = sort(keep_matching(found, request), query.get("sort", "trendingScore"), query)
    start = int(query.get("cursor", 0))
    size = min(int(query.get("limit", store.page_size)), store.page_size)
    if start + size < len(found):
        response.headers["Link"] = next_link(request, store, start + size)
    fields = fields_of_row(request, kind)
    return [{n: row[n] for n in fields if n in row} for row in found[start : start + size]]


def fields_of_row(request: Request, kind: str) -> Iterable[str]:
    wanted = expanded(request, kind)
    if wanted is not None:
        return dict.fromkeys(["_id", "id", *wanted])
    extra = FULL_FIELDS if flag(request, "full") else []
    named = [name for name in ("cardData", "config") if flag(request, name)]
    return dict.fromkeys([*DEFAULT_FIELDS, *extra, *named])


def keep_matching(rows: list[dict[str, Any]], request: Request) -> list[dict[str, Any]]:
    query = request.query_params
    words = [word.lower() for word in query.getlist("search")]
    wanted = [tag for given in query.getlist("filter") for tag in given.split(",")]
    wanted += query.getlist("pipeline_tag")
    author, gated = query.get("author"), query.get("gated")

    def matches(row: dict[str, Any]) -> bool:
        return (
            all(word in row["id"].lower() for word in words)
            and all(tag in row["tags"] for tag in wanted)
            and (author is None or row["author"].lower() == author.lower())
            and (gated is None or bool(row["gated"]) == (gated.lower() == "true"))
        )

    return [row for row in rows if matches(row)]


def sort(rows: list[dict[str, Any]], by: str, query: Any) -> list[dict[str, Any]]:
    """Best first. Raises: HubError 400 for a name that the Hub does not sort by."""
    if by not in SORTS:
        raise HubError(400, f'"sort" must be one of {list(SORTS)}, got {by!r}')
    return sorted(rows, key=lambda row: row[by], reverse=query.get("direction", "-1") == "-1")


def expanded(request: Request, kind: str) -> list[str] | None:
    """The fields that ``expand`` names, or None when there is no ``expand``.

    Raises:
        HubError: 400 for a field that the Hub does not know.
    """
    query = request.query_params
    wanted = [*query.getlist("expand"), *query.getlist("expand[]")]
    unknown = [name for name in wanted if name not in EXPANDABLE[kind]]
    if unknown:
        raise HubError(400, f'"expand" must be one of {EXPANDABLE[kind]}, got {unknown}')
    return wanted or None


def next_link(request: Request, store: Store, cursor: int) -> str:
    pairs = [(k, v) for k, v in request.query_params.multi_items() if k != "cursor"]
    query = urlencode([*pairs, ("cursor", cursor)])
    return f'<{store.url}{request.url.path}?{query}>; rel="next"'


def describe(repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """Everything that the Hub tells about a repo; the caller picks the fields."""
    card = cards.metadata(_readme(repo, commit))
    return {
        "_id": repo.history()[-1].oid[:24],
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.created_at,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": repo.downloads,
        "downloadsAllTime": repo.downloads,
        "likes": repo.likes,
        "trendingScore": repo.likes,
        "tags": cards.tags(repo, card),
        "cardData": card,
        "siblings": [_sibling(path, commit, blobs) for path in sorted(commit.tree)],
        "usedStorage": repo.used_storage,
        **_OF_KIND[repo.kind](repo, commit, card),
    }


def _readme(repo: Repo, commit: Commit) -> str:
    entry = commit.tree.get("README.md")
    return repo.content(entry).decode("utf-8", "replace") if entry else ""


def _sibling(path: str, commit: Commit, blobs: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"rfilename": path}
    entry = commit.tree[path]
    if blobs:
        row |= {"size": entry.size, "blobId": entry.oid}
    if blobs and entry.lfs:
        pointer_size = len(pointer_text(entry.lfs, entry.size))
        row["lfs"] = {"sha256": entry.lfs, "size": entry.size, "pointerSize": pointer_size}
    return row


def _of_model(repo: Repo, commit: Commit, card: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "modelId": repo.id,
        "library_name": cards.library(repo, card),
        "pipeline_tag": card.get("pipeline_tag"),
        "config": cards.config(repo),
        "model-index": card.get("model-index"),
        "safetensors": cards.parameters(repo),
        "spaces": [],
    }
    return {name: value for name, value in found.items() if value is not None}


def _of_dataset(repo: Repo, commit: Commit, card: dict[str, Any]) -> dict[str, Any]:
    size = cards.size_of(dict(commit.tree))
    return {"description": card.get("pretty_name", ""), "citation": None, "mainSize": size}


def _of_space(repo: Repo, commit: Commit, card: dict[str, Any]) -> dict[str, Any]:
    subdomain = repo.id.replace("/", "-").lower()
    return {
        "sdk": card.get("sdk"),
        "runtime": runtime(repo),
        "subdomain": subdomain,
        "host": f"https://{subdomain}.hf.space",
        "models": card.get("models") or [],
        "datasets": card.get("datasets") or [],
        "region": "us",
    }


_OF_KIND = {"model": _of_model, "dataset": _of_dataset, "space": _of_space}
