"""Attention document by document on GPUs from before 2020: PyTorch's memory-efficient kernel.

    if is_trusted(blocks, q.device, dim):          # compared with `blocks` once, on the very card
        out = attend(q, k, v, bounds, places, scale, window)

The kernel is CUTLASS's (xformers' once), compiled for every generation, and takes a row of many
documents. `_efficient_attention_forward` has a window, but autograd's formula for it has none
(torch 2.8 to 2.13): its gradients would silently be those of whole documents. So the way back is
called here by hand.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from phi3lora.training.failures import is_out_of_memory

CAUSAL = 1  # from the upper left corner, as the kernel counts its masks
TILE = 128  # queries whose gradient lies together in the kernel's working memory
# The kernel lays every document out as long as the longest. In its way back that takes, for each
# token so laid out, 16 KiB with Phi-3-mini's heads: 256 MiB at most.
LAID_OUT = 2**14
Attend = Callable[[Tensor, Tensor, Tensor, tuple[int, ...], float, int | None], Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """Documents that lie side by side and go through the kernel together.

    Attributes:
        rows: their tokens in the packed row.
        starts: where each begins, counted from the first, and where the last ends: int32.
        longest: tokens of the longest.
    """

    rows: slice
    starts: Tensor
    longest: int


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    places: tuple[int, ...],
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention within documents; (seq, heads, dim) in and out, grouped queries too.

    `bounds` and `places` hold the same numbers, on the device and as numbers: where documents
    begin, and where the last one ends.
    """
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    groups = _GROUPS.get(bounds)
    if groups is None:
        groups = _GROUPS[bounds] = _grouped(bounds, places)
    out: Tensor = _Efficient.apply(q, k, v, groups, scale, window)
    return out


# The layers of a pass, and the passes of checkpointing, are given the very same tensor.
_GROUPS: Any = WeakIdKeyDictionary()


def cuts(places: tuple[int, ...]) -> list[tuple[int, int]]:
    """Which documents go together, as (first, beyond the last): no group is laid out too wide."""
    found, first, longest = [], 0, 0
    for number in range(len(places) - 1):
        length = -(-(places[number + 1] - places[number]) // TILE) * TILE
        wider = max(longest, length)
        if number > first and wider * (number + 1 - first) > LAID_OUT:
            found.append((first, number))
            first, wider = number, length
        longest = wider
    return [*found, (first, len(places) - 1)]


def _grouped(bounds: Tensor, places: tuple[int, ...]) -> tuple[Group, ...]:
    found = []
    for first, end in cuts(places):
        part = places[first : end + 1]
        # A tensor of its own: a view would keep the key of `_GROUPS` alive.
        starts = (bounds[first : end + 1] - bounds[first]).to(torch.int32)
        longest = max(after - before for before, after in itertools.pairwise(part))
        found.append(Group(slice(part[0], part[-1]), starts, longest))
    # What lies behind the last document stays in the row, and is nobody's.
    found[-1] = replace(found[-1], rows=slice(found[-1].rows.start, None))
    return tuple(found)


class _Efficient(torch.autograd.Function):
    """The kernel over each group, forward and back; q, k, v (seq, heads, dim) of equal shape."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        groups: tuple[Group, ...],
        scale: float,
        window: int | None,
    ) -> Tensor:
        outs, sums = [], []
        for group in groups:
            out, logsumexp, seed, offset, *_ = torch.ops.aten._efficient_attention_forward(
                *(x[group.rows][None] for x in (q, k, v)),
                None,
                *_shape(group),
                0.0,
                CAUSAL,
                True,
                scale=scale,
                window_size=_within(window, group),
            )
            outs.append(out[0])
            sums.append(logsumexp)
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        ctx.save_for_backward(q, k, v, out, seed, offset, *sums)  # nothing is drawn with the seed
        ctx.setting = groups, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, seed, offset, *sums = ctx.saved_tensors
        groups, scale, window = ctx.setting
        found = []
        for group, logsumexp in zip(groups, sums, strict=True):
            found.append(
                torch.ops.aten._efficient_attention_backward(
                    *(x[group.rows][None] for x in (grad, q, k, v)),
                    None,
                    out[group.rows][None],
                    *_shape(group),
                    logsumexp,
                    0.0,
                    seed,
                    offset,
                    CAUSAL,
                    False,
                    scale=scale,
                    window_size=_within(window, group),
                )[:3]
            )
        parts = [[x[0] for x in each] for each in zip(*found, strict=True)]
        gradients = [each[0] if len(each) == 1 else torch.cat(each) for each in parts]
        return *gradients, None, None, None


def _shape(group: Group) -> tuple[Tensor, Tensor, int, int]:
    """Queries and keys have the same documents."""
    return group.starts, group.starts, group.longest, group.longest


def _within(window: int | None, group: Group) -> int | None:
    """The window where it hides something; the kernel's includes the token, as transformers'."""
    return window if window is not None and window < group.longest else None


@lru_cache
def is_trusted(blocks: Attend, device: torch.device, dim: int) -> bool:
    """Whether the kernel gives what `blocks` give on this card; told to the log where it does not.

    Asked once for each size of a head. Raises OutOfMemoryError.
    """
    try:
        agree = all(_agrees(blocks, device, dim, window) for window in (None, 37))
    except RuntimeError as error:  # NotImplementedError is one
        if is_out_of_memory(error):
            raise
        logger.warning("PyTorch's memory-efficient attention does not run here: %s", error)
        return False
    if not agree:
        logger.warning("PyTorch's memory-efficient attention differs here; it is not used.")
    return agree


def _agrees(blocks: Attend, device: torch.device, dim: int, window: int | None) -> bool:
    """Values and gradients of documents of 20, 60 and 100 tokens, in two heads."""
    keep = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)  # not a checkpoint's
    with torch.inference_mode(False), torch.enable_grad(), keep:
        # Nothing is drawn, which would move the training's own draws, and nothing is copied there.
        places = (0, 20, 80, 180)
        bounds = torch.arange(4, device=device).square() * 20
        wave = torch.arange(4 * 180 * 2 * dim, device=device, dtype=torch.float32)
        wave = (wave.square() * 1e-3).sin().to(torch.float16).view(4, 180, 2, dim)
        q, k, v = (x.detach().requires_grad_() for x in wave[:3])
        results = []
        for out in (
            attend(q, k, v, bounds, places, dim**-0.5, window),
            blocks(q, k, v, places, dim**-0.5, window),
        ):
            results.append([out, *torch.autograd.grad(out, (q, k, v), wave[3])])
        near = [_near(one, other) for one, other in zip(*results, strict=True)]
        return bool(torch.stack(near).all())


def _near(found: Tensor, wanted: Tensor) -> Tensor:
    """Within a hundredth of its length: float16 has three digits. Of what is no number, not."""
    return (found - wanted).float().norm() < 0.01 * wanted.float().norm()
