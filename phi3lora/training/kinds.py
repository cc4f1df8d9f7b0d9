"""Which of TRL's trainers trains by a method, with ours around it.

kind = kind_of("dpo")
trainer = kind.trainer(model=model, args=kind.arguments(...), train_dataset=rows, …)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trl import DPOConfig, KTOConfig, SFTConfig

from phi3lora.training.fast.trainer import FastTrainer
from phi3lora.training.preferences import FastDPOTrainer, FastKTOTrainer


@dataclass(frozen=True)
class Kind:
    """What trains by a method: the trainer, and the class of its arguments."""

    trainer: Any
    arguments: Any


def kind_of(method: str) -> Kind:
    """The trainer of a method, and the class of its arguments."""
    if method == "orpo":
        from phi3lora.training import orpo  # TRL's is experimental, and says so when it is imported

        return Kind(orpo.FastORPOTrainer, orpo.ORPOConfig)
    if method == "grpo":
        from phi3lora.training import grpo  # with what it takes to generate

        return Kind(grpo.FastGRPOTrainer, grpo.GRPOConfig)
    return {
        "sft": Kind(FastTrainer, SFTConfig),
        "dpo": Kind(FastDPOTrainer, DPOConfig),
        "kto": Kind(FastKTOTrainer, KTOConfig),
    }[method]
