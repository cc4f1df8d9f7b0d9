"""loralib checkpoint to PEFT adapter and back, tensor for tensor.

    export_loralib(run_folder / "adapter", Path("adapter.pt"))
    import_loralib(Path("adapter.pt"), Path("adapter"), base)

A loralib checkpoint is names and tensors; rank shows in the shapes, alpha and `enable_lora` are in
the code that made the layers. What is exported here has them in a file of the same name ending in
`.json`; for a checkpoint from elsewhere they are asked for.

    loralib                              PEFT
    X.lora_A (r, in)                     X.lora_A.weight, the same
    X.lora_B (out, r)                    X.lora_B.weight, the same
    X.lora_A (r, vocabulary), embedding  X.lora_embedding_A, the same; B likewise
    MergedLinear: X.lora_A (n·r, in)     X.lora_A.weight, the same; rank n·r, alpha n·alpha
                  X.lora_B (rows, r)     X.lora_B.weight (out, n·r), in blocks, zero elsewhere
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.config import PeftConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.folder import CONFIG, PREFIX, WEIGHTS, read_adapter_config
from phi3lora.lora.loralib.layers import loralib_entries, read_loralib, save_loralib
from phi3lora.lora.result import LORALIB
from phi3lora.lora.slices import Slice, block_mask
from phi3lora.models.base import BaseInfo
from phi3lora.models.phi3 import EMBEDDING, HEAD, PHI3

if TYPE_CHECKING:
    import torch

# What loralib's layers cannot express, and why an adapter that has it stays as it is.
UNKNOWN_TO_LORALIB = {
    "use_dora": "DoRA's magnitudes",
    "modules_to_save": "modules trained whole",
    "lora_bias": "biases of B",
    "target_parameters": "adapters of bare parameters",
}


@dataclass(frozen=True)
class Layer:
    """One of loralib's layers: its place, its settings, and A and B in loralib's shapes.

    `enable_lora` is empty but for MergedLinear.
    """

    path: str
    r: int
    lora_alpha: float
    enable_lora: list[bool]
    a: torch.Tensor
    b: torch.Tensor

    @property
    def blocks(self) -> int:
        """Slices that are on; 1 for a plain layer."""
        return sum(self.enable_lora) or 1

    @property
    def last(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


# loralib from PEFT


def export_loralib(adapter: Path, file: Path) -> list[Layer]:
    """Write a PEFT adapter as a loralib checkpoint, with its settings beside it in a `.json`.

    Raises AdapterError for what loralib's layers cannot express.
    """
    import torch

    settings = read_adapter_config(adapter)
    layers = layers_of_adapter(adapter, settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(loralib_state(layers), file)
    _write_settings(file, layers, settings)
    return layers


def layers_of_adapter(adapter: Path, settings: Mapping[str, Any]) -> list[Layer]:
    """The layers of a PEFT adapter; sliced ones as MergedLinear where the slices are equal."""
    from safetensors.torch import load_file

    for name, what in UNKNOWN_TO_LORALIB.items():
        if settings.get(name):
            raise AdapterError(f"The adapter {adapter.name} has {what}, which loralib has not.")
    pairs = _pairs(load_file(adapter / WEIGHTS), adapter.name)
    return [_layer(path, a, b, settings) for path, (a, b) in pairs.items()]


def _pairs(
    state: Mapping[str, torch.Tensor], name: str
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by module, from either library's names."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    strangers = []
    for key, tensor in state.items():
        match = re.fullmatch(r"(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?", key)
        if match is None:
            strangers.append(key)
        else:
            sides.setdefault(match.group(1).removeprefix(PREFIX), {})[match.group(2)] = tensor
    halves = [path for path, pair in sides.items() if len(pair) < 2]
    if strangers or halves or not sides:
        found = ", ".join((strangers or halves)[:5]) or "nothing"
        raise AdapterError(
            f"{name}: expected lora_A and lora_B of each module and nothing else, got {found}"
            + (" without its other half." if halves and not strangers else ".")
        )
    return {path: (pair["A"], pair["B"]) for path, pair in sides.items()}


def _layer(path: str, a: torch.Tensor, b: torch.Tensor, settings: Mapping[str, Any]) -> Layer:
    """One layer of a PEFT adapter in loralib's shapes."""
    rank = a.shape[0]
    enabled = _find_slices(path, b)
    r = rank // (sum(enabled) or 1)
    # loralib scales by alpha / r, PEFT by alpha / rank or, for rsLoRA, alpha / √rank.
    alpha = _alpha(path, settings) * r / (rank**0.5 if settings.get("use_rslora") else rank)
    return Layer(path, r, alpha, enabled, a, _compact(b, enabled, r))


def _alpha(path: str, settings: Mapping[str, Any]) -> float:
    from peft.utils.other import get_pattern_key

    pattern = settings.get("alpha_pattern") or {}
    return float(pattern.get(get_pattern_key(list(pattern), path), settings["lora_alpha"]))


def _find_slices(path: str, b: torch.Tensor) -> list[bool]:
    """`enable_lora`, if B (out, n·r) is zero outside the blocks of equal slices; else empty.

    A plain B is zero nowhere once trained, and everywhere before: then it is taken as plain.
    """
    parts = len(PHI3.fused.get(path.rpartition(".")[2], ()))
    if not parts or b.shape[0] % parts or not bool(b.any()):
        return []
    slices = _equal(b.shape[0], parts)
    for enabled in itertools.product([True, False], repeat=parts):
        count = sum(enabled)
        if not count or b.shape[1] % count:
            continue
        mask = block_mask(slices, list(enabled), b.shape[1] // count)
        if not bool(b[~mask].any()):
            return list(enabled)
    return []


def _equal(rows: int, parts: int) -> list[Slice]:
    step = rows // parts
    return [Slice(str(part), part * step, (part + 1) * step) for part in range(parts)]


def _compact(b: torch.Tensor, enabled: Sequence[bool], r: int) -> torch.Tensor:
    """B of MergedLinear (rows that are on, r) from a dense B (out, n·r)."""
    import torch

    if not enabled:
        return b
    on = [
        part for part, wanted in zip(_equal(len(b), len(enabled)), enabled, strict=True) if wanted
    ]
    blocks = [
        b[part.start : part.stop, index * r : (index + 1) * r] for index, part in enumerate(on)
    ]
    return torch.cat(blocks).contiguous()


def _dense(layer: Layer) -> torch.Tensor:
    """The inverse of `_compact`: B (out, n·r) for PEFT."""
    if not layer.enable_lora:
        return layer.b
    count, r = layer.blocks, layer.r
    step = len(layer.b) // count
    dense = layer.b.new_zeros(step * len(layer.enable_lora), count * r)
    slices = _equal(len(dense), len(layer.enable_lora))
    on = [part for part, wanted in zip(slices, layer.enable_lora, strict=True) if wanted]
    for index, part in enumerate(on):
        block = layer.b[index * step : (index + 1) * step]
        dense[part.start : part.stop, index * r : (index + 1) * r] = block
    return dense


def loralib_state(layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
    """What `lora.lora_state_dict(model)` gives: names and tensors."""
    state = {}
    for layer in layers:
        state[f"{layer.path}.lora_A"] = layer.a.contiguous()
        state[f"{layer.path}.lora_B"] = layer.b.contiguous()
    return state


def _write_settings(file: Path, layers: Sequence[Layer], adapter: Mapping[str, Any]) -> None:
    """Alpha and `enable_lora` of each layer, and PEFT's settings, so that the way back is exact."""
    each = {
        layer.path: {
            "r": layer.r,
            "lora_alpha": layer.lora_alpha,
            "enable_lora": layer.enable_lora,
        }
        for layer in layers
    }
    values = {"layers": each, "adapter_config": dict(adapter)}
    file.with_suffix(".json").write_text(json.dumps(values, indent=2), encoding="utf-8")


# PEFT from loralib


def import_loralib(
    file: Path,
    folder: Path,
    base: BaseInfo,
    *,
    alpha: float | None = None,
    enable_lora: Mapping[str, Sequence[bool]] | None = None,
) -> list[str]:
    """Write a loralib checkpoint as a PEFT adapter; returns notices about what was assumed.

    Args:
        file: as `torch.save(lora.lora_state_dict(model), FILE)` writes it.
        folder: of the new adapter.
        base: the model it was trained on; every tensor is checked against its shapes.
        alpha: `lora_alpha` of the layers; else as the file beside it says, else loralib's 1.
        enable_lora: of MergedLinear, by module name, over what the file beside it says; needed
            when some slices were off and there is no such file.

    Raises AdapterError listing everything that does not fit.
    """
    entries = read_loralib(file)
    settings = _read_settings(file)
    notices: list[str] = []
    if not settings and alpha is None:
        notices.append(
            "The checkpoint does not say its lora_alpha: loralib's default 1 is taken. If the "
            "layers were made with another, say it, or the adapter is too weak."
        )
    pairs = _pairs(entries, file.name)
    layers = _understand(file.name, pairs, base, settings.get("layers", {}), alpha, enable_lora)
    known = settings.get("adapter_config")
    if not known or alpha is not None or enable_lora is not None:
        known = _lora_config(layers, base.name, base.layers)
    write_adapter(layers, folder, known)
    return notices


def recorded_base(file: Path) -> str | None:
    """The base that the file beside a checkpoint names; None where there is none."""
    return (_read_settings(file).get("adapter_config") or {}).get("base_model_name_or_path")


def recorded_layers(file: Path) -> dict[str, Any]:
    """Rank, alpha and slices of each layer, as the file beside a checkpoint says; else empty."""
    return dict(_read_settings(file).get("layers", {}))


def _read_settings(file: Path) -> dict[str, Any]:
    beside = file.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        values = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{beside.name} beside the checkpoint cannot be read: {error}") from None
    layers = values.get("layers") if isinstance(values, dict) else None
    known = isinstance(layers, dict) and all(isinstance(facts, dict) for facts in layers.values())
    if not known or not isinstance(values.get("adapter_config") or {}, dict):
        return {}  # another file that happens to bear the name
    return dict(values)


def _understand(
    name: str,
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    base: BaseInfo,
    recorded: Mapping[str, Any],
    alpha: float | None,
    enable_lora: Mapping[str, Sequence[bool]] | None,
) -> list[Layer]:
    """Each pair of tensors as a layer that fits the base."""
    places = _places(base)
    layers, problems = [], []
    for path, (a, b) in pairs.items():
        facts = recorded.get(path, {})
        last = path.rpartition(".")[2]
        if path not in places:
            problems.append(f"{path}: the base has no such module")
            continue
        enabled = (enable_lora or {}).get(last) or facts.get("enable_lora")
        try:
            enabled = _enabled(last, places[path], a, b, enabled)
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        r = a.shape[0] // (sum(enabled) or 1)
        chosen = facts.get("lora_alpha", 1.0) if alpha is None else alpha
        layers.append(Layer(path, r, float(chosen), enabled, a, b))
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:8])
        raise AdapterError(f"{name} does not fit {base.name}:\n{shown}")
    return layers


def _places(base: BaseInfo) -> dict[str, tuple[int, int]]:
    """`(in, out)` of every module of a Phi-3 that can bear LoRA, by its path."""
    places = {
        f"model.{EMBEDDING}": (base.vocabulary, base.hidden),
        HEAD: (base.hidden, base.vocabulary),
    }
    for name, shape in base.shapes.items():
        places |= {PHI3.path(number, name): shape for number in range(base.layers)}
    return places


def _enabled(
    last: str,
    place: tuple[int, int],
    a: torch.Tensor,
    b: torch.Tensor,
    said: Sequence[bool] | None,
) -> list[bool]:
    """`enable_lora` of a layer, from its shapes and what was said; ValueError if it cannot be."""
    inputs, outputs = place
    rank, width, rows, r = a.shape[0], a.shape[1], b.shape[0], b.shape[1]
    if width != inputs:
        raise ValueError(f"lora_A takes {width} values, the base gives {inputs}")
    if rank == r and rows == outputs:
        return []
    parts = len(said or PHI3.fused.get(last, ()))
    if not parts or outputs % parts or rank % r or rows != rank // r * (outputs // parts):
        raise ValueError(
            f"lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} fit no layer of {inputs} → "
            f"{outputs}"
        )
    count = rank // r
    if count == parts:
        return [True] * parts
    if said is None or sum(said) != count:
        raise ValueError(
            f"{count} of {parts} slices were trained, and the checkpoint does not say which; say "
            f"enable_lora for {last}, such as {[True] * count + [False] * (parts - count)}"
        )
    return [bool(part) for part in said]


def write_adapter(layers: Sequence[Layer], folder: Path, adapter_config: Mapping[str, Any]) -> None:
    """Write layers as a PEFT folder."""
    from safetensors.torch import save_file

    state = {}
    for layer in layers:
        infix, suffix = ("lora_embedding_", "") if layer.last == EMBEDDING else ("lora_", ".weight")
        state[f"{PREFIX}{layer.path}.{infix}A{suffix}"] = layer.a.contiguous()
        state[f"{PREFIX}{layer.path}.{infix}B{suffix}"] = _dense(layer).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(dict(adapter_config), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _lora_config(
    layers: Sequence[Layer], base_name: str, total_layers: int, lora_dropout: float = 0.0
) -> dict[str, Any]:
    """`adapter_config.json`: the most frequent rank and alpha, the others by pattern."""
    from peft import LoraConfig

    ranks = {layer.path: layer.blocks * layer.r for layer in layers}
    alphas = {layer.path: _whole(layer.blocks * layer.lora_alpha) for layer in layers}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha: Any = Counter(alphas.values()).most_common(1)[0][0]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=lora_dropout,
        target_modules=_targets(layers, total_layers),
        rank_pattern={path: value for path, value in ranks.items() if value != rank},
        alpha_pattern={path: value for path, value in alphas.items() if value != alpha},
    )
    values = config.to_dict()
    return {key: sorted(v) if isinstance(v, set) else v for key, v in values.items()}


def _whole(value: float) -> float:
    """16 rather than 16.0, as people and PEFT write it."""
    return int(value) if float(value).is_integer() else value


def _targets(layers: Sequence[Layer], total_layers: int) -> list[str]:
    """Module names if every decoder layer has all of them, else full paths."""
    counts = Counter(layer.last for layer in layers if ".layers." in layer.path)
    if all(count == total_layers for count in counts.values()):
        return sorted({layer.last for layer in layers})
    return sorted(layer.path for layer in layers)


# A model with loralib's layers


def save_trained(model: Any, folder: Path, peft: PeftConfig) -> None:
    """Write the loralib layers of a model twice: as a PEFT folder, and as loralib's checkpoint."""
    layers = []
    for path, (a, b) in _pairs(loralib_entries(model), "model").items():
        module = model.get_submodule(path)
        enabled = list(getattr(module, "enable_lora", []))
        layers.append(Layer(path, module.r, module.lora_alpha, enabled, a, b))
    total = model.config.num_hidden_layers
    config = _lora_config(layers, model.name_or_path, total, peft.lora_dropout)
    write_adapter(layers, folder, config)
    save_loralib(model, folder / LORALIB, peft.bias)
    _write_settings(folder / LORALIB, layers, config)
