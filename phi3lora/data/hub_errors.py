"""What the Hub's clients raise, in our words: the one place that knows, for all who ask the Hub.

    with explained(Asked("ann/chat", "dataset", token=token)):
        info = patiently(lambda: api.dataset_info("ann/chat"), tell=print)

Every way to fail has a message of its own that ends with the next step: not found, private,
gated, no such revision, a token that is wrong, expired or of too little scope, a busy Hub, a Hub
that is down, a machine that is offline.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from phi3lora.errors import HubError, Phi3LoraError

Tell = Callable[[str], None]
Kind = Literal["model", "dataset", "space"]
T = TypeVar("T")

LONGEST_WAIT = 300.0  # seconds that a busy Hub is waited for, all in all
_RETRY_5XX = (1.0, 2.0)  # seconds
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


class Unreachable(HubError):
    """The Hub gives no answer, so that what was downloaded before has to do."""


@dataclass(frozen=True)
class Asked:
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
def explained(asked: Asked) -> Iterator[None]:
    """Turn what the Hub's clients raise into HubError; a fault of our own passes as it is."""
    try:
        yield
    except Phi3LoraError:
        raise
    except Exception as error:
        told = explain(error, asked)
        if told is None:
            raise
        raise told from error


def explain(error: Exception, asked: Asked) -> HubError | None:
    """Our error for one of the clients', or None for one that is not of the Hub."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    chain = causes(error)
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            return _explain_answer(cause, asked)
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
        return Unreachable(_without_answer(asked, _OFFLINE, "Go online"))
    silent = (httpx.RequestError, ConnectionError, TimeoutError)
    if any(isinstance(cause, silent) for cause in chain):
        return Unreachable(_without_answer(asked, _SILENT, "Check the connection"))
    if isinstance(error, HFValidationError):
        return HubError(f"{asked.repo!r} is no name of a {asked.kind}; expected USER/NAME.")
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        what = asked.repo or "What came from the Hub"
        return HubError(
            f"{what} could not be stored: {error.strerror or error}. Make room and try again."
        )
    return None


_OFFLINE = "This machine is set to work offline (HF_HUB_OFFLINE)"
_SILENT = "The Hub cannot be reached"


def _without_answer(asked: Asked, why: str, remedy: str) -> str:
    reads = asked.repo and asked.doing == "read"
    missing = f" and {asked.repo} was not downloaded before" if reads else ""
    instead = f", or {asked.instead}" if asked.instead else " and try again"
    return f"{why}{missing}. {remedy}{instead}."


def _explain_answer(error: Any, asked: Asked) -> HubError:
    """What the Hub answered, and what to do about it."""
    from huggingface_hub import errors

    repo, status = asked.repo, error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        signed_in = "" if asked.token else " Sign in first."
        return HubError(
            f"{repo} is gated: ask for access at {asked.page}, then try again.{signed_in}"
        )
    if isinstance(error, errors.DisabledRepoError):
        return HubError(f"{repo} was disabled by the Hub; choose another {asked.kind}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(
            f"{repo} has no revision {asked.revision!r}; see {asked.page}/tree/main for its "
            "branches and tags, or leave the revision empty."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(_not_found(asked))
    if isinstance(error, errors.EntryNotFoundError):
        return HubError(f"{repo} lacks a file: {first_line(error)}.")
    return _explain_status(error, status, asked)


def _not_found(asked: Asked) -> str:
    """A missing repo and one that the caller may not see look the same."""
    if not asked.token:
        return (
            f"There is no public {asked.kind} {asked.repo}: check the name. If it is private, "
            "sign in."
        )
    return (
        f"There is no {asked.kind} {asked.repo} that your account may {asked.doing}: check the "
        "name, or ask its owner. A token of narrow scope needs leave for this repo."
    )


def _explain_status(error: Any, status: int, asked: Asked) -> HubError:
    """What the bare number means."""
    about = asked.repo or "this request"
    if status == 401 and not asked.token:
        return HubError(
            f"The Hub wants to know who you are before you {asked.doing} {about}: sign in first."
        )
    if status == 401:
        return HubError("The Hub refused the token: it is wrong or expired. Sign in again.")
    if status == 403:
        return HubError(
            f"The token may not {asked.doing} {about}: take one with "
            f"{'write' if asked.doing != 'read' else 'read'} rights there, or another name. The "
            f"Hub says: {first_line(error)}."
        )
    if status == 409:
        return HubError(f"{about} exists already; choose another name.")
    if status == 412:
        return HubError(f"Somebody else changed {about} meanwhile; try again.")
    if status == 429:
        return HubError("The Hub limits requests and asks to wait longer; try again later.")
    if status >= 500:
        return Unreachable(
            _without_answer(asked, f"The Hub is down ({status})", "Try again in a few minutes")
            + " status.huggingface.co says more."
        )
    return HubError(f"The Hub answered {status} for {about}: {first_line(error)}.")


def patiently(call: Callable[[], T], tell: Tell | None = None) -> T:
    """Call again when the Hub asks to wait (it says how long), or stumbles.

    Raises what `call` raises once five minutes would not be enough.
    """
    from huggingface_hub.errors import HfHubHTTPError

    waited, stumbles = 0.0, iter(_RETRY_5XX)
    while True:
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code
            wait = _retry_after(error) if status == 429 else None
            wait = next(stumbles, None) if status >= 500 else wait
            if wait is None or waited + wait > LONGEST_WAIT:
                raise
        if tell:
            tell(f"The Hub is busy and asks to wait; trying again in {wait:.0f} s.")
        time.sleep(wait)
        waited += wait


def _retry_after(error: Any) -> float:
    try:
        return max(0.0, float(error.response.headers.get("Retry-After", 10)))
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
