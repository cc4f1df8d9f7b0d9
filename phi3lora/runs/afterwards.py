"""What follows the end of a run: a webhook is told of it, and a Space with no more to do pauses.

PHI3LORA_WEBHOOK=https://…       is sent every end as JSON, with words for Slack and Discord
PHI3LORA_PAUSE_WHEN_DONE=1        on a Space whose secret HF_TOKEN may pause it; or hub.pause_space
                                  of a run of the Space's owner

A worker tells of its own end. On a Space it is the app that does, since an address of a webhook is
as good as a password, and a visitor's worker sees none of the Space's secrets.
"""

from __future__ import annotations

import json
import logging
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from phi3lora.errors import Phi3LoraError, RunError
from phi3lora.hub.access import stored_token
from phi3lora.hub.space import pause
from phi3lora.runs.store import ACTIVE, Run, RunStore, open_run
from phi3lora.settings import Settings

logger = logging.getLogger("phi3lora.runs.afterwards")
WAIT = 10.0  # seconds for the webhook's answer


def after_worker(folder: Path, settings: Settings) -> None:
    """On a Space, once a worker has gone: say so, and pause where nothing is left to do."""
    if not settings.on_space:
        return
    try:
        run = open_run(folder)
    except RunError:
        return  # deleted meanwhile
    if run.status not in ACTIVE:
        tell_end(run, settings)
        pause_if_done(run, settings)


def tell_end(run: Run, settings: Settings) -> None:
    """Send a run's end to the webhook, if there is one; that it was not heard is only logged."""
    if not settings.webhook:
        return
    try:
        _post(settings.webhook, ended(run))
    except (OSError, HTTPException) as error:
        logger.warning("The webhook was not told of the end of run %s: %s", run.id, error)
    except ValueError:  # the address is as good as a password, so it is not repeated
        logger.warning("The webhook was not told: PHI3LORA_WEBHOOK is no address of the web")


def _post(url: str, values: dict[str, Any]) -> None:
    """Send JSON. Raises OSError, HTTPException, and ValueError for what is no address."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(url)
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(values).encode(), headers)
    with urllib.request.urlopen(request, timeout=WAIT):
        pass


def ended(run: Run) -> dict[str, Any]:
    """A run's end as it is sent: for programs, and in words where Slack and Discord read them."""
    words = f"{run.title}: {run.status}. {run.message}".strip()
    return {
        "run": run.id,
        "title": run.title,
        "owner": run.owner,
        "status": run.status,
        "message": run.message,
        "verdict": run.report.get("verdict"),
        "text": words,
        "content": words,
    }


def pause_if_done(run: Run, settings: Settings) -> None:
    """After a run, pause a Space on which none is left to compute, where its owner wants that."""
    if settings.space_id is None or not (settings.pause_when_done or _asks(run, settings)):
        return
    if any(other.status in ACTIVE for other in RunStore(settings).all()):
        return
    try:
        pause(settings.space_id, stored_token())
    except Phi3LoraError as error:
        logger.warning("The Space was not paused: %s", error)


def _asks(run: Run, settings: Settings) -> bool:
    """Whether the Space's owner wants it paused after this run; others have no say in that."""
    try:
        return run.owner == settings.space_owner and run.config.hub.pause_space
    except Phi3LoraError:
        return False  # a config that cannot be read asks for nothing
