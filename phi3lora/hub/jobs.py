"""Jobs: machines of the Hub that are paid by the time they run, in the caller's own account.

    flavors(token)                                 what there is, with today's prices
    job = submit(order, token)                     HubError in the Hub's words where it says no
    job_state(job.id, owner, token).stage; cancel(job.id, owner, token)
    for line in log_of(job.id, owner, token): ...  until the Job is over

A Job gets the caller's token as a secret of its own; it stands in no command line and no log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from phi3lora import words
from phi3lora.errors import HubError
from phi3lora.hub.client import Forbidden, HubRequest, Unreachable, explained, with_retries

# Debian with Python and uv, which installs what the command names.
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
LABEL = "phi3lora-run"  # by which a run's Job is found again
TERMINAL = frozenset({"COMPLETED", "CANCELED", "ERROR", "DELETED"})
WAITING = frozenset({"SCHEDULING", "RUNNING"})
SECONDS = {"second": 1, "minute": 60, "hour": 3600}
PRICES_SECONDS = 600.0  # for which prices are believed without asking again
LEAST = 300.0  # seconds of a Job: less would be spent before it trains
LONGEST = 7 * 86_400.0
SPARE_SECONDS = 900.0  # that a token should last beyond its Job
GB = 10**9
_SIZE = re.compile(r"([\d.]+)\s*(TB|GB|MB)", re.IGNORECASE)
_UNITS = {"TB": 1000 * GB, "GB": GB, "MB": GB // 1000}


@dataclass(frozen=True)
class Flavor:
    """A kind of machine, as the Hub lists it today.

    Attributes:
        name: by which it is asked for, such as `a10g-small`.
        title: as the Hub calls it for people.
        card: the model of its GPU; empty for a machine without one.
        cards: how many GPUs it has.
        memory: bytes of one GPU, or of the machine where it has none.
        disk: bytes; 0 where the Hub does not say.
        dollars_per_second: its price.
    """

    name: str
    title: str
    card: str
    cards: int
    memory: int
    disk: int
    dollars_per_second: float

    def dollars(self, seconds: float) -> float:
        """What so many seconds cost."""
        return seconds * self.dollars_per_second


@dataclass(frozen=True)
class JobRequest:
    """Where somebody wants a run to compute, and what they are willing to pay.

    Attributes:
        flavor: name of the machine.
        at_most: dollars that one Job may cost.
    """

    flavor: str
    at_most: float


@dataclass(frozen=True)
class Order:
    """What is asked of the Hub.

    Attributes:
        run: the run's id; at most one Job of a run is at work.
        owner: the account that pays.
        seconds: after which the Hub ends the Job.
        secrets: name → value, seen by the Job alone.
    """

    run: str
    owner: str
    flavor: str
    command: tuple[str, ...]
    seconds: int
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class JobState:
    """How a Job stands.

    Attributes:
        stage: `SCHEDULING`, `RUNNING`, `COMPLETED`, `CANCELED`, `ERROR` or `DELETED`.
        message: the Hub's own words, if it says any.
        seconds: that it has been running.
        environment: what it was started with, secrets apart.
    """

    id: str
    url: str
    stage: str
    message: str = ""
    seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it will not go on."""
        return self.stage in TERMINAL


def flavors(token: str | None) -> list[Flavor]:
    """Machines that can be had, cheapest first, with the Hub's prices of now. Raises HubError."""
    known = _PRICES.get("")
    if known and time.monotonic() < known[0]:
        return known[1]
    from huggingface_hub import HfApi

    with explained(HubRequest("the prices of Jobs", token=token)):
        rows = with_retries(lambda: HfApi(token=token or False).list_jobs_hardware())
    found = sorted(filter(None, map(_flavor, rows)), key=lambda one: one.dollars_per_second)
    _PRICES[""] = (time.monotonic() + PRICES_SECONDS, found)
    return found


_PRICES: dict[str, tuple[float, list[Flavor]]] = {}


def price(row: Any) -> float | None:
    """Dollars a second of a machine in the Hub's lists; None where its price cannot be read."""
    unit = SECONDS.get(row.unit_label)
    return None if unit is None else row.unit_cost_usd / unit


def _flavor(row: Any) -> Flavor | None:
    """One of them; None for what no PyTorch of ours runs on, or has no price that can be read."""
    card, dollars = row.accelerator, price(row)
    if dollars is None or (card and (card.type != "gpu" or card.manufacturer.lower() != "nvidia")):
        return None
    return Flavor(
        name=row.name,
        title=row.pretty_name,
        card=card.model if card else "",
        cards=int(card.quantity) if card else 0,
        memory=_bytes(card.vram if card else row.ram) // (int(card.quantity) if card else 1),
        disk=_bytes(row.ephemeral_storage),
        dollars_per_second=dollars,
    )


def _bytes(text: str) -> int:
    found = _SIZE.search(text)
    return int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0


def find_flavor(name: str, token: str | None) -> Flavor:
    """The one of that name. Raises HubError naming those there are."""
    known = flavors(token)
    found = next((one for one in known if one.name == name), None)
    if found is None:
        names = ", ".join(one.name for one in known)
        raise HubError(f"There is no machine {name!r} for Jobs; expected one of {names}.")
    return found


def time_limit(flavor: Flavor, at_most: float, seconds_left: float | None = None) -> int:
    """Seconds after which a Job is ended: what the money buys, within the token's life.

    Args:
        seconds_left: of the token, which the Job is given once and cannot renew.

    Raises HubError where hardly any time is left.
    """
    bought = at_most / flavor.dollars_per_second if flavor.dollars_per_second else LONGEST
    limits = [bought, LONGEST]
    if seconds_left is not None:
        limits.append(seconds_left - SPARE_SECONDS)
    if (limit := min(limits)) >= LEAST:
        return int(limit)
    if bought >= LEAST:
        raise HubError("The sign-in ends within minutes, and a Job cannot renew it: sign in again.")
    raise HubError(
        f"${at_most:.2f} buy {words.duration(bought)} on {flavor.name}, and a Job needs "
        f"{words.duration(LEAST)} to begin: allow ${flavor.dollars(LEAST):.2f} at least, or take "
        "a cheaper machine."
    )


def check_may_run(owner: str, token: str) -> None:
    """Whether this token may run Jobs, by asking for their list. Raises HubError."""
    from huggingface_hub import HfApi

    with _asked("list Jobs", token):
        with_retries(
            lambda: list(islice(HfApi(token=token).list_jobs(namespace=owner, status="RUNNING"), 1))
        )


def submit(order: Order, token: str) -> JobState:
    """Start a Job, or find the one of this run that is at work. Raises HubError.

    An order whose answer is lost may have been carried out: it is looked for before it is given
    again, since each Job is paid for.
    """
    if job := working(order.run, order.owner, token):
        return job
    for wait in (1.0, 5.0, None):
        try:
            return _submit(order, token)
        except Unreachable:
            time.sleep(wait or 0.0)
            if job := working(order.run, order.owner, token):
                return job
            if wait is None:
                raise
    raise AssertionError("unreachable")


def _submit(order: Order, token: str) -> JobState:
    from huggingface_hub import HfApi

    with _asked(f"run a Job on {order.flavor}", token):
        job = HfApi(token=token).run_job(
            image=IMAGE,
            command=list(order.command),
            env=dict(order.environment),
            secrets=dict(order.secrets),
            flavor=order.flavor,
            timeout=order.seconds,
            labels={LABEL: order.run, "name": f"phi3lora-{order.run}"},
            namespace=order.owner,
        )
    return _state(job)


def working(run: str, owner: str, token: str) -> JobState | None:
    """The Job of a run that waits or computes; None where there is none. Raises HubError."""
    from huggingface_hub import HfApi

    with _asked("list Jobs", token):
        found = with_retries(
            lambda: list(
                HfApi(token=token).list_jobs(
                    namespace=owner, labels={LABEL: run}, status=sorted(WAITING)
                )
            )
        )
    return _state(found[0]) if found else None


def job_state(job: str, owner: str, token: str) -> JobState | None:
    """How a Job stands; None where the Hub does not know it any more. Raises HubError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import JobNotFoundError

    try:
        with _asked("look at a Job", token):
            return _state(
                with_retries(lambda: HfApi(token=token).inspect_job(job_id=job, namespace=owner))
            )
    except HubError as error:
        if isinstance(error.__cause__, JobNotFoundError):
            return None
        raise


def cancel(job: str, owner: str, token: str) -> None:
    """End a Job; one that is over stays as it is. Raises HubError."""
    from huggingface_hub import HfApi

    with _asked("cancel a Job", token):
        with_retries(lambda: HfApi(token=token).cancel_job(job_id=job, namespace=owner))


def log_of(job: str, owner: str, token: str) -> Iterator[str]:
    """The lines of a Job's log from its start, as they come, until it is over. Raises HubError."""
    from huggingface_hub import HfApi

    with _asked("read the log of a Job", token):
        yield from HfApi(token=token).fetch_job_logs(job_id=job, namespace=owner, follow=True)


@contextmanager
def _asked(what: str, token: str) -> Iterator[None]:
    """Errors in words, with the permission that Jobs need where that is what is missing."""
    doing, _, about = what.partition(" ")
    try:
        with explained(HubRequest(about, token=token, doing=doing)):
            yield
    except Forbidden as refused:
        raise Forbidden(f"{NO_SCOPE} {_said(refused)}".rstrip()) from refused


NO_SCOPE = (
    "This sign-in may not use Jobs: sign in again and allow it (`jobs`), or take a token with "
    "write rights, or a fine-grained one with the permission for Jobs."
)


def _said(error: HubError) -> str:
    """The Hub's own sentence in one of our errors."""
    _, mark, said = str(error).partition("The Hub says: ")
    return f"The Hub says: {said}" if mark else ""


def _state(job: Any) -> JobState:
    durations = job.durations
    return JobState(
        id=job.id,
        url=job.url,
        stage=str(getattr(job.status.stage, "value", job.status.stage)),
        message=job.status.message or "",
        seconds=float((durations and durations.running_secs) or 0.0),
        environment=job.environment or {},
    )
