"""The loss at supervised positions against plain cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from phi3lora.training.fast import loss as loss_module
from phi3lora.training.fast.loss import add_supervised_head, sum_loss
from tests.small import small_base

VOCABULARY, HIDDEN = 50, 8


def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """States (2, 7, 8), a head's weight (50, 8), labels (2, 7) of which some are -100."""
    torch.manual_seed(seed)
    hidden = torch.randn(2, 7, HIDDEN, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype)
    labels = torch.randint(0, VOCABULARY, (2, 7))
    labels[0, :3] = labels[1, 5:] = -100
    return hidden, weight, labels


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = (hidden[:, :-1] @ weight.t()).float().reshape(-1, VOCABULARY)
    return functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum")


@pytest.fixture(
    params=[(1, 1), (3 * VOCABULARY, 2 * VOCABULARY), (2**24, 2**20)],
    ids=["row by row", "three rows by two", "at once"],
)
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_module.CHUNK, "cpu", request.param)


@pytest.mark.usefixtures("chunks")
def test_loss_and_gradient_equal_cross_entropy() -> None:
    hidden, weight, labels = make()
    sums = sum_loss(hidden, weight, labels)
    (sums.loss / 3).backward()
    ours = hidden.grad
    hidden.grad = None
    expected = plain(hidden, weight, labels)
    (expected / 3).backward()
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert sums.supervised.item() == 4 + 4
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("chunks")
def test_trained_head_gets_its_gradient_and_frozen_head_none() -> None:
    hidden, weight, labels = make()
    bias = torch.randn(VOCABULARY, requires_grad=True)
    sum_loss(hidden, weight, labels, bias).loss.backward()
    assert weight.grad is None
    weight.requires_grad_()
    bias.grad = None
    sum_loss(hidden, weight, labels, bias).loss.backward()
    ours = weight.grad, bias.grad
    weight.grad = bias.grad = None
    logits = (hidden[:, :-1] @ weight.t() + bias).reshape(-1, VOCABULARY)
    functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum").backward()
    torch.testing.assert_close(ours, (weight.grad, bias.grad), rtol=1e-5, atol=1e-6)


def test_entropy_and_accuracy_of_known_distributions() -> None:
    # The head is the identity, so states are logits: even, certain of 1, certain of 2.
    hidden = torch.tensor([[[0.0, 0, 0, 0], [0, 90, 0, 0], [0, 0, 90, 0], [0, 0, 0, 0]]])
    labels = torch.tensor([[-100, 0, 1, 3]])
    sums = sum_loss(hidden, torch.eye(4), labels)
    # even: ln 4 each; the first of equals counts as the choice, and the label is the first.
    assert sums.entropy.item() == pytest.approx(torch.tensor(4.0).log().item(), abs=1e-5)
    assert sums.correct.item() == 2  # the even one by being first, and the one certain of 1
    assert sums.loss.item() == pytest.approx(torch.tensor(4.0).log().item() + 90, rel=1e-6)


def test_a_tie_with_an_earlier_token_is_no_hit() -> None:
    hidden = torch.tensor([[[5.0, 5.0, 0.0], [0.0, 0.0, 0.0]]])
    assert sum_loss(hidden, torch.eye(3), torch.tensor([[-100, 1]])).correct.item() == 0
    assert sum_loss(hidden, torch.eye(3), torch.tensor([[-100, 0]])).correct.item() == 1


def test_huge_logits_stay_finite() -> None:
    hidden = torch.tensor([[[3e4, -3e4], [0.0, 0.0]]], requires_grad=True)
    sums = sum_loss(hidden, torch.eye(2), torch.tensor([[-100, 1]]))
    sums.loss.backward()
    assert sums.loss.item() == pytest.approx(6e4)
    assert torch.isfinite(hidden.grad).all()


def test_batch_without_supervised_tokens_is_zero_with_a_zero_gradient() -> None:
    hidden, weight, labels = make()
    sums = sum_loss(hidden, weight, torch.full_like(labels, -100))
    sums.loss.backward()
    assert (sums.loss.item(), sums.supervised.item(), hidden.grad.abs().sum().item()) == (0, 0, 0)


def test_sixteen_bits_are_summed_in_thirty_two() -> None:
    hidden, weight, labels = make(dtype=torch.bfloat16)
    sums = sum_loss(hidden, weight, labels)
    assert sums.loss.dtype == torch.float32
    assert sums.loss.item() == pytest.approx(plain(hidden, weight, labels).item(), rel=1e-6)


def test_model_still_gives_logits_when_not_asked_for_the_loss() -> None:
    model, ids = small_base(), torch.tensor([[1, 2, 3, 4]])
    before = model(ids).logits
    own_loss = model(ids, labels=ids).loss
    add_supervised_head(model)
    sums = model(input_ids=ids, labels=ids, supervised_loss=True)
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)
    assert (sums.loss / sums.supervised).item() == pytest.approx(own_loss.item(), rel=1e-6)
