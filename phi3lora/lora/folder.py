"""An adapter's folder: the names in it, its settings, and its tensors' shapes.

Only safetensors are read; a pickled adapter is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi3lora.config import MODULE_NAME
from phi3lora.errors import AdapterError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LARGEST_SETTINGS = 2**20  # bytes of an adapter_config.json
LARGEST_RANK = 2048  # twice the largest that a config takes: PiSSA's results have twice the rank
# PEFT's models hold the base two levels down, and so do the names of its tensors.
PREFIX = "base_model.model."


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a folder that has its weights in safetensors.

    Raises AdapterError.
    """
    if not (folder / CONFIG).is_file():
        whole = (folder / "config.json").is_file()
        raise AdapterError(
            f"{folder.name} holds a whole model, not an adapter: load it as a base."
            if whole
            else f"{folder.name} is no adapter: expected a folder with {CONFIG} and {WEIGHTS}."
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise AdapterError(
            f"The adapter {folder.name} has no {WEIGHTS}"
            + (
                ", only adapter_model.bin, a pickle that can run code when it is read. Save it "
                "again with safe_serialization=True."
                if pickled
                else ": its training may not have ended. Train it, or copy it whole."
            )
        )
    try:
        if (folder / CONFIG).stat().st_size > LARGEST_SETTINGS:
            raise AdapterError(f"The adapter {folder.name}: {CONFIG} is larger than a mebibyte.")
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"The adapter {folder.name}: {CONFIG} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise AdapterError(f"The adapter {folder.name}: {CONFIG} holds no settings.")
    return settings


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of an adapter, from the file's header alone.

    Raises AdapterError when the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"The adapter {folder.name}: {WEIGHTS} is damaged ({error}). Copy or train it again."
        ) from None


def lora_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `LoraConfig` for an adapter that may be a stranger's.

    PEFT takes the names in `adapter_config.json` for patterns and matches them while it holds the
    interpreter, so nothing of the kind is taken over. Targets and ranks come from the tensors'
    names and shapes; from the settings only what is a plain number, a switch or a name.

    Raises AdapterError for names and numbers that no LoRA of PEFT's has.
    """
    shapes = tensor_shapes(folder)
    ranks = ranks_of(folder.name, shapes)
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    return {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.get("base_model_name_or_path"),
        "revision": settings.get("revision"),
        "r": rank,
        "lora_alpha": _alpha(folder.name, settings.get("lora_alpha", 8)),
        "use_rslora": settings.get("use_rslora") is True,
        "use_dora": settings.get("use_dora") is True,
        "lora_bias": settings.get("lora_bias") is True,
        "bias": _one_of(folder.name, settings.get("bias", "none"), ("none", "all", "lora_only")),
        "target_modules": sorted(ranks),
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": _alphas(folder.name, settings.get("alpha_pattern") or {}),
        "modules_to_save": sorted(_whole_modules(folder.name, shapes)) or None,
    }


def ranks_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Rank of each module that has LoRA, by its path. A is (rank, in) in every kind of layer."""
    ranks = {}
    for tensor, shape in shapes.items():
        path, lora, part = tensor.removeprefix(PREFIX).partition(".lora_")
        _check_name(name, path)
        if lora and part.removesuffix(".weight") in {"A", "embedding_A"}:
            if len(shape) != 2 or not 0 < shape[0] <= LARGEST_RANK:
                raise AdapterError(
                    f"The adapter {name}: {tensor[:100]} has the shape {shape}: expected a rank "
                    f"from 1 to {LARGEST_RANK} and a width."
                )
            ranks[path] = shape[0]
    return ranks


def _whole_modules(name: str, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Modules that were trained whole: their tensors bear no `lora_`."""
    plain = [t.removeprefix(PREFIX) for t in shapes if ".lora_" not in t]
    return {path.rpartition(".")[0].rpartition(".")[2] for path in plain if path.count(".")}


def _check_name(name: str, value: str) -> None:
    if not MODULE_NAME.match(value):
        raise AdapterError(
            f"The adapter {name}: {value[:100]!r} is no name of a module: expected letters, "
            "digits, `_` and `.` alone."
        )


def _alpha(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(
            f"The adapter {name}: expected a number as lora_alpha, got {str(value)[:50]}."
        )
    return value


def _alphas(name: str, pattern: Any) -> dict[str, float]:
    if not isinstance(pattern, dict):
        raise AdapterError(f"The adapter {name}: expected names and numbers as alpha_pattern.")
    for key in pattern:
        _check_name(name, key)
    return {key: _alpha(name, value) for key, value in pattern.items()}


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise AdapterError(
            f"The adapter {name}: expected one of {', '.join(choices)}, got {str(value)[:50]!r}."
        )
    return str(value)
