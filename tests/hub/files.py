"""Bytes in and out: upload modes, LFS, commits, downloads with Range."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from . import access, cards, xet
from .access import Caller
from .routing import Hub, ReadableRepo, VisibleRepo, Who, api, find_commit, flag, web
from .store import Entry, HubError, PullRequest, Repo, Store, pointer

router = APIRouter()

REGULAR_LIMIT = 10 * 1024 * 1024  # bytes; larger files must go through LFS
PART = 5 * 1024 * 1024  # bytes in a part of a multi-part upload


@dataclass
class Upload:
    """A file that was announced and is about to be sent."""

    repo: Repo
    sha256: str
    size: int
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Uploads:
    """Uploads under way, by the secret part of their address."""

    open: dict[str, Upload] = field(default_factory=dict)
    signed: dict[str, bytes] = field(default_factory=dict)  # large files, by their address
    multipart_above: int = 10**12  # bytes; the tests may lower it


def get_uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


@api(router, "/preupload/{rest:path}", "POST")
async def preupload(request: Request, repo: VisibleRepo, caller: Who, rest: str) -> dict[str, Any]:
    body = await request.json()
    check_target(request, repo, caller, rest)
    tree = find_commit(repo, rest)[0].tree
    attributes = repo.content(tree[".gitattributes"]).decode() if ".gitattributes" in tree else ""
    ignore = body.get("gitIgnore")
    if ignore is None:
        ignore = repo.content(tree[".gitignore"]).decode() if ".gitignore" in tree else ""
    files = []
    for item in body["files"]:
        path, sample = item["path"], base64.b64decode(item.get("sample") or "")
        large = cards.is_large(path, item["size"], sample, attributes)
        files.append(
            {
                "path": path,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": cards.ignored(path, ignore),
                "oid": tree[path].etag if path in tree else None,
            }
        )
    return {"files": files}


def check_target(request: Request, repo: Repo, caller: Caller, ref: str) -> None:
    """Raises: HubError if the caller may not commit here, or propose to."""
    proposes = flag(request, "create_pr")
    pull = next((pull for pull in repo.pulls if pull.ref == ref), None)
    if proposes or (pull is not None and pull.author == caller.name):
        access.check_propose(caller, repo)
    else:
        access.check_write(caller, repo)


@web(router, ".git/info/lfs/objects/batch", "POST")
async def lfs_batch(request: Request, repo: VisibleRepo, caller: Who, store: Hub) -> dict[str, Any]:
    access.check_propose(caller, repo)
    body = await request.json()
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, "Only uploads with sha256 are possible here")
    uploads = get_uploads(request)
    found = [announce(store, uploads, repo, item["oid"], item["size"]) for item in body["objects"]]
    many = any("chunk_size" in _header(item) for item in found)
    return {"transfer": "multipart" if many else "basic", "objects": found}


def _header(item: dict[str, Any]) -> dict[str, str]:
    header: dict[str, str] = item.get("actions", {}).get("upload", {}).get("header", {})
    return header


def announce(store: Store, uploads: Uploads, repo: Repo, sha256: str, size: int) -> dict[str, Any]:
    """Where to send a large file; no ``actions`` when the repo has it already."""
    found: dict[str, Any] = {"oid": sha256, "size": size}
    if sha256 in repo.lfs:
        return found
    key = secrets.token_urlsafe(16)
    uploads.open[key] = Upload(repo, sha256, size)
    href = f"{store.url}/lfs/{key}"
    upload: dict[str, Any] = {"href": href}
    if size > uploads.multipart_above:
        count = -(-size // PART)
        numbered = {f"{n:05d}": f"{href}/{n}" for n in range(1, count + 1)}
        upload["header"] = {"chunk_size": str(PART), **numbered}
    verify = {"href": f"{store.url}/lfs/{key}/verify"}
    return {**found, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


@router.put("/lfs/{key}")
async def lfs_put(request: Request, key: str) -> Response:
    upload = get_upload(request, key)
    receive_object(upload, await request.body())
    return Response(headers={"ETag": f'"{upload.sha256}"'})


@router.put("/lfs/{key}/{part:int}")
async def lfs_put_part(request: Request, key: str, part: int) -> Response:
    data = await request.body()
    get_upload(request, key).parts[part] = data
    return Response(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})


@router.post("/lfs/{key}")
async def lfs_complete(request: Request, key: str) -> dict[str, Any]:
    upload, body = get_upload(request, key), await request.json()
    numbers = [part["partNumber"] for part in body["parts"]]
    receive_object(upload, b"".join(upload.parts[number] for number in numbers))
    return {}


@router.post("/lfs/{key}/verify")
async def lfs_verify(request: Request, key: str, caller: Who) -> dict[str, Any]:
    upload, body = get_upload(request, key), await request.json()
    access.check_propose(caller, upload.repo)
    if upload.sha256 not in upload.repo.lfs or body != {"oid": upload.sha256, "size": upload.size}:
        raise HubError(404, "The uploaded object was not found")
    return {}


def get_upload(request: Request, key: str) -> Upload:
    upload = get_uploads(request).open.get(key)
    if upload is None:
        raise HubError(403, "This upload address is not valid")
    return upload


def receive_object(upload: Upload, data: bytes) -> None:
    """Store a large file. Raises: HubError 400 when the bytes are not those announced."""
    sha256 = hashlib.sha256(data).hexdigest()
    if (sha256, len(data)) != (upload.sha256, upload.size):
        raise HubError(
            400, f"Announced {upload.size} bytes of {upload.sha256}, got {len(data)} of {sha256}"
        )
    upload.repo.lfs[sha256] = data


@api(router, "/commit/{rest:path}", "POST")
async def commit(
    request: Request, repo: VisibleRepo, caller: Who, store: Hub, rest: str
) -> dict[str, Any]:
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    check_target(request, repo, caller, rest)
    header = next(line["value"] for line in lines if line["key"] == "header")
    base = repo.resolve(rest)
    if header.get("parentCommit") not in (None, base.oid):
        words = "The branch was updated since you opened this page. Please refresh and try again."
        raise HubError(412, words)
    if not header.get("summary"):
        raise HubError(400, '"summary" is not allowed to be empty')
    xet.receive(request, repo, lines)
    tree = apply(repo, dict(base.tree), lines)
    check_readme(repo, tree, lines)
    pull = None
    if rest not in repo.refs:
        raise HubError(404, f"Invalid rev id: {rest}", "RevisionNotFound")
    if flag(request, "create_pr"):
        pull = repo.open_pull(header["summary"], caller.name, rest)
    new = repo.commit(
        pull.ref if pull else rest,
        tree,
        header["summary"],
        caller.name,
        header.get("description", ""),
    )
    return describe_commit(store, repo, new.oid, pull)


def describe_commit(store: Store, repo: Repo, oid: str, pull: PullRequest | None) -> dict[str, Any]:
    page = f"{store.url}/{repo.prefix}{repo.id}"
    found = {
        "success": True,
        "commitOid": oid,
        "commitUrl": f"{page}/commit/{oid}",
        "hookOutput": "",
    }
    if pull:
        found["pullRequestUrl"] = f"{page}/discussions/{pull.num}"
    return found


def apply(repo: Repo, tree: dict[str, Entry], lines: list[dict[str, Any]]) -> dict[str, Entry]:
    """The tree after the operations of a commit. Raises: HubError 400 for a wrong one."""
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            tree[check_path(value["path"])] = keep_regular(repo, value)
        elif key == "lfsFile":
            tree[check_path(value["path"])] = keep_pointer(repo, value)
        elif key == "deletedFile":
            folder = value["path"].rstrip("/") + "/"
            gone = {path for path in tree if path == value["path"] or path.startswith(folder)}
            if not gone:
                raise HubError(404, f"{value['path']} does not exist", "EntryNotFound")
            tree = {path: entry for path, entry in tree.items() if path not in gone}
        elif key == "deletedFolder":
            folder = value["path"].rstrip("/") + "/"
            tree = {path: entry for path, entry in tree.items() if not path.startswith(folder)}
        elif key != "header":
            raise HubError(400, f"Unknown operation {key!r}")
    return tree


def check_path(path: str) -> str:
    parts = path.split("/")
    upwards = path.startswith(("/", "..\\"))  # and as Windows would read it
    if upwards or any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(422, f"Invalid path: {path!r}")
    return path


def keep_regular(repo: Repo, value: dict[str, Any]) -> Entry:
    encoding, content = value.get("encoding"), value["content"]
    if encoding not in ("base64", "utf-8"):
        raise HubError(400, f"Unknown encoding {encoding!r}")
    data = base64.b64decode(content) if encoding == "base64" else content.encode()
    if len(data) > REGULAR_LIMIT:
        raise HubError(400, f"{value['path']} is larger than 10 MiB: use LFS")
    return repo.keep(data, large=False)


def keep_pointer(repo: Repo, value: dict[str, Any]) -> Entry:
    data = repo.lfs.get(value["oid"])
    if data is None:
        raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
    return pointer(value["oid"], len(data))


def check_readme(repo: Repo, tree: dict[str, Entry], lines: list[dict[str, Any]]) -> None:
    """Refuse a README whose metadata the Hub would refuse."""
    changed = {line["value"].get("path") for line in lines}
    if "README.md" not in changed or "README.md" not in tree:
        return
    errors, _ = cards.check(repo.content(tree["README.md"]).decode("utf-8", "replace"), repo.kind)
    if errors:
        words = "; ".join(error["message"] for error in errors)
        raise HubError(400, f"Invalid metadata in README.md: {words}")


@web(router, "/resolve/{rest:path}", "GET", "HEAD")
async def resolve(request: Request, repo: ReadableRepo, store: Hub, rest: str) -> Response:
    found, path = find_commit(repo, rest)
    entry = found.tree.get(path)
    if entry is None:
        error = HubError(404, "Entry not found", "EntryNotFound")
        error.headers["X-Repo-Commit"] = found.oid
        raise error
    headers = {
        "X-Repo-Commit": found.oid,
        "ETag": f'"{entry.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.split('/')[-1])}",
        "Access-Control-Expose-Headers": "*",
    }
    if entry.lfs:
        key = secrets.token_urlsafe(16)
        get_uploads(request).signed[key] = repo.content(entry)
        headers |= {"X-Linked-Etag": f'"{entry.lfs}"', "X-Linked-Size": str(entry.size)}
        headers["Location"] = f"{elsewhere(store.url)}/cdn/{key}/{quote(path.split('/')[-1])}"
        return Response(status_code=302, headers=headers)
    # As text, never as a page: what people upload must not run.
    data, media = repo.content(entry), "text/plain; charset=utf-8"
    return ranged(data, request.headers.get("range"), headers, media)


def elsewhere(url: str) -> str:
    """The same machine by its other name: another host, as far as a client can tell."""
    return url.replace("127.0.0.1", "localhost")


@router.api_route("/cdn/{key}/{name}", methods=["GET", "HEAD"])
async def cdn(request: Request, key: str, name: str) -> Response:
    """Large files. Raises: HubError 400 where a token for the Hub is sent along."""
    if "authorization" in request.headers:
        raise HubError(400, "Only one auth mechanism allowed")
    data = get_uploads(request).signed.get(key)
    if data is None:
        raise HubError(403, "Request has expired")
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
    return ranged(data, request.headers.get("range"), headers, "application/octet-stream")


def ranged(data: bytes, wanted: str | None, headers: dict[str, str], media: str) -> Response:
    """All of the bytes, or those that a Range header names. Raises: HubError 416."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if match is None or match.group(0) == "bytes=-":
        return Response(data, headers=headers, media_type=media)
    first, last = match.groups()
    if not first:  # the last n bytes
        start, end = max(0, len(data) - int(last)), len(data) - 1
    else:
        start, end = int(first), min(int(last) if last else len(data), len(data) - 1)
    if start >= len(data) or start > end:
        error = HubError(416, "Requested Range Not Satisfiable")
        error.headers["Content-Range"] = f"bytes */{len(data)}"
        raise error
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Response(data[start : end + 1], status_code=206, headers=headers, media_type=media)
