"""Methods of training: what each learns from, its own options, and what does not go with it.

    config.method, config.method_config        # "dpo", DPOSection(beta=0.1, …)
    DPOConfig(..., **config.method_config.arguments())

`sft` learns answers. The others learn from preferences: `dpo` and `orpo` from a better and a worse
answer to one prompt, `kto` from answers that are each called good or bad. Their options bear the
names that TRL's DPOConfig, KTOConfig and ORPOConfig use. `grpo` learns from rewards of answers that
the model gives itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from phi3lora.errors import Problem
from phi3lora.models.phi3 import HEAD
from phi3lora.options import Section, option

Method = Literal["sft", "dpo", "kto", "orpo", "grpo"]
# The section of RunConfig that holds a method's own options.
BY_METHOD = {
    "dpo": "dpo_config",
    "kto": "kto_config",
    "orpo": "orpo_config",
    "grpo": "grpo_config",
}
# Methods that learn from preferences, and of those the ones that need a worse answer in each row.
JUDGED = frozenset({"dpo", "kto", "orpo"})
PAIRED = frozenset({"dpo", "orpo"})
# Methods that keep the model near a reference: the base with the adapter off.
REFERRED = frozenset({"dpo", "kto", "grpo"})
# Methods that learn from rewards of the model's own answers.
REWARDED = frozenset({"grpo"})
# What an evaluation of the held-out rows measures, as metric_for_best_model may name it.
_REWARDS = ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected")
MEASURED: dict[str, tuple[str, ...]] = {
    "sft": ("loss", "mean_token_accuracy", "entropy"),
    "dpo": (*_REWARDS, "rewards/accuracies"),
    "kto": _REWARDS,
    "orpo": (*_REWARDS, "rewards/accuracies"),
    "grpo": ("reward",),
}
LONGEST_PATTERN = 300  # characters
PATTERN_MEMORY = 1 << 23  # bytes that a pattern may take; RE2 refuses a larger one
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


class GRPOSection(Section):
    """Group relative policy optimization: arguments of `trl.GRPOConfig`, and what is rewarded.

    Shao et al. 2024, https://arxiv.org/abs/2402.03300.
    """

    exact_reward: float = option(
        1.0,
        "Reward of the exact answer",
        "What an answer earns that is the data's own, letter case and white space aside; 0 rewards "
        "it no more than another.",
        own=True,
        ge=0,
        le=100,
    )
    exact_after: str = option(
        "",
        "Mark before the answer",
        "Text behind which the answer proper stands, such as `####`: what follows the last one is "
        "compared, and an answer without it is not exact. Empty compares whole answers.",
        own=True,
        max_length=100,
    )
    pattern: str = option(
        "",
        "Pattern to reward",
        r"Regular expression (RE2's) that a whole answer must match to earn, such as `\d+ kg\.`; "
        "empty rewards no pattern.",
        own=True,
        max_length=LONGEST_PATTERN,
    )
    pattern_reward: float = option(
        1.0,
        "Reward of the pattern",
        "What an answer earns that matches grpo_config.pattern.",
        own=True,
        ge=0,
        le=100,
    )
    length: int | None = option(
        None,
        "Length to reward",
        "Characters up to which an answer earns the reward of its length; a longer one earns less, "
        "and nothing from twice as many on. Empty rewards no length.",
        own=True,
        ge=1,
        le=100_000,
    )
    length_reward: float = option(
        1.0,
        "Reward of the length",
        "What an answer earns that is no longer than grpo_config.length.",
        own=True,
        ge=0,
        le=100,
    )
    json_reward: float = option(
        0.0,
        "Reward of JSON",
        "What an answer earns that is one valid JSON value and nothing beside it.",
        own=True,
        ge=0,
        le=100,
    )
    function: str | None = option(
        None,
        "Function that rewards",
        "Python function of your own that gives each answer a number, as `FILE.py:NAME`. It runs "
        "on your own machine alone, never on a Space.",
        own=True,
        max_length=4096,
    )
    function_reward: float = option(
        1.0,
        "Weight of the function",
        "Number by which what grpo_config.function returns is multiplied.",
        own=True,
        ge=0,
        le=100,
    )
    num_generations: int = option(
        4,
        "Answers to a prompt",
        "Answers that the model gives to each prompt and that are compared with each other. The "
        "rows behind an update are answers, and must be a multiple of it.",
        ge=2,
        le=1024,
    )
    max_completion_length: int = option(
        128, "Answer length", "Longest answer in training, in tokens.", ge=1, le=8192
    )
    temperature: float = option(
        1.0,
        "Sampling temperature",
        "How freely answers are drawn in training: higher finds more, and more nonsense.",
        gt=0,
        le=10,
    )
    top_p: float = option(
        1.0, "Sampling top-p", "Share of the likeliest tokens that are drawn from.", gt=0, le=1
    )
    top_k: int = option(
        0,
        "Sampling top-k",
        "Number of the likeliest tokens that are drawn from; 0 draws from all.",
        ge=0,
        le=1_000_000,
    )
    beta: float = option(
        0.0,
        "GRPO beta",
        "How strongly the model is held near its reference; 0 needs none, and less memory.",
        ge=0,
        le=100,
    )
    epsilon: float = option(
        0.2,
        "GRPO clipping",
        "How far the likelihood of an answer may move in one update before it is cut off.",
        gt=0,
        lt=1,
    )
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = option(
        "dapo",
        "GRPO loss",
        "How the tokens of all answers become one loss: `dapo` and `bnpo` weigh tokens alike, "
        "`grpo` answers, `dr_grpo` by the longest answer that is allowed.",
    )
    scale_rewards: Literal["group", "batch", "none"] = option(
        "group",
        "GRPO scale",
        "Differences of reward are divided by their spread among the answers to one prompt "
        "(`group`), in the whole batch (`batch`), or not at all (`none`).",
    )
    mask_truncated_completions: bool = option(
        False,
        "Leave out cut answers",
        "Learns nothing from answers that reach the longest length without an end.",
    )

    @property
    def rewarded(self) -> list[str]:
        """What earns anything, by name."""
        on = {
            "exact": self.exact_reward > 0,
            "pattern": bool(self.pattern) and self.pattern_reward > 0,
            "length": self.length is not None and self.length_reward > 0,
            "json": self.json_reward > 0,
            "function": self.function is not None and self.function_reward > 0,
        }
        return [name for name, is_on in on.items() if is_on]

    def arguments(self) -> dict[str, Any]:
        """Arguments of `trl.GRPOConfig`; held-out rows are answered once each."""
        weights = [float(getattr(self, f"{name}_reward")) for name in self.rewarded]
        return {**super().arguments(), "reward_weights": weights, "num_generations_eval": 1}


def compiled(pattern: str) -> Any:
    """A regular expression of RE2, which takes linear time on any text.

    Raises ValueError with the reason where it is none, or too large.
    """
    import re2

    options = re2.Options()
    options.log_errors, options.max_mem = False, PATTERN_MEMORY
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        (reason,) = error.args or ("it is none",)
        said = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(said) from None


def has_reference(config: Any) -> bool:
    """Whether the model is held near a reference; GRPO without beta needs none."""
    return config.method in REFERRED and config.beta > 0


def method_conflicts(config: Any) -> Iterator[Problem]:
    """What cannot go with the chosen method, each with the reason."""
    method, training = config.method, config.training_config
    if method == "sft":
        return
    if method == "grpo":
        yield from _grpo_conflicts(config)
    if training.packing:
        message = f"{method} compares whole answers, which packing would lay together; set false."
        yield Problem("training_config.packing", message)
    if training.label_smoothing_factor:
        other = "; use dpo_config.label_smoothing" if method == "dpo" else ""
        message = f"{method} has no such smoothing{other}; set it to 0."
        yield Problem("training_config.label_smoothing_factor", message)
    if has_reference(config) and config.adapter != "peft":
        other = "set grpo_config.beta to 0" if method == "grpo" else "orpo needs no such reference"
        yield Problem(
            "adapter",
            f"{method} compares the model with itself less its adapter, which takes adapter: peft; "
            f"{other}.",
        )
    if method in REFERRED and HEAD in _trained(config.peft_config):
        yield Problem(
            "peft_config.target_modules",
            f"{method} reads the head's own weights; leave {HEAD} out.",
        )
    if config.devices > 1 and config.distributed in ("fsdp2", "zero3") and method != "grpo":
        yield Problem(
            "distributed",
            f"{method} reads the head's own weights, which {config.distributed} spreads over the "
            "devices; set it to ddp.",
        )
    dpo = config.dpo_config
    if method == "dpo" and dpo.loss_type == "exo_pair" and dpo.label_smoothing == 0:
        message = "the loss exo_pair needs some smoothing; 0.001 is usual."
        yield Problem("dpo_config.label_smoothing", message)


def _grpo_conflicts(config: Any) -> Iterator[Problem]:
    """Rewards that cannot be given, and batches that hold no whole groups of answers."""
    grpo, training = config.grpo_config, config.training_config
    if not grpo.rewarded:
        message = "nothing is rewarded; set this, a pattern, a length, JSON or a function."
        yield Problem("grpo_config.exact_reward", message)
    if grpo.pattern:
        try:
            compiled(grpo.pattern)
        except ValueError as reason:
            message = f"expected a regular expression as RE2 has them, got a fault: {reason}."
            yield Problem("grpo_config.pattern", message)
    if grpo.function is not None and not all(grpo.function.rpartition(":")[::2]):
        message = f"expected FILE.py:NAME, got {grpo.function!r}."
        yield Problem("grpo_config.function", message)
    if config.effective_batch % grpo.num_generations:
        yield Problem(
            "grpo_config.num_generations",
            f"an update has {config.effective_batch} answers (batch size × accumulation × devices),"
            f" which groups of {grpo.num_generations} do not fill; make one a multiple of the "
            "other.",
        )
    if training.load_best_model_at_end and training.metric_for_best_model is None:
        message = "grpo's loss says nothing about answers; set it to reward."
        yield Problem("training_config.metric_for_best_model", message)
    if config.devices > 1 and config.distributed != "ddp":
        message = "grpo answers with whole weights on each device; set it to ddp."
        yield Problem("distributed", message)


def _trained(peft: Any) -> list[str]:
    targets = peft.target_modules
    return [targets] if isinstance(targets, str) else list(targets)
