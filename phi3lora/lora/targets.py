"""Which modules get an adapter: chosen from the model that is loaded, never from a guess.

    linear_modules(model)["qkv_proj"]          # Modules(count=4, inputs=192, outputs=384)
    resolve_targets(model, config.peft_config) # ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    trainable, total = count_parameters(model)

PEFT adapts what matches and passes over the rest in silence; here a name that matches nothing is
an error that lists the names that exist.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phi3lora.config import PeftConfig
from phi3lora.errors import AdapterError
from phi3lora.models.phi3 import EMBEDDING, HEAD, PHI3

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Modules:
    """Modules of one name: how many, and the width of what goes in and comes out."""

    count: int
    inputs: int
    outputs: int


def linear_modules(model: nn.Module) -> dict[str, Modules]:
    """Linear layers and embeddings by the last part of their name, in the model's order.

    4-bit and 8-bit layers are linear layers too. For an embedding, `inputs` is the vocabulary.
    """
    from torch import nn

    found: dict[str, Modules] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        name = path.rpartition(".")[2]
        count = found[name].count + 1 if name in found else 1
        if isinstance(module, nn.Linear):
            found[name] = Modules(count, module.in_features, module.out_features)
        else:
            found[name] = Modules(count, module.num_embeddings, module.embedding_dim)
    return found


def resolve_targets(model: nn.Module, peft: PeftConfig) -> list[str]:
    """Names for `LoraConfig.target_modules`, each of which exists in the model.

    Names may be the last part (`qkv_proj`) or a longer end of a path (`layers.0.mlp.down_proj`).
    Raises AdapterError that lists what exists, for names or layers that match nothing.
    """
    if isinstance(peft.target_modules, str):
        wanted = PHI3.presets.get(peft.target_modules, [peft.target_modules])
    else:
        wanted = peft.target_modules
    existing = linear_modules(model)
    paths = [path for path, _ in model.named_modules()]
    unmatched = [name for name in wanted if not _matches(name, existing, paths)]
    if unmatched or not wanted:
        raise AdapterError(_unmatched_message(unmatched, existing))
    _check_patterns(peft, [path for path in paths if _is_one_of(path, wanted)])
    _check_layers(model, peft)
    _check_whole_modules(peft, paths)
    return sorted(set(wanted))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters. A 4-bit weight counts the numbers it stands for,
    a sliced adapter those inside its slices."""
    trainable = total = 0
    for parameter in model.parameters():
        size = parameter.numel()
        state = getattr(parameter, "quant_state", None)
        if state is not None:  # two 4-bit numbers lie in one byte
            size = state.shape.numel()
        mask = getattr(parameter, "slice_mask", None)
        if mask is not None:  # entries outside the slices are zero for good
            size = int(mask.sum())
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total


def _matches(name: str, existing: dict[str, Modules], paths: list[str]) -> bool:
    """A module's last name, or the end of a linear layer's path, as PEFT matches it."""
    last = name.rpartition(".")[2]
    return last in existing and any(_is_one_of(path, [name]) for path in paths)


def _is_one_of(path: str, names: list[str]) -> bool:
    """Whether a module's path is, or ends in, one of the names."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _check_patterns(peft: PeftConfig, adapted: list[str]) -> None:
    """A key of `rank_pattern` or `alpha_pattern` must mean a module that gets an adapter."""
    for field in ("rank_pattern", "alpha_pattern"):
        for name in getattr(peft, field):
            if not any(_is_one_of(path, [name]) for path in adapted):
                there = ", ".join(sorted({path.rpartition(".")[2] for path in adapted}))
                raise AdapterError(
                    f"peft_config.{field}: {name} is no module that gets an adapter; those are "
                    f"{there}."
                )


def _unmatched_message(unmatched: list[str], existing: dict[str, Modules]) -> str:
    names = ", ".join(
        f"{name} ({size.inputs} → {size.outputs}, {size.count}×)" for name, size in existing.items()
    )
    message = f"peft_config.target_modules: {', '.join(unmatched) or 'nothing'} "
    message += "is named, which the model has not. " if unmatched else "is named. "
    if fused := [name for name in unmatched if name in PHI3.split_names]:
        hints = "; ".join(
            f"{name} is the slice {name.removesuffix('_proj')} of {PHI3.split_names[name]}"
            for name in fused
        )
        message += f"Phi-3 fuses its projections: {hints} (see peft_config.slices). "
    elif near := difflib.get_close_matches(
        unmatched[0] if unmatched else "", [*existing, *PHI3.presets], 1
    ):
        message += f"Did you mean {near[0]}? "
    return message + f"It has: {names}; or use {', '.join(PHI3.presets)}."


def _check_layers(model: nn.Module, peft: PeftConfig) -> None:
    layers = int(getattr(getattr(model, "config", None), "num_hidden_layers", 0))
    outside = [index for index in peft.layers_to_transform or [] if not 0 <= index < layers]
    if outside or peft.layers_to_transform == []:
        raise AdapterError(
            f"peft_config.layers_to_transform: expected numbers from 0 to {layers - 1}, got "
            f"{outside}. Leave it empty for all layers."
        )


def _check_whole_modules(peft: PeftConfig, paths: list[str]) -> None:
    missing = [
        name
        for name in peft.modules_to_save or []
        if not any(path == name or path.endswith(f".{name}") for path in paths)
    ]
    if missing:
        raise AdapterError(
            f"peft_config.modules_to_save: the model has no {', '.join(missing)}. Usual are "
            f"{EMBEDDING} and {HEAD}."
        )
