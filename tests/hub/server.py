"""The Hub on loopback: the app, and ``LoopbackHub``, the handle that tests hold."""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from . import cards, files, jobs, oauth, pages, repos, search, spaces, xet
from .faults import Faults, FaultyApp, Rule, Wire
from .faults import Request as SeenRequest
from .routing import UnknownRoute, Who
from .store import Commit, HubError, PullRequest, Repo, Store, Token, User

CLIENT_ID, CLIENT_SECRET = "loopback-client", "loopback-secret"
SCOPES = "openid profile contribute-repos gated-repos read-repos jobs write-discussions"

INVALID = "Invalid credentials in Authorization header"
REPO_PATHS = r"/api/(models|datasets|spaces)/.|/.+/resolve/."

missing = APIRouter()


@missing.api_route("/api/{plural}/{name}/{verb}/{rest:path}", methods=["GET", "POST"])
@missing.get("/api/{plural}/{name}")
@missing.api_route("/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
async def canonical(request: Request, caller: Who, verb: str = "revision") -> None:
    """Ids without an owner (``squad``): there are none here."""
    plural = request.path_params.get("plural", "models")
    verbs = ("revision", "tree", "paths-info", "commits")
    if plural not in ("models", "datasets", "spaces") or verb not in verbs:
        raise UnknownRoute
    if caller.user is None:
        raise HubError(401, "Invalid username or password.")
    raise HubError(404, "Repository not found", "RepoNotFound")


def build_app(hub: LoopbackHub) -> FastAPI:
    """The Hub as an ASGI app, with its memory in ``app.state``."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state.store, app.state.oauth, app.state.jobs = hub.store, hub.oauth, hub.jobs
    app.state.uploads, app.state.unknown = hub.uploads, hub.unknown
    app.state.chunks = hub.chunks
    app.add_exception_handler(HubError, answer_error)
    app.add_exception_handler(UnknownRoute, answer_unknown)
    for module in (oauth, search, repos, files, xet, spaces, jobs):
        app.include_router(module.router)
    app.include_router(missing)
    app.include_router(pages.router)
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app.add_api_route("/{rest:path}", unknown, methods=methods)
    return app


async def unknown(request: Request) -> None:
    raise UnknownRoute


async def answer_unknown(request: Request, error: Exception) -> Response:
    request.app.state.unknown.append(f"{request.method} {request.url.path}")
    return JSONResponse({"error": "This Hub has no such route"}, 404)


async def answer_error(request: Request, error: Exception) -> Response:
    """The Hub's way to refuse: words in a header and in the body."""
    assert isinstance(error, HubError)
    words = error.message.encode("latin-1", "replace").decode("latin-1").replace("\n", " ")
    headers = {"X-Error-Message": words, "X-Request-Id": secrets.token_hex(8), **error.headers}
    code = error.code
    if error.status == 401 and words != INVALID and re.match(REPO_PATHS, request.url.path):
        # Over https the client takes any such 401 for a missing repo; over http it wants a code.
        code = code or "RepoNotFound"
    if code:
        headers["X-Error-Code"] = code
    return JSONResponse({"error": error.message, **error.body}, error.status, headers)


class LoopbackHub:
    """A Hub of one's own on 127.0.0.1, for as long as the ``with`` block runs.

    >>> with LoopbackHub() as hub:
    ...     hub.add_user("ann", token="hf_ann")
    ...     hub.add_repo("dataset", "ann/chat", files={"data.jsonl": b"{}"}, private=True)
    ...     HfApi(endpoint=hub.url, token="hf_ann").dataset_info("ann/chat")

    ``unknown`` lists the requests that no route answered: it must be empty at the end.
    """

    def __init__(self, port: int = 0) -> None:
        self.store = Store()
        self.oauth = oauth.Provider()
        self.jobs = jobs.Jobs()
        self.uploads = files.Uploads()
        self.chunks = xet.Chunks()
        self.faults = Faults()
        self.unknown: list[str] = []
        self._socket: socket.socket | None = reserve(port)
        self.port: int = self._socket.getsockname()[1]
        self.url = self.store.url = f"http://127.0.0.1:{self.port}"
        self._app = FaultyApp(build_app(self), self.faults)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    # --- running -----------------------------------------------------------

    def start(self) -> LoopbackHub:
        """Answer on ``url``; a Hub that was stopped comes back on the same port."""
        self._socket = self._socket or reserve(self.port)
        config = uvicorn.Config(
            self._app,
            http=Wire,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_level="critical",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        sockets = [self._socket]
        self._thread = threading.Thread(target=self._server.run, args=(sockets,), daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Be gone: connections are refused from now on. What is stored stays."""
        self.faults.clear()
        if self._server and self._thread:
            self._server.should_exit = True
            self._thread.join(timeout=10)
        if self._socket:
            self._socket.close()
        self._server = self._thread = self._socket = None

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def reset(self) -> None:
        """Forget people, repos, faults and the log; ``unknown`` stays."""
        self.faults.clear()
        self.faults.requests.clear()
        for memory in (self.store.users, self.store.tokens, self.store.repos, self.store.buckets):
            memory.clear()
        self.store.page_size, self.store.tree_page_size = 100, 1000
        self.jobs.all.clear()
        self.jobs.runner = None
        self.uploads.open.clear()
        self.uploads.signed.clear()
        self.chunks.forget()
        self.uploads.multipart_above = files.Uploads.multipart_above
        self.oauth.apps.clear()
        self.oauth.codes.clear()
        self.oauth.sign_in_as = self.oauth.expires_in = None

    # --- people ------------------------------------------------------------

    def add_user(
        self,
        name: str,
        token: str | None = None,
        role: str = "write",
        scopes: Iterable[str] = (),
        orgs: Iterable[str] = (),
        pro: bool = False,
        pays: bool = False,
    ) -> User:
        """A person, with a token if one is given (``role``: read, write, fineGrained)."""
        email = f"{name}@example.com"
        user = User(name, name.capitalize(), email, pro, pays or pro, orgs=set(orgs))
        self.store.users[name] = user
        for org in user.orgs:
            self.store.users.setdefault(org, User(org, org, "", is_org=True))
        if token:
            self.add_token(name, token, role, scopes)
        return user

    def add_token(
        self,
        user: str,
        token: str,
        role: str = "write",
        scopes: Iterable[str] = (),
        app: str | None = None,
        expires_at: float | None = None,
        orgs: Iterable[str] = (),
    ) -> Token:
        """One more token; ``role="oauth"`` with ``scopes`` makes one as signing in would."""
        given = Token(token, user, role, frozenset(scopes), app, expires_at, frozenset(orgs))
        self.store.tokens[token] = given
        return given

    def revoke(self, token: str) -> None:
        """The token is not valid any more."""
        self.store.tokens[token].revoked = True

    def add_app(
        self,
        redirects: Sequence[str] = ("http://127.0.0.1:", "http://localhost:"),
        client_id: str = CLIENT_ID,
        client_secret: str = CLIENT_SECRET,
        scopes: str = SCOPES,
        minutes: int = cards.OAUTH_MINUTES,
    ) -> oauth.App:
        """Register an OAuth app whose codes may go to addresses that begin so.

        A sign-in lasts ``minutes``, as a Space's ``hf_oauth_expiration_minutes`` says.
        """
        granted = frozenset(scopes.split())
        app = oauth.App(client_id, client_secret, tuple(redirects), granted, minutes)
        self.oauth.apps[client_id] = app
        return app

    # --- repos -------------------------------------------------------------

    def add_repo(
        self,
        kind: str,
        repo_id: str,
        files: Mapping[str, bytes | str] | None = None,
        *,
        private: bool = False,
        gated: bool | str = False,
        allowed: Iterable[str] = (),
        downloads: int = 0,
        likes: int = 0,
        disabled: bool = False,
    ) -> Repo:
        """A repo with its files in one commit. ``gated=True`` means "manual"."""
        owner = repo_id.split("/")[0]
        if owner not in self.store.users:
            self.add_user(owner)
        repo = self.store.create(kind, repo_id, owner, private=private, allowed=set(allowed))
        repo.gated = "manual" if gated is True else gated
        repo.downloads, repo.likes, repo.disabled = downloads, likes, disabled
        if kind == "space":
            spaces.configure(repo, {})
        if files:
            self.commit(kind, repo_id, files)
        return repo

    def commit(
        self,
        kind: str,
        repo_id: str,
        files: Mapping[str, bytes | str],
        delete: Iterable[str] = (),
        branch: str = "main",
        title: str = "Update",
    ) -> Commit:
        """Change files behind the app's back. A new ``branch`` starts at main."""
        repo = self.store.repo(kind, repo_id)
        repo.refs.setdefault(branch, repo.head.oid)
        tree = {p: e for p, e in repo.resolve(branch).tree.items() if p not in set(delete)}
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else bytes(content)
            large = cards.is_large(path, len(data), data[:512], repo.text(".gitattributes"))
            tree[path] = repo.keep(data, large)
        return repo.commit(branch, tree, title, repo.owner)

    def repo(self, kind: str, repo_id: str) -> Repo:
        """The repo itself. Raises: KeyError."""
        return self.store.repo(kind, repo_id)

    def files(self, kind: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Path → bytes; ``.gitattributes``, which the Hub adds itself, is among them."""
        return self.repo(kind, repo_id).files(revision)

    def commits(self, kind: str, repo_id: str, revision: str = "main") -> list[Commit]:
        """Newest first."""
        return self.repo(kind, repo_id).history(revision)

    def pulls(self, kind: str, repo_id: str) -> list[PullRequest]:
        return self.repo(kind, repo_id).pulls

    def grant(self, kind: str, repo_id: str, user: str) -> None:
        """Let somebody through the gate of a gated repo."""
        self.repo(kind, repo_id).allowed.add(user)

    def stored(self) -> Iterator[tuple[str, bytes]]:
        """Every byte that ever arrived, with its place: to grep for what must not leave."""
        return self.store.stored()

    # --- faults and the log ------------------------------------------------

    def fail(
        self,
        pattern: str,
        status: int = 503,
        times: int | None = None,
        retry_after: int | None = None,
        message: str | None = None,
        reset: int | None = None,
    ) -> Rule:
        """Refuse matching requests (see ``faults``): 5xx, 402, …

        429 carries Retry-After, or RateLimit with the seconds until the window's ``reset``, or
        both, or nothing.
        """
        rule = Rule(pattern, "fail", times, status, retry_after, reset, message)
        return self.faults.add(rule)

    def lose(self, pattern: str, times: int | None = 1) -> Rule:
        """Do what is asked and never answer: the client sees a connection that broke."""
        return self.faults.add(Rule(pattern, "lose", times))

    def cut(self, pattern: str, after_bytes: int = 0, times: int | None = 1) -> Rule:
        """Close the connection after so many bytes of the upload (PUT, POST) or the answer."""
        return self.faults.add(Rule(pattern, "cut", times, after_bytes=after_bytes))

    def slow(self, pattern: str, seconds: float, times: int | None = None) -> Rule:
        """Wait before answering."""
        return self.faults.add(Rule(pattern, "slow", times, seconds=seconds))

    def held(self, pattern: str) -> AbstractContextManager[Rule]:
        """Matching requests wait until the block ends; ``rule.waiting`` is set when one came."""
        return self.faults.held(pattern)

    def heal(self) -> None:
        """No more faults."""
        self.faults.clear()

    @property
    def requests(self) -> list[SeenRequest]:
        """What was asked so far, with the status and the bytes of each answer."""
        return self.faults.requests

    # --- clients -----------------------------------------------------------

    def env(self, home: Path | str, token: str | None = None) -> dict[str, str]:
        """The environment for a client in another process: this Hub and no other.

        ``home`` takes the client's caches and stored tokens.
        """
        found = {
            k: v for k, v in os.environ.items() if k not in PERSONAL and not k.startswith("HF_")
        }
        found |= client_settings(self.url, home)
        if token:
            found["HF_TOKEN"] = token
        return found

    def space_env(
        self, home: Path | str, space_id: str = "ann/phi3lora", scopes: str = SCOPES
    ) -> dict[str, str]:
        """The environment of a Space that signs people in here; registers it as an app."""
        self.add_app(scopes=scopes)
        return {
            **self.env(home),
            "SYSTEM": "spaces",
            "SPACE_ID": space_id,
            "SPACE_AUTHOR_NAME": space_id.split("/")[0],
            "OAUTH_CLIENT_ID": CLIENT_ID,
            "OAUTH_CLIENT_SECRET": CLIENT_SECRET,
            "OAUTH_SCOPES": scopes,
            "OPENID_PROVIDER_URL": self.url,
        }


#: What a person may have set, and no test may inherit.
PERSONAL = ("HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_CACHE", "SPACE_HOST", "SPACE_ID", "SYSTEM")


def client_settings(url: str, home: Path | str) -> dict[str, str]:
    """What makes huggingface_hub and datasets talk to ``url`` only."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def reserve(port: int) -> socket.socket:
    """A socket that has the port but does not listen yet: connections are refused."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    return found
