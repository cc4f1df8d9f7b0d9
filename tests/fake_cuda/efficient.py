"""What PyTorch's memory-efficient attention asks for and gives, on the fake device and on a CPU.

    backward(saw, …)         # its gradients' shapes, and the memory that it works in
    with on_a_cpu(): ...     # the op computes there, as its kernel does, from its two headers

PyTorch has no CPU kernel for it, and its own fake of the way back takes other arguments than the
op. The checks are those of `attention.cu` and `attention_backward.cu`; which keys a query sees, and
how sums are laid out, is read in `kernel_forward.h` and `kernel_backward.h` of the installed torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

TILE = 128  # kBlockSizeI of the kernels for heads of 65 to 128, and the columns of a tile
LANES = 32  # rows of the sums are filled up to a multiple
CAUSAL = 1


def checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
) -> None:
    """What the op refuses, of rows of many documents."""
    assert query.dim() == key.dim() == value.dim() == 4
    assert query.shape[0] == 1, "cu_seqlen only supports batch_size=1"
    assert query.shape[2:] == key.shape[2:] == value.shape[2:], (
        "as many heads of keys as of queries"
    )
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    assert query.dtype == key.dtype == value.dtype
    assert bias is None
    for starts in (starts_q, starts_k):
        assert starts.dtype == torch.int32
        assert starts.dim() == 1
        assert starts.is_contiguous()
        assert starts.device == query.device
    assert 0 < longest_q <= query.shape[1]
    assert 0 < longest_k <= key.shape[1]


def backward(
    saw: Callable[[Tensor], None],
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *rest: Any,
    **kwargs: Any,
) -> tuple[Tensor, ...]:
    """The gradients' shapes; `saw` is told of the memory that is held meanwhile."""
    starts_q, starts_k, longest_q, longest_k, sums = rest[:5]
    checked(query, key, value, bias, starts_q, starts_k, longest_q, longest_k)
    documents, heads, size = len(starts_q) - 1, query.shape[2], query.shape[3]
    assert sums.shape == (documents, heads, _up(longest_q, LANES))
    assert grad.shape == out.shape == query.shape
    assert {"scale"} <= kwargs.keys() <= {"scale", "window_size"}
    room = documents * heads * _up(longest_q, TILE) * _up(size, TILE)  # of the queries' gradient
    working = torch.empty(room, dtype=torch.float32, device=query.device)
    saw(working)
    found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)]
    for x in found:
        saw(x)
    del working
    return *found, torch.empty((), device=query.device)


def _up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


@contextmanager
def on_a_cpu(reach: int = 0) -> Iterator[list[str]]:
    """The op and its way back run on a CPU inside; what is yielded names each call.

    Args:
        reach: keys by which the window reaches too far, for a kernel that is wrong.
    """
    calls: list[str] = []
    library = torch.library.Library("aten", "IMPL")

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append("forward")
        return _forward(reach, *args, **kwargs)

    def back(*args: Any, **kwargs: Any) -> Any:
        calls.append("backward")
        return _backward(reach, *args, **kwargs)

    library.impl("_efficient_attention_forward", forward, "CPU")
    library.impl("_efficient_attention_backward", back, "CPU")
    try:
        yield calls
    finally:
        library._destroy()


def _seen(queries: int, keys: int, mask: int, window: int | None) -> Tensor:
    """Which keys a query sees; (queries, keys). A window counts the token itself."""
    apart = torch.arange(queries)[:, None] - torch.arange(keys)
    seen = apart >= 0 if mask == CAUSAL else torch.ones_like(apart, dtype=torch.bool)
    return seen & (apart < window) if window else seen


def _forward(
    reach: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    dropout: float,
    mask: int,
    with_sums: bool = False,
    *,
    scale: float,
    seqlen_k: Tensor | None = None,
    window_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    checked(query, key, value, bias, starts_q, starts_k, longest_q, longest_k)
    assert dropout == 0
    bounds = starts_q.tolist()
    documents, heads = len(bounds) - 1, query.shape[2]
    out = torch.full_like(query, torch.nan)
    sums = torch.full((documents, heads, _up(longest_q, LANES)), torch.inf)
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        assert end - first <= longest_q
        q, k, v = (x[0, first:end].transpose(0, 1).float() for x in (query, key, value))
        seen = _seen(end - first, end - first, mask, window_size and window_size + reach)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        sums[number, :, : end - first] = scores.logsumexp(-1)
        weights = scores.softmax(-1).to(query.dtype).float()
        out[0, first:end] = (weights @ v).transpose(0, 1).to(query.dtype)
    nothing = torch.empty((), dtype=torch.int64)
    return out, sums if with_sums else sums[..., :0], nothing, nothing.clone(), longest_q, longest_k


def _backward(
    reach: int,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    sums: Tensor,
    dropout: float,
    seed: Tensor,
    offset: Tensor,
    mask: int,
    of_bias: bool,
    *,
    scale: float,
    num_splits_key: int | None = None,
    window_size: int | None = None,
    shared_storage_dqdkdv: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checked(query, key, value, bias, starts_q, starts_k, longest_q, longest_k)
    found = [torch.full_like(x, torch.nan) for x in (query, key, value)]
    for number, (first, end) in enumerate(itertools.pairwise(starts_q.tolist())):
        parts = (grad, out, query, key, value)
        g, o, q, k, v = (x[0, first:end].transpose(0, 1).float() for x in parts)
        seen = _seen(end - first, end - first, mask, window_size and window_size + reach)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        weights = (scores - sums[number, :, : end - first, None]).exp()  # (heads, queries, keys)
        slope = weights * (g @ v.transpose(1, 2) - (g * o).sum(-1, keepdim=True)) * scale
        of = (slope @ k, slope.transpose(1, 2) @ q, weights.transpose(1, 2) @ g)
        for whole, part in zip(found, of, strict=True):
            whole[0, first:end] = part.transpose(0, 1).to(whole.dtype)
    return found[0], found[1], found[2], torch.empty(())
