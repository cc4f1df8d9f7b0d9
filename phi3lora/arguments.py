"""Arguments that transformers takes as free mappings or text, and which names are right in them.

    schedule_problem("polynomial", {"powr": 2})   # "polynomial has no option 'powr'; it has …"
    schedule_options("cosine_with_min_lr", None, 0)   # {"min_lr_rate": 0.1}

A wrong name here would fail after the model is loaded, or be passed over in silence. Sources:
`get_scheduler` in transformers/optimization.py, trainer_optimizer.py, and `checkpoint` in
torch/utils/checkpoint.py; `tests/test_arguments.py` holds the tables to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi3lora.strict_yaml import shorten

SCHEDULES: dict[str, set[str]] = {
    "linear": set(),
    "cosine": {"num_cycles"},
    "cosine_with_restarts": {"num_cycles"},
    "cosine_with_min_lr": {"num_cycles", "min_lr", "min_lr_rate"},
    "cosine_warmup_with_min_lr": {"num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"},
    "polynomial": {"lr_end", "power"},
    "constant": set(),
    "constant_with_warmup": set(),
    "inverse_sqrt": {"timescale"},
    "reduce_lr_on_plateau": {
        *("factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps", "mode")
    },
    "warmup_stable_decay": {
        *("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio"),
        "num_cycles",
    },
}
WORDS = {  # options that are text, and what they may say
    "warmup_type": ("linear", "cosine", "1-sqrt"),
    "decay_type": ("linear", "cosine", "1-sqrt"),
    "threshold_mode": ("rel", "abs"),
    "mode": ("min", "max"),
}
NEED_LOWEST = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
LOWEST = 0.1  # of the peak, where such a schedule is not told how far to fall
POLYNOMIAL_END = 1e-7  # lr_end where it is not given
DECAY = 0.1  # of all updates, where warmup_stable_decay is not told when to fall

_BETAS = {"beta1": float, "beta2": float, "beta3": float}
_ADEMAMIX = {**_BETAS, "alpha": float, "eps": float, "t_alpha": int, "t_beta3": int}
_PLAIN: dict[str, dict[str, type]] = {
    "sgd": {"momentum": float, "dampening": float, "weight_decay": float, "nesterov": bool},
    "adagrad": {"lr_decay": float, "weight_decay": float, "eps": float},
    "rmsprop": {
        **{"momentum": float, "alpha": float, "eps": float, "weight_decay": float},
        "centered": bool,
    },
}
CHECKPOINTING = {"use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop"}


def schedule_options(
    schedule: str, options: Mapping[str, Any] | None, steps: int
) -> dict[str, Any] | None:
    """The options with what the schedule cannot do without; `steps` is 0 if epochs decide."""
    given = dict(options or {})
    if schedule in NEED_LOWEST and not {"min_lr", "min_lr_rate"} & set(given):
        given["min_lr_rate"] = LOWEST
    if schedule == "warmup_stable_decay" and steps > 0:
        given.setdefault("num_decay_steps", max(round(DECAY * steps), 1))
    return given or (None if options is None else dict(options))


def schedule_problem(
    schedule: str, options: Mapping[str, Any] | None, learning_rate: float = 1.0
) -> str | None:
    """Why a schedule refuses its options; None when it takes them."""
    given, existing = dict(options or {}), SCHEDULES[schedule]
    for name, value in given.items():
        if name not in existing:
            return _no_such(schedule, name, existing)
        if wrong := _wrong_value(name, value):
            return wrong
    if {"min_lr", "min_lr_rate"} <= set(given):
        return "min_lr and min_lr_rate say the same thing; set one."
    if schedule == "polynomial" and given.get("lr_end", POLYNOMIAL_END) >= learning_rate:
        end = given.get("lr_end", POLYNOMIAL_END)
        return f"the rate falls to lr_end, {end:g}, which must be below learning_rate; lower it."
    if schedule == "reduce_lr_on_plateau" and given.get("factor", 0.1) >= 1:
        return _expected(
            "factor", "less than 1, since the rate is multiplied by it", given["factor"]
        )
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in given:
        return (
            "warmup_stable_decay must know when to fall: set num_decay_steps, the number of "
            "updates at the end in which the rate falls, such as {num_decay_steps: 100}; or set "
            "max_steps, and it falls in the last tenth."
        )
    return None


def _wrong_value(name: str, value: Any) -> str | None:
    if name in WORDS:
        return None if value in WORDS[name] else _expected(name, " or ".join(WORDS[name]), value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _expected(name, "a number", value)
    return None


def optimizer_problem(optimizer: str, options: str | None) -> str | None:
    """Why an optimizer refuses its `name=value, …`; None when it takes them."""
    if options is None or not options.strip():
        return None
    existing = _optimizer_options(optimizer)
    for pair in options.replace(" ", "").split(","):
        name, equals, value = pair.partition("=")
        if not equals or not name:
            return f"expected `name=value, name=value`, got {shorten(pair)}."
        if name not in existing:
            return _no_such(optimizer, name, set(existing))
        if not _reads_as(existing[name], value):
            kinds = {float: "a number", int: "a whole number", bool: "true or false"}
            return _expected(name, kinds[existing[name]], value)
    return None


def _optimizer_options(optimizer: str) -> dict[str, type]:
    return _ADEMAMIX if "ademamix" in optimizer else _PLAIN.get(optimizer, {})


def _reads_as(kind: type, text: str) -> bool:
    if kind is bool:
        return text.lower() in {"true", "1", "yes", "false", "0", "no"}
    try:
        kind(text)
    except ValueError:
        return False
    return True


def checkpointing_problem(options: Mapping[str, Any] | None) -> str | None:
    """Why gradient checkpointing refuses its options; None when it takes them."""
    given = dict(options or {})
    for name, value in given.items():
        if name not in CHECKPOINTING:
            return _no_such("gradient checkpointing", name, CHECKPOINTING)
        if name == "determinism_check":
            if value not in ("default", "none"):
                return _expected(name, "default or none", value)
        elif not isinstance(value, bool):
            return _expected(name, "true or false", value)
    if given.get("use_reentrant") and given.get("debug"):
        return "debug needs use_reentrant: false."
    return None


def _no_such(owner: str, name: str, existing: set[str]) -> str:
    there = f"it has {', '.join(sorted(existing))}." if existing else "it takes none."
    return f"{owner} has no option {shorten(name)}; {there}"


def _expected(name: str, wanted: str, value: Any) -> str:
    return f"{name}: expected {wanted}, got {shorten(value)}."
