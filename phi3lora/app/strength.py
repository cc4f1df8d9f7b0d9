"""How much to train, as one choice from gentle to strong: it stands for four numbers.

values = values_of(config, 3)         {"training_config.num_train_epochs": 3, …}
level_of(config.with_values(values))  3; None where the numbers are one's own
"""

from __future__ import annotations

from typing import Any

from phi3lora.config import POCKET, RunConfig

NAMES = ("gentle", "light", "usual", "firm", "strong")
# Epochs, rank, and the share of the usual learning rate, from gentle to strong. Alpha is twice the
# rank. Few epochs and a low rate keep what the base can do; a high rank takes in more that is new.
LEVELS = ((1, 8, 0.5), (1, 16, 0.5), (3, 16, 1.0), (4, 32, 1.0), (6, 64, 1.0))
POCKET_LEVELS = ((2, 8, 0.5), (3, 8, 1.0), (5, 16, 1.0), (8, 32, 1.0), (12, 64, 1.0))
# Usual peak rates: of an adapter (QLoRA, Dettmers et al. 2023, table 9), of one of the pocket
# model, which is small, and of all weights.
RATE, POCKET_RATE, WHOLE_RATE = 2e-4, 1e-3, 2e-5


def values_of(config: RunConfig, level: int) -> dict[str, Any]:
    """The options that a level sets for this config's base, by dotted name.

    Args:
        level: 1 (gentle) to 5 (strong).
    """
    pocket, whole = config.model.path == POCKET, config.adapter == "none"
    epochs, rank, share = (POCKET_LEVELS if pocket else LEVELS)[level - 1]
    rate = WHOLE_RATE if whole else POCKET_RATE if pocket else RATE
    return {
        "training_config.num_train_epochs": float(epochs),
        "training_config.learning_rate": rate * share,
        "peft_config.r": rank,
        "peft_config.lora_alpha": 2 * rank,
    }


def level_of(config: RunConfig) -> int | None:
    """The level that these numbers are; None where they are none, or a number of steps rules."""
    training, peft = config.training_config, config.peft_config
    if training.max_steps > 0:
        return None
    mine = {
        "training_config.num_train_epochs": training.num_train_epochs,
        "training_config.learning_rate": training.learning_rate,
        "peft_config.r": peft.r,
        "peft_config.lora_alpha": peft.lora_alpha,
    }
    levels = range(1, len(NAMES) + 1)
    return next((level for level in levels if values_of(config, level) == mine), None)
