"""Attention over packed rows against a mask that says the same."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch.nn import functional

from phi3lora.training.fast import attention, efficient
from phi3lora.training.fast.attention import PACKED, packed_attention_forward, register
from tests.fake_cuda.efficient import on_a_cpu
from tests.small import small_base

DIM = 8


def states(heads: int, kv_heads: int, tokens: int) -> list[torch.Tensor]:
    """q, k, v: (1, heads, tokens, 8) as a model gives them, with gradients."""
    torch.manual_seed(0)
    shapes = [(1, tokens, n, DIM) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(s).requires_grad_() for s in shapes]


def masked(q, k, v, lengths: list[int], window: int | None) -> torch.Tensor:
    """The same by one mask over the whole row; (1, tokens, heads, dim)."""
    size = sum(lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    past = torch.arange(size)[:, None] - torch.arange(size)
    allowed = (document[:, None] == document) & (past >= 0)
    if window is not None:
        allowed &= past < window
    parts = [x.transpose(1, 2) for x in (q, k, v)]
    out = functional.scaled_dot_product_attention(*parts, attn_mask=allowed, enable_gqa=True)
    return out.transpose(1, 2)


def packed(q, k, v, lengths: list[int], window: int | None) -> torch.Tensor:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    parts = [x.transpose(1, 2) for x in (q, k, v)]
    module = torch.nn.Module()
    out, _ = packed_attention_forward(
        module, *parts, None, scaling=DIM**-0.5, sliding_window=window, cu_seq_lens_q=bounds
    )
    return out


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("lengths", [[1, 5, 2], [9], [20, 1, 1, 13]])
def test_values_and_gradients_equal_a_mask(
    lengths: list[int],
    heads: tuple[int, int],
    window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "BLOCK", 7)  # documents of 9, 13 and 20 are cut in blocks
    inputs = states(*heads, sum(lengths))
    weight = torch.randn(1, sum(lengths), heads[0], DIM)
    results = []
    for attend in (packed, masked):
        out = attend(*inputs, lengths, window)
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_documents_never_see_each_other() -> None:
    q, k, v = states(4, 2, 12)
    before = packed(q, k, v, [5, 7], None)
    with torch.no_grad():
        for x in (q, k, v):
            x[:, :5] += 100.0
    after = packed(q, k, v, [5, 7], None)
    assert torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.equal(before[:, :5], after[:, :5])


def test_model_on_a_packed_row_equals_the_model_on_each_document() -> None:
    model = small_base().eval()
    documents = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]
    alone = [model(torch.tensor([ids])).logits[0] for ids in documents]
    register()
    model.config._attn_implementation = PACKED
    lengths = torch.tensor([0, *map(len, documents)]).cumsum(0)
    row = model(
        input_ids=torch.tensor([[*itertools.chain(*documents)]]),
        position_ids=torch.cat([torch.arange(len(ids)) for ids in documents])[None],
        cu_seq_lens_q=lengths,
    ).logits[0]
    torch.testing.assert_close(row, torch.cat(alone), rtol=1e-5, atol=1e-5)


# Of torch 2.10.0, the lowest that is admitted: ATen/ops/_flash_attention_forward_ops.h.
LOWEST = (
    "aten::_flash_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? cum_seq_q, "
    "Tensor? cum_seq_k, SymInt max_q, SymInt max_k, float dropout_p, bool is_causal, "
    "bool return_debug_mask, *, float? scale=None, SymInt? window_size_left=None, "
    "SymInt? window_size_right=None, Tensor? seqused_k=None, Tensor? alibi_slopes=None) -> "
    "(Tensor output, Tensor softmax_logsumexp, Tensor rng_state, Tensor unused, "
    "Tensor debug_attn_mask)"
)


@pytest.mark.parametrize("window", [None, 7])
def test_the_kernel_is_called_as_the_lowest_torch_has_it(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def kernel(*args: Any, **kwargs: Any) -> Any:
        called.append((args, kwargs))
        return (args[0],)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", kernel)
    q, bounds = torch.zeros(9, 2, 8), torch.tensor([0, 4, 9])
    attention._by_kernel(q, q, q, bounds, 5, 0.5, window)
    ((args, kwargs),) = called
    arguments = torch._C.parse_schema(LOWEST).arguments
    assert len(args) == sum(not argument.kwarg_only for argument in arguments)
    assert kwargs.keys() <= {argument.name for argument in arguments if argument.kwarg_only}
    assert kwargs["window_size_left"] == (-1 if window is None else 6), "the query counts, too"


def test_padded_batch_is_masked_as_ever() -> None:
    model, ids = small_base().eval(), torch.tensor([[5, 6, 7, 8], [5, 6, 62, 62]])
    padding = (ids != 62).long()
    expected = model(ids, attention_mask=padding).logits
    register()
    model.config._attn_implementation = PACKED
    got = model(ids, attention_mask=padding).logits
    torch.testing.assert_close(got[padding.bool()], expected[padding.bool()], rtol=0, atol=0)
    assert torch.allclose(got[1, :2], model(ids[1:, :2]).logits[0], atol=1e-5)


# The kernel of GPUs from before 2020; on a CPU what its source says is computed in its place


def by_efficient(q, k, v, lengths: list[int], window: int | None) -> torch.Tensor:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    places = tuple(bounds.tolist())
    parts = (x.squeeze(0) for x in (q, k, v))
    return efficient.attend(*parts, bounds, places, DIM**-0.5, window)[None]


@pytest.mark.parametrize("laid_out", [efficient.LAID_OUT, 2 * efficient.TILE])
@pytest.mark.parametrize("window", [None, 3, 20])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("lengths", [[9], [1, 5, 2], [20, 1, 1, 13]])
def test_the_older_kernel_equals_a_mask(
    lengths: list[int],
    heads: tuple[int, int],
    window: int | None,
    laid_out: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(efficient, "LAID_OUT", laid_out)
    inputs = states(*heads, sum(lengths))
    weight = torch.randn(1, sum(lengths), heads[0], DIM)
    results = []
    with on_a_cpu() as calls:
        for attend in (by_efficient, masked):
            out = attend(*inputs, lengths, window)
            results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    groups = -(-len(lengths) // 2) if laid_out == 2 * efficient.TILE else 1
    assert calls == ["forward"] * groups + ["backward"] * groups


def test_documents_are_grouped_so_that_little_memory_is_worked_in() -> None:
    assert efficient.cuts((0, 2048, 4096)) == [(0, 2)]
    # One document of 2,048 among short ones would lay each of them out as long as itself.
    lengths = [2048, *[50] * 100, 2048, *[50] * 100]
    places = (0, *itertools.accumulate(lengths))
    found = efficient.cuts(places)
    assert [first for first, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == len(lengths)
    for first, end in found:
        assert (end - first) * max(lengths[first:end]) <= efficient.LAID_OUT
    assert len(found) < 30
    assert efficient.cuts((0, 100_000, 100_001)) == [(0, 1), (1, 2)], "a long one goes alone"


def test_a_kernel_is_used_where_it_gives_what_blocks_give(caplog: pytest.LogCaptureFixture) -> None:
    def trusted() -> bool:
        return efficient.is_trusted.__wrapped__(attention.by_blocks, torch.device("cpu"), DIM)

    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    with on_a_cpu() as calls:
        assert trusted()
    assert torch.equal(torch.get_rng_state(), drawn), "the training's draws are as without it"
    assert calls.count("backward") == 2
    assert caplog.messages == []
    with on_a_cpu(reach=1):
        assert not trusted(), "a window that is one key too wide"
    assert not trusted(), "PyTorch has no such kernel for a CPU"
    assert ["differs" in caplog.messages[0], "does not run" in caplog.messages[1]] == [True, True]


def test_the_first_question_of_a_card_is_asked_in_a_checkpoint() -> None:
    """What the comparison keeps for its own way back is not what the checkpoint keeps."""
    efficient.is_trusted.cache_clear()

    def layer(x: torch.Tensor) -> torch.Tensor:
        assert efficient.is_trusted(attention.by_blocks, x.device, DIM)
        return x * x

    x = torch.ones(3, requires_grad=True)
    with on_a_cpu():
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    efficient.is_trusted.cache_clear()
