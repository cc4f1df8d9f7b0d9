"""What a training asks for and this machine lacks: the nearest that works, with a notice.

    training, notices = within_reach(config.training_config, device="cpu", bfloat16=True)

The samples of the guide are written for a GPU with every tracker installed; so the same file
trains anywhere.
"""

from __future__ import annotations

import importlib.util

from phi3lora.config import TrainingConfig

# The package behind each `report_to`; tensorboard's writer comes with torch, its files do not.
TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}


def within_reach(
    training: TrainingConfig, device: str, bfloat16: bool = True
) -> tuple[TrainingConfig, list[str]]:
    """The training with what cannot be had here replaced, and a notice for each replacement.

    Args:
        device: `cpu` or `cuda`.
        bfloat16: whether it computes in bfloat16; GPUs from before 2020 only emulate it.
    """
    changes: dict[str, object] = {}
    notices = []
    tracker = TRACKERS.get(training.report_to)
    if tracker and not _installed(tracker):
        changes["report_to"] = "none"
        notices.append(
            f"training_config.report_to: the package {tracker} is not installed, so nothing is "
            f"reported there (`pip install {tracker}`); the run's own curves are kept."
        )
    if needs_bitsandbytes(training.optim) and not _installed("bitsandbytes"):
        changes["optim"] = "adamw_torch"
        notices.append(
            f"training_config.optim: {training.optim} needs the package bitsandbytes, which is "
            "not installed; adamw_torch is used instead."
        )
    if device == "cpu" and training.fp16:
        changes["fp16"] = False
        notices.append(
            "training_config.fp16: float16 autocast needs a GPU; this CPU trains in the precision "
            "of the weights."
        )
    if device == "cpu" and training.tf32:
        changes["tf32"] = None
        notices.append("training_config.tf32: TF32 needs a GPU; float32 is used.")
    if device == "cuda" and not bfloat16:
        changes |= _before_ampere(training, notices)
    return training.model_copy(update=changes), notices


def _before_ampere(training: TrainingConfig, notices: list[str]) -> dict[str, object]:
    """What a GPU such as a T4 has not: PyTorch would emulate bfloat16, several times slower."""
    changes: dict[str, object] = {}
    if training.bf16:
        changes["bf16"] = None
        notices.append(
            "training_config.bf16: this GPU has no bfloat16; its precision follows the weights, "
            "float16 with scaled gradients."
        )
    if training.tf32:
        changes["tf32"] = None
        notices.append("training_config.tf32: TF32 needs a GPU of 2020 or later; float32 is used.")
    return changes


def _installed(package: str) -> bool:
    """A mere folder of that name, such as the one wandb writes, has no origin."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def needs_bitsandbytes(optimizer: str) -> bool:
    return optimizer.startswith(("paged_", "ademamix", "lion_", "rmsprop_bnb")) or (
        optimizer == "adamw_8bit"
    )
