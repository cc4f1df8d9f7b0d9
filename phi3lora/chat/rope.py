"""LongRoPE row by row: which of its two sets of factors each token of a pass is turned with.

    use_row_factors(model)                  # once, after loading
    settle(model, rows)                     # before a pass: rows that crossed are read anew
    choose(model, rows, counts)             # whose tokens the pass holds

A model with LongRoPE turns every position of a conversation with its short factors up to a length,
and with its long ones past it, the earlier positions too. transformers decides that for the whole
batch; here rows of both kinds share a pass, and a row is what it would be alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Row(Protocol):
    """What is asked of `decoding.Row`."""

    tokens: list[int]
    cached: int
    long: bool


def switch_of(model: PreTrainedModel) -> int | None:
    """Tokens up to which a conversation is turned with the short factors."""
    rope: dict[str, Any] = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return int(rope["original_max_position_embeddings"])


def use_row_factors(model: PreTrainedModel) -> None:
    """Let the model's rotary embedding take factors by token; without LongRoPE nothing changes."""
    switch = switch_of(model)
    if switch is None:
        return
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rotary: Any = model.model.rotary_emb
    short = rotary.original_inv_freq
    find: Any = ROPE_INIT_FUNCTIONS["longrope"]
    long, _ = find(model.config, short.device, seq_len=switch + 1)

    def forward(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, (1, tokens, turned part of a head)."""
        factors = torch.where(rotary.long_tokens[..., None], long, short.to(long))
        angles = position_ids[..., None].float() * factors
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos() * rotary.attention_scaling, both.sin() * rotary.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)

    rotary.forward = forward


def settle(model: PreTrainedModel, rows: Sequence[Row]) -> None:
    """What is cached of a row that has become long, or short, is of no use: it is read anew."""
    switch = switch_of(model)
    if switch is None:
        return
    for row in rows:
        long = len(row.tokens) > switch
        if long != row.long:
            row.long, row.cached = long, 0


def choose(model: PreTrainedModel, rows: Sequence[Row], counts: list[int]) -> None:
    """Say for the next pass which of its tokens belong to long rows."""
    if switch_of(model) is not None:
        long = [row.long for row, count in zip(rows, counts, strict=True) for _ in range(count)]
        rotary: Any = model.model.rotary_emb
        rotary.long_tokens = torch.tensor([long], device=model.device)
