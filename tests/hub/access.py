"""Who may do what, and the words in which the Hub refuses.

Rights are the least that the Hub's documentation promises for each kind of token:

=================== =========================================================
token               may
=================== =========================================================
none                read what is public and not gated
``read``            also read one's own private repos, and gated ones after approval
``write``           also create, write and delete one's own; open pull requests; run Jobs
OAuth               know who signed in, and organisations as far as consent reaches; the rest by
                    scope; 401 on what changes a Space's machine
``read-repos``        read the person's private repos
``gated-repos``       read gated repos that let the person in
``contribute-repos``  create repos; read and write those that this app created
``write-repos``       read and write the person's repos
``manage-repos``      also create and delete them
``write-discussions`` open pull requests
``jobs``              run Jobs
=================== =========================================================

Fine-grained tokens use the same scope names.
"""

from __future__ import annotations

from dataclasses import dataclass

from .store import HubError, Repo, Store, Token, User

READ_SCOPES = {"read-repos", "write-repos", "manage-repos"}
WRITE_SCOPES = {"write-repos", "manage-repos"}
CREATE_SCOPES = {"contribute-repos", "manage-repos"}
ZERO_SPACES = 2  # that a free account may host
FREE_SPACES = (
    "Static Spaces are free for everyone, but hosting Gradio and Docker Spaces on free cpu-basic "
    "requires a PRO subscription"
)


@dataclass(frozen=True)
class Caller:
    """Who is asking. Without a token both fields are None."""

    user: User | None = None
    token: Token | None = None

    @property
    def name(self) -> str:
        return self.user.name if self.user else "anonymous"

    @property
    def orgs(self) -> set[str]:
        """Organisations in whose name the caller may act."""
        if self.user is None or self.token is None:
            return set()
        return set(self.token.orgs) & self.user.orgs if self.has("oauth") else self.user.orgs

    def owns(self, namespace: str) -> bool:
        if self.user is None:
            return False
        return namespace.lower() in {name.lower() for name in (self.user.name, *self.orgs)}

    def has(self, *roles: str) -> bool:
        return self.token is not None and self.token.role in roles

    def scoped(self, scopes: set[str]) -> bool:
        return self.token is not None and bool(scopes & self.token.scopes)

    def made(self, repo: Repo) -> bool:
        """Whether the app behind this token created the repo, and may still work on it."""
        return (
            self.token is not None
            and "contribute-repos" in self.token.scopes
            and repo.app is not None
            and repo.app == self.token.app
        )


def identify(store: Store, authorization: str | None) -> Caller:
    """Turn an ``Authorization`` header into a Caller.

    Raises:
        HubError: 401 for a token that is unknown, revoked or expired, even for public pages; of
            an OAuth token in words that the client takes for a missing repo.
    """
    if not authorization:
        return Caller()
    value = authorization.removeprefix("Bearer ").strip()
    token = store.tokens.get(value)
    if token is not None and token.good:
        return Caller(store.users[token.user], token)
    if value.startswith("hf_oauth_") or (token is not None and token.role == "oauth"):
        raise HubError(401, "OAuth token verification failed")
    raise HubError(401, "Invalid credentials in Authorization header")


def owner_reads(caller: Caller, repo: Repo) -> bool:
    if not caller.owns(repo.owner):
        return False
    return caller.has("read", "write") or caller.scoped(READ_SCOPES) or caller.made(repo)


def sees(caller: Caller, repo: Repo) -> bool:
    """Whether the repo exists as far as the caller can tell."""
    return not repo.private or owner_reads(caller, repo)


def find(store: Store, caller: Caller, kind: str, repo_id: str) -> Repo:
    """The repo, if the caller may know of it.

    Raises:
        HubError: 401 to a stranger, 404 to somebody known: a hidden repo looks like a missing one.
    """
    repo = store.find(kind, repo_id)
    if repo is None or not sees(caller, repo):
        if caller.user is None:
            raise HubError(401, "Invalid username or password.")
        raise HubError(404, "Repository not found", "RepoNotFound")
    if repo.disabled:
        raise HubError(403, "Access to this resource is disabled.")
    return repo


def check_content(caller: Caller, repo: Repo) -> None:
    """Let the caller read files, or say why not.

    Raises:
        HubError: GatedRepo, 401 without a token and 403 with one.
    """
    if not repo.gated or owner_reads(caller, repo):
        return
    name = f"Access to {repo.kind} {repo.id} is restricted"
    if caller.user is None:
        words = (
            f"{name}. You must have access to it and be authenticated to access it. Please log in."
        )
        raise HubError(401, words, "GatedRepo")
    if caller.name not in repo.allowed:
        words = (
            f"{name} and you are not in the authorized list. "
            f"Visit https://huggingface.co/{repo.prefix}{repo.id} to ask for access."
        )
        raise HubError(403, words, "GatedRepo")
    if not (caller.has("read", "write") or caller.scoped({"gated-repos"})):
        words = (
            "Please enable access to public gated repositories in your fine-grained token settings "
            "to view this repository."
        )
        raise HubError(403, words, "GatedRepo")


def may_write(caller: Caller, repo: Repo) -> bool:
    if not caller.owns(repo.owner):
        return False
    return caller.has("write") or caller.scoped(WRITE_SCOPES) or caller.made(repo)


def check_write(caller: Caller, repo: Repo) -> None:
    """Raises: HubError 401 without a token, 403 with one that may not write here."""
    if caller.user is None:
        raise HubError(401, "Invalid username or password.")
    if not may_write(caller, repo):
        words = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
        raise HubError(403, words if not caller.owns(repo.owner) else "Authorization error.")


def check_propose(caller: Caller, repo: Repo) -> None:
    """Raises: HubError if the caller may not open a pull request."""
    if caller.user is None:
        raise HubError(401, "Invalid username or password.")
    check_content(caller, repo)
    if not (caller.has("write") or caller.scoped({"write-discussions"})):
        raise HubError(403, "Authorization error.")


def check_create(caller: Caller, kind: str, namespace: str) -> None:
    """Raises: HubError if the caller may not create a repo under ``namespace``.

    An OAuth token without the scope is told 401, as if nobody had signed in.
    """
    if caller.user is None or (caller.has("oauth") and not caller.scoped(CREATE_SCOPES)):
        raise HubError(401, "Invalid username or password.")
    if not caller.owns(namespace) or not (caller.has("write") or caller.scoped(CREATE_SCOPES)):
        words = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
        raise HubError(403, words)


def check_hardware(store: Store, caller: Caller, owner: str, sdk: str, hardware: str) -> None:
    """Raises: HubError 402 for a Space that the account would have to pay for, and cannot."""
    account = store.users.get(owner, caller.user)
    if account is None or sdk == "static":
        return
    if hardware == "cpu-basic" and not account.pro:
        raise HubError(402, FREE_SPACES)
    if hardware == "zero-a10g" and not account.pro and store.zero_gpu_spaces(owner) >= ZERO_SPACES:
        raise HubError(402, f"Free accounts can host up to {ZERO_SPACES} ZeroGPU Spaces")
    if hardware not in ("cpu-basic", "zero-a10g") and not account.pays:
        raise HubError(402, "Payment required: add a payment method to use this hardware")


def check_machine(caller: Caller, repo: Repo) -> None:
    """Raises: HubError 401 to OAuth tokens, which may not change a Space's machine."""
    if caller.has("oauth"):
        raise HubError(401, "Invalid username or password.")
    check_write(caller, repo)


def check_delete(caller: Caller, repo: Repo) -> None:
    """Raises: HubError if the caller may not delete the repo."""
    check_write(caller, repo)
    if not (caller.has("write") or caller.scoped({"manage-repos"})):
        raise HubError(403, "Authorization error.")


def check_jobs(caller: Caller, namespace: str) -> None:
    """Raises: HubError if the caller may not see or run Jobs of ``namespace``."""
    if caller.user is None:
        raise HubError(401, "Invalid username or password.")
    if not caller.owns(namespace) or not (caller.has("write") or caller.scoped({"jobs"})):
        raise HubError(403, "Your token does not have the permission to use Jobs (scope `jobs`).")
