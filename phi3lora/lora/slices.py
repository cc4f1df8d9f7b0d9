"""Adapters of their own for q, k, v and gate, up, inside Phi-3's fused projections.

What loralib calls `MergedLinear(enable_lora=[True, False, True])`, as an ordinary PEFT adapter:
one LoRA of rank n·r and alpha n·alpha on the fused layer, n being the slices that are on. Column
block i of B serves slice i alone, so B's gradient is kept where rows and columns belong together:

    qkv_proj, q and v on, rank r:      columns 0…r   r…2r
                                rows q     B_q        0
                                rows k      0         0
                                rows v      0        B_v

B starts at zero, so what is off stays exactly zero under any optimizer whose step is a multiple
of gradients seen so far. Slices need not be equal: grouped-query models have fewer k and v rows.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from phi3lora.config import PeftConfig, SliceConfig
from phi3lora.errors import AdapterError
from phi3lora.models.phi3 import PHI3, Widths

if TYPE_CHECKING:
    import torch
    from torch import nn


class Slice(NamedTuple):
    """Rows of a fused projection's output that belong to one of the projections in it."""

    name: str
    start: int
    stop: int


def slices_of(model: nn.Module) -> dict[str, list[Slice]]:
    """The slices of each fused projection, in the order of their rows."""
    rows = PHI3.slice_rows(Widths.of(model.config))
    return {name: _consecutive(parts) for name, parts in rows.items()}


def _consecutive(rows: dict[str, int]) -> list[Slice]:
    ends = itertools.accumulate(rows.values())
    return [
        Slice(name, end - count, end) for (name, count), end in zip(rows.items(), ends, strict=True)
    ]


def switched_on(slices: SliceConfig, module: str) -> list[bool]:
    """For each slice of a fused projection whether it is trained."""
    return [bool(getattr(slices, name)) for name in PHI3.fused[module]]


def block_mask(slices: list[Slice], enabled: list[bool], rank: int) -> torch.Tensor:
    """Where B may be other than zero: bool, (rows of the projection, enabled slices · rank)."""
    import torch

    on = [part for part, wanted in zip(slices, enabled, strict=True) if wanted]
    mask = torch.zeros(slices[-1].stop, len(on) * rank, dtype=torch.bool, device="cpu")
    for index, part in enumerate(on):
        mask[part.start : part.stop, index * rank : (index + 1) * rank] = True
    return mask


def sliced_arguments(model: nn.Module, peft: PeftConfig, targets: list[str]) -> dict[str, Any]:
    """`target_modules`, `rank_pattern` and `alpha_pattern` that make room for the slices.

    Raises AdapterError when the targets hold no fused projection, or none that is switched on.
    """
    fused = [name for name in targets if _last(name) in PHI3.fused]
    if peft.slices is None or not fused:
        raise AdapterError(
            f"peft_config.slices: {', '.join(targets)} has no slices; only "
            f"{' and '.join(PHI3.fused)} are fused. Add one to target_modules, or leave "
            "slices empty."
        )
    slices = peft.slices
    kept = [
        name
        for name in targets
        if _last(name) not in PHI3.fused or any(switched_on(slices, _last(name)))
    ]
    if not any(_last(name) in PHI3.fused for name in kept):
        raise AdapterError(
            f"peft_config.slices: every slice of {', '.join(fused)} is off. Switch one on, "
            "or take the projection out of target_modules and leave slices empty."
        )
    ranks, alphas = _patterns(model, peft, kept)
    return {"target_modules": kept, "rank_pattern": ranks, "alpha_pattern": alphas}


def _patterns(
    model: nn.Module, peft: PeftConfig, targets: list[str]
) -> tuple[dict[str, int], dict[str, float]]:
    """Rank and alpha of the targets that differ from the config's, with room for the slices.

    The user's own patterns are spelled out module by module: PEFT takes the first key that
    matches, and sorts the keys when it saves.
    """
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    by_path = bool(peft.rank_pattern or peft.alpha_pattern)
    for path, _ in model.named_modules():
        if not any(path == name or path.endswith(f".{name}") for name in targets):
            continue
        count = _slices_on(peft, _last(path))
        # rsLoRA divides by √(n·r), so √n keeps the scale of one slice's alpha / √r.
        factor = math.sqrt(count) if peft.use_rslora else count
        rank = count * _by_pattern(peft.rank_pattern, path, peft.r)
        alpha = factor * _by_pattern(peft.alpha_pattern, path, peft.lora_alpha)
        key = path if by_path else _last(path)
        if rank != peft.r:
            ranks[key] = rank
        if alpha != peft.lora_alpha:
            alphas[key] = alpha
    return ranks, alphas


def _slices_on(peft: PeftConfig, module: str) -> int:
    """How many slices of a module are trained; 1 for one that has none."""
    if peft.slices is None or module not in PHI3.fused:
        return 1
    return sum(switched_on(peft.slices, module))


def _by_pattern(pattern: dict[str, int], path: str, default: int) -> int:
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(list(pattern), path), default)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def keep_slices_apart(model: nn.Module, peft: PeftConfig, adapter: str = "default") -> None:
    """Let gradients of an attached adapter flow inside its slices alone.

    The mask stands beside each B as `slice_mask`, for counting what is really trained. It is
    looked after at every pass, since loading an adapter may put a new parameter in B's place.
    """
    from peft.tuners.lora import LoraLayer

    parts, slices = slices_of(model), peft.slices or SliceConfig()
    shared: dict[tuple[str, int], _Inside] = {}  # the layers share their masks
    masks: list[tuple[nn.Module, nn.Module, _Inside]] = []
    for path, layer in model.named_modules():
        name, module = _last(path), cast("Any", layer)
        if name not in PHI3.fused or not isinstance(layer, LoraLayer):
            continue
        enabled = switched_on(slices, name)
        rank = module.r[adapter] // sum(enabled)
        if peft.init_lora_weights == "gaussian":  # PEFT's spread is 1 / (n·r); a slice's is 1 / r
            module.lora_A[adapter].weight.data *= sum(enabled)
        if (name, rank) not in shared:
            shared[name, rank] = _Inside(block_mask(parts[name], enabled, rank))
        masks.append((cast("Any", layer), module.lora_B[adapter], shared[name, rank]))
    _look_after(masks)
    model.register_forward_pre_hook(lambda *_: _look_after(masks))


def _look_after(masks: list[tuple[nn.Module, nn.Module, _Inside]]) -> None:
    """See that the gradient of each B is kept inside its mask.

    A weight that is spread over several devices is whole, and another one, only while its layer
    is computed: it is looked after there.
    """
    for layer, b, inside in masks:
        weight: Any = b.weight
        if getattr(weight, "slice_mask", None) is not None or not weight.requires_grad:
            continue
        weight.slice_mask = inside.mask
        if hasattr(weight, "full_tensor"):
            layer.register_forward_pre_hook(partial(_look_after_one, (layer, b, inside)))
        else:
            weight.register_hook(inside)


def _look_after_one(mask: tuple[nn.Module, nn.Module, _Inside], *_: Any) -> None:
    _look_after([mask])


class _Inside:
    """The hook of B: its gradient where the mask is, zero elsewhere."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self._outside = ~mask

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        if self._outside.device != gradient.device:  # once: each copy would wait for the GPU
            self._outside = self._outside.to(gradient.device)
        return gradient.masked_fill(self._outside, 0)
