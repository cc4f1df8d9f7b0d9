"""Where on the Train page a field stands: in the open, or in which of its folds.

fold_of("peft_config.r")          "numbers", the id of the fold; empty for what stands in the open
"""

from __future__ import annotations

# The rows of the fold of numbers; they are what the slider stands for, and what goes with them.
NUMBERS = (
    ("peft_config.r", "peft_config.lora_alpha", "training_config.learning_rate"),
    ("training_config.num_train_epochs", "training_config.max_length", "peft_config.lora_dropout"),
    (
        "training_config.per_device_train_batch_size",
        "training_config.gradient_accumulation_steps",
        "training_config.lr_scheduler_type",
    ),
    ("training_config.warmup_steps", "peft_config.target_modules", "training_config.packing"),
)
OPEN = ("title", "model.path", "model.quantization", "data.path", "data.name", "data.split")


def fold_of(field: str) -> str:
    """The id of the fold that holds a field."""
    if field in OPEN:
        return ""
    if any(field in row for row in NUMBERS):
        return "numbers"
    return "reading" if field.startswith("data.") else "options"
