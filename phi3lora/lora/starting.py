"""Begin a training from an adapter that was trained before, instead of from a new one.

    model = attach_adapter(model, config, notices)      # asks here, where config.model.adapter is

PEFT: the config's adapter is attached as always, so that slices, dropout and what is trained are
the config's, and then filled. loralib: its layers are put in place and its checkpoint is loaded in
two steps, the base first. Both are checked before: base, targets, rank, scaling and slices must be
those of the config, or the result would be neither. `check_start` does so on a model of shapes,
too, before anything is launched (`lora.trial`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.folder import (
    CONFIG,
    WEIGHTS,
    lora_settings,
    read_adapter_config,
    tensor_shapes,
)
from phi3lora.lora.loralib import (
    LORALIB,
    export_loralib,
    import_loralib,
    load_in_two_steps,
    read_loralib,
    recorded_base,
    recorded_layers,
)
from phi3lora.models.base import BaseInfo, check_base

START = "start"  # a run's folder for the adapter that it goes on from, so that a resume finds it
KEPT = (CONFIG, WEIGHTS, LORALIB, Path(LORALIB).with_suffix(".json").name)
CHAIN = "chain.json"  # in it: what that adapter went on from itself, oldest first
SHOWN = 6  # differences that a message names


def find_start(place: Path) -> Path:
    """The adapter that a path names: a PEFT folder, a run's, or a loralib checkpoint.

    Raises AdapterError where there is none.
    """
    if os.path.isfile(place):  # False for a name that no system takes; `Path` would raise
        return place
    if os.path.isdir(place):
        for folder in (place, place / "adapter"):
            if (folder / CONFIG).is_file():
                return folder
        if found := sorted(place.glob("*.pt")):
            return found[0]
    raise AdapterError(
        f"model.adapter: {place.name[:100]} holds no adapter: expected a folder with {CONFIG} and "
        f"{WEIGHTS}, a finished run, a Hub id, or a loralib checkpoint (`.pt`)."
    )


def chain_of(folder: Path) -> list[str]:
    """What a run folder's adapter went on from, oldest first; empty for a run that began anew."""
    try:
        names = json.loads((folder / START / CHAIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def check_start(
    model: Any, config: RunConfig, start: Path, base: BaseInfo, notices: list[str]
) -> None:
    """Compare an adapter with the one that is attached, which may lie on the meta device.

    Args:
        start: as `find_start` gives it.
        base: of the model, with the name that people know it by.
        notices: receives what was assumed, and another base that the adapter names.

    Raises AdapterError with everything that differs: targets, layers, rank, scale, slices.
    """
    with _read_start(start, config, base, notices) as place:
        _compare(model, config, place, _name(start))


def fill_start(model: Any, config: RunConfig, notices: list[str]) -> None:
    """Put the weights of `model.adapter` into the adapter that is attached. AdapterError."""
    start, base = find_start(Path(str(config.model.adapter))), _base_of(model)
    with _read_start(start, config, base, notices) as place:
        _compare(model, config, place, _name(start))
        if config.adapter == "loralib":
            load_in_two_steps(model, None, place)
        else:
            _fill_peft(model, place)


def name_of_start(config: RunConfig) -> str:
    """What people call the adapter that `model.adapter` names."""
    return _name(find_start(Path(str(config.model.adapter))))


def size_of(start: Path) -> int:
    """Bytes of what a run's folder will keep of an adapter that it goes on from."""
    files = [start, start.with_suffix(".json")]
    if start.is_dir():
        files = [start / name for name in KEPT]
    return sum(file.stat().st_size for file in files if file.is_file())


@contextmanager
def _read_start(
    start: Path, config: RunConfig, base: BaseInfo, notices: list[str]
) -> Iterator[Path]:
    """The adapter as this run's library has it: a PEFT folder, or a loralib checkpoint."""
    named = _named_base(start)
    if named and named != base.name:
        # As for chat, another name is a notice: shapes are compared apart.
        notices.append(
            f"model.adapter says that it was trained on {named}, the base is {base.name}. "
            "Going on is only of use if the weights are the same."
        )
    with tempfile.TemporaryDirectory(prefix="phi3lora-start-") as scratch:
        if config.adapter == "loralib":
            yield _as_loralib(start, Path(scratch))
        else:
            yield _as_peft(start, Path(scratch), config, base, notices)


def _named_base(start: Path) -> str:
    if start.is_file():
        return recorded_base(start) or ""
    return str(read_adapter_config(start).get("base_model_name_or_path") or "")


def _as_loralib(start: Path, scratch: Path) -> Path:
    if start.is_file():
        return start
    if (start / LORALIB).is_file():
        return start / LORALIB
    export_loralib(start, scratch / LORALIB)
    return scratch / LORALIB


def _as_peft(
    start: Path, scratch: Path, config: RunConfig, base: BaseInfo, notices: list[str]
) -> Path:
    if start.is_file():
        notices += import_loralib(start, scratch, base, alpha=_alpha(config, start))
        return scratch
    return start


def _base_of(model: Any) -> BaseInfo:
    """The base as its files on this machine say, by the name that it was loaded by."""
    return replace(check_base(str(model.files_folder), weights=False), name=model.name_or_path)


def _name(start: Path) -> str:
    """What people called it: a run's copy has the last name of its chain."""
    folder = start.parent if start.is_file() else start
    chain = chain_of(folder.parent) if folder.name == START else []
    return chain[-1] if chain else start.name


def _alpha(config: RunConfig, file: Path) -> float | None:
    """The config's, where the checkpoint does not say its own."""
    return None if file.with_suffix(".json").is_file() else float(config.peft_config.lora_alpha)


def _compare(model: Any, config: RunConfig, place: Path, name: str) -> None:
    """Raise AdapterError with all that differs between the adapter and the one attached."""
    if config.adapter == "loralib":
        problems, trained = _loralib_problems(model, config, place), ""
    else:
        settings = lora_settings(place, read_adapter_config(place))
        problems = [
            *_shape_problems(_own_shapes(model), tensor_shapes(place)),
            *_switch_problems(model, settings),
            *_scaling_problems(model, settings),
            *_slice_problems(model, place),
        ]
        trained = f" (r: {settings['r']}, lora_alpha: {settings['lora_alpha']})"
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise AdapterError(
            f"model.adapter: {name} is not the adapter that this run's options describe. Set "
            f"peft_config as it was trained{trained}:\n{shown}{more}"
        )


def _own_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of the adapter that is attached, by its name in a file."""
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in own.items()}


def _fill_peft(model: Any, folder: Path) -> None:
    """Tensors into their places."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))


def _loralib_problems(model: Any, config: RunConfig, file: Path) -> list[str]:
    """What loralib's layers would be given otherwise, in vain, or not at all."""
    wanted = config.peft_config.lora_alpha
    alphas = {path: facts.get("lora_alpha") for path, facts in recorded_layers(file).items()}
    given = {name: tuple(tensor.shape) for name, tensor in read_loralib(file).items()}
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # A checkpoint may hold biases as well; those of the base are no part of the adapter.
    mine = {name: shape for name, shape in own.items() if "lora_" in name or name in given}
    return [
        *_shape_problems(mine, given),
        *(
            f"{path} was trained with lora_alpha {alpha}, here it is {wanted}"
            for path, alpha in alphas.items()
            if alpha != wanted
        ),
    ]


def _shape_problems(
    own: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Names on one side only, and other shapes: targets, layers and rank."""
    missing = [f"{name} is missing in it" for name in sorted(own.keys() - given.keys())]
    vain = [f"{name} has no place here" for name in sorted(given.keys() - own.keys())]
    wrong = [
        f"{name}: expected {own[name]}, got {shape}"
        for name, shape in given.items()
        if name in own and own[name] != shape
    ]
    return [*wrong, *missing, *vain]


def _switch_problems(model: Any, settings: Mapping[str, Any]) -> list[str]:
    """DoRA and rsLoRA compute otherwise with the same tensors."""
    config = model.peft_config["default"]
    return [
        f"{name}: expected {getattr(config, name)} as in peft_config, got {settings[name]}"
        for name in ("use_dora", "use_rslora")
        if getattr(config, name) != settings[name]
    ]


def _scaling_problems(model: Any, settings: Mapping[str, Any]) -> list[str]:
    """What the update is multiplied by, module by module."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import get_pattern_key

    problems = []
    alphas = settings["alpha_pattern"]
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.scaling:
            continue
        name = path.removeprefix("base_model.model.")
        rank = settings["rank_pattern"].get(name, settings["r"])
        alpha = alphas.get(get_pattern_key(list(alphas), name), settings["lora_alpha"])
        scaling = alpha / (rank**0.5 if settings["use_rslora"] else rank)
        if abs(scaling - layer.scaling["default"]) > 1e-6 * abs(scaling):
            problems.append(
                f"{name} is scaled by {scaling:.4g} in it, by {layer.scaling['default']:.4g} here "
                "(lora_alpha)"
            )
    return problems


def _slice_problems(model: Any, folder: Path) -> list[str]:
    """Entries outside the slices, which would stay as they are for good."""
    from safetensors import safe_open

    masks = {
        name.replace(".default", ""): parameter.slice_mask
        for name, parameter in model.named_parameters()
        if getattr(parameter, "slice_mask", None) is not None
    }
    problems = []
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        for name in masks.keys() & set(file.keys()):
            tensor, mask = file.get_tensor(name), masks[name].to("cpu")
            if tensor.shape == mask.shape and bool(tensor[~mask].any()):
                problems.append(f"{name}: it was trained outside the slices that are on here")
    return sorted(problems)
