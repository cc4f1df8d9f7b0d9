"""A token more for the same rows, on a GPU, as one CUDA graph: one launch instead of a thousand.

    replay = Replay(model, router)
    ready, logits = replay.advance(rows)       # as `decoding.advance`, which it calls where it must

A graph launches what it was recorded with: the same kernels, on the same memory. So its step reads
tokens and positions from memory of its own, writes keys and values where the position says, and
attends over the whole of a row's cache behind a mask. Nothing in it asks for a value. Whatever else
comes, a prompt to read, another row, a cache that has grown, goes the usual way, and a new graph is
recorded once the rows have been the same for a while.

A graph is believed after its first answer was that of the usual way. Where recording fails or the
answers differ, it is told to the log and not tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from phi3lora.chat.adapters import Router
from phi3lora.chat.decoding import READ, Row, advance
from phi3lora.chat.rope import choose, settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Step = Callable[[], torch.Tensor]
SETTLED = 4  # tokens of the same rows, after which more of them are expected
WARM = 2  # steps before recording: libraries choose their kernels and take their memory
NEAR = 0.02  # of the logits' length: what another order of sums may change in 16 bits

logger = logging.getLogger(__name__)


def recorded(step: Step) -> Step:
    """The step as a CUDA graph; what it returns is overwritten by the next call."""
    side = torch.cuda.Stream()  # recording does not work on the default stream
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = step()

    def again() -> torch.Tensor:
        graph.replay()
        return out

    return again


class FixedPass:
    """One token of each row, in the same memory every time; what `decoding.Pass` is to one pass.

    Attributes:
        given: tokens and positions, (2, rows), int64.
    """

    def __init__(self, model: PreTrainedModel, rows: list[Row]) -> None:
        self.model, self.rows = model, rows
        self.given = torch.zeros((2, len(rows)), dtype=torch.int64, device=model.device)
        stores = [_store(row) for row in rows]
        self._caches = [store.unbind() for store in stores]  # (2, key/value heads, capacity, size)
        self._places = [torch.arange(store.shape[3], device=model.device) for store in stores]
        self._masks: list[torch.Tensor] | None = None
        choose(model, rows, [1] * len(rows))
        # LongRoPE's, which the next pass replaces in the model: the graph reads it where it lies.
        self._long = getattr(model.model.rotary_emb, "long_tokens", None)

    def read(self) -> None:
        """What each row has to read next: one copy to the device."""
        values = [[row.tokens[row.cached] for row in self.rows], [row.cached for row in self.rows]]
        self.given.copy_(torch.tensor(values))

    def step(self) -> torch.Tensor:
        """Logits of what follows each row, (rows, vocabulary), float32."""
        self._masks = None
        hidden = self.model.model(
            input_ids=self.given[:1],
            position_ids=self.given[1:],
            use_cache=False,
            rows=self,
        ).last_hidden_state  # (1, rows, hidden)
        logits: torch.Tensor = self.model.lm_head(hidden)[0].float()
        return logits

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """As `Pass.attend`, of one token a row."""
        if self._masks is None:  # the same for all layers
            masks = [self._mask(number, window, query.dtype) for number in range(len(self.rows))]
            self._masks = masks
        both = torch.cat((key, value))  # (2, key/value heads, rows, head size)
        heads, kv_heads = query.shape[1], key.shape[1]
        outputs = []
        for number, caches in enumerate(self._caches):
            one = slice(number, number + 1)
            caches[layer].index_copy_(2, self.given[1, one], both[:, :, one])
            keys, values = caches[layer][:, None].unbind()  # (1, key/value heads, capacity, size)
            asked = query[:, :, one].reshape(1, kv_heads, heads // kv_heads, -1)
            found = sdpa(asked, keys, values, attn_mask=self._masks[number], scale=scale)
            outputs.append(found.reshape(1, 1, heads, -1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _mask(self, number: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """-inf where the token may not look: what is not written yet, or out of the window."""
        place = self.given[1, number]
        hidden = self._places[number] > place
        if window is not None:
            hidden |= self._places[number] <= place - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, -torch.inf)[None, None, None]


class Replay:
    """Steps of a model's rows, replayed while the rows stay the same; for one thread.

    Args:
        record: makes of a step what repeats it.

    Attributes:
        works: False once a graph could not be recorded, or said something else.
        replayed: tokens that graphs gave, of all rows together.
    """

    def __init__(
        self, model: PreTrainedModel, router: Router, record: Callable[[Step], Step] = recorded
    ) -> None:
        self._model, self._router, self._record = model, router, record
        self._state: list[tuple[Any, ...]] | None = None
        self._seen = 0  # tokens since the state is what it is
        self._fixed: FixedPass | None = None
        self._again: Step | None = None
        self.works = True
        self.replayed = 0

    @torch.inference_mode()
    def advance(self, rows: list[Row], budget: int = READ) -> tuple[list[Row], torch.Tensor]:
        """As `decoding.advance`. The logits are good until the next call."""
        settle(self._model, rows)
        state = _state(rows)
        if not _same(state, self._state):
            self.forget()
            self._state = state
        if self._fixed is not None and self._again is not None:
            return self._replay(self._fixed, self._again)
        found = advance(self._model, self._router, rows, budget)
        self._seen += 1
        if self.works and state is not None and self._seen == SETTLED:
            self._prepare(*found)
        return found

    def forget(self) -> None:
        """Give up the graph, and with it the caches of its rows."""
        self._state = self._fixed = self._again = None
        self._seen = 0

    def _replay(self, fixed: FixedPass, again: Step) -> tuple[list[Row], torch.Tensor]:
        fixed.read()
        for row in fixed.rows:
            row.cached += 1
        self.replayed += len(fixed.rows)
        return fixed.rows, again()

    def _prepare(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Record a step of these rows, and let it say again what was just said."""
        fixed = FixedPass(self._model, rows)
        self._router.route([(row.adapter, 1) for row in rows])
        written = [_store(row)[..., row.cached - 1, :] for row in rows]
        kept = [part.clone() for part in written]
        for row in rows:  # the last token once more: its keys stand there already
            row.cached -= 1
        try:
            fixed.read()
            again = self._record(fixed.step)
            self.works = bool((again() - logits).norm() <= NEAR * logits.norm())
        except RuntimeError as error:  # PyTorch's, whatever could not be recorded
            self.works = False
            logger.warning("No CUDA graph for the chat: %s", error)
            return
        finally:
            for row, part, before in zip(rows, written, kept, strict=True):
                row.cached += 1
                part.copy_(before)
        if self.works:
            self._fixed, self._again = fixed, again
        else:
            logger.warning("The CUDA graph of the chat answers otherwise; it is not used.")


def _state(rows: list[Row]) -> list[tuple[Any, ...]] | None:
    """What must not change from one token to the next; None where a fixed step would not do."""
    for row in rows:
        room = row.store.shape[3] if row.store is not None else 0
        if row.pending != 1 or row.cached + 1 > room:
            return None
    return [(row, row.adapter, row.store, row.long) for row in rows]


def _same(one: list[tuple[Any, ...]] | None, other: list[tuple[Any, ...]] | None) -> bool:
    """Whether two states are of the very same things."""
    if one is None or other is None or len(one) != len(other):
        return False
    pairs = zip(chain.from_iterable(one), chain.from_iterable(other), strict=True)
    return all(a is b for a, b in pairs)


def _store(row: Row) -> torch.Tensor:
    assert row.store is not None
    return row.store
