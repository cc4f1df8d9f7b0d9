"""Steps that are replayed, on a CPU: a tape in a CUDA graph's place, and it knows no more than one.

A graph launches the same operations on the same memory, and no line of Python in between. The tape
does just that, so that a step which took anything else from the host would say the wrong tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from phi3lora.chat.adapters import Adapter, Router
from phi3lora.chat.decoding import Row, advance, use_rows
from phi3lora.chat.fused import fuse
from phi3lora.chat.packing import twin
from phi3lora.chat.replay import SETTLED, Replay, Step
from phi3lora.models.phi3 import GATE_UP, QKV
from tests.small import small_base
from tests.test_fused import SHAPES

TOKENS = 30
ASKING = {"_local_scalar_dense", "nonzero", "item", "unique"}  # a graph cannot wait for a value


class Tape(TorchDispatchMode):
    """Records operations with the very tensors they had; `play` does them again."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ASKING
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out

    def play(self) -> None:
        for func, args, kwargs, out in self.done:
            again = tree_leaves(func(*args, **kwargs))
            for old, new in zip(tree_leaves(out), again, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(step: Step) -> Step:
    tape = Tape()
    with tape:
        out = step()

    def again() -> torch.Tensor:
        tape.play()
        return out

    return again


def loaded(changes: dict[str, Any], device: str = "cpu") -> tuple[Any, Router, Adapter]:
    model: Any = small_base(**changes).to(device).eval().requires_grad_(False)
    use_rows(model)
    fuse(model)
    router = Router(model)
    kind = LoraConfig(init_lora_weights=False, target_modules=[QKV, GATE_UP])
    return model, router, router.add(get_peft_model(twin(model), kind), Path(), [])


def said(step: Any, rows: list[Row], tokens: int = TOKENS) -> list[torch.Tensor]:
    """Greedy tokens are added to the rows; the logits of each."""
    found = []
    for _ in range(tokens):
        ready, logits = step(rows)
        found.append(torch.stack([logits[ready.index(row)] for row in rows]).clone())
        for row, token in zip(ready, logits.argmax(-1).tolist(), strict=True):
            row.tokens.append(token)
    return found


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "long"])
def test_replayed_steps_say_what_passes_say(shape: str) -> None:
    model, router, adapter = loaded(SHAPES[shape])

    def prompts() -> list[Row]:
        return [Row([7, 8, 9, 10]), Row([7, 8, 9, 5], adapter), Row([1, 2, 3, 4])]

    usual, ours = prompts(), prompts()
    wanted = said(lambda rows: advance(model, router, rows), usual)
    replay = Replay(model, router, taped)
    found = said(replay.advance, ours)
    assert replay.replayed == 3 * (TOKENS - 1 - SETTLED)
    assert [row.tokens for row in ours] == [row.tokens for row in usual]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert [row.cached for row in ours] == [row.cached for row in usual]


def test_a_row_that_becomes_long_is_read_anew_and_goes_on() -> None:
    changes = {**SHAPES["long"], "original_max_position_embeddings": 14}
    changes["rope_parameters"] = {
        **changes["rope_parameters"],
        "original_max_position_embeddings": 14,
    }
    model, router, adapter = loaded(changes)
    usual, ours = ([Row([7, 8, 9]), Row([7, 8, 5], adapter)] for _ in range(2))
    said(lambda rows: advance(model, router, rows), usual)
    replay = Replay(model, router, taped)
    said(replay.advance, ours)
    assert [row.tokens for row in ours] == [row.tokens for row in usual]
    assert replay.replayed >= 2 * 10, "before and after"


def test_a_graph_ends_with_its_rows_and_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3lora.chat.decoding.GROWTH", 16)
    model, router, adapter = loaded({})
    replay = Replay(model, router, taped)
    usual, ours = ([Row([7, 8, 9]), Row([7, 8, 5], adapter)] for _ in range(2))
    stores = []
    for _ in range(TOKENS):  # caches grow on the way
        said(lambda rows: advance(model, router, rows), usual, 1)
        said(replay.advance, ours, 1)
        stores.append(ours[0].store)
    assert len({id(store) for store in stores}) >= 2
    assert [row.tokens for row in ours] == [row.tokens for row in usual]
    before = replay.replayed
    # One column has ended; then another question joins.
    joined = Row([3, 4])
    said(lambda rows: advance(model, router, rows), usual[1:], 9)
    said(replay.advance, ours[1:], 9)
    said(replay.advance, [ours[1], joined], 9)
    said(lambda rows: advance(model, router, rows), usual[1:], 9)
    assert ours[1].tokens == usual[1].tokens
    assert replay.replayed > before
    replay.forget()
    assert replay._fixed is None, "nothing holds the rows' caches"


def test_a_graph_that_fails_or_lies_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    model, router, adapter = loaded({})

    def refused(step: Step) -> Step:
        raise RuntimeError("operation not permitted when stream is capturing")

    def stale(step: Step) -> Step:
        wrong = step() * 2
        return lambda: wrong

    for record in (refused, stale):
        usual, ours = ([Row([7, 8, 9]), Row([7, 8, 5], adapter)] for _ in range(2))
        wanted = said(lambda rows: advance(model, router, rows), usual)
        replay = Replay(model, router, record)
        found = said(replay.advance, ours)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert (replay.works, replay.replayed) == (False, 0)
    said_why = [record.message for record in caplog.records if record.name.startswith("phi3lora")]
    assert "not permitted" in said_why[0]
    assert "answers otherwise" in said_why[1]
