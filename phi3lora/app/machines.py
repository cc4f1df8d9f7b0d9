"""Machines of the Hub for a run (Jobs): what there is today, what this run would cost on each.

    found = machines.offers(config, caller, speed_on)     this run's time and cost on each
    cheapest(found)                                       of those on which it fits
    machines.preflight(config, job, caller, speed)        checks and estimate for the one chosen

A Job runs in the caller's own account, and is paid by it. The cap is its time limit: what the money
buys. Before that is spent the training saves and pauses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from phi3lora import words
from phi3lora.app.callers import Caller
from phi3lora.app.preflights import Preflights
from phi3lora.checks import Check
from phi3lora.config import POCKET, RunConfig
from phi3lora.errors import HubError, Phi3LoraError
from phi3lora.hub.access import Identity
from phi3lora.hub.jobs import JobRequest, check_may_run, find_flavor, flavors, time_limit
from phi3lora.hub.machine import hourly
from phi3lora.runs.copies import rows_that_leave
from phi3lora.runs.store import with_whole_paths
from phi3lora.settings import Settings
from phi3lora.training.offers import Offer, hardware_of, offer_of
from phi3lora.training.preflight import Elsewhere, Preflight

SIGN_IN = "Sign in first: a Job runs in your own account, which pays for it."


class Machines:
    """What can be had, for everybody who asks."""

    def __init__(self, settings: Settings, preflights: Preflights) -> None:
        self._settings, self._preflights = settings, preflights

    def offers(
        self, config: RunConfig, caller: Caller, speed_on: Callable[[str], float | None]
    ) -> list[Offer]:
        """A run on each machine that may suit it, cheapest by the hour first.

        Args:
            speed_on: tokens per second that were measured on a flavor of that name.

        Raises HubError where the prices cannot be had, or the base cannot be read.
        """
        there = flavors(caller.token)
        suited = [one for one in there if one.card] or there
        if config.model.path == POCKET:
            suited = there
        if not suited:
            raise HubError("The Hub lists no machine for Jobs at the moment; try again later.")
        speeds = {one.name: speed for one in suited if (speed := speed_on(one.name))}
        return self._preflights.offers(config, suited, speeds, caller.token, caller.name)

    def preflight(
        self, config: RunConfig, job: JobRequest, caller: Caller, measured: float | None = None
    ) -> Preflight:
        """What stands between a run and its Job, and what it costs. Nothing is ordered.

        Args:
            measured: tokens per second of an earlier run on such a machine.
        """
        try:
            token = caller.needed_token(SIGN_IN)
            who = caller.needed_identity()
            flavor = find_flavor(job.flavor, token)
        except Phi3LoraError as error:  # the data can be looked at all the same
            found = self._preflights.preflight(config, caller.token, None, caller.name)
            return replace(found, checks=[*found.checks, Check("Job", "red", str(error))])
        place = Elsewhere(hardware_of(flavor), flavor.disk, flavor.cards)
        kept = config.with_values({"hub.backup": True})
        found = self._preflights.preflight(kept, token, measured, caller.name, place)
        checks = [*found.checks, *self._may_leave(config, who, caller.name, token)]
        if found.base and found.estimate:
            offer = offer_of(config, flavor, found.base, found.estimate)
            checks.append(_price(job, offer, who, config.devices))
            found = priced(found, flavor.dollars(3600), offer.seconds)
        return replace(found, checks=checks)

    def here(self, found: Preflight, caller: Caller) -> Preflight:
        """With the price of this machine: a Space's own; on one's own machine there is none."""
        if self._settings.space_id is None or self._settings.zero_gpu:
            return found
        return priced(found, hourly(self._settings.space_id, caller.token))

    def _may_leave(self, config: RunConfig, who: Identity, owner: str, token: str) -> list[Check]:
        """Whether the run has all it needs on another machine, and the sign-in may order one."""
        try:
            rows_that_leave(with_whole_paths(config), owner, self._settings)
            check_may_run(who.name, token)
        except Phi3LoraError as error:
            return [Check("Job", "red", str(error))]
        return []


def priced(found: Preflight, rate: float | None, seconds: float | None = None) -> Preflight:
    """An estimate with what the run costs.

    Args:
        rate: dollars an hour; None where nothing is paid.
        seconds: for which the machine is paid, where that is more than the training.
    """
    if found.estimate is None or rate is None:
        return found
    known = seconds or found.estimate.seconds
    cost = rate * known / 3600 if known else None
    return replace(found, estimate=replace(found.estimate, dollars_an_hour=rate, dollars=cost))


def cheapest(offers: list[Offer]) -> Offer | None:
    """Where the run costs least among what fits; by the hour, where that is all that is known."""
    fitting = [one for one in offers if one.fits] or offers
    return min(fitting, key=_expense, default=None)


def _expense(offer: Offer) -> tuple[bool, float]:
    known = offer.dollars is not None
    return not known, offer.dollars if offer.dollars is not None else offer.flavor.dollars(3600)


def _price(job: JobRequest, offer: Offer, who: Identity, devices: int) -> Check:
    """What it costs, beside the cap; red where the cap buys next to nothing.

    Args:
        devices: that the run uses; those of the machine are all paid for.
    """
    flavor = offer.flavor
    hourly = f"${flavor.dollars(3600):.2f} an hour, paid by {who.name}"
    try:
        limit = time_limit(flavor, job.at_most, who.seconds_left)
    except HubError as error:
        return Check("Cost", "red", str(error))
    cap = f"It is ended after {words.duration(limit)}, which costs ${flavor.dollars(limit):.2f}"
    used = "one" if devices == 1 else f"{devices} of them"
    idle = f" It has {flavor.cards} GPUs; the run uses {used}." if devices < flavor.cards else ""
    if offer.seconds is None or offer.dollars is None:
        return Check("Cost", "amber", f"{hourly}. How long it takes is not known. {cap}.{idle}")
    about = f"About ${offer.dollars:.2f} for {words.duration(offer.seconds)} ({hourly})."
    if offer.seconds > limit:
        remedy = (
            "It then saves and pauses, and can be resumed in another Job. Allow "
            f"${offer.dollars:.2f}, or take a faster machine, to have it end in one."
        )
        return Check("Cost", "amber", f"{about} {cap}.{idle}", remedy)
    return Check("Cost", "amber" if idle else "green", f"{about} {cap} at most.{idle}")
