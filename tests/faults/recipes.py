"""Small runs of every kind on the pocket Phi-3, a second or two each."""

from __future__ import annotations

from typing import Any

from phi3lora.config import RunConfig

SMALL: dict[str, Any] = {
    "model.path": "pocket",
    "model.dtype": "float32",
    "model.device": "cpu",
    "data.max_rows": 24,
    "data.test_size": 4,
    "peft_config.r": 4,
    "peft_config.lora_dropout": 0.1,
    "training_config.max_steps": 6,
    "training_config.per_device_train_batch_size": 2,
    "training_config.max_length": 64,
    "training_config.eval_strategy": "steps",
    "training_config.eval_steps": 3,
    "training_config.logging_steps": 1,
    "training_config.save_strategy": "steps",
    "training_config.save_steps": 2,
    "training_config.save_total_limit": 2,
    "evaluation.enabled": False,
    "evaluation.rows": 2,
    "evaluation.max_new_tokens": 3,
}
PAIRS = {"data.path": "example:pirate_preferences", "training_config.max_length": 128}
RECIPES: dict[str, dict[str, Any]] = {
    "LoRA": {"evaluation.enabled": True},
    "QLoRA": {"model.quantization": "nf4"},
    "slices": {"peft_config.slices": {"k": False}},
    "loralib": {"adapter": "loralib"},
    "all weights": {"adapter": "none"},
    "packing": {"training_config.packing": True},
    "LoRA+": {"training_config.loraplus_lr_ratio": 4.0},
    "best at the end": {
        "training_config.load_best_model_at_end": True,
        "training_config.eval_steps": 2,
    },
    "DPO": {"method": "dpo", **PAIRS},
    "KTO": {"method": "kto", **PAIRS},
    "ORPO": {"method": "orpo", **PAIRS},
    "GRPO": {
        "method": "grpo",
        "data.path": "example:sums",
        "training_config.per_device_train_batch_size": 8,
        "grpo_config.num_generations": 4,
        "grpo_config.max_completion_length": 8,
        "grpo_config.length": 10,
        "grpo_config.temperature": 2.0,
    },
}


def config(recipe: str, **changes: Any) -> RunConfig:
    """The run of that kind."""
    return RunConfig().with_values({**SMALL, "title": recipe, **RECIPES[recipe], **changes})
