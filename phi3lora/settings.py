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

WhoMayTrain = Literal["owner", "signed-in", "anyone"]


@dataclass(frozen=True)
class Settings:
    """Where things are kept, and what this installation allows.

    Attributes:
        home: folder of runs, votes and caches.
        space_id: `USER/SPACE` on a Hugging Face Space, else None.
        sign_in: True on a Space whose visitors can sign in with Hugging Face (OAuth).
        zero_gpu: True on a Space whose GPU is lent by the call (ZeroGPU).
        who_may_train: `owner` of the Space, anybody `signed-in`, or `anyone`.
        runs_per_user: how many unfinished runs one user may have.
        stop_seconds: after how long a run that was asked to stop, and does not, is ended by force.
        turn_seconds: how long one answer may hold the model while somebody else waits.
    """

    home: Path
    space_id: str | None = None
    sign_in: bool = False
    zero_gpu: bool = False
    who_may_train: WhoMayTrain = "anyone"
    runs_per_user: int = 5
    stop_seconds: float = 600.0
    turn_seconds: float = 2.0

    @property
    def runs_folder(self) -> Path:
        """Each run is one folder in here."""
        return self.home / "runs"

    @property
    def cache_folder(self) -> Path:
        """What can be computed again: prepared datasets, scores of a base."""
        return self.home / "cache"

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
        return cls(
            home=_home(environ, on_space=space_id is not None),
            space_id=space_id,
            sign_in=environ.get("SYSTEM") == "spaces" and bool(environ.get("OAUTH_CLIENT_ID")),
            zero_gpu=environ.get("SPACES_ZERO_GPU", "").lower() in {"1", "true", "t"},
            who_may_train=_who_may_train(environ, on_space=space_id is not None),
            runs_per_user=int(environ.get("PHI3LORA_RUNS_PER_USER", "5")),
            stop_seconds=float(environ.get("PHI3LORA_STOP_SECONDS", "600")),
            turn_seconds=float(environ.get("PHI3LORA_TURN_SECONDS", "2.0")),
        )


def _home(environ: Mapping[str, str], on_space: bool) -> Path:
    """`PHI3LORA_HOME`, else a Space's volume at /data, else the user's cache folder."""
    if named := environ.get("PHI3LORA_HOME"):
        return Path(named).expanduser().resolve()
    if on_space and os.access("/data", os.W_OK):
        return Path("/data/phi3lora")
    cache = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "phi3lora"


def _who_may_train(environ: Mapping[str, str], on_space: bool) -> WhoMayTrain:
    """The setting; strangers on a Space sign in first unless it says otherwise."""
    allowed: dict[str, WhoMayTrain] = {name: name for name in get_args(WhoMayTrain)}
    default: WhoMayTrain = "signed-in" if on_space else "anyone"
    return allowed.get(environ.get("PHI3LORA_WHO_MAY_TRAIN", ""), default)
