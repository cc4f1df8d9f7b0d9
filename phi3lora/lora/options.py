"""The options that describe an adapter which is there, so that a training can go on from it.

plain_options(run.config)          of a finished run's result, by dotted name
options_of(folder, base)           of any PEFT folder or loralib checkpoint, from its files alone

config.with_values(options_of(start, base))     now the adapter fits (`lora.starting`)
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError, Phi3LoraError
from phi3lora.lora.folder import lora_settings, read_adapter_config
from phi3lora.lora.initial import replaces_base
from phi3lora.lora.loralib import import_loralib
from phi3lora.models.base import BaseInfo
from phi3lora.models.phi3 import PHI3

PEFT = "peft_config"
TAKEN = ("r", "lora_alpha", "use_rslora", "use_dora", "modules_to_save", "rank_pattern")


def plain_options(config: RunConfig) -> dict[str, Any]:
    """The options that describe the result of a finished run with this config.

    Those of the run itself, but for initial weights that were taken out of the base: what is saved
    then is plain LoRA of twice the rank (`lora.initial`). Raises AdapterError where its scale is no
    whole alpha.
    """
    peft = config.peft_config
    options: dict[str, Any] = {f"{PEFT}.init_lora_weights": True}
    if not replaces_base(peft.init_lora_weights):
        return options
    if peft.use_rslora:
        raise AdapterError(
            "model.adapter: an adapter that began with "
            f"{peft.init_lora_weights!r} and rsLoRA has an alpha that is no whole number, so no "
            "training can go on from it. Merge it (`phi3lora export RUN --to merged`), and name "
            "the merged model in model.path."
        )
    return options | {
        f"{PEFT}.r": 2 * peft.r,
        f"{PEFT}.lora_alpha": 2 * peft.lora_alpha,
        f"{PEFT}.rank_pattern": {name: 2 * rank for name, rank in peft.rank_pattern.items()},
        f"{PEFT}.alpha_pattern": {name: 2 * one for name, one in peft.alpha_pattern.items()},
    }


def options_of(start: Path, base: BaseInfo) -> dict[str, Any]:
    """The options that describe an adapter: its run's where it lies in a run's folder.

    Elsewhere they are read from its files. Slices do not show there: a sliced adapter is taken for
    the plain one of a larger rank that it is as well.

    Args:
        start: as `starting.find_start` gives it.

    Raises AdapterError where it cannot be read.
    """
    if (run := _of_run(start)) is not None:
        peft = {f"{PEFT}.{name}": value for name, value in run.peft_config.model_dump().items()}
        return {"adapter": run.adapter, **peft, **plain_options(run)}
    if start.is_dir():
        return _from_settings(lora_settings(start, read_adapter_config(start)), base)
    with tempfile.TemporaryDirectory(prefix="phi3lora-start-") as scratch:
        folder = Path(scratch)
        import_loralib(start, folder, base)
        options = _from_settings(lora_settings(folder, read_adapter_config(folder)), base)
    if not start.with_suffix(".json").is_file():  # then nobody knows its alpha
        del options[f"{PEFT}.lora_alpha"], options[f"{PEFT}.alpha_pattern"]
    return options


def _of_run(start: Path) -> RunConfig | None:
    """The config of the run whose result this is; None where it lies in no run's folder."""
    file = start.parent / "config.yaml"
    if start.name != "adapter" or not (start.parent / "state.json").is_file():
        return None
    try:
        return RunConfig.from_yaml(file)[0]
    except Phi3LoraError:
        return None


def _from_settings(settings: Mapping[str, Any], base: BaseInfo) -> dict[str, Any]:
    paths: list[str] = settings["target_modules"]
    names = sorted({path.rpartition(".")[2] for path in paths})
    options = {f"{PEFT}.{name}": settings[name] for name in TAKEN} | {
        "adapter": "peft",
        f"{PEFT}.slices": None,
        f"{PEFT}.init_lora_weights": True,
        f"{PEFT}.alpha_pattern": _alphas(settings, paths),
        f"{PEFT}.layers_to_transform": None,
        f"{PEFT}.target_modules": paths,
    }
    layers = sorted({int(found[1]) for path in paths if (found := _LAYER.search(path))})
    if len(paths) == len(names) * max(len(layers), 1):  # the same in each of its layers
        options[f"{PEFT}.target_modules"] = _preset(names)
        if layers and len(layers) < base.layers:
            options[f"{PEFT}.layers_to_transform"] = layers
    return options


_LAYER = re.compile(r"\.layers\.(\d+)\.")


def _preset(names: list[str]) -> str | list[str]:
    """The names in one word, where there is one."""
    found = (word for word, preset in PHI3.presets.items() if sorted(preset) == names)
    return next(found, names)


def _alphas(settings: Mapping[str, Any], paths: list[str]) -> dict[str, float]:
    """Alpha by module, for those that have another: PEFT's patterns spelled out."""
    from peft.utils.other import get_pattern_key

    pattern, usual = settings["alpha_pattern"], settings["lora_alpha"]
    found = {path: pattern.get(get_pattern_key(list(pattern), path), usual) for path in paths}
    return {path: alpha for path, alpha in found.items() if alpha != usual}
