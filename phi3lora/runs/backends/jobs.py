"""Runs on a machine of the Hub, paid by the caller (Jobs): a process here follows them.

    JobsBackend().start(folder, settings, token, begin)

The run goes there and comes back through its repository. What follows a Job here outlives the app;
where it is gone as well, the run says so, and a resume finds the Job again: see `runs.follower`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from phi3lora.config import RunConfig
from phi3lora.errors import AccessError
from phi3lora.runs import life
from phi3lora.runs.backends.local import hand_over
from phi3lora.settings import Settings

NAME = "jobs"


class JobsBackend:
    """A Job of the Hub for each start, and a process here that holds the run's lock."""

    def start(
        self, folder: Path, settings: Settings, token: str | None, begin: Callable[[], None]
    ) -> None:
        """Have a process send the run to the Hub, or find its Job there, and follow it.

        Raises AccessError where nobody is signed in: a Job runs in somebody's account.
        """
        if token is None:
            raise AccessError("Sign in first: a Job runs in your own account of the Hub.")
        hand_over(folder, settings, token, begin, "phi3lora.runs.follower")

    def stop(self, folder: Path, seconds: float) -> None:
        """Who follows it sees the stop file, asks the Job to save, and cancels it in the end."""

    def alive(self, folder: Path) -> bool:
        """Whether its Job is followed."""
        return life.is_held(folder)

    def offers(self, config: RunConfig) -> str:
        """No device of this machine."""
        return NAME
