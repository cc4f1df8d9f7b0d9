"""Repos: create, delete, settings, info, tree, refs, commits, pull requests."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from . import access, cards
from .routing import (
    Hub,
    ReadableRepo,
    VisibleRepo,
    Who,
    WritableRepo,
    api,
    find_commit,
    flag,
    split_revision,
)
from .search import DEFAULT_FIELDS, EXPANDABLE, describe, expanded, next_link
from .spaces import configure
from .store import KINDS, PREFIX, Commit, Entry, HubError, PullRequest, Repo, Store, pointer_text

router = APIRouter()

NAME = re.compile(r"^(?!.*(--|\.\.))[A-Za-z0-9_][\w.\-]{0,94}[A-Za-z0-9_]$|^[A-Za-z0-9]$")
REFERENCE = re.compile(r"^(?!.*(\.\.|//|@\{))[^\s~^:?*\[\\]+$")
SPACE_README = "---\ntitle: {name}\nemoji: 🚀\ncolorFrom: blue\ncolorTo: gray\nsdk: {sdk}\n---\n"


@router.get("/api/whoami-v2")
async def whoami(store: Hub, caller: Who) -> dict[str, Any]:
    if caller.user is None or caller.token is None:
        raise HubError(401, "Invalid username or password.")
    user, token = caller.user, caller.token
    return {
        "type": "user",
        "id": user.id,
        "name": user.name,
        "fullname": user.fullname,
        "email": user.email,
        "emailVerified": True,
        "isPro": user.pro,
        "canPay": user.pays,
        "avatarUrl": f"{store.url}/avatars/{user.name}.svg",
        "orgs": [
            {
                "type": "org",
                "name": name,
                "fullname": store.users[name].fullname,
                "roleInOrg": "write",
            }
            for name in sorted(visible_orgs(caller))
        ],
        "auth": describe_token(token),
    }


def visible_orgs(caller: access.Caller) -> set[str]:
    """Organisations that whoami lists: to an OAuth token only with consent and scope."""
    hidden = caller.has("oauth") and not caller.scoped({"read-memberships"})
    return set() if hidden else caller.orgs


def describe_token(token: Any) -> dict[str, Any]:
    """What whoami says about the token. An OAuth token has no ``accessToken``."""
    if token.role == "oauth":
        auth: dict[str, Any] = {"type": "oauth"}
        if token.expires_at is not None:
            when = datetime.fromtimestamp(token.expires_at, timezone.utc)
            auth["expiresAt"] = when.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        return auth
    access_token = {
        "displayName": "test",
        "role": token.role,
        "createdAt": "2026-01-01T00:00:00.000Z",
    }
    return {"type": "access_token", "accessToken": access_token}


@router.post("/api/repos/create")
async def create_repo(request: Request, store: Hub, caller: Who) -> dict[str, Any]:
    body = await request.json()
    kind, name = body.get("type") or "model", str(body.get("name", ""))
    namespace = store.account(body.get("organization") or caller.name)
    access.check_create(caller, kind, namespace)
    if kind not in KINDS or not NAME.match(name):
        raise HubError(400, f"Invalid repo type or name: {kind} {name!r}")
    if kind == "space" and body.get("sdk") not in cards.SDKS:
        raise HubError(400, '"sdk" must be one of [gradio, docker, static]')
    if kind == "space":
        hardware = body.get("hardware") or "cpu-basic"
        access.check_hardware(store, caller, namespace, body["sdk"], hardware)
    repo_id = f"{namespace}/{name}"
    url = address(store, kind, repo_id)
    if store.find(kind, repo_id):
        raise HubError(409, f"You already created this {kind} repo", url=url)
    repo = new_repo(store, caller, kind, repo_id, body)
    return {"url": url, "name": repo_id, "id": repo.commits[repo.refs["main"]].oid[:24]}


def new_repo(
    store: Store, caller: access.Caller, kind: str, repo_id: str, body: dict[str, Any]
) -> Repo:
    """Make the repo and, for a Space, its README and settings."""
    private = body.get("private") is True or body.get("visibility") == "private"
    app = caller.token.app if caller.token else None
    repo = store.create(kind, repo_id, caller.name, private=private, app=app)
    if kind == "space":
        readme = SPACE_README.format(name=repo_id.split("/")[1], sdk=body["sdk"])
        tree = {**repo.head.tree, "README.md": repo.keep(readme.encode(), large=False)}
        repo.commit("main", tree, "initial commit", caller.name)
        configure(repo, body)
    return repo


@router.delete("/api/repos/delete")
async def delete_repo(request: Request, store: Hub, caller: Who) -> dict[str, Any]:
    body = await request.json()
    kind = body.get("type") or "model"
    repo_id = f"{body.get('organization') or caller.name}/{body['name']}"
    repo = access.find(store, caller, kind, repo_id)
    access.check_delete(caller, repo)
    del store.repos[kind, repo.id]
    return {}


@router.post("/api/validate-yaml")
async def validate_yaml(request: Request) -> Response:
    body = await request.json()
    errors, warnings = cards.check(body["content"], body.get("repoType") or "model")
    status = 400 if errors else 200
    if request.headers.get("accept") == "text/plain":
        lines = [f"- Error: {error['message']}" for error in errors]
        lines += [f"- Warning: {warning['message']}" for warning in warnings]
        return PlainTextResponse("\n".join(lines), status)
    return JSONResponse({"errors": errors, "warnings": warnings}, status)


@api(router, "/auth-check")
async def auth_check(repo: ReadableRepo) -> dict[str, Any]:
    return {}


@api(router, "/auth-check/write")
async def auth_check_write(repo: WritableRepo) -> dict[str, Any]:
    return {}


@api(router, "/settings", "PUT")
async def settings(request: Request, repo: WritableRepo) -> dict[str, Any]:
    body = await request.json()
    if "gated" in body:
        repo.gated = body["gated"]
    if "visibility" in body or "private" in body:
        repo.private = body.get("private") is True or body.get("visibility") == "private"
    return {"private": repo.private, "gated": repo.gated}


@api(router, "")
@api(router, "/revision/{rest:path}")
async def info(
    request: Request, repo: VisibleRepo, store: Hub, rest: str = "main"
) -> dict[str, Any]:
    commit = repo.resolve(split_revision(repo, rest)[0] if "/" in rest else rest)
    full = describe(repo, commit, blobs=flag(request, "blobs"))
    wanted = expanded(request, repo.kind)
    if wanted is None:
        wanted = [*DEFAULT_FIELDS, *EXPANDABLE[repo.kind], "modelId", "host"]
    return {name: full[name] for name in dict.fromkeys(["_id", "id", *wanted]) if name in full}


@api(router, "/tree/{rest:path}")
async def tree(
    request: Request, response: Response, repo: VisibleRepo, store: Hub, rest: str
) -> Any:
    commit, path = find_commit(repo, rest)
    expand = flag(request, "expand")
    rows = list_tree(repo, commit, path, flag(request, "recursive"), expand)
    start = int(request.query_params.get("cursor", 0))
    size = min(int(request.query_params.get("limit", 10**9)), store.tree_page_size)
    if start + size < len(rows):
        response.headers["Link"] = next_link(request, store, start + size)
    return rows[start : start + size]


def list_tree(
    repo: Repo, commit: Commit, path: str, recursive: bool, expand: bool
) -> list[dict[str, Any]]:
    """Files and folders below a path, one level or all.

    Raises:
        HubError: EntryNotFound.
    """
    below = {p: e for p, e in sorted(commit.tree.items()) if not path or p.startswith(path + "/")}
    if path and not below:
        raise HubError(404, f'{path} does not exist on "{commit.oid}"', "EntryNotFound")
    rows: dict[str, dict[str, Any]] = {}
    depth = len(path.split("/")) if path else 0
    for name, entry in below.items():
        parts = name.split("/")
        for end in range(depth + 1, len(parts) if recursive else min(depth + 2, len(parts))):
            folder = "/".join(parts[:end])
            rows.setdefault(folder, describe_folder(repo, commit, folder, expand))
        if recursive or len(parts) == depth + 1:
            rows[name] = describe_file(repo, commit, name, entry, expand)
    return list(rows.values())


def describe_file(
    repo: Repo, commit: Commit, path: str, entry: Entry, expand: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if entry.lfs:
        size = len(pointer_text(entry.lfs, entry.size))
        row["lfs"] = {"oid": entry.lfs, "size": entry.size, "pointerSize": size}
    if expand:
        row["lastCommit"] = last_commit(repo, commit, path)
        row["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return row


def describe_folder(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "directory", "path": path, "size": 0, "oid": commit.oid}
    if expand:
        row["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
    return row


def last_commit(repo: Repo, commit: Commit, path: str) -> dict[str, str]:
    """The newest commit that changed a file."""
    while commit.parent:
        parent = repo.commits[commit.parent]
        if parent.tree.get(path) != commit.tree.get(path):
            break
        commit = parent
    return {"id": commit.oid, "title": commit.title, "date": commit.date}


@api(router, "/paths-info/{rest:path}", "POST")
async def paths_info(request: Request, repo: VisibleRepo, rest: str) -> list[dict[str, Any]]:
    commit, _ = find_commit(repo, rest)
    if request.headers.get("content-type", "").startswith("application/json"):
        body = await request.json()
        paths, expand = body.get("paths", []), bool(body.get("expand"))
    else:
        form = await request.form()
        paths = [str(path) for path in form.getlist("paths")]
        expand = str(form.get("expand", "")).lower() == "true"
    rows = []
    for path in (path.strip("/") for path in paths):
        if path in commit.tree:
            rows.append(describe_file(repo, commit, path, commit.tree[path], expand))
        elif any(name.startswith(path + "/") for name in commit.tree):
            rows.append(describe_folder(repo, commit, path, expand))
    return rows


@api(router, "/refs")
async def refs(request: Request, repo: VisibleRepo) -> dict[str, Any]:
    def named(name: str, ref: str, oid: str) -> dict[str, str]:
        return {"name": name, "ref": ref, "targetCommit": oid}

    found: dict[str, Any] = {
        "branches": [
            named(n, f"refs/heads/{n}", o)
            for n, o in repo.refs.items()
            if not n.startswith("refs/")
        ],
        "converts": [],
        "tags": [named(name, f"refs/tags/{name}", oid) for name, oid in repo.tags.items()],
    }
    if flag(request, "include_prs"):
        found["pullRequests"] = [
            named(pull.ref.removeprefix("refs/"), pull.ref, repo.refs[pull.ref])
            for pull in repo.pulls
        ]
    return found


@api(router, "/commits/{rest:path}")
async def commits(repo: VisibleRepo, rest: str) -> list[dict[str, Any]]:
    return [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": commit.date,
        }
        for commit in repo.history(split_revision(repo, rest)[0] if "/" in rest else rest)
    ]


@api(router, "/branch/{branch:path}", "POST")
async def create_branch(request: Request, repo: WritableRepo, branch: str) -> dict[str, Any]:
    body = await request.json() if await request.body() else {}
    if branch.startswith("refs/"):
        raise HubError(400, f"Invalid branch name: {branch}")
    if branch in repo.refs:
        raise HubError(409, f"Reference refs/heads/{branch} already exists")
    repo.refs[branch] = repo.resolve(body.get("startingPoint") or "main").oid
    return {}


@api(router, "/branch/{branch:path}", "DELETE")
async def delete_branch(repo: WritableRepo, branch: str) -> dict[str, Any]:
    if branch == "main" or branch.startswith("refs/"):
        raise HubError(403, f"Cannot delete refs/heads/{branch}")
    if repo.refs.pop(branch, None) is None:
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    return {}


@api(router, "/tag/{name_:path}", "POST")
async def create_tag(request: Request, repo: WritableRepo, name_: str) -> dict[str, Any]:
    tag = (await request.json())["tag"]
    oid = repo.resolve(name_).oid
    if not REFERENCE.match(tag):
        raise HubError(400, f"Invalid tag name: {tag!r}")
    if tag in repo.tags:
        raise HubError(409, f"Tag reference exists already: {tag}")
    repo.tags[tag] = oid
    return {}


@api(router, "/tag/{name_:path}", "DELETE")
async def delete_tag(repo: WritableRepo, name_: str) -> dict[str, Any]:
    if repo.tags.pop(name_, None) is None:
        raise HubError(404, f"Invalid rev id: {name_}", "RevisionNotFound")
    return {}


@api(router, "/super-squash/{rest:path}", "POST")
async def super_squash(
    request: Request, repo: WritableRepo, caller: Who, rest: str
) -> dict[str, Any]:
    """Rewrite a branch as one commit. Raises: HubError 400 for a tag or a commit."""
    body = await request.json() if await request.body() else {}
    if rest not in repo.refs:
        raise HubError(404, f"Invalid rev id: {rest}", "RevisionNotFound")
    message = body.get("message") or f"Super-squash branch '{rest}' using huggingface_hub"
    return {"oid": repo.squash(rest, message, caller.name).oid}


@api(router, "/discussions")
async def discussions(repo: VisibleRepo) -> dict[str, Any]:
    rows = [describe_pull(repo, pull) for pull in repo.pulls]
    return {"discussions": rows, "count": len(rows), "start": 0}


@api(router, "/discussions", "POST")
async def open_discussion(request: Request, repo: VisibleRepo, caller: Who) -> dict[str, Any]:
    body = await request.json()
    access.check_propose(caller, repo)
    if not body.get("pullRequest"):
        raise HubError(400, "This Hub keeps pull requests only, no discussions")
    return {"num": repo.open_pull(body["title"], caller.name, "main").num}


@api(router, "/discussions/{num:int}")
async def discussion(repo: VisibleRepo, num: int) -> dict[str, Any]:
    pull = get_pull(repo, num)
    changes = {"base": f"refs/heads/{pull.base}"}
    return {**describe_pull(repo, pull), "events": [], "filesWithConflicts": [], "changes": changes}


@api(router, "/discussions/{num:int}/merge", "POST")
async def merge(repo: WritableRepo, caller: Who, num: int) -> dict[str, Any]:
    """Replay what the pull request changed on top of its base."""
    pull = get_pull(repo, num)
    if pull.status in ("merged", "closed"):
        raise HubError(400, f"This pull request is {pull.status}")
    known = {commit.oid for commit in repo.history(pull.base)}
    start = next(commit for commit in repo.history(pull.ref) if commit.oid in known).tree
    theirs, tree = repo.resolve(pull.ref).tree, dict(repo.resolve(pull.base).tree)
    for path in {*start, *theirs}:
        if path not in theirs:
            tree.pop(path, None)
        elif theirs[path] != start.get(path):
            tree[path] = theirs[path]
    commit = repo.commit(pull.base, tree, f"{pull.title} (#{num})", caller.name)
    pull.status = "merged"
    return {"mergeCommitId": commit.oid}


def get_pull(repo: Repo, num: int) -> PullRequest:
    if not 0 < num <= len(repo.pulls):
        raise HubError(404, "Discussion not found")
    return repo.pulls[num - 1]


def describe_pull(repo: Repo, pull: PullRequest) -> dict[str, Any]:
    return {
        "num": pull.num,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": pull.created_at,
        "status": pull.status,
        "repo": {"name": repo.id, "type": repo.kind},
        "isPullRequest": True,
    }


def address(store: Store, kind: str, repo_id: str) -> str:
    """The page of a repo."""
    return f"{store.url}/{PREFIX[kind]}{repo_id}"
