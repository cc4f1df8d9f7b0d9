"""Attention over packed rows, document by document, with no mask over the whole row.

    register()                                        # once; then
    model.config._attn_implementation = PACKED

A packed row holds several documents that must not see each other. The usual way is a mask of
(row, row), of which nearly all is wasted; here each document is multiplied with itself alone. On a
CPU that is a loop over blocks of queries, small enough to stay in its caches; on a GPU it is
FlashAttention, or in float16 before 2020 PyTorch's memory-efficient kernel (see `efficient`). What
has no document lengths (a padded batch, a cache) goes to transformers' own `sdpa`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from phi3lora.training.fast import efficient

PACKED = "phi3lora_packed"
BLOCK = 256  # queries at a time: their scores against one document stay in a core's cache


def register() -> None:
    """Make `PACKED` a name that transformers knows."""
    AttentionInterface.register(PACKED, packed_attention_forward)
    AttentionMaskInterface.register(PACKED, _mask)


@contextmanager
def packed_attention(base: Any) -> Iterator[None]:
    """A Phi-3 attends document by document inside the block."""
    register()
    before = base.config._attn_implementation
    base.config._attn_implementation = PACKED
    try:
        yield
    finally:
        base.config._attn_implementation = before


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for packed rows, which come without a padding mask; as `sdpa` for all else."""
    padding = kwargs.get("attention_mask")
    packed = padding is None and kwargs["q_length"] == kwargs["kv_length"]
    return None if packed else sdpa_mask(*args, **kwargs)


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: (1, heads, seq, dim) in, (1, seq, heads, dim) out.

    `cu_seq_lens_q` holds where documents begin and the last one ends: (documents + 1,).
    """
    whole = cu_seq_lens_q is not None and attention_mask is None and query.shape[0] == 1
    if not whole or dropout:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    assert cu_seq_lens_q is not None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = compute_dtype(query)
    q, k, v = (
        x.squeeze(0).transpose(0, 1).to(dtype) for x in (query, key, value)
    )  # (seq, heads, dim)
    if _has_kernel(q):
        out = _by_kernel(q, k, v, cu_seq_lens_q, max_length_q, scale, sliding_window)
    elif _is_older(q) and efficient.is_trusted(by_blocks, q.device, q.shape[-1]):
        places = _on_host(cu_seq_lens_q)
        out = efficient.attend(q, k, v, cu_seq_lens_q, places, scale, sliding_window)
    else:
        out = by_blocks(q, k, v, _on_host(cu_seq_lens_q), scale, sliding_window)
    return out[None], None


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which precision x is multiplied: autocast's where it is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _on_host(bounds: Tensor) -> tuple[int, ...]:
    """Where documents begin, as numbers: asked of a GPU once a batch, and not in every layer."""
    found: tuple[int, ...] | None = _BOUNDS.get(bounds)
    if found is None:
        found = _BOUNDS[bounds] = tuple(bounds.tolist())
    return found


# The layers of a pass, and the passes of checkpointing, are given the very same tensor.
_BOUNDS: Any = WeakIdKeyDictionary()


def _has_kernel(query: Tensor) -> bool:
    """Whether PyTorch's variable-length kernel runs here: a GPU of 2020 or later, 16 bits."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _is_older(query: Tensor) -> bool:
    """Whether the kernel for GPUs from before 2020 is the one to ask; they have no bfloat16."""
    return (
        query.is_cuda
        and query.dtype == torch.float16
        and torch.cuda.get_device_capability(query.device) < (8, 0)
    )


def _by_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    longest: int | None,
    scale: float,
    window: int | None,
) -> Tensor:
    """FlashAttention over all documents at once; (seq, heads, dim) in and out."""
    longest = int(bounds.diff().max()) if longest is None else int(longest)
    bounds = bounds.to(torch.int32)
    # Not `varlen_attn` above it, which has neither window nor grouped queries before torch 2.12.
    # Flash counts the tokens to the left of the query; transformers' window includes it.
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        0.0,
        False,
        False,
        scale=scale,
        window_size_left=-1 if window is None else window - 1,
        window_size_right=0,
    )[0]
    return out


def by_blocks(
    q: Tensor, k: Tensor, v: Tensor, bounds: tuple[int, ...], scale: float, window: int | None
) -> Tensor:
    """On any device: blocks of queries, one after another; (seq, heads, dim) in and out."""
    out: Tensor = _PackedAttention.apply(q, k, v, bounds, scale, window)
    return out


class _PackedAttention(torch.autograd.Function):
    """Causal attention within documents; (seq, heads, dim) in and out, grouped queries too.

    Nothing but the inputs is kept for the way back: scores are computed again, block by block, so
    memory grows with tokens and not with their square.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bounds: tuple[int, ...],
        scale: float,
        window: int | None,
    ) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for rows, keys in blocks(bounds, window):
            queries = _by_groups(q[rows], k.shape[1])
            part_k, part_v = (_by_groups(x[keys], k.shape[1]) for x in (k, v))
            p = _weights(queries, part_k, rows, keys, scale, window)  # (kv heads, groups · n, m)
            out[rows] = _merge_groups(torch.bmm(p, part_v), q.shape[1])
        ctx.save_for_backward(q, k, v, out)
        ctx.setting = bounds, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        bounds, scale, window = ctx.setting
        grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
        # d softmax: dS = P · (dP − Σ dP·P), and the sum equals that of dO·O.
        spread = (grad.float() * out).sum(-1, keepdim=True).neg_().to(q.dtype)  # (seq, heads, 1)
        for rows, keys in blocks(bounds, window):
            queries, g, less = (_by_groups(x[rows], k.shape[1]) for x in (q, grad, spread))
            part_k, part_v = (_by_groups(x[keys], k.shape[1]) for x in (k, v))
            p = _weights(queries, part_k, rows, keys, scale, window)
            grad_v[keys] += torch.bmm(p.transpose(1, 2), g).transpose(0, 1)
            slope = torch.baddbmm(less, g, part_v.transpose(1, 2)).mul_(p)
            grad_q[rows] = _merge_groups(torch.bmm(slope, part_k), q.shape[1])
            grad_k[keys] += torch.bmm(slope.transpose(1, 2), queries).transpose(0, 1)
        return grad_q.mul_(scale), grad_k.mul_(scale), grad_v, None, None, None


def blocks(bounds: tuple[int, ...], window: int | None) -> list[tuple[slice, slice]]:
    """Queries and the keys that they may see, document by document, `BLOCK` queries at a time."""
    found = []
    for begin, end in itertools.pairwise(bounds):
        for first in range(begin, end, BLOCK):
            last = min(first + BLOCK, end)
            oldest = begin if window is None else max(begin, first - window + 1)
            found.append((slice(first, last), slice(oldest, last)))
    return found


def _weights(
    q: Tensor, k: Tensor, rows: slice, keys: slice, scale: float, window: int | None
) -> Tensor:
    """softmax(scale · q kᵀ) with what lies ahead masked; (kv heads, groups · n, m).

    What is hidden lies in the last n of the m keys, and behind a window in the first n: the rest
    needs no mask.
    """
    n, m = rows.stop - rows.start, keys.stop - keys.start
    scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    by_query = scores.view(len(scores), -1, n, m)  # (kv heads, groups, n, m)
    by_query[..., m - n :] += _ahead(n, q.dtype, q.device)
    if window is not None and m > window:
        first = min(n, m)
        by_query[..., :first] += _behind(n, first, m - n - window, q.dtype, q.device)
    return torch.softmax(scores, -1)  # summed in float32 whatever comes out


@lru_cache(maxsize=BLOCK)
def _ahead(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where one of n tokens may not look at a later one, else 0; (n, n)."""
    return torch.full((n, n), -torch.inf, dtype=dtype, device=device).triu_(1)


@lru_cache(maxsize=BLOCK)
def _behind(n: int, first: int, beyond: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where a key has fallen out of the window, else 0; (n, first).

    Query i lies i + beyond tokens further from key j than the window reaches, less j.
    """
    hidden = torch.ones((n, first), dtype=torch.bool, device=device).tril_(beyond)
    return torch.zeros((n, first), dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


def _by_groups(x: Tensor, kv_heads: int) -> Tensor:
    """(n, heads, dim) → (kv heads, groups · n, dim): queries beside the keys that they share."""
    n, heads, dim = x.shape
    # Laid out anew once, where each product would do it for itself.
    x = x.view(n, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)
    return x.reshape(kv_heads, -1, dim).contiguous()


def _merge_groups(x: Tensor, heads: int) -> Tensor:
    """The way back: (kv heads, groups · n, dim) → (n, heads, dim)."""
    kv_heads, rows, dim = x.shape
    groups = heads // kv_heads
    return x.view(kv_heads, groups, rows // groups, dim).permute(2, 0, 1, 3).reshape(-1, heads, dim)
