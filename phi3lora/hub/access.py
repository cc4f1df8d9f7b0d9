"""Who somebody is on the Hub, and what there is to pick.

    who = identity(token)                            who.name, who.can_write, who.expires
    found = search_datasets("ultra", token)          those of that name
    dataset = dataset_info("ann/chat", token)        its commit, licence, size, likes

Every call takes the caller's own token; without one the caller is anonymous, whatever token the
machine has stored. Errors are HubErrors that end with the next step.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from phi3lora.config import POCKET
from phi3lora.hub.client import INSTEAD, HubRequest, Kind, Tell, explained, with_retries
from phi3lora.models.family import FAMILY
from phi3lora.models.phi3 import PHI3

OAUTH_TYPES = {"oauth", "app_token_as_user"}  # now, and before 2026
CREATE_SCOPES = frozenset({"contribute-repos", "manage-repos"})
IDENTITY_SECONDS = 60.0  # for which an identity is believed without asking again
SUGGESTED_MODELS = tuple(member.path for member in FAMILY if member.path != POCKET)
# Chat data whose formats are recognised.
SUGGESTED_DATASETS = (
    "HuggingFaceH4/no_robots",
    "HuggingFaceH4/ultrachat_200k",
    "databricks/databricks-dolly-15k",
    "iamtarun/python_code_instructions_18k_alpaca",
    "tatsu-lab/alpaca",
    "mlabonne/FineTome-100k",
)


@dataclass(frozen=True)
class Identity:
    """Who a token belongs to.

    Attributes:
        name: the account, which owns runs and repositories.
        orgs: organisations in whose name this person may write.
        role: `read`, `write`, `fineGrained` or `oauth`.
        scopes: what the token permits, where that is known.
        can_write: whether it may create repositories; None where only trying tells.
        expires: in seconds since 1970; None where it does not, or the Hub does not say.
        pro: has PRO, or whatever gives its rights.
        pays: has a payment method, so that hardware can be billed to it.
    """

    name: str
    orgs: tuple[str, ...] = ()
    role: str = ""
    scopes: frozenset[str] = frozenset()
    can_write: bool | None = None
    expires: float | None = None
    pro: bool = False
    pays: bool = False

    @property
    def seconds_left(self) -> float | None:
        """How long the token is good for; None for ever."""
        return None if self.expires is None else self.expires - time.time()

    def owns(self, namespace: str) -> bool:
        """Whether repositories of that name are this person's."""
        return namespace in {self.name, *self.orgs}


@dataclass(frozen=True)
class Found:
    """A dataset or a model on the Hub, as far as the Hub tells.

    Attributes:
        size: bytes of its files.
        rows: as the card says, such as `1,000` or `10K<n<100K`.
        gated: asks for one's consent, or the owner's, first.
        commit: of the head of the main branch, or of the revision that was asked for.
    """

    id: str
    kind: Kind = "dataset"
    downloads: int | None = None
    likes: int | None = None
    size: int | None = None
    rows: str = ""
    licence: str = ""
    gated: bool = False
    private: bool = False
    commit: str | None = None
    updated: float | None = None
    tags: tuple[str, ...] = ()


# Who


def stored_token() -> str | None:
    """The token that `hf auth login` left on this machine, or HF_TOKEN. Not for a Space."""
    from huggingface_hub import get_token

    return get_token()


def identity(
    token: str,
    *,
    scopes: Iterable[str] = (),
    expires: float | None = None,
    tell: Tell | None = None,
) -> Identity:
    """Who the token belongs to, as the Hub says.

    Args:
        scopes: of an OAuth token, which the Hub does not repeat.
        expires: likewise, in seconds since 1970.

    Raises HubError for a token that is wrong or expired, or where the Hub gives no answer.
    """
    from huggingface_hub import HfApi

    with explained(HubRequest(token=token)):
        said = with_retries(lambda: HfApi(token=token).whoami(), tell)
    auth = said.get("auth") or {}
    role = "oauth" if auth.get("type") in OAUTH_TYPES else ""
    role = role or str((auth.get("accessToken") or {}).get("role", ""))
    granted = frozenset(scopes) | _granted(auth)
    return Identity(
        name=said["name"],
        orgs=tuple(org["name"] for org in said.get("orgs") or () if _writes(org)),
        role=role,
        scopes=granted,
        can_write=_can_write(role, granted),
        expires=_moment(auth.get("expiresAt")) or expires,
        pro=bool(said.get("isPro")),
        pays=bool(said.get("canPay")),
    )


def cached_identity(token: str) -> Identity:
    """Like `identity`, but the Hub is asked once a minute at most: it counts such requests.

    Tokens are not kept, only their hashes, and those in memory.
    """
    key = hashlib.sha256(token.encode()).hexdigest()
    with _LOCK:
        until, who = _IDENTITIES.get(key, (0.0, None))
    if who is not None and time.monotonic() < until and (who.seconds_left or 1) > 0:
        return who
    who = identity(token)
    with _LOCK:
        if len(_IDENTITIES) > 1000:
            _IDENTITIES.clear()
        _IDENTITIES[key] = (time.monotonic() + IDENTITY_SECONDS, who)
    return who


_LOCK = threading.Lock()
_IDENTITIES: dict[str, tuple[float, Identity]] = {}


def _writes(org: dict[str, Any]) -> bool:
    return org.get("roleInOrg") in (None, "admin", "write", "contributor")


def _granted(auth: dict[str, Any]) -> frozenset[str]:
    """Permissions of a fine-grained token, in the Hub's words (`repo.write`, …)."""
    fine = (auth.get("accessToken") or {}).get("fineGrained") or {}
    scoped = [permission for item in fine.get("scoped") or () for permission in item["permissions"]]
    return frozenset([*scoped, *(fine.get("global") or ())])


def _can_write(role: str, scopes: frozenset[str]) -> bool | None:
    if role in ("read", "write"):
        return role == "write"
    if not scopes:
        return None
    return bool(scopes & CREATE_SCOPES) if role == "oauth" else "repo.write" in scopes


def _moment(text: str | None) -> float | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None


# What there is


def search_datasets(query: str, token: str | None = None, limit: int = 10) -> list[Found]:
    """Datasets whose name holds the words, most downloaded first.

    An empty query gives the caller's own, then suggestions. Raises HubError.
    """
    return _search("dataset", query.strip(), token, limit)


def search_models(query: str, token: str | None = None, limit: int = 10) -> list[Found]:
    """Models of type phi3 whose name holds the words; like `search_datasets`."""
    return _search("model", query.strip(), token, limit)


def _search(kind: Kind, query: str, token: str | None, limit: int) -> list[Found]:
    request = HubRequest(token=token, kind=kind, doing="search", instead=INSTEAD[kind])
    with explained(request):  # somebody is typing: nothing is waited for
        rows = _rows(kind, query, token, limit)
    found = [_found(row, kind) for row in rows]
    if query:
        return found
    own = {one.id for one in found}
    ids = SUGGESTED_MODELS if kind == "model" else SUGGESTED_DATASETS
    return [*found, *(Found(name, kind) for name in ids if name not in own)][:limit]


def _rows(kind: Kind, query: str, token: str | None, limit: int) -> list[Any]:
    """What the Hub lists: what matches the query, or the caller's own."""
    from huggingface_hub import HfApi

    api = HfApi(token=token or False)
    options: dict[str, Any] = {
        "sort": "downloads",
        "limit": limit,
        "expand": [*_EXPAND, *_OWN[kind]],
    }
    if query:
        options["search"] = query
    elif token:
        options["author"] = cached_identity(token).name
    else:
        return []
    if kind == "model":
        options["filter"] = PHI3.model_type
    rows: Iterable[Any]
    rows = api.list_models(**options) if kind == "model" else api.list_datasets(**options)
    return list(islice(rows, limit))


_EXPAND = ["downloads", "likes", "gated", "private", "tags", "sha", "lastModified", "usedStorage"]
_OWN: dict[str, list[str]] = {"dataset": ["cardData"], "model": []}


def dataset_info(repo: str, token: str | None = None, revision: str | None = None) -> Found:
    """What the Hub tells about one dataset. Raises HubError."""
    return _info("dataset", repo, token, revision)


def model_info(repo: str, token: str | None = None, revision: str | None = None) -> Found:
    """What the Hub tells about one model. Raises HubError."""
    return _info("model", repo, token, revision)


def _info(kind: Kind, repo: str, token: str | None, revision: str | None) -> Found:
    from huggingface_hub import HfApi

    api = HfApi(token=token or False)
    ask: Any = api.model_info if kind == "model" else api.dataset_info
    request = HubRequest(repo, kind, revision, token, instead=INSTEAD[kind])
    with explained(request):
        row = with_retries(lambda: ask(repo, revision=revision, expand=[*_EXPAND, "cardData"]))
    return _found(row, kind)


def _found(row: Any, kind: Kind) -> Found:
    tags = tuple(row.tags or ())
    updated = getattr(row, "last_modified", None)
    return Found(
        id=row.id,
        kind=kind,
        downloads=row.downloads,
        likes=row.likes,
        size=getattr(row, "used_storage", None),
        rows=_rows_of(getattr(row, "card_data", None), tags),
        licence=next((tag[8:] for tag in tags if tag.startswith("license:")), ""),
        gated=bool(row.gated),
        private=bool(row.private),
        commit=row.sha,
        updated=updated.timestamp() if updated else None,
        tags=tags,
    )


def _rows_of(card: Any, tags: tuple[str, ...]) -> str:
    """How many rows a dataset has, from its card's figures, else from its size class."""
    info = card.get("dataset_info") if card else None
    configurations = info if isinstance(info, list) else [info] if info else []
    counts = [
        split["num_examples"]
        for configuration in configurations
        for split in (configuration.get("splits") or ())
        if isinstance(split, dict) and isinstance(split.get("num_examples"), int)
    ]
    if counts:
        return f"{sum(counts):,}"
    return next((tag[16:] for tag in tags if tag.startswith("size_categories:")), "")
