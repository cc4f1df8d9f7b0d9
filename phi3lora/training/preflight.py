"""What is checked before a run is launched, so that it fails before any time is spent.

    look = preflight(config, settings, token)
    look.inspection, look.estimate
    [check.level for check in look.checks]     "green", "amber", "red"

Each check says what was found, and if that is not good, what to do about it. Red means that the
run cannot work; amber that it will, but not as you may think.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from phi3lora.config import RunConfig, needs_held_out
from phi3lora.errors import Phi3LoraError
from phi3lora.settings import Settings

Level = Literal["green", "amber", "red"]
GIB = 2**30
PREVIEW_ROWS = 5_000  # rows that are read and counted for a look
CROWDED = 0.9  # share of the free memory from which a run may fail
OPTIMIZER_BYTES = 12  # of a trained parameter in a checkpoint: weight and two moments, float32


@dataclass(frozen=True)
class Check:
    """One check: its name, how it went, what was found, and the remedy if there is one."""

    name: str
    level: Level
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Look:
    """All there is to see before launch; what could not be found out is None."""

    checks: list[Check] = field(default_factory=list)
    inspection: Any = None  # data.inspection.Inspection
    estimate: Any = None  # training.estimate.Estimate


def preflight(
    config: RunConfig, settings: Settings, token: str | None = None, inspection: Any = None
) -> Look:
    """Look at the data and run every check. Never raises for what a user can mend.

    `inspection` is an earlier one of the same data, which is then not read again.
    """
    checks: list[Check] = []
    hardware = _attempt(checks, "Hardware", lambda: _hardware(config))
    base = _attempt(checks, "Model", lambda: _base(config, hardware, settings, token))
    inspection = inspection or (
        _attempt(checks, "Data", lambda: _inspect(config, settings, token)) if base else None
    )
    estimate = None
    if hardware and base:
        estimate = _attempt(checks, "Memory", lambda: _estimate(config, hardware, inspection))
    checks += [*_data_checks(config, inspection), *_model_checks(config, base, hardware)]
    checks += _memory_checks(hardware, estimate)
    checks.append(_disk_check(config, settings.home, estimate))
    order = ["Data", "Model", "Hardware", "Memory", "Token", "Disk"]
    return Look(sorted(checks, key=lambda check: order.index(check.name)), inspection, estimate)
