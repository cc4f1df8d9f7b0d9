"""Log-probabilities of answers alone: what learning from preferences asks of a model.

    with answer_head(base):
        out = base(input_ids=…, attention_mask=…, labels=…, fused_lm_head=True)
        out.log_probs                                                     # (batch, seq - 1)

TRL's own head does the same call: it reads padded rows, and on a CPU multiplies the head for every
position. Here the rows of a batch lie end to end, without padding, and only positions whose next
token has a label meet the vocabulary.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from phi3lora.training.fast.attention import PACKED, compute_dtype
from phi3lora.training.fast.loss import CHUNK, IGNORED


@contextmanager
def answer_head(base: Any, temperature: float = 1.0) -> Iterator[None]:
    """Answer `fused_lm_head=True` in the block; any other call goes where it went."""
    mine, original = "forward" in vars(base), base.forward

    # The signature is kept: `generate` and the trainer look at it.
    @functools.wraps(type(base).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kwargs)
        return answer_log_probs(self, *args, temperature=temperature, **kwargs)

    added = base.forward = types.MethodType(forward, base)
    try:
        yield
    finally:
        if base.forward is added:  # else accelerate has put its own around it, for good
            if mine:
                base.forward = original
            else:
                del base.forward


def answer_log_probs(
    base: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    **kwargs: Any,
) -> FusedCausalLMOutput:
    """What TRL's fused head gives: figures of each labelled next token, zero elsewhere.

    Args:
        base: a causal language model of transformers with a head that is not trained.
        input_ids, attention_mask: (batch, seq), padded on either side.
        labels: (batch, seq), -100 where no next token is asked for.
        temperature: by which logits are divided, as the answers were drawn.
    """
    hidden = _states(base, input_ids, attention_mask, kwargs)  # (batch · seq, hidden)
    wanted = labels[:, 1:] != IGNORED  # (batch, seq - 1)
    places = torch.nn.functional.pad(wanted, (0, 1)).flatten().nonzero().squeeze(1)
    states, targets = hidden.index_select(0, places), labels.flatten().index_select(0, places + 1)
    head = base.get_output_embeddings()
    states = states.to(compute_dtype(states))
    figures = _LogProbs.apply(states, head.weight, head.bias, targets, temperature)
    log_probs, entropy, mean_logits, top = (
        figure.new_zeros(wanted.shape).masked_scatter(wanted, figure) for figure in figures
    )
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / wanted.sum().clamp(min=1),
        log_probs=log_probs,
        entropy=entropy,
        mean_logits=mean_logits,
        is_top1=top.bool(),
        label_mask=wanted,
    )


def _states(base: Any, input_ids: Tensor, mask: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """The backbone's last states, (batch · seq, hidden); zero at padding where it is left out."""
    kwargs = {**kwargs, "use_cache": False}
    if base.config._attn_implementation != PACKED:
        found = base.base_model(input_ids=input_ids, attention_mask=mask, **kwargs)
        return found.last_hidden_state.flatten(0, 1)
    lengths, here = mask.sum(1), mask.flatten().nonzero().squeeze(1)
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    hidden = base.base_model(
        input_ids=input_ids.flatten().index_select(0, here)[None],
        position_ids=(mask.cumsum(1) - 1).flatten().index_select(0, here)[None],
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=longest,
        max_length_k=longest,
        **kwargs,
    ).last_hidden_state[0]  # (tokens, hidden)
    whole = hidden.new_zeros(mask.numel(), hidden.shape[-1])
    return whole.index_copy(0, here, hidden)


class _LogProbs(torch.autograd.Function):
    """log softmax((states @ weight.T + bias) / t) at each target, with three figures beside it.

    states (n, hidden), weight (vocabulary, hidden), targets (n) → four of (n): log-probability in
    nats, entropy, mean logit, and whether the target is the first choice. Only the states get a
    gradient: d log p / dz = (onehot(target) - p) / t, computed while the logits are at hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
    ) -> tuple[Tensor, ...]:
        head = weight.to(states.dtype)
        grad = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        figures = torch.empty(4, len(states), dtype=torch.float32, device=states.device)
        size = max(CHUNK.get(states.device.type, CHUNK["cpu"])[1] // len(weight), 1)
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits = states[part] @ head.t()  # (rows, vocabulary)
            logits = (logits if bias is None else logits + bias).float()
            if temperature != 1:
                logits /= temperature
            slope = _figures(logits, targets[part], figures[:, part])
            if grad is not None:
                if temperature != 1:
                    slope /= temperature
                torch.mm(slope.to(states.dtype), head, out=grad[part])
        ctx.save_for_backward(grad)
        found = figures.unbind()
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (states,) = ctx.saved_tensors
        return (
            states * grad[:, None].to(states.dtype) if states is not None else None,
            *[None] * 4,
        )


def _figures(logits: Tensor, targets: Tensor, into: Tensor) -> Tensor:
    """Write the four figures of a few rows; return the slope of the log-probability."""
    place = targets[:, None]
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    into[0] = log_p.gather(-1, place).squeeze(-1)
    into[1] = -(p * log_p).sum(-1)
    into[2] = logits.mean(-1)
    into[3] = logits.argmax(-1) == targets
    return p.neg_().scatter_add_(-1, place, torch.ones_like(place, dtype=p.dtype))
