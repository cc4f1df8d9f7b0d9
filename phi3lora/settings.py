"""The environment as one object, read once and passed as an argument.

    settings = Settings.from_environment()
    settings.runs_folder

Nothing else in the package reads `os.environ` for its own behaviour. Tokens are not kept here:
whoever needs one is handed it, and forgets it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

MOUNT = Path("/data")  # where a Space's volume is
WhoMayTrain = Literal["owner", "signed-in", "anyone"]


@dataclass(frozen=True)
class Settings:
    """Where things are kept, and what this installation allows.

    Attributes:
        home: folder of runs, votes and uploads.
        own_disk: folder of caches where `home` is a mounted bucket: what is fetched would fill it.
        home_problem: why runs are not kept where they should be; empty where they are.
        oauth_scopes: what visitors who sign in permit.
        space_id: `USER/SPACE` on a Hugging Face Space, else None.
        sign_in: True on a Space whose visitors can sign in with Hugging Face (OAuth).
        zero_gpu: True on a Space whose GPU is lent by the call (ZeroGPU).
        who_may_train: `owner` of the Space, anybody `signed-in`, or `anyone`.
        runs_per_user: how many unfinished runs one user may have.
        runs_per_day: how many times one user may start runs within 24 hours; None for no limit.
        hours_per_run: how long a run may compute before it is paused; None for no limit.
        stop_seconds: after how long a run that was asked to stop, and does not, is ended by force.
        turn_seconds: how long one answer may hold the model while somebody else waits.
        chat_graph: whether a GPU's chat replays its steps as a CUDA graph.
        poll_seconds: between two polls of a Job that computes elsewhere.
        webhook: where the end of every run is sent; None for nowhere.
        pause_when_done: whether a Space pauses itself once no run is left to compute.
        chat_url: of a server of OpenAI's protocol that answers in Compare; None for this app.
        chat_base, chat_tuned: names of the two models there.
    """

    home: Path
    own_disk: Path | None = None
    home_problem: str = ""
    oauth_scopes: frozenset[str] = frozenset()
    space_id: str | None = None
    sign_in: bool = False
    zero_gpu: bool = False
    who_may_train: WhoMayTrain = "anyone"
    runs_per_user: int = 5
    runs_per_day: int | None = None
    hours_per_run: float | None = None
    stop_seconds: float = 600.0
    turn_seconds: float = 2.0
    chat_graph: bool = False
    poll_seconds: float = 5.0
    webhook: str | None = None
    pause_when_done: bool = False
    chat_url: str | None = None
    chat_base: str = ""
    chat_tuned: str = ""

    @property
    def runs_folder(self) -> Path:
        """Each run is one folder in here."""
        return self.home / "runs"

    @property
    def cache_folder(self) -> Path:
        """What can be computed again: prepared datasets, scores of a base."""
        return (self.own_disk or self.home) / "cache"

    @property
    def may_propose(self) -> bool:
        """Whether pull requests can be opened: a sign-in needs a permission of its own for it."""
        return not self.sign_in or "write-discussions" in self.oauth_scopes

    @property
    def may_run_jobs(self) -> bool:
        """Whether a sign-in can order machines of the Hub, which needs a permission of its own."""
        return not self.sign_in or "jobs" in self.oauth_scopes

    def uploads(self, owner: str) -> Path:
        """Files that this person dropped on the page, each under a name made from its content."""
        return self.home / "uploads" / hashlib.sha256(owner.encode()).hexdigest()[:16]

    @property
    def on_space(self) -> bool:
        """True when visitors are strangers: paths on this machine are not theirs to name."""
        return self.space_id is not None

    @property
    def space_owner(self) -> str | None:
        """The user or organisation that owns the Space."""
        return self.space_id.split("/")[0] if self.space_id else None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read `PHI3LORA_*` and what a Space sets by itself."""
        space_id = environ.get("SPACE_ID") or None
        home = _home(environ, on_space=space_id is not None)
        mounted = space_id is not None and home.is_relative_to(MOUNT)
        return cls(
            home=home,
            own_disk=_user_cache(environ) if mounted else None,
            home_problem=_home_problem(environ) if space_id is not None else "",
            oauth_scopes=frozenset(environ.get("OAUTH_SCOPES", "").split()),
            space_id=space_id,
            sign_in=environ.get("SYSTEM") == "spaces" and bool(environ.get("OAUTH_CLIENT_ID")),
            zero_gpu=environ.get("SPACES_ZERO_GPU", "").lower() in {"1", "true", "t"},
            who_may_train=_who_may_train(environ, on_space=space_id is not None),
            runs_per_user=int(environ.get("PHI3LORA_RUNS_PER_USER", "5")),
            runs_per_day=int(_limit(environ, "PHI3LORA_RUNS_PER_DAY", 20, space_id)) or None,
            hours_per_run=_limit(environ, "PHI3LORA_HOURS_PER_RUN", 24, space_id) or None,
            stop_seconds=float(environ.get("PHI3LORA_STOP_SECONDS", "600")),
            turn_seconds=float(environ.get("PHI3LORA_TURN_SECONDS", "2.0")),
            chat_graph=environ.get("PHI3LORA_CHAT_GRAPH") == "1",
            poll_seconds=float(environ.get("PHI3LORA_POLL_SECONDS", "5.0")),
            webhook=environ.get("PHI3LORA_WEBHOOK") or None,
            pause_when_done=environ.get("PHI3LORA_PAUSE_WHEN_DONE", "") == "1",
            chat_url=environ.get("PHI3LORA_CHAT_URL") or None,
            chat_base=environ.get("PHI3LORA_CHAT_BASE", ""),
            chat_tuned=environ.get("PHI3LORA_CHAT_TUNED", ""),
        )


def _limit(environ: Mapping[str, str], name: str, on_space: float, space_id: str | None) -> float:
    """A limit for strangers: a Space has one unless it is set to 0, one's own machine has none."""
    return float(environ.get(name, on_space if space_id else 0))


def _home(environ: Mapping[str, str], on_space: bool) -> Path:
    """`PHI3LORA_HOME`, else a Space's volume at /data, else the user's cache folder."""
    if named := environ.get("PHI3LORA_HOME"):
        return Path(named).expanduser().resolve()
    if on_space and os.access(MOUNT, os.W_OK):
        return MOUNT / "phi3lora"
    return _user_cache(environ)


def _user_cache(environ: Mapping[str, str]) -> Path:
    cache = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "phi3lora"


def _home_problem(environ: Mapping[str, str]) -> str:
    """What is wrong with a Space's volume, where it has one."""
    if environ.get("PHI3LORA_HOME") or not MOUNT.is_dir() or os.access(MOUNT, os.W_OK):
        return ""
    return (
        f"The volume at {MOUNT} cannot be written, so runs are kept on the Space's own disk and "
        "are lost when it restarts. Mount a bucket that may be written, or back runs up "
        "(hub.backup)."
    )


def _who_may_train(environ: Mapping[str, str], on_space: bool) -> WhoMayTrain:
    """The setting; strangers on a Space sign in first unless it says otherwise."""
    allowed: dict[str, WhoMayTrain] = {name: name for name in get_args(WhoMayTrain)}
    default: WhoMayTrain = "signed-in" if on_space else "anyone"
    return allowed.get(environ.get("PHI3LORA_WHO_MAY_TRAIN", ""), default)
