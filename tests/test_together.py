"""Two processes that train one model: the losses of one, one that writes, all stop together."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from phi3lora.config import POCKET, RunConfig
from phi3lora.training.trainer import train
from tests.together import Scenario, trained

BASE: dict[str, Any] = {
    "model.path": POCKET,
    "model.device": "cpu",
    "data.max_rows": 24,
    "data.test_size": 0,
    "peft_config.r": 4,
    "peft_config.lora_dropout": 0,  # each process draws its own
    "training_config.max_steps": 4,
    "training_config.max_length": 96,
    "training_config.logging_steps": 1,
    "training_config.save_strategy": "no",
    "training_config.eval_strategy": "no",
    "training_config.log_level": "error",
}
BATCH = "training_config.per_device_train_batch_size"
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "slices": {"peft_config.slices": {"k": False}},
    "packing": {"training_config.packing": True},
    "accumulation": {"training_config.gradient_accumulation_steps": 3},
    "QLoRA": {"model.quantization": "nf4"},
    "QLoRA, packing, slices": {
        "model.quantization": "nf4",
        "training_config.packing": True,
        "peft_config.slices": {"v": False},
    },
    "all weights": {"adapter": "none", "training_config.learning_rate": 1e-4},
    "loralib": {"adapter": "loralib"},
    "DoRA, checkpointing": {
        "peft_config.use_dora": True,
        "training_config.gradient_checkpointing": True,
    },
    "bfloat16": {"model.dtype": "bfloat16"},
    "QLoRA, bfloat16": {"model.dtype": "bfloat16", "model.quantization": "nf4"},
    "all weights, bfloat16": {"model.dtype": "bfloat16", "adapter": "none", "training_config.learning_rate": 1e-4},
    "TRL's own loss": {"training_config.fast": False},
}
