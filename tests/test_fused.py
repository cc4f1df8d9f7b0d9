"""The chat's layers for a GPU, on a processor: they say what transformers' own say, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from phi3lora.chat.adapters import Router
from phi3lora.chat.decoding import Row, advance, use_rows
from phi3lora.chat.fused import fuse
from phi3lora.chat.packing import twin
from phi3lora.models.phi3 import GATE_UP, QKV
from tests.small import small_base

LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "window": {"sliding_window": 3},
    "partly turned": {"partial_rotary_factor": 0.5},
    "long": {
        "original_max_position_embeddings": 4,
        "rope_parameters": {
            **LONGROPE,
            "original_max_position_embeddings": 4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
        },
    },
}


def said(fused: bool, dtype: torch.dtype, changes: dict[str, Any]) -> list[torch.Tensor]:
    """Logits of base and tuned, whose prompts differ in length: then of two tokens more."""
    model = small_base(dtype, **changes).eval().requires_grad_(False)
    use_rows(model)
    if fused:
        fuse(model)
    router = Router(model)
    kind = LoraConfig(init_lora_weights=False, target_modules=[QKV, GATE_UP])
    tuned = router.add(get_peft_model(twin(model), kind), Path(), [])
    rows = [Row([7, 8, 9, 10]), Row([7, 8, 9], tuned)]
    found = []
    for _ in range(3):
        ready, logits = advance(model, router, rows)
        found.append(logits)
        for row in ready:
            row.tokens.append(11)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_fewer_kernels_say_the_same(shape: str, dtype: torch.dtype) -> None:
    ours, theirs = (said(fused, dtype, SHAPES[shape]) for fused in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_a_fused_model_alone_is_changed() -> None:
    one, other = small_base(), small_base()
    fuse(one)
    assert "forward" in vars(one.model.norm)
    assert "forward" not in vars(other.model.norm)
