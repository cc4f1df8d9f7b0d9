"""Begin a training from an adapter that was trained before, instead of from a new one.

    model = attach_adapter(model, config, notices)      # asks here, where config.model.adapter is

PEFT: the config's adapter is attached as always, so that slices, dropout and what is trained are
the config's, and then filled. loralib: its layers are put in place and its checkpoint is loaded in
two steps, the base first. Both are checked before: base, targets, rank, scaling and slices must be
those of the config, or the result would be neither.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.folder import CONFIG, WEIGHTS, lora_settings, read_adapter_config
from phi3lora.lora.initial import replaces_base
from phi3lora.lora.loralib import (
    LORALIB,
    export_loralib,
    import_loralib,
    load_in_two_steps,
    recorded_base,
)
from phi3lora.models.base import check_base

START = "start"  # a run's folder for the adapter that it goes on from, so that a resume finds it
CHAIN = "chain.json"  # in it: what that adapter went on from itself, oldest first
SHOWN = 6  # differences that a message names


def find_start(place: Path) -> Path:
    """The adapter that a path names: a PEFT folder, a run's, or a loralib checkpoint.

    Raises AdapterError where there is none.
    """
    if place.is_file():
        return place
    for folder in (place, place / "adapter"):
        if (folder / CONFIG).is_file():
            return folder
    if found := sorted(place.glob("*.pt")):
        return found[0]
    raise AdapterError(
        f"model.adapter: {place.name} holds no adapter: expected a folder with {CONFIG} and "
        f"{WEIGHTS}, a finished run, a Hub id, or a loralib checkpoint (`.pt`)."
    )


def chain_of(folder: Path) -> list[str]:
    """What a run folder's adapter went on from, oldest first; empty for a run that began anew."""
    try:
        names = json.loads((folder / START / CHAIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def plain_options(config: RunConfig) -> dict[str, Any]:
    """The options that describe the adapter of a finished run with this config, by dotted name.

    Those of the run itself, but for initial weights that were taken out of the base: what is saved
    then is plain LoRA of twice the rank (`lora.initial`). Raises AdapterError where its scale is no
    whole alpha.
    """
    peft = config.peft_config
    options: dict[str, Any] = {"peft_config.init_lora_weights": True}
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
        "peft_config.r": 2 * peft.r,
        "peft_config.lora_alpha": 2 * peft.lora_alpha,
        "peft_config.rank_pattern": {name: 2 * rank for name, rank in peft.rank_pattern.items()},
        "peft_config.alpha_pattern": {name: 2 * one for name, one in peft.alpha_pattern.items()},
    }


def fill_peft(model: Any, config: RunConfig, notices: list[str]) -> None:
    """Put the weights of `model.adapter` into the adapter that is attached. AdapterError."""
    start = find_start(Path(str(config.model.adapter)))
    with tempfile.TemporaryDirectory(prefix="phi3lora-start-") as scratch:
        folder = start
        if start.is_file():
            folder = Path(scratch) / "adapter"
            base = check_base(config.model.path, config.model.revision)
            notices += import_loralib(start, folder, base, alpha=_alpha(config, start))
        settings = read_adapter_config(folder)
        _check_base(model, str(settings.get("base_model_name_or_path") or ""), notices)
        _fill(model, folder, settings, notices, _name(start))


def fill_loralib(model: Any, config: RunConfig, notices: list[str]) -> None:
    """Load `model.adapter` into loralib's layers, in loralib's two steps. AdapterError."""
    start = find_start(Path(str(config.model.adapter)))
    with tempfile.TemporaryDirectory(prefix="phi3lora-start-") as scratch:
        file = start
        if start.is_dir():
            file = start / LORALIB
            settings = read_adapter_config(start)
            _check_base(model, str(settings.get("base_model_name_or_path") or ""), notices)
            if not file.is_file():
                file = Path(scratch) / LORALIB
                export_loralib(start, file)
        elif name := recorded_base(file):
            _check_base(model, name, notices)
        _check_scaling(model, file, config)
        report = load_in_two_steps(model, None, file)
    if not report.complete:
        raise AdapterError(
            f"model.adapter: {_name(start)} does not fill the adapter of this run. Missing: "
            f"{_some(report.missing)}; in vain: {_some(report.unexpected)}. Set "
            "peft_config.target_modules, layers and slices as it was trained."
        )
    notices.append(f"Training goes on from {_name(start)}: nothing missing, nothing in vain.")


def _name(start: Path) -> str:
    """What people called it: a run's copy is known by the last name of its chain."""
    folder = start.parent if start.is_file() else start
    chain = chain_of(folder.parent) if folder.name == START else []
    return chain[-1] if chain else start.name


def _alpha(config: RunConfig, file: Path) -> float | None:
    """The config's, where the checkpoint does not say its own."""
    return None if file.with_suffix(".json").is_file() else float(config.peft_config.lora_alpha)


def _check_base(model: Any, named: str, notices: list[str]) -> None:
    """Another name is a notice, as for chat: the shapes are checked apart."""
    if named and named != model.name_or_path:
        notices.append(
            f"model.adapter says that it was trained on {named}, the base is {model.name_or_path}. "
            "Going on is only of use if the weights are the same."
        )


def _fill(
    model: Any, folder: Path, settings: Mapping[str, Any], notices: list[str], name: str
) -> None:
    """Tensors into their places, after everything was compared."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    known = lora_settings(folder, settings)
    state = load_file(folder / WEIGHTS)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    problems = [
        *_shape_problems(own, state),
        *_switch_problems(model, known),
        *_scaling_problems(model, known),
        *_slice_problems(model, state),
    ]
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
        raise AdapterError(
            f"model.adapter: {name} is not the adapter that this run's options describe. Set "
            f"peft_config as it was trained (r: {known['r']}, lora_alpha: {known['lora_alpha']}):"
            f"\n{shown}"
        )
    set_peft_model_state_dict(model, state)
    notices.append(f"Training goes on from {name}: {len(state)} tensors, nothing missing.")


def _shape_problems(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Names on one side only, and other shapes: targets, layers and rank."""
    missing = [f"{name} is missing in it" for name in sorted(own.keys() - state.keys())]
    vain = [f"{name} has no place here" for name in sorted(state.keys() - own.keys())]
    wrong = [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in own and own[name].shape != tensor.shape
    ]
    return [*wrong, *missing, *vain]


def _switch_problems(model: Any, known: Mapping[str, Any]) -> list[str]:
    """DoRA and rsLoRA compute otherwise with the same tensors."""
    config = model.peft_config["default"]
    return [
        f"{name}: expected {getattr(config, name)} as in peft_config, got {known[name]}"
        for name in ("use_dora", "use_rslora")
        if getattr(config, name) != known[name]
    ]


def _scaling_problems(model: Any, known: Mapping[str, Any]) -> list[str]:
    """What the update is multiplied by, module by module."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import get_pattern_key

    problems = []
    alphas = known["alpha_pattern"]
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.scaling:
            continue
        name = path.removeprefix("base_model.model.")
        rank = known["rank_pattern"].get(name, known["r"])
        alpha = alphas.get(get_pattern_key(list(alphas), name), known["lora_alpha"])
        scaling = alpha / (rank**0.5 if known["use_rslora"] else rank)
        if abs(scaling - layer.scaling["default"]) > 1e-6 * abs(scaling):
            problems.append(
                f"{name} is scaled by {scaling:.4g} in it, by {layer.scaling['default']:.4g} here "
                "(lora_alpha)"
            )
    return problems


def _slice_problems(model: Any, state: Mapping[str, Any]) -> list[str]:
    """Entries outside the slices, which would stay as they are for good."""
    problems = []
    for name, parameter in model.named_parameters():
        mask = getattr(parameter, "slice_mask", None)
        tensor = state.get(name.replace(".default", ""))
        if mask is None or tensor is None or tensor.shape != mask.shape:
            continue
        if bool(tensor[~mask.to(tensor.device)].any()):
            problems.append(f"{name}: it was trained outside the slices that are on here")
    return problems


def _check_scaling(model: Any, file: Path, config: RunConfig) -> None:
    """The alphas that the file beside a loralib checkpoint records, against the config's."""
    from phi3lora.lora.loralib.interchange import recorded_layers

    wanted = config.peft_config.lora_alpha
    for path, facts in recorded_layers(file).items():
        if facts.get("lora_alpha") != wanted:
            raise AdapterError(
                f"model.adapter: {file.name} was trained with lora_alpha {facts.get('lora_alpha')} "
                f"at {path}, peft_config.lora_alpha is {wanted}. Set it as it was trained."
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more
