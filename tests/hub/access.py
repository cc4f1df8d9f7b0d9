"""Who may do what, and the words in which the Hub refuses.

Rights are the least that the Hub's documentation promises for each kind of token:

=================== =========================================================
token               may
=================== =========================================================
none                read what is public and not gated
``read``            also read one's own private repos, and gated ones after approval
``write``           also create, write and delete one's own; open pull requests; run Jobs
OAuth               know who signed in; the rest by scope:
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


@dataclass(frozen=True)
class Caller:
    """Who is asking. Without a token both fields are None."""

    user: User | None = None
    token: Token | None = None

    @property
    def name(self) -> str:
        return self.user.name if self.user else "anonymous"

    def owns(self, namespace: str) -> bool:
        return self.user is not None and namespace in {self.user.name, *self.user.orgs}

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
        HubError: 401 for a token that is unknown or expired, even for public pages.
    """
    if not authorization:
        return Caller()
    token = store.tokens.get(authorization.removeprefix("Bearer ").strip())
    if token is None or token.expired:
        raise HubError(401, "Invalid credentials in Authorization header")
    return Caller(store.users[token.user], token)


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
    repo = store.repos.get((kind, repo_id))
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
    if not (may_write(caller, repo) or caller.has("write") or caller.scoped({"write-discussions"})):
        raise HubError(403, "Authorization error.")


def check_create(caller: Caller, kind: str, namespace: str) -> None:
    """Raises: HubError if the caller may not create a repo under ``namespace``."""
    if caller.user is None:
        raise HubError(401, "Invalid username or password.")
    if not caller.owns(namespace) or not (caller.has("write") or caller.scoped(CREATE_SCOPES)):
        words = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
        raise HubError(403, words)


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
