"""Where a run computes: `--on`, `--flavor` and `--at-most`, for the commands that launch one."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from phi3lora.errors import ConfigError, Problem
from phi3lora.hub.jobs import JobRequest


class Place(str, Enum):
    """Where to train."""

    here = "here"
    jobs = "jobs"


On = Annotated[
    Place,
    typer.Option(
        "--on",
        help="Where to train: `here`, on this machine, or `jobs`, on a machine of the Hub that is "
        "paid by the account that is signed in.",
    ),
]
FlavorName = Annotated[
    str | None,
    typer.Option(
        "--flavor",
        metavar="NAME",
        help="The machine of the Hub to train on, such as a10g-small; `phi3lora estimate CONFIG "
        "--on jobs` lists them with what the run would cost on each.",
    ),
]
AtMost = Annotated[
    float | None,
    typer.Option(
        "--at-most",
        metavar="DOLLARS",
        help="The most that the machine of the Hub may cost. The run saves and pauses before that "
        "is spent, and can be resumed.",
    ),
]


def job_request(on: Place, flavor: str | None, at_most: float | None) -> JobRequest | None:
    """The machine that a run is for; None for this one. Raises ConfigError for half a request."""
    if on is Place.here:
        named = [("--flavor", flavor), ("--at-most", at_most)]
        problems = [Problem(name, "needs --on jobs.") for name, value in named if value is not None]
        if problems:
            raise ConfigError(problems)
        return None
    return whole_request(flavor, at_most)


def whole_request(flavor: str | None, at_most: float | None) -> JobRequest:
    """Machine and cap. Raises ConfigError where either is missing, or the cap is no amount."""
    problems = []
    if flavor is None:
        problems.append(
            Problem(
                "--flavor",
                "name a machine; `phi3lora estimate CONFIG --on jobs` lists them with prices.",
            )
        )
    if at_most is None:
        problems.append(Problem("--at-most", "name the most that it may cost, in dollars."))
    elif not 0 < at_most < float("inf"):
        problems.append(Problem("--at-most", f"expected dollars above 0, got {at_most}."))
    if problems or flavor is None or at_most is None:
        raise ConfigError(problems)
    return JobRequest(flavor, at_most)
