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

from phi3lora import words
from phi3lora.config import RunConfig
from phi3lora.data.plan import check_held_out
from phi3lora.errors import Phi3LoraError
from phi3lora.hub.preflight import check_hub
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
class Preflight:
    """All there is to see before launch; what could not be found out is None."""

    checks: list[Check] = field(default_factory=list)
    inspection: Any = None  # data.inspection.Inspection
    estimate: Any = None  # training.estimate.Estimate


def preflight(
    config: RunConfig,
    settings: Settings,
    token: str | None = None,
    inspection: Any = None,
    tokens_per_second: float | None = None,
) -> Preflight:
    """Look at the data and run every check. Never raises for what a user can mend.

    Args:
        inspection: an earlier one of the same data, which is then not read again.
        tokens_per_second: of an earlier run like this one, for the time.
    """
    checks: list[Check] = []
    hardware = _attempt(checks, "Hardware", lambda: _hardware(config))
    checks += _hidden_gpu(config)
    base = _attempt(checks, "Model", lambda: _base(config, hardware, settings, token))
    inspection = inspection or (
        _attempt(checks, "Data", lambda: _inspect(config, settings, token)) if base else None
    )
    _attempt(checks, "Data", lambda: check_held_out(config))
    estimate = None
    if hardware and base:
        estimate = _attempt(
            checks,
            "Memory",
            lambda: _estimate(config, hardware, inspection, tokens_per_second, token),
        )
    checks += [*_data_checks(config, inspection), *_model_checks(config, base, hardware)]
    checks += _memory_checks(hardware, estimate)
    seconds = estimate.seconds if estimate else None
    checks += [Check(*finding) for finding in check_hub(config, token, seconds)]
    checks.append(_disk_check(config, settings.home, estimate))
    order = ["Data", "Model", "Hardware", "Memory", "Token", "Backup", "Disk"]
    return Preflight(
        sorted(checks, key=lambda check: order.index(check.name)), inspection, estimate
    )


def blocking(look: Preflight) -> list[str]:
    """What stands in the way of a launch, a line each; empty when nothing does."""
    return [
        f"{check.name}: {check.found} {check.remedy}".strip()
        for check in look.checks
        if check.level == "red"
    ]


def _attempt(checks: list[Check], name: str, find: Any) -> Any:
    """The result, or None and a red check that says what our error says."""
    try:
        return find()
    except Phi3LoraError as error:
        checks.append(Check(name, "red", str(error)))
        return None


def _hardware(config: RunConfig) -> Any:
    from phi3lora.models.hardware import detect_hardware

    return detect_hardware(config.model.device)


def _hidden_gpu(config: RunConfig) -> list[Check]:
    """A GPU that is there and cannot be used: who trains beside it without a word, pays for it."""
    from phi3lora.models.hardware import hidden_gpu

    reason = None if config.model.device == "cpu" else hidden_gpu()
    remedy = "To train on the CPU all the same, set model.device to cpu."
    return [Check("Hardware", "red", reason, remedy)] if reason else []


def _base(config: RunConfig, hardware: Any, settings: Settings, token: str | None) -> Any:
    from phi3lora.models.base import check_base, resolve_path
    from phi3lora.models.hardware import detect_hardware

    path = resolve_path(config.model.path, hardware or detect_hardware("cpu"))
    return check_base(path, config.model.revision, token)


def _inspect(config: RunConfig, settings: Settings, token: str | None) -> Any:
    from phi3lora.data.inspection import inspect
    from phi3lora.models.base import resolve_path
    from phi3lora.models.hardware import detect_hardware
    from phi3lora.models.loading import load_tokenizer

    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    tokenizer = load_tokenizer(path, config.model.revision, token)
    return inspect(config, tokenizer, token=token, limit=PREVIEW_ROWS)


def _estimate(
    config: RunConfig,
    hardware: Any,
    inspection: Any,
    tokens_per_second: float | None,
    token: str | None,
) -> Any:
    from phi3lora.training.estimate import estimate

    return estimate(config, hardware, inspection, tokens_per_second, token)


def _data_checks(config: RunConfig, inspection: Any) -> list[Check]:
    """Rows that are left out or cut, and whether enough are left."""
    if inspection is None:
        return []
    dropped = sum(inspection.dropped.values())
    found = f"{inspection.kept:,} rows, {inspection.supervised_tokens:,} supervised tokens."
    batch = config.effective_batch
    if inspection.kept < batch:
        return [
            Check(
                "Data",
                "amber",
                f"{found} That is less than one batch of {batch}.",
                "Lower batch size or accumulation, or add rows.",
            )
        ]
    if inspection.truncated > inspection.kept / 10:
        share = inspection.truncated / inspection.kept
        return [
            Check(
                "Data",
                "amber",
                f"{found} {share:.0%} of them are cut.",
                "Raise the length limit, if memory allows.",
            )
        ]
    if dropped > inspection.rows / 10:
        return [
            Check(
                "Data",
                "amber",
                f"{found} {dropped:,} cannot be used.",
                "Look at the reasons under the preview.",
            )
        ]
    if inspection.notices:
        return [Check("Data", "amber", f"{found} {inspection.notices[0]}")]
    return [Check("Data", "green", found)]


def _model_checks(config: RunConfig, base: Any, hardware: Any) -> list[Check]:
    """The base, the device it meets, and who may read it."""
    from phi3lora.models.hardware import choose_dtype

    checks = []
    if base:
        checks.append(Check("Model", "green", f"{base.name}, {_parameters(base.parameters)}."))
        if config.training_config.max_length > base.max_length:
            checks[0] = Check(
                "Model",
                "amber",
                f"{base.name} reads {base.max_length:,} tokens; longer conversations are cut "
                "there.",
                "Lower the length limit to that.",
            )
    if hardware:
        dtype, notice = choose_dtype(config.model.dtype, hardware)
        slow = hardware.device == "cpu" and base is not None and base.parameters > 5e8
        if slow:
            notice = "A model of this size takes days on a CPU."
        remedy = "Choose pocket as the base, or a machine with a GPU." if slow else ""
        found = f"{hardware.name}, {dtype}."
        checks.append(Check("Hardware", "amber" if notice else "green", notice or found, remedy))
    return checks


def _parameters(number: int) -> str:
    return (
        f"{number / 1e9:.1f} billion parameters"
        if number >= 1e9
        else (f"{number / 1e6:.1f} million parameters")
    )


def _memory_checks(hardware: Any, estimate: Any) -> list[Check]:
    """Whether the run fits into what is free, or would if other programs left."""
    if not hardware or not estimate:
        return []
    need, free = estimate.memory_bytes, hardware.memory_free
    found = f"About {words.size(need)} needed, {words.size(free)} free."
    if estimate.memory_bytes > hardware.memory_total:
        return [
            Check(
                "Memory",
                "red",
                f"{found} The device has {words.size(hardware.memory_total)}.",
                "Choose NF4, a smaller batch or length limit, or gradient checkpointing.",
            )
        ]
    if estimate.memory_bytes > CROWDED * hardware.memory_free:
        return [
            Check(
                "Memory",
                "amber",
                f"{found} It may fail.",
                "Close other programs, or lower batch size or length limit.",
            )
        ]
    return [Check("Memory", "green", found)]


def _disk_check(config: RunConfig, home: Path, estimate: Any) -> Check:
    """Whether checkpoints and the adapter fit on the disk of the run folder."""
    folder = next(parent for parent in (home, *home.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    kept = config.training_config.save_total_limit or 10
    need = (kept + 1) * OPTIMIZER_BYTES * (estimate.trainable if estimate else 0)
    found = f"{words.size(free)} free, {words.size(need)} needed for checkpoints."
    if need > free:
        return Check("Disk", "red", found, "Make room, or keep fewer checkpoints.")
    if free - need < GIB:
        return Check("Disk", "amber", found, "Make some room; downloads need it too.")
    return Check("Disk", "green", found)
