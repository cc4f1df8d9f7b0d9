"""Methods of training: what each learns from, its own options, and what does not go with it.

    config.method, config.method_config        # "dpo", DPOSection(beta=0.1, …)
    DPOConfig(..., **config.method_config.arguments())

`sft` learns answers. The others learn from preferences: `dpo` and `orpo` from a better and a worse
answer to one prompt, `kto` from answers that are each called good or bad. Their options bear the
names that TRL's DPOConfig, KTOConfig and ORPOConfig use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from phi3lora.errors import Problem
from phi3lora.models.phi3 import HEAD
from phi3lora.options import Section, option

Method = Literal["sft", "dpo", "kto", "orpo"]
# The section of RunConfig that holds a method's own options.
BY_METHOD = {"dpo": "dpo_config", "kto": "kto_config", "orpo": "orpo_config"}
# Methods that learn from preferences, and of those the ones that need a worse answer in each row.
JUDGED = frozenset({"dpo", "kto", "orpo"})
PAIRED = frozenset({"dpo", "orpo"})
# Methods that keep the model near a reference: the base with the adapter off.
REFERRED = frozenset({"dpo", "kto"})
# What an evaluation of the held-out rows measures, as metric_for_best_model may name it.
_REWARDS = ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected")
MEASURED: dict[str, tuple[str, ...]] = {
    "sft": ("loss", "mean_token_accuracy", "entropy"),
    "dpo": (*_REWARDS, "rewards/accuracies"),
    "kto": _REWARDS,
    "orpo": (*_REWARDS, "rewards/accuracies"),
}
_NO_DROPOUT = (
    "Trains without dropout whatever the adapter says, so that the model and its reference are "
    "compared as they are."
)


class DPOSection(Section):
    """Direct preference optimization: arguments of `trl.DPOConfig` by their own names.

    Rafailov et al. 2023, https://arxiv.org/abs/2305.18290.
    """

    beta: float = option(
        0.1,
        "DPO beta",
        "How strongly the model is held near its reference: lower lets it move further.",
        gt=0,
        le=100,
    )
    loss_type: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
    ] = option(
        "sigmoid",
        "DPO loss",
        "How a pair becomes a loss: `sigmoid` is DPO as published, `ipo` and `robust` bear wrong "
        "labels better.",
    )
    label_smoothing: float = option(
        0.0,
        "DPO label smoothing",
        "Share of pairs whose better and worse answer may have changed places, for the losses "
        "`robust` and `exo_pair`.",
        ge=0,
        lt=0.5,
    )
    ld_alpha: float | None = option(
        None,
        "DPO length weight",
        "Weight of the tokens by which one answer is longer than the other (LD-DPO), from 0 to 1. "
        "Empty weighs all alike.",
        ge=0,
        le=1,
    )
    reference: Literal["start", "base"] = option(
        "start",
        "DPO reference",
        "What the model is held near: `start` is how this training begins, `base` the base even "
        "where model.adapter is gone on from.",
        own=True,
    )
    disable_dropout: bool = option(True, "DPO without dropout", _NO_DROPOUT)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `trl.DPOConfig`, which takes a list of losses."""
        return {**super().arguments(), "loss_type": [self.loss_type]}


class KTOSection(Section):
    """Kahneman-Tversky optimization: arguments of `trl.KTOConfig` by their own names.

    Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306.
    """

    beta: float = option(
        0.1,
        "KTO beta",
        "How strongly the model is held near its reference: lower lets it move further.",
        gt=0,
        le=100,
    )
    loss_type: Literal["kto", "apo_zero_unpaired"] = option(
        "kto",
        "KTO loss",
        "How an answer becomes a loss: `kto` as published, or `apo_zero_unpaired`, which needs no "
        "second pass for the distance to the reference.",
    )
    desirable_weight: float = option(
        1.0, "KTO weight of good", "Weight of the loss of good answers.", ge=0, le=1000
    )
    undesirable_weight: float = option(
        1.0,
        "KTO weight of bad",
        "Weight of the loss of bad answers; with few of them, raise it until both kinds weigh "
        "alike.",
        ge=0,
        le=1000,
    )
    disable_dropout: bool = option(True, "KTO without dropout", _NO_DROPOUT)


class ORPOSection(Section):
    """Odds ratio preference optimization: arguments of `trl.experimental.orpo.ORPOConfig`.

    Hong et al. 2024, https://arxiv.org/abs/2403.07691.
    """

    beta: float = option(
        0.1,
        "ORPO beta",
        "Weight of the preference beside learning the better answer itself.",
        gt=0,
        le=100,
    )
    disable_dropout: bool = option(
        True, "ORPO without dropout", "Trains without dropout whatever the adapter says."
    )


def method_conflicts(config: Any) -> Iterator[Problem]:
    """What cannot go with the chosen method, each with the reason."""
    method, training = config.method, config.training_config
    if method == "sft":
        return
    if training.packing:
        message = f"{method} compares whole answers, which packing would lay together; set false."
        yield Problem("training_config.packing", message)
    if training.label_smoothing_factor:
        other = "; use dpo_config.label_smoothing" if method == "dpo" else ""
        message = f"{method} has no such smoothing{other}; set it to 0."
        yield Problem("training_config.label_smoothing_factor", message)
    if method in REFERRED and config.adapter != "peft":
        yield Problem(
            "adapter",
            f"{method} compares the model with itself less its adapter, which takes adapter: peft; "
            "orpo needs no such reference.",
        )
    if method in REFERRED and HEAD in _trained(config.peft_config):
        yield Problem(
            "peft_config.target_modules",
            f"{method} reads the head's own weights; leave {HEAD} out.",
        )
    if config.devices > 1 and config.distributed in ("fsdp2", "zero3"):
        yield Problem(
            "distributed",
            f"{method} reads the head's own weights, which {config.distributed} spreads over the "
            "devices; set it to ddp.",
        )
    dpo = config.dpo_config
    if method == "dpo" and dpo.loss_type == "exo_pair" and dpo.label_smoothing == 0:
        message = "the loss exo_pair needs some smoothing; 0.001 is usual."
        yield Problem("dpo_config.label_smoothing", message)


def _trained(peft: Any) -> list[str]:
    targets = peft.target_modules
    return [targets] if isinstance(targets, str) else list(targets)
