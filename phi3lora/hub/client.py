"""What every caller of the Hub shares: ids, access at a commit, errors, a cache for each token.

    is_hub_id("ann/chat")                                  by its shape alone
    readable = check_access("dataset", "ann/chat", token)  its commit, if this caller may read it
    info = find_repo("model", "ann/pirate", token)         None where there is none
    folder = cache_for(token, folder, readable.open_to_all)

    with explained(HubRequest("ann/chat", "dataset", token=token)):
        info = with_retries(lambda: api.dataset_info("ann/chat"), tell=print)

Every way to fail has a message of its own that ends with the next step: not found, private,
gated, no such revision, a token that is wrong, expired or of too little scope, a busy Hub, a Hub
that is down, a machine that is offline.
"""

from __future__ import annotations

import errno
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from phi3lora.errors import HubError, Phi3LoraError

Tell = Callable[[str], None]
Kind = Literal["model", "dataset", "space"]
T = TypeVar("T")

LONGEST_WAIT = 330.0  # seconds that a busy Hub is waited for: its window is 300
_RETRY_5XX = (1.0, 2.0)  # seconds
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
_PART = r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"(?P<owner>{_PART}/)?{_PART}", re.ASCII)
# What to use where the Hub does not give what was named.
INSTEAD: dict[str, str] = {
    "dataset": "choose a file or an example",
    "model": "use a folder or `pocket`",
    "space": "",
}


class Unreachable(HubError):
    """The Hub gives no answer, so that what was downloaded before has to do."""


class Absent(HubError):
    """There is no such repository, as far as this caller may know."""


class AlreadyThere(HubError):
    """The name is taken."""


class Forbidden(HubError):
    """The token is good, and may not do this."""


class Changed(HubError):
    """The repository is not at the commit that was meant."""


class PaymentRequired(HubError):
    """The account would have to pay, and has not."""


# Ids


def is_hub_id(name: str, *, owner: bool = True) -> bool:
    """Whether a name has the shape of `USER/NAME`; nothing is read.

    Args:
        owner: False to admit the old datasets that have none, such as `squad`.
    """
    match = _ID.fullmatch(name)
    if match is None or ".." in name or "--" in name or name.endswith(".git"):
        return False
    return match["owner"] is not None or not owner


# Access


@dataclass(frozen=True)
class Readable:
    """What a caller may read: everything that follows is pinned to `commit`.

    Attributes:
        open_to_all: False for what is private or gated, which must not lie where others look.
        files: their names in the repository.
    """

    commit: str
    open_to_all: bool
    files: tuple[str, ...] = field(default=(), compare=False)


def check_access(
    kind: Kind,
    repo: str,
    token: str | None,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    tell: Tell | None = None,
) -> Readable:
    """The commit that this caller may read, files included.

    A shared cache serves one user's private files to the next, so access is asked for first.
    Raises HubError.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token or False)
    with explained(HubRequest(repo, kind, revision, token, endpoint, instead=INSTEAD[kind])):
        info: Any = with_retries(
            lambda: api.repo_info(repo, repo_type=kind, revision=revision), tell
        )
        closed = bool(getattr(info, "gated", False) or getattr(info, "private", False))
        if closed:
            with_retries(lambda: api.auth_check(repo, repo_type=kind), tell)
    if info.sha is None:
        raise HubError(f"{repo} has no commit yet; there is nothing to read.")
    names = tuple(sibling.rfilename for sibling in info.siblings or ())
    return Readable(str(info.sha), not closed, names)


def find_repo(kind: Kind, repo: str, token: str | None) -> Any:
    """What the client tells about a repository; None where the Hub says that there is none.

    Raises HubError where it says no, or nothing.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token or False)
    try:
        with explained(HubRequest(repo, kind, token=token)):
            return with_retries(lambda: api.repo_info(repo, repo_type=kind))
    except Absent:
        return None


def may_write(repo: str, token: str) -> bool:
    """Whether this token may commit to a model repository that it can see. Raises HubError."""
    from huggingface_hub import HfApi

    try:
        with explained(HubRequest(repo, token=token, doing="write to")):
            with_retries(lambda: HfApi(token=token).auth_check(repo, write=True))
    except Forbidden:
        return False
    return True


def cache_for(token: str | None, folder: Path, open_to_all: bool) -> Path:
    """Where what a caller fetched is kept: for all where it is open to all, else for this token.

    The token cannot be read from the folder's name.
    """
    if open_to_all:
        return folder
    return folder / "private" / hashlib.sha256((token or "").encode()).hexdigest()[:16]


# Errors


@dataclass(frozen=True)
class HubRequest:
    """What was asked of the Hub, so that an error can speak of it.

    Attributes:
        repo: `user/name`; empty where no repository was meant.
        kind: what it is.
        revision: branch, tag or commit, where one was named.
        token: the caller's; only whether there is one is told.
        endpoint: the Hub's address; None for the environment's.
        doing: what the token would have to allow: `read`, `write to`, `create`.
        instead: what to use where the Hub gives no answer: `choose a file or an example`.
    """

    repo: str = ""
    kind: Kind = "model"
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    doing: str = "read"
    instead: str = ""

    @property
    def page(self) -> str:
        """The repository's address."""
        from huggingface_hub.constants import ENDPOINT

        return f"{self.endpoint or ENDPOINT}/{_PREFIXES[self.kind]}{self.repo}"


@contextmanager
def explained(request: HubRequest) -> Iterator[None]:
    """Turn what the Hub's clients raise into HubError; a fault of our own passes as it is."""
    try:
        yield
    except Phi3LoraError:
        raise
    except Exception as error:
        told = explain(error, request)
        if told is None:
            raise
        raise told from error


def explain(error: Exception, request: HubRequest) -> HubError | None:
    """Our error for one of the clients', or None for one that is not of the Hub."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    chain = causes(error)
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            return _explain_answer(cause, request)
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
        return Unreachable(_without_answer(request, _OFFLINE, "Go online"))
    if refusal := _refused_by_store(chain):
        return _explain_status(refusal, "", request)
    silent = (httpx.RequestError, ConnectionError, TimeoutError)
    if any(isinstance(cause, silent) for cause in chain):
        return Unreachable(_without_answer(request, _SILENT, "Check the connection"))
    if isinstance(error, HFValidationError):
        return HubError(f"{request.repo!r} is no name of a {request.kind}; expected USER/NAME.")
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        what = request.repo or "What came from the Hub"
        return HubError(
            f"{what} could not be stored: {error.strerror or error}. Make room and try again."
        )
    return None


def _refused_by_store(chain: list[BaseException]) -> int | None:
    """401 or 403 of the token for large files, which hf_xet raises as a ConnectionError."""
    texts = (str(cause) for cause in chain if isinstance(cause, ConnectionError))
    found = next(filter(None, map(_STORE_SAYS.search, texts)), None)
    return int(found[1]) if found else None


_STORE_SAYS = re.compile(r"HTTP status client error \((401|403) ")
_OFFLINE = "This machine is set to work offline (HF_HUB_OFFLINE)"
_SILENT = "The Hub cannot be reached"


def _without_answer(request: HubRequest, why: str, remedy: str) -> str:
    reads = request.repo and request.doing == "read"
    missing = f" and {request.repo} was not downloaded before" if reads else ""
    instead = f", or {request.instead}" if request.instead else " and try again"
    return f"{why}{missing}. {remedy}{instead}."


def _explain_answer(error: Any, request: HubRequest) -> HubError:
    """What the Hub answered, and what to do about it."""
    from huggingface_hub import errors

    repo, status = request.repo, error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        signed_in = "" if request.token else " Sign in first."
        return HubError(
            f"{repo} is gated: ask for access at {request.page}, then try again.{signed_in}"
        )
    if status == 401 and request.token:
        # Whatever the client makes of it: a token that the Hub accepts gets 404 for what is absent.
        return _explain_status(status, "", request)
    if isinstance(error, errors.DisabledRepoError):
        return HubError(f"{repo} was disabled by the Hub; choose another {request.kind}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(
            f"{repo} has no revision {request.revision!r}; see {request.page}/tree/main for its "
            "branches and tags, or leave the revision empty."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (Absent if status == 404 else HubError)(_not_found(request))
    if isinstance(error, errors.EntryNotFoundError):
        return HubError(f"{repo} lacks a file: {first_line(error)}.")
    said = (error.server_message or "").strip().rstrip(".") or first_line(error)
    return _explain_status(status, said, request)


def _not_found(request: HubRequest) -> str:
    """A missing repo and one that the caller may not see look the same."""
    if not request.token:
        return (
            f"There is no public {request.kind} {request.repo}: check the name. If it is private, "
            "sign in."
        )
    return (
        f"There is no {request.kind} {request.repo} that your account may {request.doing}: check "
        "the name, or ask its owner. A token of narrow scope needs permission for this repo."
    )


def _explain_status(status: int, said: str, request: HubRequest) -> HubError:
    """What a status means; `said` is the Hub's own sentence, without its full stop."""
    about = request.repo or "this request"
    if status == 401 and not request.token:
        return HubError(
            f"The Hub wants to know who you are before you {request.doing} {about}: sign in first."
        )
    if status == 401:
        return HubError(_REFUSED.get(request.doing, _REFUSED[""]).format(about=about))
    if status == 402:
        return PaymentRequired(
            f"The Hub asks to be paid before you {request.doing} {about}. It says: {said}."
        )
    if status == 403:
        rights = "write" if request.doing != "read" else "read"
        return Forbidden(
            f"The token may not {request.doing} {about}: take one with {rights} rights there, or "
            f"another name. The Hub says: {said or 'Forbidden'}."
        )
    if status == 409:
        return AlreadyThere(f"{about} exists already; choose another name.")
    if status == 412:
        return Changed(f"Somebody else changed {about} meanwhile; try again.")
    if status == 413:
        return HubError(f"{about}: this is more than the Hub takes. It says: {said}.")
    if status == 429:
        return HubError("The Hub limits requests and asks to wait longer; try again later.")
    if status >= 500:
        return Unreachable(
            _without_answer(request, f"The Hub is down ({status})", "Try again in a few minutes")
            + " status.huggingface.co says more."
        )
    return HubError(f"The Hub refuses {about} ({status}). It says: {said}.")


_REFUSED = {
    "": "The Hub refused the token: it is wrong or expired. Sign in again.",
    "create": (
        "The Hub refused the token: it is wrong or expired, or its sign-in does not permit to "
        "create {about}. Sign in again and allow it."
    ),
    "set up": (
        "A sign-in cannot change the machine of {about}, only a token from "
        "https://huggingface.co/settings/tokens or the Space's settings page can; or the sign-in "
        "has expired, then sign in again."
    ),
}


def with_retries(call: Callable[[], T], tell: Tell | None = None) -> T:
    """Call again when the Hub asks to wait (it says how long), or stumbles.

    Raises what `call` raises once that would take longer than the Hub's window of five minutes.
    """
    from huggingface_hub.errors import HfHubHTTPError

    waited, stumbles = 0.0, iter(_RETRY_5XX)
    while True:
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code
            wait = _seconds_to_wait(error) if status == 429 else None
            wait = next(stumbles, None) if status >= 500 else wait
            if wait is None or waited + wait > LONGEST_WAIT:
                raise
        if tell:
            tell(f"The Hub is busy and asks to wait; trying again in {wait:.0f} s.")
        time.sleep(wait)
        waited += wait


def _seconds_to_wait(error: Any) -> float:
    """Until the rate limit ends, as the answer's headers say."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0  # the window's last second is not over at its start
    try:
        return max(0.0, float(headers.get("Retry-After", 10)))
    except ValueError:  # a date
        return 10.0


def causes(error: BaseException | None) -> list[BaseException]:
    """The error and what led to it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def first_line(error: BaseException) -> str:
    """The error's own words, without their end mark and what follows the first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
