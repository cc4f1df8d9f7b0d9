"""The machine that a Space runs on, and what an hour of it costs: its owner pays while it is awake.

hourly("ann/studio", token)      0.4; None for what costs nothing, or where the Hub does not say
"""

from __future__ import annotations

import time

from phi3lora.errors import HubError
from phi3lora.hub.client import HubRequest, explained
from phi3lora.hub.jobs import PRICES_SECONDS, price

_KNOWN: dict[str, tuple[float, float | None]] = {}


def hourly(space: str, token: str | None) -> float | None:
    """Dollars an hour of the Space's machine, asked for every ten minutes at most."""
    known = _KNOWN.get(space)
    if known and time.monotonic() < known[0]:
        return known[1]
    try:
        found = _asked(space, token)
    except HubError:  # a private Space, or the Hub is away: a run can be launched all the same
        found = None
    _KNOWN[space] = (time.monotonic() + PRICES_SECONDS, found)
    return found


def _asked(space: str, token: str | None) -> float | None:
    from huggingface_hub import HfApi

    api = HfApi(token=token or False)
    with explained(HubRequest(space, "space", token=token)):
        name = api.get_space_runtime(space).hardware
        rows = api.list_spaces_hardware()
    row = next((row for row in rows if row.name == name), None)
    dollars = price(row) if row else None
    return 3600 * dollars if dollars else None
