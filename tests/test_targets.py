"""Targets come from the loaded model; what matches nothing is an error that lists what exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import POCKET, PeftConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import attach_adapter
from phi3lora.lora.targets import count_parameters, linear_modules, resolve_targets
from phi3lora.models.loading import load_model
from tests.bases import config_for, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "phi")


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return load_model(config_for(base).model, for_training=False)


def test_modules_with_their_counts_and_widths(model: Any) -> None:
    found = {name: (m.count, m.inputs, m.outputs) for name, m in linear_modules(model).items()}
    assert found == {
        "embed_tokens": (1, 320, 64),
        "o_proj": (2, 64, 64),
        "qkv_proj": (2, 64, 128),
        "gate_up_proj": (2, 64, 256),
        "down_proj": (2, 128, 64),
        "lm_head": (1, 64, 320),
    }


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all-linear", ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
        ("attention", ["o_proj", "qkv_proj"]),
        ("mlp", ["down_proj", "gate_up_proj"]),
        ("embedding", ["embed_tokens"]),
        ("lm_head", ["lm_head"]),
        (["o_proj", "o_proj"], ["o_proj"]),
        (["layers.1.mlp.down_proj"], ["layers.1.mlp.down_proj"]),
    ],
)
def test_presets_and_lists(model: Any, wanted: Any, expected: list[str]) -> None:
    assert resolve_targets(model, PeftConfig(target_modules=wanted)) == expected


@pytest.mark.parametrize(
    ("peft", "words"),
    [
        (
            {"target_modules": ["q_proj", "o_proj"]},
            ["q_proj is named", "q_proj is the slice q of qkv_proj", "peft_config.slices"],
        ),
        ({"target_modules": ["up_proj"]}, ["up_proj is the slice up of gate_up_proj"]),
        ({"target_modules": "attn"}, ["attn is named", "qkv_proj (64 → 128, 2×)", "all-linear"]),
        ({"target_modules": ["qkv_pro"]}, ["Did you mean qkv_proj?"]),
        ({"target_modules": "all-liner"}, ["Did you mean all-linear?"]),
        ({"target_modules": ["layers.7.mlp.down_proj"]}, ["layers.7.mlp.down_proj is named"]),
        ({"target_modules": []}, ["nothing is named"]),
        ({"layers_to_transform": [0, 2]}, ["from 0 to 1, got [2]"]),
        ({"layers_to_transform": []}, ["from 0 to 1, got []"]),
        ({"modules_to_save": ["head"]}, ["has no head", "embed_tokens and lm_head"]),
    ],
)
def test_what_matches_nothing(model: Any, peft: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(AdapterError) as caught:
        resolve_targets(model, PeftConfig(**peft))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("peft", "trainable"),
    [
        # r · (in + out), for each module of two layers
        ({}, 4 * 2 * ((64 + 128) + (64 + 64) + (64 + 256) + (128 + 64))),
        ({"target_modules": "attention"}, 4 * 2 * ((64 + 128) + (64 + 64))),
        ({"target_modules": "embedding"}, 4 * (320 + 64)),
        ({"target_modules": ["o_proj"], "layers_to_transform": [1]}, 4 * (64 + 64)),
        (
            {"target_modules": "attention", "rank_pattern": {"o_proj": 2}},
            2 * (4 * (64 + 128) + 2 * (64 + 64)),
        ),
        # q, k, v with 64, 32, 32 rows: only what lies inside the slices counts
        ({"target_modules": ["qkv_proj"], "slices": {"k": False}}, 2 * 4 * ((64 + 64) + (64 + 32))),
        (
            {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
            4 * 2 * (64 + 64) + 64 * 320,
        ),
    ],
)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_counts(base: Path, peft: dict[str, Any], trainable: int, quantization: str) -> None:
    config = config_for(base, peft, model={"quantization": quantization})
    plain = load_model(config.model, for_training=True)
    _, size = count_parameters(plain)
    counted = count_parameters(attach_adapter(plain, config))
    assert counted == (trainable, size + trainable)


def test_four_bits_count_the_numbers_they_stand_for() -> None:
    exact, small = (
        count_parameters(
            load_model(config_for(POCKET, model={"quantization": q}).model, for_training=False)
        )[1]
        for q in ("none", "nf4")
    )
    assert exact == small
