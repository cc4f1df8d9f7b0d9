"""What a run would take on each kind of machine that the Hub rents out (Jobs).

    for offer in offers(config, settings, token, inspection, flavors, speeds):
        offer.flavor.name, offer.fits, offer.seconds, offer.dollars

Figures to choose by: from data sheets, until a run was measured on such a machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.errors import HubError
from phi3lora.hub.jobs import Flavor
from phi3lora.models.base import BaseInfo
from phi3lora.models.hardware import AMPERE, Hardware
from phi3lora.settings import Settings
from phi3lora.training.preflight import (
    CROWDED,
    Elsewhere,
    blocking,
    preflight,
)
from phi3lora.training.speed import card_named, proof_seconds, tokens_per_second

# Until the first step, assumed and not measured: Python and PyTorch are installed, the base comes.
INSTALLING = 180.0  # seconds
DOWNLOADED_A_SECOND = 150e6  # bytes
USABLE = 0.93  # of a card's memory: the driver and CUDA's context hold the rest
LEAST_CAP = 0.5  # dollars


@dataclass(frozen=True)
class Offer:
    """A run on one kind of machine.

    Attributes:
        fits: whether its memory is enough.
        seconds: that the machine is paid for: installing, download, training, proof. None where
            the machine's speed, or the number of rows, is unknown.
    """

    flavor: Flavor
    fits: bool
    seconds: float | None

    @property
    def dollars(self) -> float | None:
        """What the run costs there, about."""
        return None if self.seconds is None else self.flavor.dollars(self.seconds)

    @property
    def cap(self) -> float:
        """Dollars to allow, if nobody says: twice what it is estimated to cost, in half dollars."""
        return max(math.ceil(4 * (self.dollars or LEAST_CAP / 2)) / 2, LEAST_CAP)


def offers(
    config: RunConfig,
    settings: Settings,
    token: str | None,
    inspection: Any,
    flavors: list[Flavor],
    speeds: Mapping[str, float],
) -> tuple[Any, list[Offer]]:
    """What a run would take on each machine, after the inspection of its rows.

    Args:
        inspection: an earlier one of the same data, which is then not read again.
        speeds: tokens per second that were measured on a flavor, by its name.

    Raises HubError where the base cannot be found out about.
    """
    from phi3lora.training.estimate import estimate_for

    place = Elsewhere(hardware_of(flavors[-1]))
    found = preflight(config, settings, token, inspection, elsewhere=place)
    if found.base is None:
        raise HubError("\n".join(blocking(found)))

    def offer(flavor: Flavor) -> Offer:
        hardware = hardware_of(flavor)
        each = tokens_per_second(config, found.base, hardware)
        speed = speeds.get(flavor.name) or (each and each * config.devices)
        need = estimate_for(config, found.base, hardware, found.inspection, speed)
        return offer_of(config, flavor, found.base, need)

    return found.inspection, [offer(flavor) for flavor in flavors]


def offer_of(config: RunConfig, flavor: Flavor, base: BaseInfo, estimate: Any) -> Offer:
    """What a run with such an estimate takes on such a machine."""
    fits = estimate.memory_bytes <= CROWDED * hardware_of(flavor).memory_free
    fits = fits and config.devices <= max(flavor.cards, 1)
    if estimate.seconds is None:
        return Offer(flavor, fits, None)
    return Offer(flavor, fits, starting_seconds(base) + estimate.seconds + proof_seconds(config))


def starting_seconds(base: BaseInfo) -> float:
    """Until the first step, on a bare machine."""
    return INSTALLING + base.stored / DOWNLOADED_A_SECOND


def hardware_of(flavor: Flavor) -> Hardware:
    """One card of a machine, or its processor, as checks and estimates take it."""
    card = card_named(flavor.card)
    capability = card.capability if card else None
    return Hardware(
        device="cuda" if flavor.card else "cpu",
        name=flavor.card or flavor.title,
        memory_total=flavor.memory,
        memory_free=int(USABLE * flavor.memory),
        bfloat16=capability is None or capability >= AMPERE,
        cores=1,
        capability=capability,
    )
