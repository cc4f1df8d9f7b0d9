"""How long a training takes on a card that nobody has measured: a figure to plan and pay with.

    tokens_per_second(config, base, hardware)      None for a card that is not in the table
    proof_seconds(config)

Matrix products a token needs, by the card's peak, at the share of it that a training is taken to
reach. A run that was measured on the same machine says better: see `app.launching`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from phi3lora.config import RunConfig
from phi3lora.data.plan import holds_out
from phi3lora.models.base import BaseInfo
from phi3lora.models.hardware import Hardware

SHARE = 0.3  # of the peak: assumed, not measured. The best trainings of this size reach 0.45
ANSWERED = 20.0  # tokens a second of one answer, however many are written beside it
PASSES = 2  # forward, and backward to what was read: twice a weight's two operations


@dataclass(frozen=True)
class Card:
    """A GPU as its data sheet describes it.

    Attributes:
        teraflops: dense 16-bit matrix products a second, summed in float32, in 10¹².
        capability: as CUDA counts generations.
    """

    teraflops: float
    capability: tuple[int, int]


# NVIDIA's data sheets, without sparsity. A longer name is looked for first.
CARDS = {
    "T4": Card(65, (7, 5)),
    "A10": Card(125, (8, 6)),
    "A10G": Card(70, (8, 6)),
    "A100": Card(312, (8, 0)),
    "L4": Card(121, (8, 9)),
    "L40S": Card(362, (8, 9)),
    "H100": Card(989, (9, 0)),
    "H200": Card(989, (9, 0)),
    "RTX PRO 6000": Card(503, (12, 0)),
}


def card_named(name: str) -> Card | None:
    """The card of a name such as `NVIDIA A100-SXM4-80GB`; None for one that is not in the table."""
    words = name.upper().replace("-", " ")
    for known in sorted(CARDS, key=len, reverse=True):
        if f" {known} " in f" {words} ":
            return CARDS[known]
    return None


def tokens_per_second(config: RunConfig, base: BaseInfo, hardware: Hardware) -> float | None:
    """Tokens that the card trains in a second; None for a card that is not known."""
    card = card_named(hardware.name) if hardware.device == "cuda" else None
    if card is None:
        return None
    return SHARE * hardware.share * card.teraflops * 1e12 / operations(config, base)


def operations(config: RunConfig, base: BaseInfo) -> float:
    """Multiplications and additions of a token's forward and backward pass.

    Two for each weight that it is multiplied by: once forward, once for the gradient of what was
    read, once for the weight's own where that is trained, and forward again with checkpointing.
    Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1. Attention itself is left out.
    """
    multiplied = base.parameters - (0 if base.tied else base.vocabulary * base.hidden)
    passes = PASSES + (config.adapter == "none")
    passes += config.training_config.gradient_checkpointing
    return 2.0 * passes * multiplied


def proof_seconds(config: RunConfig) -> float:
    """How long base and tuned take to answer the held-out rows at the end, at most; 0 without."""
    evaluation = config.evaluation
    if not evaluation.enabled or not holds_out(config.data):
        return 0.0
    batches = math.ceil(evaluation.rows / evaluation.batch_size)
    return 2 * batches * evaluation.max_new_tokens / ANSWERED
