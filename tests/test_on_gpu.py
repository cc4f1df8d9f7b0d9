"""On a real GPU: the kernels that are taken there give what the CPU's way gives. `make gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from phi3lora.chat.decoding import Row, advance
from phi3lora.chat.replay import SETTLED, Replay
from phi3lora.config import RunConfig
from phi3lora.training.fast import attention, efficient, layers
from phi3lora.training.trainer import train
from tests.test_replay import TOKENS, loaded, said

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here: `make gpu`"),
]
BOUNDS = (0, 5, 300, 301, 640)  # documents of 5, 295, 1 and 339 tokens


def reference(q: Any, k: Any, v: Any, scale: float, window: int | None) -> torch.Tensor:
    """One mask over the whole row, in float32; (seq, heads, dim)."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    q, k, v = (x.float().transpose(0, 1) for x in (q, k, v))
    place = torch.arange(q.shape[1], device=q.device)
    document = sum((place >= bound).long() for bound in BOUNDS[1:-1])
    past = place[:, None] - place
    hidden = (past < 0) | (document[:, None] != document)
    if window is not None:
        hidden |= past >= window
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


SHAPES = [
    (32, 32, 96, 2047, torch.bfloat16),  # Phi-3-mini
    (32, 32, 96, 100, torch.bfloat16),
    (40, 10, 128, None, torch.bfloat16),  # Phi-3-medium
    (8, 4, 64, 50, torch.float16),
]


@pytest.mark.parametrize("way", ["kernel", "efficient", "blocks"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "window", "dtype"), SHAPES)
def test_attention_gives_what_a_mask_gives(
    way: str, heads: int, kv_heads: int, dim: int, window: int | None, dtype: torch.dtype
) -> None:
    if way == "kernel" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention needs a GPU of 2020 or later")
    if (
        way == "efficient"
        and dtype != torch.float16
        and torch.cuda.get_device_capability() < (8, 0)
    ):
        pytest.skip("such a GPU has no bfloat16")
    torch.manual_seed(0)

    def made(count: int) -> torch.Tensor:
        shape = (BOUNDS[-1], count, dim)
        return torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)

    q, k, v, grad = made(heads), made(kv_heads), made(kv_heads), made(heads).detach()
    bounds = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda")
    scale = dim**-0.5
    if way == "kernel":
        out = attention._by_kernel(q, k, v, bounds, 339, scale, window)
    elif way == "efficient":
        assert efficient.is_trusted(attention.by_blocks, q.device, dim)
        out = efficient.attend(q, k, v, bounds, BOUNDS, scale, window)
    else:
        out = attention._PackedAttention.apply(q, k, v, BOUNDS, scale, window)
    expected = reference(q, k, v, scale, window)
    found = [out, *torch.autograd.grad(out, (q, k, v), grad)]
    wanted = [expected, *torch.autograd.grad(expected, (q, k, v), grad.float())]
    for one, other in zip(found, wanted, strict=True):
        assert float((one.float() - other.float()).norm() / other.float().norm()) < 0.01


def test_fused_norm_gives_what_the_layers_norm_gives() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3072, device="cuda", requires_grad=True)
    weight, grad = torch.randn(3072, device="cuda"), torch.randn(64, 3072, device="cuda")
    results = []
    for norm in (layers._FusedNorm, layers._Norm):
        out = norm.apply(x, weight, 1e-5)
        results.append([out, *torch.autograd.grad(out, x, grad)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_dropout_drops_its_share_and_its_gradient_knows_which() -> None:
    torch.manual_seed(0)
    x = torch.ones(512, 512, device="cuda", requires_grad=True)
    a = torch.eye(512, device="cuda")
    b = torch.eye(512, device="cuda")
    nothing = torch.zeros(512, 512, device="cuda")
    out = layers._LoraLinear.apply(x, a, b, lambda dtype: nothing.to(dtype), None, 1.0, 0.25)
    kept = out != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 4 / 3))
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, kept.float() * 4 / 3)


def test_a_recorded_step_says_what_passes_say() -> None:
    """The chat's CUDA graph, for base and tuned of one question."""
    model, router, adapter = loaded({}, "cuda")
    usual, ours = ([Row([7, 8, 9, 10]), Row([7, 8, 9, 5], adapter)] for _ in range(2))
    wanted = said(lambda rows: advance(model, router, rows), usual)
    replay = Replay(model, router)
    found = said(replay.advance, ours)
    assert replay.works
    assert replay.replayed == 2 * (TOKENS - 1 - SETTLED)
    assert [row.tokens for row in ours] == [row.tokens for row in usual]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_run_learns(tmp_path: Path) -> None:
    """From rows to adapter, in the precision that this card has."""
    events: list[Any] = []
    chosen = RunConfig().with_values(
        {
            "model.path": "pocket",
            "data.max_rows": 200,
            "training_config.max_steps": 30,
            "training_config.learning_rate": 3e-3,
            "training_config.logging_steps": 1,
            "training_config.per_device_train_batch_size": 8,
            "training_config.eval_strategy": "no",
            "training_config.save_strategy": "no",
        }
    )
    assert train(chosen, tmp_path, events.append) == "finished"
    loaded = next(event for event in events if event.kind == "loaded")
    assert loaded.device == "cuda"
    losses = [event.loss for event in events if getattr(event, "loss", None) is not None]
    assert losses[-1] < losses[0] - 1
