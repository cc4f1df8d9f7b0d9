"""The loss at supervised positions alone, without the logits ever being whole in memory.

    sums = sum_loss(hidden, head.weight, labels)
    loss = sums.loss / sums.supervised

Plain cross-entropy builds (tokens, vocabulary) logits, several times over. Here a chunk of
positions goes through the head at a time, and a few of its rows through the sums: products like
many rows, sums like what stays in a cache. The products keep the model's precision, the sums are
in float32, and the gradient with respect to the hidden states is computed while the
chunk is at hand, so the head is multiplied twice in all instead of three times. A frozen head gets
no gradient. Entropy and token accuracy fall out of the same pass.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phi3lora.training.fast.attention import compute_dtype
from phi3lora.training.processes import spreads_weights

IGNORED = -100
# Logits that are multiplied at once, and those of them that are summed at once: of a vocabulary of
# 32,064 on a CPU 523 rows, and 32. On a GPU there is no such cache, and launches cost.
CHUNK = {"cpu": (2**24, 2**20), "cuda": (2**27, 2**25)}


class Sums(NamedTuple):
    """Sums over the supervised positions of a batch; scalars on its device.

    Attributes:
        loss: negative log-likelihood in nats, float32, with a gradient.
        entropy: of the predicted distributions in nats, without a gradient.
        correct: positions whose most likely token is the label.
        supervised: positions that were summed.
    """

    loss: Tensor
    entropy: Tensor
    correct: Tensor
    supervised: Tensor


def sum_loss(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Sums:
    """Sum the next-token loss where the next token's label is not -100.

    Args:
        hidden: the backbone's last states, (batch, seq, hidden).
        weight: of the language-model head, (vocabulary, hidden).
        labels: (batch, seq), not shifted: `labels[:, t]` is predicted from `hidden[:, t - 1]`.
        bias: of the head, (vocabulary,).
    """
    targets = labels[:, 1:].reshape(-1)
    places = (targets != IGNORED).nonzero().squeeze(1)  # (n,) in the flattened (batch, seq - 1)
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1]).index_select(0, places)  # (n, hidden)
    targets = targets.index_select(0, places)
    states = states.to(compute_dtype(states))
    loss, entropy, correct = _HeadLoss.apply(states, weight, bias, targets)
    return Sums(loss, entropy, correct, torch.tensor(len(targets), device=hidden.device))


def add_supervised_head(model: Any) -> None:
    """Let `model(..., labels=labels, supervised_loss=True)` return `Sums` instead of logits.

    `model` is a causal language model of transformers; without the argument it does what it did.
    It goes through the model's own `forward`, so that autocast and wrappers see it as ever.
    """
    original = model.forward

    # The signature is kept: `generate` and the trainer look at it.
    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, supervised_loss: bool = False, **kwargs: Any) -> Any:
        if not supervised_loss:
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        head = self.get_output_embeddings()  # looked up each time: PEFT may have replaced it
        if spreads_weights():
            return _by_hooks(head, hidden, labels)
        return sum_loss(hidden, head.weight, labels, head.bias)

    model.forward = types.MethodType(forward, model)


def _by_hooks(head: Any, hidden: Tensor, labels: Tensor) -> Sums:
    """The sums in the head's own `__call__`, whose hooks gather weights that are spread."""
    inner = getattr(head, "modules_to_save", {}).get("default", head)  # PEFT's wrapper
    inner.forward = lambda states: sum_loss(states, inner.weight, labels, inner.bias)
    try:
        sums: Sums = inner(hidden)
    finally:
        del inner.forward
    return sums


@contextmanager
def supervised_head(model: Any) -> Iterator[None]:
    """`add_supervised_head` for the block.

    Inside it, accelerate may put its own function around `forward` for the model's whole life.
    What lies below that cannot be taken out, and stays: without its argument it changes nothing.
    """
    mine = "forward" in vars(model)
    before = model.forward
    add_supervised_head(model)
    added = model.forward
    try:
        yield
    finally:
        if model.forward == added:
            if mine:
                model.forward = before
            else:
                del model.forward


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of `states @ weight.T + bias` against `targets`, summed, in chunks."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head = weight.to(states.dtype)  # (vocabulary, hidden)
        grad_states = torch.empty_like(states) if wants_states else None
        grad_weight = _zeros(weight) if wants_weight else None
        grad_bias = _zeros(bias) if bias is not None and wants_bias else None
        sums = torch.zeros(3, dtype=torch.float32, device=states.device)
        chunk = _Chunk(states, len(weight))
        for start in range(0, len(states), chunk.rows):
            part, target = (x[start : start + chunk.rows] for x in (states, targets))
            slope = chunk.slope(part, head, bias, target, sums)
            if grad_states is not None:
                torch.mm(slope, head, out=grad_states[start : start + chunk.rows])
            if grad_weight is not None:
                grad_weight += (slope.t() @ part).float()
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=torch.float32)
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        loss, entropy, correct = sums.unbind()
        ctx.mark_non_differentiable(entropy, correct)
        return loss.clone(), entropy.clone(), correct.clone()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if states is None else states * grad_loss.to(states.dtype),
            None if weight is None else (weight * grad_loss).to(weight_dtype),
            None if bias is None else (bias * grad_loss).to(bias_dtype),
            None,
        )


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.float32)


class _Chunk:
    """Memory for one chunk of logits, used again for the next: fresh pages cost as much as sums."""

    def __init__(self, states: Tensor, vocabulary: int) -> None:
        multiplied, summed = CHUNK.get(states.device.type, CHUNK["cpu"])
        self.rows = max(min(multiplied // vocabulary, len(states)), 1)
        self.few = max(min(summed // vocabulary, self.rows), 1)
        self._logits = states.new_empty(self.rows, vocabulary)
        self._z = states.new_empty(self.few, vocabulary, dtype=torch.float32)
        self._p = torch.empty_like(self._z)

    def slope(
        self, states: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, sums: Tensor
    ) -> Tensor:
        """Add a chunk's loss, entropy and hits to `sums`; return the loss's slope at its logits."""
        logits = self._logits[: len(states)]
        torch.mm(states, head.t(), out=logits)  # (rows, vocabulary)
        if bias is not None:
            logits += bias
        for few, target in zip(logits.split(self.few), targets.split(self.few), strict=True):
            self._replace(few, target, sums)
        return logits

    def _replace(self, logits: Tensor, targets: Tensor, sums: Tensor) -> None:
        """Sum over a few rows of logits, and put the loss's slope in their place.

        With p = softmax(z): loss = logsumexp(z) - z[target], entropy = logsumexp(z) - Σ p·z, and
        d loss / dz = p - onehot(target). logsumexp(z) = max z - log max p, which never overflows.
        """
        z, p = (x[: len(logits)] for x in (self._z, self._p))
        z.copy_(logits)
        place = targets[:, None]
        wanted = z.gather(-1, place)  # (rows, 1)
        z.scatter_(-1, place, -torch.inf)
        rival = z.amax(-1, keepdim=True)  # the best of the others
        z.scatter_(-1, place, wanted)
        torch.softmax(z, -1, out=p)
        top = torch.maximum(wanted, rival)
        log_sum = top - p.amax(-1, keepdim=True).log()
        sums[0] += (log_sum - wanted).sum()
        sums[1] += log_sum.sum() - torch.dot(p.view(-1), z.view(-1))
        sums[2] += (wanted > rival).sum() + _won_ties(z, wanted == rival, place)
        p.scatter_add_(-1, place, torch.full_like(wanted, -1))
        logits.copy_(p)


def _won_ties(z: Tensor, tied: Tensor, place: Tensor) -> Tensor:
    """Of two most likely tokens the first one counts, as in TRL; ties are common in 16 bits."""
    if z.is_cuda:  # finding the rows of ties would wait for the GPU; another pass over z does not
        return (tied & (z.argmax(-1, keepdim=True) == place)).sum()
    rows = tied.squeeze(-1).nonzero().squeeze(-1)
    return (z[rows].argmax(-1) == place[rows, 0]).sum()
