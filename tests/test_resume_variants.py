"""Stop and resume is the same as no stop, to the last bit, for every kind of adapter and method."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phi3lora.config import POCKET, RunConfig
from phi3lora.lora.folder import WEIGHTS
from phi3lora.training.trainer import train

PREFERENCES = {"data.path": "example:pirate_preferences"}
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"model.quantization": "nf4"},
    "nf4 slices": {"model.quantization": "nf4", "peft_config.slices": {"k": False}},
    "int8": {"model.quantization": "int8"},
    "loftq": {"model.quantization": "nf4", "peft_config.init_lora_weights": "loftq"},
    "pissa": {"peft_config.init_lora_weights": "pissa"},
    "dora": {"peft_config.use_dora": True},
    "slices": {"peft_config.slices": {"k": False}},
    "loralib": {"adapter": "loralib"},
    "dpo, nf4": {**PREFERENCES, "method": "dpo", "model.quantization": "nf4"},
    "kto, slices": {**PREFERENCES, "method": "kto", "peft_config.slices": {"k": False}},
    "orpo, loralib": {**PREFERENCES, "method": "orpo", "adapter": "loralib"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(tmp_path: Path, kind: str) -> None:
    config = RunConfig().with_values(
        {
            "model.path": POCKET,
            "data.max_rows": 16,
            "data.test_size": 0,
            "peft_config.r": 4,
            "training_config.max_steps": 4,
            "training_config.per_device_train_batch_size": 2,
            "training_config.save_strategy": "steps",
            "training_config.save_steps": 2,
            "training_config.eval_strategy": "no",
            **KINDS[kind],
        }
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    train(config, whole, lambda event: None)
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns("checkpoint-4", "adapter"))
    assert (resumed / "checkpoints" / "checkpoint-2").is_dir()
    train(config, resumed, lambda event: None)
    one, two = (load_file(folder / "adapter" / WEIGHTS) for folder in (whole, resumed))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {tensor.dtype for tensor in one.values()} == {tensor.dtype for tensor in two.values()}
