"""Attention over packed rows against a mask that says the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from phi3lora.training.fast import attention
from phi3lora.training.fast.attention import PACKED, packed_attention_forward, register
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


def test_padded_batch_is_masked_as_ever() -> None:
    model, ids = small_base().eval(), torch.tensor([[5, 6, 7, 8], [5, 6, 62, 62]])
    padding = (ids != 62).long()
    expected = model(ids, attention_mask=padding).logits
    register()
    model.config._attn_implementation = PACKED
    got = model(ids, attention_mask=padding).logits
    torch.testing.assert_close(got[padding.bool()], expected[padding.bool()], rtol=0, atol=0)
    assert torch.allclose(got[1, :2], model(ids[1:, :2]).logits[0], atol=1e-5)
