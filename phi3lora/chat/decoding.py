"""Decode many rows at once: one pass over the weights adds a token to each.

    use_rows(model)                         # once, after loading
    row = Row(tokens, patches)
    for ready, logits in advance(model, router, [row]): ...

A row is one column of one conversation. The rows of a pass are laid end to end in a batch of shape
(1, tokens): linear layers see all of them together, attention sees each row alone. So nothing is
padded, rows may have any length, and what a row says does not depend on its neighbours. Rows with
the same adapter lie side by side, which is all the adapter layers need to know (see adapters.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from phi3lora.chat.adapters import Adapter, Router
from phi3lora.chat.rope import choose, settle, use_row_factors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "phi3lora_rows"
GROWTH = 256  # tokens by which a row's cache grows, at least
READ = 512  # tokens of prompts that one pass reads, about


@dataclass(eq=False)
class Row:
    """One column of one conversation: its tokens, and the keys and values of those already read.

    Attributes:
        tokens: the prompt and what was said since.
        adapter: applied to this row; None is the base.
        cached: how many of `tokens` have keys and values.
        store: (layers, 2, key/value heads, capacity, head size); the 2 are keys and values.
        long: whether what is cached was turned with LongRoPE's long factors.
    """

    tokens: list[int]
    adapter: Adapter | None = None
    cached: int = 0
    store: torch.Tensor | None = None
    long: bool = False

    @property
    def pending(self) -> int:
        """Tokens that the model has not read yet."""
        return len(self.tokens) - self.cached

    @property
    def bytes(self) -> int:
        """Bytes of keys and values that are held, used or not."""
        return self.store.nbytes if self.store is not None else 0

    def reserve(self, model: PreTrainedModel, length: int) -> None:
        """Make room for `length` tokens in all; what is cached is kept."""
        capacity = self.store.shape[3] if self.store is not None else 0
        if length <= capacity:
            return
        config = model.config
        size = max(length, capacity * 3 // 2, GROWTH)
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # Zeros: what a mask hides is multiplied by nothing, and garbage may be no number.
        grown = torch.zeros(
            (config.num_hidden_layers, 2, config.num_key_value_heads, size, head),
            dtype=model.dtype,
            device=model.device,
        )
        if self.store is not None:
            grown[:, :, :, : self.cached] = self.store[:, :, :, : self.cached]
        self.store = grown

    def forget(self) -> None:
        """Drop the cache; the tokens are read again when the row goes on."""
        self.store, self.cached = None, 0


class Attending(Protocol):
    """What the model's layers are handed as `rows`: they leave attention to it."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of each row over itself.

        `query` is (1, heads, tokens, head size), `key` and `value` have the key/value heads.
        Returns (1, tokens, heads, head size).
        """


class Pass:
    """What one pass reads: of each row its next tokens, end to end, from `starts` of the batch on.

    Room for them must be reserved. Views of the rows' caches are made here, once for all layers.
    """

    def __init__(self, rows: list[Row], counts: list[int]) -> None:
        self.rows, self.counts = rows, counts
        self.starts = [sum(counts[:index]) for index in range(len(counts))]
        self._new: list[tuple[torch.Tensor, ...]] = []
        self._past: list[tuple[torch.Tensor, ...]] = []
        for row, count in zip(rows, counts, strict=True):
            assert row.store is not None
            end = row.cached + count
            # For each layer (2, key/value heads, tokens, head size).
            self._new.append(row.store[:, :, :, row.cached : end].unbind())
            self._past.append(row.store[:, :, None, :, :end].unbind())

    def spans(self) -> list[tuple[Adapter | None, int]]:
        """(adapter, number of tokens), in the batch's order."""
        return [(row.adapter, count) for row, count in zip(self.rows, self.counts, strict=True)]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """As `Attending` says."""
        both = torch.cat((key, value)).split(self.counts, dim=2)  # (2, key/value heads, new, size)
        queries = query.split(self.counts, dim=2)
        outputs = []
        for place, asked in enumerate(queries):
            self._new[place][layer].copy_(both[place])
            keys, values = self._past[place][layer].unbind()
            outputs.append(_attend_row(asked, keys, values, scale, window).transpose(1, 2))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def use_rows(model: PreTrainedModel) -> None:
    """Let the model attend by rows: afterwards it is for `advance` alone."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    model.set_attn_implementation(ATTENTION)
    use_row_factors(model)


@torch.inference_mode()
def advance(
    model: PreTrainedModel, router: Router, rows: list[Row], budget: int = READ
) -> tuple[list[Row], torch.Tensor]:
    """One pass over the weights: read what is pending, about `budget` tokens at most.

    Returns the rows whose tokens are all read, and the logits of what follows each:
    (rows, vocabulary), float32. The caller appends a token to those; the others are not done
    reading and come again.
    """
    settle(model, rows)
    reading = _allot(model, rows, budget)
    choose(model, reading.rows, reading.counts)
    tokens: list[int] = []
    positions: list[int] = []
    for row, count in zip(reading.rows, reading.counts, strict=True):
        tokens += row.tokens[row.cached : row.cached + count]
        positions += range(row.cached, row.cached + count)
    router.route(reading.spans())
    given = torch.tensor([tokens, positions], device=model.device)  # one copy: each one waits
    hidden = model.model(
        input_ids=given[:1],
        position_ids=given[1:],
        use_cache=False,
        rows=reading,
    ).last_hidden_state  # (1, tokens, hidden)
    ready, last = [], []
    for row, start, count in zip(reading.rows, reading.starts, reading.counts, strict=True):
        row.cached += count
        if not row.pending:
            ready.append(row)
            last.append(start + count - 1)
    if not ready:
        return [], hidden.new_empty((0, model.config.vocab_size), dtype=torch.float32)
    router.route([(row.adapter, 1) for row in ready])
    if len(last) < hidden.shape[1]:
        hidden = hidden[:, last]
    return ready, model.lm_head(hidden)[0].float()


def _allot(model: PreTrainedModel, rows: list[Row], budget: int) -> Pass:
    """What is soon read goes first, with half of what is left of the budget at least.

    A row gets a token at least, so those that speak never wait for those that read.
    """
    chosen: dict[int, int] = {}
    for place, row in enumerate(sorted(rows, key=lambda row: row.pending)):
        share = max(budget // (len(rows) - place), budget // 2, 1)
        chosen[id(row)] = min(row.pending, share)
        budget -= chosen[id(row)]
        row.reserve(model, row.cached + chosen[id(row)])
    # Rows of one adapter lie side by side; the sort is stable, so the rest keeps its order.
    neighbours = sorted(rows, key=lambda row: id(row.adapter))
    return Pass(neighbours, [chosen[id(row)] for row in neighbours])


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    rows: Attending,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface, for a pass over rows."""
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return rows.attend(layer, query, key, value, scaling, sliding_window), None


def _attend_row(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """Causal attention of a row's newest tokens over all of it.

    `query` is (1, heads, new, head size), `keys` and `values` (1, key/value heads, length, head
    size). A token sees itself and, within a sliding window of w, the w - 1 tokens before it.
    """
    _, heads, new, _ = query.shape
    _, kv_heads, length, _ = keys.shape
    if window is not None and length > window + new - 1:  # nothing sees what lies further back
        keys, values = keys[:, :, 1 - window - new :], values[:, :, 1 - window - new :]
        length = window + new - 1
    if new == 1:  # one token sees everything left, and the heads of a group share their keys
        grouped = query.reshape(1, kv_heads, heads // kv_heads, -1)
        return sdpa(grouped, keys, values, scale=scale).reshape(1, heads, 1, -1)
    if heads != kv_heads:
        keys = keys.repeat_interleave(heads // kv_heads, dim=1)
        values = values.repeat_interleave(heads // kv_heads, dim=1)
    if new == length and (window is None or length <= window):
        return sdpa(query, keys, values, is_causal=True, scale=scale)
    mask = torch.ones((new, length), dtype=torch.bool, device=query.device).tril(length - new)
    if window is not None:
        mask = mask.triu(length - new - window + 1)
    return sdpa(query, keys, values, attn_mask=mask, scale=scale)
