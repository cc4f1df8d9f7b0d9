"""On a GPU: the layers around the matrix products in fewer kernels, with the results they have.

    fuse(model)      # afterwards its norms and its attention are launched in a third of the kernels

A token of one or two rows is so little work that a GPU waits for the next kernel to be launched.
Where transformers takes eight for a norm and twelve for turning queries and keys, these take two
and four, and round where its own do. docs/decisions.md has the counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3Attention, Phi3RMSNorm

from phi3lora.models.phi3 import QKV

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fuse(model: PreTrainedModel) -> None:
    """Replace the forward of norms, attention and angles, on this model alone."""
    rotary: Any = model.model.rotary_emb
    rotary.forward = partial(_angles, rotary.forward)
    for module in model.modules():
        layer: Any = module
        if isinstance(module, Phi3RMSNorm):
            layer.forward = _norm.__get__(module)
        elif isinstance(module, Phi3Attention):
            layer.forward = _attend.__get__(module)


def _norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Phi3RMSNorm: sums in float32, the quotient rounded before it is multiplied by the weight."""
    size = [hidden_states.shape[-1]]
    normal = torch.rms_norm(hidden_states, size, None, self.variance_epsilon)
    return torch.mul(self.weight, normal)


def _angles(
    forward: Callable[..., tuple[torch.Tensor, torch.Tensor]], *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine, and the sine with the minus of the half that changes sides: once for all layers."""
    cos, sin = forward(*args, **kwargs)
    half = sin.shape[-1] // 2
    return cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)


def _attend(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Phi3Attention for `decoding.advance`, whose rows hold the cache."""
    heads, kv_heads = self.config.num_attention_heads, self.num_key_value_heads
    project = getattr(self, QKV)
    qkv = project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
    both, value = qkv.split([heads + kv_heads, kv_heads], dim=1)  # (1, heads, tokens, head size)
    query, key = turned(both, *position_embeddings).split([heads, kv_heads], dim=1)
    attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    out, _ = attend(
        self,
        query,
        key,
        value,
        attention_mask,
        scaling=self.scaling,
        sliding_window=getattr(self.config, "sliding_window", None),
        **kwargs,
    )
    return self.o_proj(out.flatten(-2)), None


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (1, heads, tokens, head size), queries and keys in one.

    As transformers' `x cos + rotate_half(x) sin`, with the minus in the sine (see `_angles`), which
    is exact.
    """
    size = cos.shape[-1]
    part = x[..., :size]
    out = part * cos.unsqueeze(1) + part.roll(size // 2, -1) * sin.unsqueeze(1)
    return out if size == x.shape[-1] else torch.cat((out, x[..., size:]), dim=-1)
