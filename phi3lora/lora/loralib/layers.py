"""loralib's own layers inside an existing model, in place, its weights kept.

    replace_layers(model, ["qkv_proj"], r=16, lora_alpha=32, enable_lora={"qkv_proj": [1, 0, 1]})
    lora.mark_only_lora_as_trainable(model, bias="none")
    ...
    save_loralib(model, Path("adapter.pt"))
    report = load_in_two_steps(model, pretrained_weights, Path("adapter.pt"))
    report.missing, report.unexpected

loralib merges in `.eval()` and unmerges in `.train()`: weights loaded while merged have no effect,
weights saved while merged apply LoRA twice, and every turn rounds the base. A run therefore never
merges (`merge_weights=False`), and what is loaded or saved here is refused while merged.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from phi3lora.config import PeftConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.slices import slices_of, switched_on
from phi3lora.lora.targets import resolve_targets
from phi3lora.models.phi3 import PHI3

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

# What torch's unpickler raises on files that are something else.
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    pickle.UnpicklingError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
)
Bias = Literal["none", "all", "lora_only"]


def attach_loralib(
    model: PreTrainedModel, peft: PeftConfig, notices: list[str] | None = None
) -> PreTrainedModel:
    """The model with loralib's layers at the config's targets, and only they trainable.

    `save_pretrained` of the result writes its LoRA entries alone, for checkpoints too.
    Raises AdapterError for targets that do not exist and slices that are not equal.
    """
    import loralib

    _check_precision(model, notices)
    targets = resolve_targets(model, peft)
    enabled = None if peft.slices is None else _equal_slices(model, peft, targets)
    replace_layers(
        model,
        targets,
        r=peft.r,
        lora_alpha=peft.lora_alpha,
        lora_dropout=peft.lora_dropout,
        enable_lora=enabled,
        layers=peft.layers_to_transform,
    )
    loralib.mark_only_lora_as_trainable(model, peft.bias)
    model.save_pretrained = partial(_save_entries, model, peft.bias)  # type: ignore[method-assign]
    return model


def _check_precision(model: PreTrainedModel, notices: list[str] | None) -> None:
    """loralib's A and B have the base's precision; PEFT's would be float32."""
    if str(model.dtype) == "torch.float16":
        raise AdapterError(
            "adapter: loralib trains A and B in the base's precision, and float16 is too coarse "
            "for it. Set model.dtype to float32 or bfloat16, or use adapter: peft."
        )
    if notices is not None and str(model.dtype) == "torch.bfloat16":
        notices.append(
            "loralib trains A and B in the base's bfloat16; adapter: peft trains them in float32."
        )


def _equal_slices(
    model: PreTrainedModel, peft: PeftConfig, targets: list[str]
) -> dict[str, list[bool]]:
    """`enable_lora` for each fused target; AdapterError where its slices are not equal."""
    enabled: dict[str, list[bool]] = {}
    for name in {target.rpartition(".")[2] for target in targets} & set(PHI3.fused):
        parts = slices_of(model)[name]
        rows = [part.stop - part.start for part in parts]
        if len(set(rows)) > 1:
            shown = ", ".join(
                f"{part.name} {count}" for part, count in zip(parts, rows, strict=True)
            )
            raise AdapterError(
                f"peft_config.slices: loralib's MergedLinear cuts {name} into equal parts, but "
                f"here they are {shown} rows (grouped-query attention). Use adapter: peft, whose "
                f"slices may differ, or leave {name} out of target_modules."
            )
        enabled[name] = switched_on(cast("Any", peft.slices), name)
    if not enabled:
        raise AdapterError(
            f"peft_config.slices: {', '.join(targets)} has no slices; only "
            f"{' and '.join(PHI3.fused)} are fused. Add one to target_modules, or leave "
            "slices empty."
        )
    return enabled


def replace_layers(
    model: nn.Module,
    targets: Sequence[str],
    *,
    r: int,
    lora_alpha: float = 1,
    lora_dropout: float = 0.0,
    enable_lora: Mapping[str, Sequence[bool]] | None = None,
    layers: Sequence[int] | None = None,
    merge_weights: bool = False,
) -> list[str]:
    """Put loralib's layers in place of Linear, Embedding and Conv2d modules, weights kept.

    Args:
        model: changed in place.
        targets: ends of module paths, such as `qkv_proj` or `layers.0.mlp.down_proj`.
        enable_lora: for some targets, which equal parts of their output to train (MergedLinear).
        layers: only modules in decoder layers of these numbers.
        merge_weights: loralib's own default is True; see the module's docstring.

    Returns the paths that were replaced. Raises AdapterError for what loralib cannot do.
    """
    replaced = []
    for path, module in list(model.named_modules()):
        target = next((t for t in targets if path == t or path.endswith(f".{t}")), None)
        if target is None or not _in_layers(path, layers):
            continue
        parts = (enable_lora or {}).get(target.rpartition(".")[2])
        if parts is not None and not any(parts):
            continue
        parent, _, name = path.rpartition(".")
        new = to_loralib(
            module,
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            enable_lora=parts,
            merge_weights=merge_weights,
        )
        setattr(model.get_submodule(parent), name, new)
        replaced.append(path)
    if not replaced:
        raise AdapterError(
            f"target_modules: nothing in the model is called {', '.join(targets)}"
            + (f" in layers {list(layers)}." if layers is not None else ".")
        )
    return replaced


def _in_layers(path: str, layers: Sequence[int] | None) -> bool:
    number = re.search(r"\.layers\.(\d+)\.", path)
    return layers is None or (number is not None and int(number.group(1)) in layers)


def to_loralib(
    module: nn.Module,
    *,
    r: int,
    lora_alpha: float = 1,
    lora_dropout: float = 0.0,
    enable_lora: Sequence[bool] | None = None,
    merge_weights: bool = True,
) -> nn.Module:
    """loralib's counterpart of a Linear, Embedding or Conv2d, holding the very same parameters.

    Raises AdapterError for other modules, kernels that are not square, and unequal slices.
    """
    import loralib
    from torch import nn

    options: dict[str, Any] = {
        "r": r,
        "lora_alpha": lora_alpha,
        "merge_weights": merge_weights,
    }
    if isinstance(module, nn.Embedding):
        return _keep(module, _embedding(module, options))
    options["lora_dropout"] = lora_dropout
    if isinstance(module, nn.Linear) and enable_lora is not None:
        return _keep(module, _merged_linear(module, enable_lora, options))
    if isinstance(module, nn.Linear):
        sizes = module.in_features, module.out_features
        return _keep(module, loralib.Linear(*sizes, **_like(module), **options))
    if isinstance(module, nn.Conv2d):
        return _keep(module, _convolution(module, options))
    raise AdapterError(
        f"loralib has layers for Linear, Embedding and Conv2d, none for {type(module).__name__}."
    )


def _like(module: Any) -> dict[str, Any]:
    """Constructor options that make a layer of the same kind, on the same device."""
    like = {"device": module.weight.device, "dtype": module.weight.dtype}
    return like | {"bias": module.bias is not None} if hasattr(module, "bias") else like


def _embedding(module: nn.Embedding, options: dict[str, Any]) -> nn.Module:
    import loralib

    return loralib.Embedding(
        module.num_embeddings,
        module.embedding_dim,
        padding_idx=module.padding_idx,
        max_norm=module.max_norm,
        norm_type=module.norm_type,
        scale_grad_by_freq=module.scale_grad_by_freq,
        sparse=module.sparse,
        **_like(module),
        **options,
    )


def _merged_linear(
    module: nn.Linear, enable_lora: Sequence[bool], options: dict[str, Any]
) -> nn.Module:
    import loralib

    if module.out_features % len(enable_lora):
        raise AdapterError(
            f"enable_lora: {module.out_features} rows cannot be cut into {len(enable_lora)} equal "
            "parts, and loralib knows no others. Use peft_config.slices with adapter: peft."
        )
    return loralib.MergedLinear(
        module.in_features,
        module.out_features,
        enable_lora=[bool(part) for part in enable_lora],
        **_like(module),
        **options,
    )


def _convolution(module: nn.Conv2d, options: dict[str, Any]) -> nn.Module:
    import loralib

    height, width = module.kernel_size
    if height != width:
        raise AdapterError(
            f"loralib's Conv2d takes square kernels, got {height}×{width}. Leave this layer out."
        )
    return loralib.Conv2d(
        module.in_channels,
        module.out_channels,
        height,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        padding_mode=module.padding_mode,
        **_like(module),
        **options,
    )


def _keep(old: Any, new: Any) -> nn.Module:
    """The new layer with the old one's weight, bias and mode; the weight is frozen."""
    holder = new.conv if hasattr(new, "conv") else new  # a Conv2d keeps its weights one below
    holder.weight = old.weight
    if getattr(old, "bias", None) is not None:
        holder.bias = old.bias
    old.weight.requires_grad_(False)
    new.training = old.training  # not .train(): that would merge or unmerge
    return new


# Checkpoints


@dataclass(frozen=True)
class Sizes:
    """Of a checkpoint with LoRA entries alone beside one of the whole model, in bytes."""

    lora: int
    full: int


@dataclass(frozen=True)
class LoadReport:
    """What a load with `strict=False` passes over in silence: names on one side only."""

    missing: list[str]
    unexpected: list[str]

    @property
    def complete(self) -> bool:
        """Whether everything found its place."""
        return not self.missing and not self.unexpected


def loralib_entries(model: nn.Module, bias: Bias = "none") -> dict[str, torch.Tensor]:
    """`lora_state_dict`: the LoRA entries, and biases by the mode. Refused while merged."""
    import loralib

    refuse_merged(model, "saved")
    entries = loralib.lora_state_dict(model, bias)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in entries.items()}


def save_loralib(model: nn.Module, file: Path, bias: Bias = "none") -> Sizes:
    """Write the LoRA entries as loralib's users do, with `torch.save`."""
    import torch

    entries = loralib_entries(model, bias)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(entries, file)
    full = {id(tensor): tensor for tensor in model.parameters()}.values()
    return Sizes(_bytes(entries.values()), _bytes(full))


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def read_loralib(file: Path) -> dict[str, torch.Tensor]:
    """The entries of a loralib checkpoint. Tensors only: no pickled code is ever run.

    Raises AdapterError when the file is missing, damaged, or holds something else.
    """
    import torch

    try:
        entries = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise AdapterError(f"{file.name} is not there: expected a loralib checkpoint.") from None
    except UNREADABLE as error:
        # torch would advise to read it all the same, with whatever code it holds.
        pickled = isinstance(error, pickle.UnpicklingError)
        reason = "it holds other objects" if pickled else "it is damaged, or no checkpoint"
        raise AdapterError(
            f"{file.name} cannot be read as tensors alone ({reason}). Save it anew as "
            "torch.save(lora.lora_state_dict(model), FILE)."
        ) from None
    if not isinstance(entries, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in entries.items()
    ):
        raise AdapterError(
            f"{file.name} is no loralib checkpoint: expected names and tensors, as "
            "torch.save(lora.lora_state_dict(model), FILE) writes them."
        )
    return entries


def load_in_two_steps(
    model: nn.Module, pretrained: Mapping[str, torch.Tensor] | None, lora_file: Path
) -> LoadReport:
    """Load the pretrained weights first, then the LoRA entries, and say what found no place.

    Args:
        model: with loralib's layers, not merged.
        pretrained: the plain model's weights by their plain names; None if they are in place.
        lora_file: a loralib checkpoint.

    `missing` are the model's names that neither step gave, `unexpected` those given in vain.
    Raises AdapterError while merged, and for entries of another shape.
    """
    refuse_merged(model, "loaded")
    expected = model.state_dict()
    given = dict(read_loralib(lora_file))
    if pretrained is not None:
        given = _renamed(model, pretrained) | given
    _check_shapes(expected, given)
    model.load_state_dict(given, strict=False)
    needed = {name for name in expected if pretrained is not None or "lora_" in name}
    return LoadReport(sorted(needed - given.keys()), sorted(given.keys() - expected.keys()))


def _renamed(model: nn.Module, pretrained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plain names as loralib has them: its convolutions keep their weights one level below."""
    import loralib

    convolutions = {
        path for path, module in model.named_modules() if isinstance(module, loralib.Conv2d)
    }
    renamed = {}
    for name, tensor in pretrained.items():
        path, _, last = name.rpartition(".")
        renamed[f"{path}.conv.{last}" if path in convolutions else name] = tensor
    return renamed


def _check_shapes(expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    wrong = [
        f"  {name}: expected {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in given.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    if wrong:
        raise AdapterError(
            "The checkpoint does not fit the model; rank, targets or base differ:\n"
            + "\n".join(wrong[:8])
        )


def refuse_merged(model: nn.Module, verb: str) -> None:
    """Raise AdapterError while any of loralib's layers is merged into its weight."""
    merged = [path for path, module in model.named_modules() if getattr(module, "merged", False)]
    if merged:
        raise AdapterError(
            f"Nothing can be {verb} while LoRA is merged into the weights ({merged[0]} and "
            f"{len(merged) - 1} more): it would be lost or applied twice. Call model.train() first."
        )


def _save_entries(
    model: Any, bias: Bias, folder: str | Path, state_dict: Any = None, **_: Any
) -> None:
    """`save_pretrained` for a checkpoint: LoRA entries alone, under the name the Trainer reads."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    entries = loralib_entries(model, bias)
    save_file(entries, Path(folder) / "model.safetensors", metadata={"format": "pt"})
