"""What the Hub has to say before a run starts: the token, and the name of the run's repository.

for finding in check_hub(config, token, seconds=5400):
    finding.level, finding.found, finding.remedy
"""

from __future__ import annotations

from collections.abc import Iterator

from phi3lora.checks import Check, Level
from phi3lora.config import RunConfig
from phi3lora.errors import HubError
from phi3lora.hub.access import Identity, cached_identity, stored_token
from phi3lora.hub.client import Unreachable, may_write
from phi3lora.settings import Settings

SPARE_SECONDS = 900.0  # that a sign-in should last beyond the estimated end


def check_hub(config: RunConfig, token: str | None, seconds: float | None = None) -> list[Check]:
    """What stands between the run and the Hub, a check each. Never raises.

    Whether base and dataset can be read is found out where they are read.

    Args:
        token: the caller's own; None for the anonymous.
        seconds: the run will take, where that is known.
    """
    if token is None:
        return [_without_token(config)]
    try:
        who = cached_identity(token)
    except Unreachable as error:
        return [Check("Sign-in", "amber", f"It could not be checked. {error}")]
    except HubError as error:
        return [Check("Sign-in", "red", str(error))]
    return [_token(who, config, seconds), *_backup(who, config, token)]


def _without_token(config: RunConfig) -> Check:
    if config.hub.backup:
        return Check(
            "Sign-in",
            "red",
            "The run is to be backed up, and nobody is signed in.",
            "Sign in, or switch hub.backup off.",
        )
    return Check("Sign-in", "green", "None needed to train; publishing needs a sign-in.")


def _token(who: Identity, config: RunConfig, seconds: float | None) -> Check:
    """Whether it may write, and lasts."""
    needed: Level = "red" if config.hub.backup else "amber"
    if who.can_write is False:
        return Check(
            "Sign-in",
            needed,
            f"{who.name}'s token may only read.",
            "Take one with write rights to publish or back up; training alone works.",
        )
    left = who.seconds_left
    if left is not None and left < (seconds or 0) + SPARE_SECONDS:
        ends = _hours(max(left, 0))
        takes = f", and the run takes about {_hours(seconds)}" if seconds else ""
        return Check(
            "Sign-in",
            "amber",
            f"{who.name}'s sign-in ends in {ends}{takes}.",
            "Sign in again before it starts, or before it is published.",
        )
    lasts = "" if left is None else f", good for {_hours(left)}"
    return Check("Sign-in", "green", f"{who.name}{lasts}.")


def _backup(who: Identity, config: RunConfig, token: str) -> Iterator[Check]:
    """Whether the run's repository is free, or one's own."""
    if not config.hub.backup:
        return
    from phi3lora.hub.backup import check_run_repo
    from phi3lora.hub.upload import full_name

    if config.hub.repo is None:
        yield Check("Backup", "green", f"To a new private repository of {who.name}.")
        return
    try:
        exists = check_run_repo(config.hub.repo, who, token)
    except HubError as error:
        yield Check("Backup", "red", str(error))
        return
    if exists and not may_write(full_name(config.hub.repo, who), token):
        yield Check(
            "Backup",
            "amber",
            f"{config.hub.repo} was made by another app and cannot be written with this sign-in: "
            "the run's copy goes on in a new repository.",
        )
        return
    state = "which is a run's already" if exists else "whose name is free"
    yield Check("Backup", "green", f"To {config.hub.repo}, {state}.")


def check_pause(config: RunConfig, name: str, settings: Settings) -> list[Check]:
    """Whether the Space will pause after a run of `name` that asks for it; nothing if none asks."""
    if not config.hub.pause_space:
        return []
    if settings.space_id is None:
        found = Check("Space", "amber", "This is no Space: nothing is paused.")
    elif name != settings.space_owner:
        found = Check(
            "Space",
            "amber",
            f"Only runs of {settings.space_owner} pause {settings.space_id}.",
            "Switch hub.pause_space off, or duplicate the Space to your account.",
        )
    elif stored_token() is None:
        found = Check(
            "Space",
            "amber",
            f"{settings.space_id} has no secret `HF_TOKEN`, so nothing can pause it.",
            "Add one that may write to the Space, in its settings.",
        )
    else:
        found = Check("Space", "green", "Pauses when the run has ended and no other one computes.")
    return [found]


def _hours(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
