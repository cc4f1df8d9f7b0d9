"""In a Job: fetch the run from its repository, compute it, and leave there what it came to.

    python -m phi3lora.runs.remote USER/REPOSITORY

The same worker as anywhere else, on a run that was brought back. Its backup carries events, the
newest checkpoint and the result; what is printed is the Job's log. Before the Hub ends the Job the
training saves and pauses, so that the next Job goes on from there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TextIO, cast

from phi3lora.errors import AccessError, HubError
from phi3lora.hub.backup import asked_to_stop
from phi3lora.runs.backends.local import device_kind
from phi3lora.runs.copies import restore
from phi3lora.runs.redaction import RedactedStream
from phi3lora.runs.store import JobRef, Run, RunStore, changed
from phi3lora.runs.worker import hold, work
from phi3lora.settings import Settings

KEY, SECONDS, BEGAN = "PHI3LORA_JOB_KEY", "PHI3LORA_JOB_SECONDS", "PHI3LORA_JOB_BEGAN"
ACCEPT = "PHI3LORA_ACCEPT_CHANGES"
EVENTS_POLLS = 12  # polls of whoever follows, after which events are sent: once a minute
STOP_POLLS = 4
SHARE_TO_SAVE, LONGEST_TO_SAVE = 0.1, 300.0  # of a Job's time, for sending what it came to


def main() -> int:
    """Work on the run whose repository is the first argument. Returns the exit status."""
    repo = sys.argv[1]
    token = os.environ.pop("HF_TOKEN", "")
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    sys.stdout = cast(TextIO, RedactedStream(sys.stdout, token))
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr, token))
    if not token:
        raise AccessError("This Job was given no token (the secret HF_TOKEN).")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    settings = limited(Settings.from_environment())
    run = fetch(repo, settings, token)
    hold(run.folder, None)
    _listen(run, repo, token, STOP_POLLS * settings.poll_seconds)
    every = EVENTS_POLLS * settings.poll_seconds
    return work(run, settings, stopped.is_set, token, every)


def limited(settings: Settings, environ: Mapping[str, str] = os.environ) -> Settings:
    """With the time that is left of the Job, less what saving and sending take, as the limit."""
    if SECONDS not in environ:
        return settings
    whole = float(environ[SECONDS])
    gone = time.time() - float(environ.get(BEGAN, time.time()))
    left = whole - gone - min(SHARE_TO_SAVE * whole, LONGEST_TO_SAVE)
    return replace(settings, hours_per_run=max(left, 1.0) / 3600)


def fetch(
    repo: str, settings: Settings, token: str, environ: Mapping[str, str] = os.environ
) -> Run:
    """The run, ready to be worked on; its state names this Job. Raises HubError, RunError."""
    run = restore(RunStore(settings), repo, token)
    return changed(
        run,
        status="queued",
        message="",
        queued=time.time(),
        device=device_kind(run.config),
        accept_changes=bool(environ.get(ACCEPT)),
        job=JobRef(id=environ.get("JOB_ID", ""), key=environ.get(KEY, ""), owner="", repo=repo),
    )


def _listen(run: Run, repo: str, token: str, seconds: float) -> None:
    """Look from time to time whether its owner asked it to stop."""

    def listen() -> None:
        while not run.stop_file.exists():
            try:
                if asked_to_stop(repo, run.state.job.key if run.state.job else "", token):
                    run.stop_file.touch()
            except HubError as error:
                sys.stderr.write(f"The Hub does not say whether to stop: {error}\n")
            time.sleep(seconds)

    threading.Thread(target=listen, daemon=True, name="stop").start()


if __name__ == "__main__":
    sys.exit(main())
