"""What the Hub remembers: people, tokens, repos, commits and bytes. No HTTP here.

A repo is a small git: immutable commits, each holding the whole tree as
``{path: Entry}``, and names (branches, tags, pull requests) that point at them.
Contents are kept once per repo, under their git or sha256 id, so that a file of
one repo can never be reached through another.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

KINDS = ("model", "dataset", "space")
#: What stands before ``owner/name`` in the address of a page or a file.
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}

_LARGE = """
7z arrow bin gguf gz h5 jpg model npy npz onnx parquet pickle pkl png pt pth safetensors tar
tgz wasm xz zip zst
"""
DEFAULT_GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LARGE.split()
)


class HubError(Exception):
    """An answer that is not 2xx: ``status``, the words of X-Error-Message, and X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = body
        self.headers: dict[str, str] = {}


@dataclass
class User:
    """A person, or an organisation when ``is_org``."""

    name: str
    fullname: str
    email: str
    pro: bool = False  # PRO, Team or Enterprise
    pays: bool = False  # has a payment method, so that paid hardware can be had
    is_org: bool = False
    orgs: set[str] = field(default_factory=set)  # organisations in which this person may write
    id: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass
class Token:
    """A key to the Hub. ``app`` is the OAuth client that it was given to, if any."""

    value: str
    user: str
    role: str  # "read", "write", "fineGrained" or "oauth"
    scopes: frozenset[str] = frozenset()
    app: str | None = None
    expires_at: float | None = None  # seconds since the epoch
    orgs: frozenset[str] = frozenset()  # of an OAuth token: organisations that consent reaches
    revoked: bool = False

    @property
    def good(self) -> bool:
        return not self.revoked and (self.expires_at is None or self.expires_at > time.time())


@dataclass(frozen=True)
class Entry:
    """A file in a tree. ``oid`` is its git id; ``lfs`` its sha256 when it is a large file."""

    oid: str
    size: int  # bytes
    lfs: str | None = None

    @property
    def etag(self) -> str:
        return self.lfs or self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: Mapping[str, Entry]


@dataclass
class PullRequest:
    num: int
    title: str
    author: str
    base: str
    status: str = "open"  # "draft", "open", "closed", "merged"
    created_at: str = field(default_factory=lambda: now())

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass
class Repo:
    kind: str
    id: str
    private: bool = False
    gated: str | bool = False  # False, "auto" or "manual"
    app: str | None = None  # the OAuth client that created it
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    created_at: str = field(default_factory=lambda: now())
    allowed: set[str] = field(default_factory=set)  # who was let through the gate
    refs: dict[str, str] = field(default_factory=dict)  # "main", "refs/pr/1", … → commit
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # git id → bytes
    lfs: dict[str, bytes] = field(default_factory=dict)  # sha256 → bytes; old commits' count too
    pulls: list[PullRequest] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)  # secrets, variables, hardware, volumes, …

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def prefix(self) -> str:
        return PREFIX[self.kind]

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["main"]]

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, ``refs/…`` name or (shortened) commit id means.

        Raises:
            HubError: RevisionNotFound.
        """
        oid = self.refs.get(revision) or self.tags.get(revision)
        oid = oid or self.refs.get(revision.removeprefix("refs/heads/"))
        if oid is None and len(revision) >= 7:
            oid = next((known for known in self.commits if known.startswith(revision)), None)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def content(self, entry: Entry) -> bytes:
        return self.lfs[entry.lfs] if entry.lfs else self.blobs[entry.oid]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        tree = self.resolve(revision).tree
        return {path: self.content(entry) for path, entry in sorted(tree.items())}

    def text(self, path: str) -> str:
        """A text file at the head of main, or an empty string."""
        entry = self.head.tree.get(path)
        return self.content(entry).decode("utf-8", "replace") if entry else ""

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits, newest first."""
        found: list[Commit] = []
        commit: Commit | None = self.resolve(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return found

    def keep(self, data: bytes, large: bool) -> Entry:
        """Store bytes and return the entry for a tree."""
        if not large:
            oid = git_oid(data)
            self.blobs[oid] = data
            return Entry(oid=oid, size=len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        self.lfs[sha256] = data
        return pointer(sha256, len(data))

    def commit(
        self, ref: str, tree: Mapping[str, Entry], title: str, author: str, message: str = ""
    ) -> Commit:
        """Add a commit on top of ``ref`` and move ``ref`` to it."""
        parent = self.refs.get(ref)
        seed = f"{self.kind} {self.id} {parent} {title} {next(_COUNTER)} {secrets.token_hex(8)}"
        oid = hashlib.sha1(seed.encode()).hexdigest()
        commit = Commit(oid, parent, title, message, author, now(), dict(tree))
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit

    def squash(self, branch: str, message: str, author: str) -> Commit:
        """One commit in place of the branch's history; what no name reaches any more is freed."""
        tree = self.resolve(branch).tree
        del self.refs[branch]
        commit = self.commit(branch, tree, message, author)
        starts = {*self.refs.values(), *self.tags.values()}
        reached = {found.oid for start in starts for found in self.history(start)}
        self.commits = {oid: kept for oid, kept in self.commits.items() if oid in reached}
        entries = [entry for kept in self.commits.values() for entry in kept.tree.values()]
        large, small = {entry.lfs for entry in entries}, {entry.oid for entry in entries}
        self.lfs = {oid: data for oid, data in self.lfs.items() if oid in large}
        self.blobs = {oid: data for oid, data in self.blobs.items() if oid in small}
        return commit

    @property
    def used_storage(self) -> int:
        """Bytes that count for the owner's quota: files of the whole history."""
        return sum(len(data) for data in (*self.lfs.values(), *self.blobs.values()))

    def open_pull(self, title: str, author: str, base: str, status: str = "draft") -> PullRequest:
        pull = PullRequest(len(self.pulls) + 1, title, author, base, status)
        self.pulls.append(pull)
        self.refs[pull.ref] = self.resolve(base).oid
        return pull


@dataclass
class Store:
    """Everything that one Hub knows."""

    url: str = ""
    users: dict[str, User] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    buckets: dict[str, dict[str, Any]] = field(default_factory=dict)
    page_size: int = 100  # rows in a page of search results
    tree_page_size: int = 1000

    def find(self, kind: str, repo_id: str) -> Repo | None:
        """The repo of that id, in whatever case it is written."""
        wanted = (kind, repo_id.lower())
        found = ((k, i.lower()) == wanted and repo for (k, i), repo in self.repos.items())
        return next((repo for repo in found if repo), None)

    def account(self, name: str) -> str:
        """A person's or organisation's name as it is written, in whatever case it came."""
        return next((known for known in self.users if known.lower() == name.lower()), name)

    def zero_gpu_spaces(self, owner: str) -> int:
        """How many Spaces of an account run on ZeroGPU."""
        spaces = (repo for repo in self.repos.values() if repo.kind == "space")
        return sum(s.owner == owner and s.space["requested"] == "zero-a10g" for s in spaces)

    def repo(self, kind: str, repo_id: str) -> Repo:
        """The repo, for the tests' own use.

        Raises:
            KeyError: There is none; the message lists what there is.
        """
        found = self.repos.get((kind, repo_id))
        if found is None:
            raise KeyError(f"no {kind} {repo_id!r} on the Hub, only {sorted(self.repos)}")
        return found

    def create(self, kind: str, repo_id: str, author: str, **fields: Any) -> Repo:
        """A new repo with its first commit, as the Hub makes one."""
        repo = Repo(kind, repo_id, **fields)
        tree = {".gitattributes": repo.keep(DEFAULT_GITATTRIBUTES.encode(), large=False)}
        repo.commit("main", tree, "initial commit", author)
        self.repos[kind, repo_id] = repo
        return repo

    def stored(self) -> Iterator[tuple[str, bytes]]:
        """Every byte that was ever handed over, with the place where it lies."""
        for (kind, repo_id), repo in self.repos.items():
            for oid, data in itertools.chain(repo.blobs.items(), repo.lfs.items()):
                names = {
                    p for c in repo.commits.values() for p, e in c.tree.items() if e.etag == oid
                }
                yield f"{kind} {repo_id}: {', '.join(sorted(names)) or oid}", data
            for commit in repo.commits.values():
                text = f"{commit.title}\n{commit.message}"
                yield f"{kind} {repo_id}: commit {commit.oid}", text.encode()


_COUNTER = itertools.count()


def now() -> str:
    """The time, in the only format that the client reads."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(data: bytes) -> str:
    """The id that git gives to a file with these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer_text(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def pointer(sha256: str, size: int) -> Entry:
    """The entry of a large file: git keeps a short pointer to it."""
    return Entry(oid=git_oid(pointer_text(sha256, size)), size=size, lfs=sha256)
