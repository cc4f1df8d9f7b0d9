"""RunConfig: everything that defines a run, written once.

Titles, help lines, bounds and choices stand beside each field. The form on the page, the
`--set` options, the YAML check, the table in docs/config.md and the model card are all derived
from here, so a new option is one new field and nothing else.

    config = RunConfig.from_yaml(Path("run.yaml"))
    config = config.with_values({"training_config.learning_rate": 1e-4})
    LoraConfig(**config.peft_config.arguments())
    SFTConfig(output_dir=..., **config.training_config.arguments())

Keys of `training_config` and `peft_config` bear the names that transformers, TRL and PEFT use.
The few that are ours are marked `own` and left out of `arguments()`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError, model_validator
from pydantic.fields import FieldInfo

from phi3lora.arguments import (
    checkpointing_problem,
    optimizer_problem,
    schedule_options,
    schedule_problem,
)
from phi3lora.errors import ConfigError, Problem
from phi3lora.legacy import translate, translate_fields
from phi3lora.methods import (
    BY_METHOD,
    MEASURED,
    DPOSection,
    GRPOSection,
    KTOSection,
    Method,
    ORPOSection,
    method_conflicts,
)
from phi3lora.models.phi3 import GATE_UP, HEAD, PHI3, QKV
from phi3lora.options import Section, option
from phi3lora.problems import merged, problem_of, unknown_name
from phi3lora.strict_yaml import read_typed, read_yaml, shorten, write_yaml

POCKET = "pocket"
PHI3_MINI = "microsoft/Phi-3-mini-4k-instruct"

MODULE_NAME = re.compile(r"[A-Za-z0-9_.]+\Z")
TITLE_CHARACTERS = 100
MOST_PROBLEMS = 50  # that are told at once

SCHEDULERS = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "warmup_stable_decay",
]
# A format is a module of data/formats/: adding one touches that folder alone.
_FORMATS = sorted(p.stem for p in (Path(__file__).parent / "data" / "formats").glob("[!_]*.py"))
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[("auto", *_FORMATS)]
# What an inspection of the data finds, in `data/findings.py`.
FindingName = Literal[
    "duplicates",
    "near_duplicates",
    "held_out",
    "empty",
    "cut",
    "refusals",
    "languages",
    "lengths",
    "personal",
]
OPTIMIZERS = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
]


class ModelConfig(Section):
    """The base, and how it is loaded."""

    path: str = option(
        "auto",
        "Base model",
        "The model to fine-tune: a Hub id, a folder, `pocket` for the bundled little Phi-3, or "
        "`auto`, which is Phi-3-mini where there is a GPU and pocket elsewhere.",
        examples=[POCKET, PHI3_MINI],
        min_length=1,
    )
    revision: str | None = option(
        None,
        "Base revision",
        "Branch, tag or commit of the base model on the Hub. Empty means its main branch.",
    )
    adapter: str | None = option(
        None,
        "Start from",
        "Adapter that training goes on from instead of a new one: a run, a folder, a Hub id, or a "
        "loralib checkpoint (`.pt`). Empty starts a new adapter.",
        min_length=1,
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto",
        "Precision",
        "Data type in which the base model's weights are loaded; `auto` takes the best that this "
        "machine supports.",
    )
    quantization: Literal["none", "nf4", "fp4", "int8"] = option(
        "none",
        "Quantization",
        "Compresses the frozen base model to save memory: `nf4` and `fp4` use 4 bits a weight "
        "(QLoRA), `int8` uses 8. The adapter stays in 16 bits.",
    )
    double_quantization: bool = option(
        True,
        "Double quantization",
        "Also compresses the scale factors of a 4-bit base model, which saves about 0.4 bits a "
        "weight.",
    )
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto",
        "4-bit compute precision",
        "Data type used to multiply by 4-bit weights; `auto` takes the best that this machine "
        "supports.",
    )
    attention: Literal[
        "auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = option(
        "auto",
        "Attention",
        "Implementation of attention that the model uses; `auto` takes the fastest one installed.",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto",
        "Device",
        "Processor that trains: `cpu`, `cuda` for a GPU, or `auto` for a GPU where there is one.",
    )


class SourceConfig(Section):
    """One source of rows, and how many of them are used."""

    path: str = option(
        ...,
        "Dataset",
        "The rows to learn from: a Hub id, a file (JSON, JSONL, CSV, Parquet, Arrow, Excel or "
        "text), a folder of them, or `example:NAME` for a bundled dataset.",
        min_length=1,
    )
    name: str | None = option(
        None, "Configuration", "Which configuration of a Hub dataset to use, if it has several."
    )
    revision: str | None = option(
        None,
        "Dataset revision",
        "Branch, tag or commit of the dataset on the Hub. Empty means its main branch.",
    )
    split: str = option("train", "Split", "Split of a Hub dataset to train on.")
    max_rows: int | None = option(
        None,
        "Row limit",
        "Uses only this many rows, counted from the first. Empty means all rows.",
        ge=1,
    )
    weight: float = option(
        1.0,
        "Weight",
        "How often the rows to train on are used: 1 takes each once, 0.5 a random half of them, "
        "2 each twice.",
        gt=0,
        le=100,
    )
    rows: int | None = option(
        None,
        "Rows drawn",
        "Draws this many rows at random to train on, instead of a weight; where there are fewer, "
        "some are used again.",
        ge=1,
    )
    seed: int = option(42, "Draw seed", "Random seed that decides which rows are drawn.", ge=0)
    leave_out_rows: list[int] = option(
        list,
        "Rows left out",
        "Numbers of rows that are not used, counted from 0, such as `[3, 17]`.",
    )
    edits: dict[NonNegativeInt, dict[str, str]] = option(
        dict,
        "Edited rows",
        "What some cells hold instead, by the number of the row from 0 and the column, such as "
        "`{3: {answer: Better words.}}`. The source stays as it is.",
        examples=[{3: {"completion": "Better words."}}],
        max_length=10_000,
    )
    format: FormatName = option(
        "auto",
        "Format",
        "How a row holds its conversation; `auto` detects it from the columns.",
    )
    columns: dict[str, str] = option(
        dict,
        "Columns",
        "Names the column to read each part from, where detection is wrong, such as "
        "`prompt: Question`.",
        examples=[{"prompt": "Question", "completion": "Answer"}],
    )
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = option(
        dict,
        "Roles",
        "Translates role names in the rows to `system`, `user`, `assistant` or `tool` (what a "
        "tool answered), such as `Bot: assistant`.",
    )


class DataConfig(SourceConfig):
    """The chat data, and how its rows become conversations."""

    path: str = option(
        "example:pirate",
        "Dataset",
        "The rows to learn from: a Hub id, a file (JSON, JSONL, CSV, Parquet, Arrow, Excel or "
        "text), a folder of them, or `example:NAME` for a bundled dataset.",
        min_length=1,
    )
    seed: int = option(
        42,
        "Split seed",
        "Random seed that decides which rows are held out of training, and which are drawn.",
        ge=0,
    )
    test_split: str | None = option(
        None,
        "Held-out split",
        "Split of a Hub dataset to evaluate on. Empty holds out some rows of the training split.",
    )
    test_size: float = option(
        0.1,
        "Held-out share",
        "Rows kept out of training for evaluation: below 1 a share of all rows, from 1 on a "
        "number of rows, 0 for none.",
        ge=0,
    )
    keep_together: bool = option(
        True,
        "Keep near-duplicates together",
        "Holds out rows that are nearly the same together or not at all, so that no held-out row "
        "is known from training.",
    )
    more: list[SourceConfig] = option(
        list,
        "More sources",
        "Further sources to mix in, each with a `path` and, where wanted, its own `weight` or "
        "`rows`, `seed`, `split`, `format` and `columns`.",
        examples=[[{"path": "HuggingFaceH4/no_robots", "weight": 0.5}]],
        max_length=20,
    )
    leave_out: list[FindingName] = option(
        list,
        "Leave out",
        "Kinds of rows that are left out: `duplicates`, `near_duplicates`, `held_out`, `empty`, "
        "`cut`, `refusals`, `languages`, `lengths` and `personal`, as an inspection of the data "
        "finds them.",
        examples=[["duplicates", "empty"]],
    )
    system_prompt: str | None = option(
        None,
        "System prompt",
        "System message put before every conversation that has none of its own.",
    )
    join_turns: bool = option(
        True,
        "Join turns",
        "Join messages of one role that follow each other; off leaves such rows out.",
    )
    threads: Literal["best", "all"] = option(
        "best",
        "Threads",
        "Which paths of a tree of replies to train on: the best-ranked one, or all of them.",
    )
    system_messages: Literal["merge", "drop", "refuse"] = option(
        "merge",
        "System messages",
        "What to do with a system message where the base's chat template has no place for it: "
        "`merge` puts it before the first question, `drop` leaves it out, `refuse` leaves the row "
        "out.",
    )


class SliceConfig(Section):
    """Which parts of the two fused projections get an adapter of their own."""

    q: bool = option(True, "Queries", f"Trains an adapter for the queries in `{QKV}`.")
    k: bool = option(True, "Keys", f"Trains an adapter for the keys in `{QKV}`.")
    v: bool = option(True, "Values", f"Trains an adapter for the values in `{QKV}`.")
    gate: bool = option(True, "Gate", f"Trains an adapter for the gate in `{GATE_UP}`.")
    up: bool = option(True, "Up", f"Trains an adapter for the up projection in `{GATE_UP}`.")


class PeftConfig(Section):
    """The adapter: arguments of `peft.LoraConfig` by their own names."""

    r: int = option(
        16,
        "Rank",
        "Rank of the LoRA update. Higher fits more and needs more memory.",
        ge=1,
        le=1024,
        rule="8 is enough for a style, 16 for most, 64 for many new facts. Doubling it doubles "
        "the adapter.",
    )
    lora_alpha: int = option(
        32,
        "Alpha",
        "Strength of the LoRA update, which is scaled by alpha / rank; twice the rank is usual.",
        ge=1,
        rule="Keep it at twice the rank; change the learning rate rather than this.",
    )
    lora_dropout: float = option(
        0.05,
        "Dropout",
        "Share of the adapter's inputs that is zeroed at random in training, against overfitting.",
        ge=0,
        lt=1,
        rule="0.05 for a few hundred rows, 0 for many thousands.",
    )
    target_modules: str | list[str] = option(
        "all-linear",
        "Targets",
        "Layers that get an adapter: `all-linear`, `attention`, `mlp`, `embedding`, or a list of "
        "module names.",
        examples=[*PHI3.presets, PHI3.presets["attention"]],
    )
    slices: SliceConfig | None = option(
        None,
        "Slices",
        "Trains separate adapters for q, k, v and for gate, up, each on or off. Empty means one "
        "adapter over the whole fused projection.",
        own=True,
    )
    bias: Literal["none", "all", "lora_only"] = option(
        "none",
        "Biases",
        "Bias terms to train beside the adapter. No layer of Phi-3 has one, so this changes "
        "nothing there.",
    )
    modules_to_save: list[str] | None = option(
        None,
        "Modules to save",
        "Modules that are trained in full and saved beside the adapter, such as `lm_head`.",
        examples=[[HEAD]],
    )
    layers_to_transform: list[int] | None = option(
        None,
        "Adapted layers",
        "Numbers of the decoder layers that get an adapter, counted from 0. Empty means all "
        "layers.",
    )
    rank_pattern: dict[str, int] = option(
        dict,
        "Rank pattern",
        "Gives some modules another rank than the rest, such as `down_proj: 32`.",
    )
    alpha_pattern: dict[str, int] = option(
        dict,
        "Alpha pattern",
        "Gives some modules another alpha than the rest, such as `down_proj: 64`.",
    )
    use_dora: bool = option(
        False,
        "DoRA",
        "Trains the magnitude and the direction of each weight separately (DoRA), which is slower "
        "and may fit better at low ranks.",
    )
    use_rslora: bool = option(
        False,
        "rsLoRA",
        "Scales the update by alpha / √rank instead of alpha / rank (rsLoRA), which keeps high "
        "ranks stable.",
    )
    init_lora_weights: bool | Literal["gaussian", "pissa", "pissa_niter_16", "olora", "loftq"] = (
        option(
            True,
            "Initial weights",
            "How the adapter starts: `true` and `gaussian` change nothing at first, `pissa` and "
            "`olora` start from the base's main directions, `loftq` from what 4-bit quantization "
            "lost.",
        )
    )
    task_type: Literal["CAUSAL_LM"] = option(
        "CAUSAL_LM", "Task", "Task of the model for PEFT; Phi-3 continues text."
    )


class TrainingConfig(Section):
    """The training: arguments of `trl.SFTConfig` by their own names."""

    num_train_epochs: float = option(
        3.0,
        "Epochs",
        "How many times the training goes through all rows.",
        gt=0,
        le=1000,
        rule="3 for a few hundred rows, 1 for tens of thousands. Stop where the held-out loss "
        "turns up.",
    )
    max_steps: int = option(
        -1,
        "Steps",
        "Number of updates after which the training ends, whatever the epochs; -1 lets the epochs "
        "decide.",
        ge=-1,
    )
    per_device_train_batch_size: int = option(
        4,
        "Batch size",
        "Rows that one device processes at once in training. Higher needs more memory.",
        ge=1,
        le=4096,
        rule="As many as fit the memory; then accumulate until 16 to 32 rows make an update.",
    )
    gradient_accumulation_steps: int = option(
        1,
        "Accumulation",
        "Batches whose gradients make up one update. It stands in for a larger batch size "
        "without more memory.",
        ge=1,
        le=4096,
        rule="Batch size times accumulation of 16 to 32 suits most data.",
    )
    learning_rate: float = option(
        2e-4,
        "Learning rate",
        "Peak learning rate, reached after warm-up.",
        gt=0,
        le=1,
        rule="0.0002 for most adapters, 0.0001 for a rank of 64 and more. Halve it if the loss "
        "jumps.",
    )
    lr_scheduler_type: SCHEDULERS = option(
        "cosine", "Schedule", "How the learning rate changes after warm-up."
    )
    lr_scheduler_kwargs: dict[str, Any] | None = option(
        None,
        "Schedule options",
        "Extra arguments of the chosen schedule, such as `num_cycles: 2` or `min_lr: 1.0e-6`.",
    )
    warmup_steps: float = option(
        0.1,
        "Warm-up",
        "Updates in which the learning rate rises to its peak; below 1 it is a share of all "
        "updates.",
        ge=0,
        rule="A tenth of all updates is nearly always right.",
    )
    max_length: int = option(
        1024,
        "Length limit",
        "Longest conversation in tokens; what is longer is cut at the end.",
        ge=8,
        le=131072,
        rule="Slightly above the longest row that you want whole; twice as long needs about twice "
        "the memory.",
    )
    packing: bool = option(
        False,
        "Packing",
        "Puts several conversations into one row to waste no computation on padding; none sees "
        "another.",
        rule="On where most rows are much shorter than the length limit; off for a few long ones.",
    )
    optim: OPTIMIZERS = option(
        "adamw_torch",
        "Optimizer",
        "Algorithm that updates the weights; 8-bit and paged ones need less memory and the "
        "package bitsandbytes.",
    )
    optim_args: str | None = option(
        None,
        "Optimizer options",
        "Extra arguments of the optimizer, written as `name=value, name=value`.",
    )
    weight_decay: float = option(
        0.0, "Weight decay", "How strongly trained weights are pulled towards zero.", ge=0
    )
    adam_beta1: float = option(
        0.9, "Adam beta 1", "How slowly Adam's running mean of gradients forgets.", ge=0, lt=1
    )
    adam_beta2: float = option(
        0.999,
        "Adam beta 2",
        "How slowly Adam's running mean of squared gradients forgets.",
        ge=0,
        lt=1,
    )
    adam_epsilon: float = option(
        1e-8,
        "Adam epsilon",
        "Small number added to Adam's divisor to keep the update finite.",
        gt=0,
    )
    max_grad_norm: float = option(
        1.0,
        "Gradient clip",
        "Gradients longer than this norm are shortened to it; 0 means no limit.",
        ge=0,
    )
    label_smoothing_factor: float = option(
        0.0,
        "Label smoothing",
        "Share of the target that is spread over all other tokens; 0 turns it off.",
        ge=0,
        lt=1,
    )
    neftune_noise_alpha: float | None = option(
        None,
        "NEFTune noise",
        "Strength of the noise added to token embeddings in training (NEFTune); 5 is usual, empty "
        "means none.",
        ge=0,
    )
    gradient_checkpointing: bool = option(
        False,
        "Gradient checkpointing",
        "Computes parts of each pass twice instead of storing them: much less memory for about a "
        "third more time.",
    )
    gradient_checkpointing_kwargs: dict[str, Any] | None = option(
        None,
        "Checkpointing options",
        "Extra arguments of gradient checkpointing, such as `use_reentrant: false`.",
    )
    bf16: bool | None = option(
        None,
        "bfloat16 autocast",
        "Computes in bfloat16 whatever the weights are in. Empty lets the precision of the base "
        "decide.",
    )
    fp16: bool = option(
        False,
        "float16 autocast",
        "Computes in float16 whatever the weights are in, for GPUs without bfloat16.",
    )
    tf32: bool | None = option(
        None,
        "TF32",
        "Uses TF32 for float32 products, which is faster on NVIDIA GPUs since 2020. Empty leaves "
        "it to PyTorch.",
    )
    torch_compile: bool = option(
        False,
        "torch.compile",
        "Compiles the model before training, which takes minutes at the start and may pay in long "
        "runs.",
    )
    per_device_eval_batch_size: int = option(
        4, "Evaluation batch", "Rows that one device processes at once in evaluation.", ge=1
    )
    eval_strategy: Literal["no", "steps", "epoch"] = option(
        "epoch",
        "Evaluate",
        "When the loss on held-out rows is measured: after every epoch, every so many steps, or "
        "not at all.",
    )
    eval_steps: float | None = option(
        None,
        "Evaluate every",
        "Updates between two evaluations when evaluating by steps; below 1 a share of all "
        "updates, empty as often as the log.",
        gt=0,
    )
    eval_on_start: bool = option(
        False, "Evaluate first", "Measures the loss on held-out rows before the first update, too."
    )
    logging_strategy: Literal["steps", "epoch"] = option(
        "steps",
        "Log",
        "When the training loss is logged: every so many steps, or after every epoch.",
    )
    logging_steps: float = option(
        5,
        "Log every",
        "Updates between two logged losses when logging by steps; below 1 a share of all updates.",
        gt=0,
    )
    logging_first_step: bool = option(
        True, "Log the first step", "Logs the first update as well, so that the curve starts there."
    )
    log_level: Literal["debug", "info", "warning", "error", "critical", "passive"] = option(
        "info",
        "Log level",
        "Least important messages that the run's log keeps, from `debug` for all to `critical` "
        "for the fewest.",
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = option(
        "none", "Report to", "Experiment tracker that also receives the run's curves."
    )
    save_strategy: Literal["no", "steps", "epoch"] = option(
        "epoch",
        "Save",
        "When a checkpoint is written: after every epoch, every so many steps, or not at all.",
    )
    save_steps: float = option(
        100,
        "Save every",
        "Updates between two checkpoints when saving by steps; below 1 a share of all updates.",
        gt=0,
    )
    save_total_limit: int | None = option(
        2,
        "Checkpoints kept",
        "Number of checkpoints that are kept; older ones are deleted. Empty keeps all.",
        ge=1,
    )
    load_best_model_at_end: bool = option(
        False,
        "Keep the best",
        "Ends with the weights of the checkpoint that scored best on held-out rows, not with the "
        "last ones.",
    )
    metric_for_best_model: str | None = option(
        None,
        "Best checkpoint by",
        "Figure that decides which checkpoint is best. Empty means `eval_loss`.",
    )
    greater_is_better: bool | None = option(
        None,
        "Higher is better",
        "Whether a higher value of that figure is better. Empty means false for a loss and true "
        "for anything else.",
    )
    early_stopping_patience: int | None = option(
        None,
        "Early stopping",
        "Stops the training after this many evaluations without improvement. Empty means never.",
        own=True,
        ge=1,
    )
    sample_answers: int = option(
        0,
        "Sample answers",
        "Shows at each evaluation how the model answers this many held-out prompts by then; 0 asks "
        "none.",
        own=True,
        rule="3 shows whether it learns what you mean long before the curves do; each costs up to "
        "64 tokens at each evaluation.",
        ge=0,
        le=8,
    )
    loraplus_lr_ratio: float | None = option(
        None,
        "LoRA+ ratio",
        "Learning rate of the adapter's B matrices divided by that of its A matrices (LoRA+); 16 "
        "is usual, empty means the same rate.",
        own=True,
        ge=1,
    )
    fast: bool = option(
        True,
        "Fast path",
        "Uses this project's faster loss and attention; off means those of TRL and transformers.",
        own=True,
    )
    seed: int = option(
        42, "Seed", "Random seed of the adapter's initial weights, row order and dropout.", ge=0
    )
    data_seed: int | None = option(
        None,
        "Order seed",
        "Random seed of the row order alone. Empty means the run's seed.",
        ge=0,
    )
    dataloader_num_workers: int = option(
        0,
        "Loader processes",
        "Extra processes that load rows; 0 loads them in the training process.",
        ge=0,
        le=64,
    )
    dataloader_drop_last: bool = option(
        False, "Drop last batch", "Leaves out the last batch of an epoch if it is not full."
    )

    @property
    def order_seed(self) -> int:
        """What the order of the rows depends on."""
        return self.seed if self.data_seed is None else self.data_seed

    def arguments(self) -> dict[str, Any]:
        """Arguments of `trl.SFTConfig`; a schedule that needs an option has one."""
        options = schedule_options(
            self.lr_scheduler_type, self.lr_scheduler_kwargs, max(self.max_steps, 0)
        )
        return {**super().arguments(), "lr_scheduler_kwargs": options}


class EvaluationConfig(Section):
    """The proof at the end of a run: base and tuned on the same held-out rows."""

    enabled: bool = option(
        True,
        "Final evaluation",
        "Scores the base and the tuned model on the same held-out rows when training ends.",
    )
    rows: int = option(
        50,
        "Answered rows",
        "Held-out rows that both models answer in the final evaluation.",
        ge=1,
        le=10_000,
    )
    max_new_tokens: int = option(
        128, "Answer limit", "Longest answer in the final evaluation, in tokens.", ge=1, le=4096
    )
    batch_size: int = option(
        8,
        "Answer batch",
        "Rows that are answered at once in the final evaluation.",
        ge=1,
        le=1024,
    )


class HubConfig(Section):
    """What goes to the Hub while the run goes on, and what becomes of a Space after it."""

    backup: bool = option(
        False,
        "Back up the run",
        "Copies checkpoints and events to a private repository of yours while the run goes on.",
    )
    repo: str | None = option(
        None,
        "Backup repository",
        "Where the backup is kept, as `USER/NAME`. Empty means `USER/phi3lora-RUN`.",
    )
    pause_space: bool = option(
        False,
        "Pause the Space afterwards",
        "Pauses your Space when this run has ended and no other one computes; it then costs "
        "nothing until you restart it. The Space's secret `HF_TOKEN` has to allow that.",
    )


class RunConfig(Section):
    """One training, whole: what is trained on what, how, and what happens with the result."""

    title: str = option(
        "",
        "Title",
        "Name of this run, as lists and the model card show it.",
        max_length=TITLE_CHARACTERS,
    )
    method: Method = option(
        "sft",
        "Method",
        "What is learnt: `sft` learns answers; `dpo`, `orpo` and `kto` learn which answers are "
        "better than others; `grpo` learns from rewards of the model's own answers.",
    )
    adapter: Literal["peft", "loralib", "none"] = option(
        "peft",
        "Adapter layers",
        "What is trained: `peft` and `loralib` train LoRA adapters with the layers of that "
        "library, `none` trains every weight of the base model.",
    )
    devices: int = option(
        1,
        "Devices",
        "Number of GPUs that train this run together. Each takes batches of its own, so an update "
        "covers as many times more rows.",
        ge=1,
        le=1024,
    )
    distributed: Literal["ddp", "fsdp2", "zero2", "zero3"] = option(
        "ddp",
        "Work between devices",
        "How several GPUs share the work: `ddp` keeps the whole model on each, `zero2` spreads the "
        "optimizer, `fsdp2` and `zero3` spread the weights too. Both `zero` need the package "
        "deepspeed.",
    )
    model: ModelConfig = Field(default_factory=ModelConfig, title="Model")
    data: DataConfig = Field(default_factory=DataConfig, title="Data")
    peft_config: PeftConfig = Field(default_factory=PeftConfig, title="Adapter")
    training_config: TrainingConfig = Field(default_factory=TrainingConfig, title="Training")
    dpo_config: DPOSection = Field(default_factory=DPOSection, title="DPO")
    kto_config: KTOSection = Field(default_factory=KTOSection, title="KTO")
    orpo_config: ORPOSection = Field(default_factory=ORPOSection, title="ORPO")
    grpo_config: GRPOSection = Field(default_factory=GRPOSection, title="GRPO")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, title="Evaluation")
    hub: HubConfig = Field(default_factory=HubConfig, title="Hub")

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        """Values that are each allowed can still exclude each other."""
        if problems := list(_conflicts(self)):
            raise ConfigError(problems)
        return self

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> tuple[RunConfig, list[str]]:
        """A config from nested plain values, and notices about names that were translated.

        Raises ConfigError with every problem found, each naming its field.
        """
        values, notices = translate(values)
        try:
            return cls.model_validate(values), notices
        except ValidationError as error:
            raise ConfigError(_problems(error.errors(include_url=False))) from None

    @classmethod
    def from_yaml(cls, path: Path) -> tuple[RunConfig, list[str]]:
        """Like `from_values`, from a YAML file. An empty file is the default config."""
        return cls.from_text(_read_file(Path(path)), str(path))

    @classmethod
    def from_text(cls, text: str, name: str = "this") -> tuple[RunConfig, list[str]]:
        """Like `from_values`, from the text of a YAML document that messages call `name`."""
        values = read_yaml(text, name)
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ConfigError([Problem("", f"{name} holds no `section: …` pairs.")])
        return cls.from_values(values)

    def with_values(self, changes: Mapping[str, Any]) -> RunConfig:
        """A copy in which dotted fields have new values: `{"peft_config.r": 8}`. Checked anew.

        Old names are taken for what they are called now; `legacy.translate_fields` tells which.
        """
        values = self.model_dump()
        for field, value in translate_fields(changes)[0].items():
            _set(values, field, value)
        return type(self).from_values(values)[0]

    def to_yaml(self) -> str:
        """The whole config, defaults included, in the order of this file."""
        return write_yaml(self.model_dump(mode="json"))

    @property
    def result(self) -> str:
        """The folder of a finished run that holds what was trained: an adapter, or all weights."""
        return "model" if self.adapter == "none" else "adapter"

    @property
    def method_config(self) -> Section | None:
        """The options of the chosen method; None for `sft`, whose options are the training's."""
        name = BY_METHOD.get(self.method)
        return getattr(self, name) if name else None

    @property
    def beta(self) -> float:
        """By what log-probabilities become rewards in the chosen method; 1 where it has none."""
        return float(getattr(self.method_config, "beta", 1.0))

    @property
    def effective_batch(self) -> int:
        """Rows behind one update, on all devices."""
        training = self.training_config
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
        return rows * self.devices

    @property
    def rows_of_update(self) -> int:
        """Rows of the data behind one update, on all devices: GRPO answers each several times."""
        groups = self.grpo_config.num_generations if self.method == "grpo" else 1
        return self.effective_batch // groups

    @property
    def rows_of_pass(self) -> int:
        """Rows without which nothing can be trained: of one pass of all devices.

        GRPO has all answers of an update before it, so it takes the rows of an update.
        """
        if self.method == "grpo":
            return self.rows_of_update
        return self.training_config.per_device_train_batch_size * self.devices

    @property
    def smaller_batch(self) -> int | None:
        """The largest batch of at most half the rows that makes the same updates; None below 2."""
        training = self.training_config
        rows = training.per_device_train_batch_size
        behind = rows * training.gradient_accumulation_steps
        return next((half for half in range(rows // 2, 0, -1) if behind % half == 0), None)

    def with_batch(self, rows: int) -> RunConfig:
        """A copy that computes so many rows at once, and has as many as before behind an update.

        Raises ConfigError where those cannot be divided so.
        """
        training = self.training_config
        behind = training.per_device_train_batch_size * training.gradient_accumulation_steps
        batch = "training_config.per_device_train_batch_size"
        if rows < 1 or behind % rows:
            message = f"expected a divisor of the {behind} rows behind an update, got {rows}."
            raise ConfigError([Problem(batch, message)])
        accumulation = "training_config.gradient_accumulation_steps"
        return self.with_values({batch: rows, accumulation: behind // rows})

    @property
    def lora_scaling(self) -> float:
        """What the update is multiplied by: alpha / rank, or alpha / √rank for rsLoRA."""
        peft = self.peft_config
        return peft.lora_alpha / (peft.r**0.5 if peft.use_rslora else peft.r)


def rule_of(field: FieldInfo) -> str:
    """The rule of thumb for an option; empty where there is none."""
    return str(field.json_schema_extra["rule"]) if isinstance(field.json_schema_extra, dict) else ""


def fields(
    section: type[BaseModel] = RunConfig, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every option with its dotted name, in order: `("peft_config.r", FieldInfo)`.

    A section that may be empty (`peft_config.slices`) is one option, not five.
    """
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def bounds_of(field: FieldInfo) -> dict[str, float]:
    """What a number may be, by pydantic's names: `{"ge": 1, "le": 1024}`."""
    return {
        key: getattr(part, key)
        for part in field.metadata
        for key in ("ge", "gt", "le", "lt")
        if hasattr(part, key)
    }


def _read_file(path: Path) -> str:
    """A text file, or ConfigError with the reason in words."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        message = f"{path} cannot be read: it is no text in UTF-8."
    except IsADirectoryError:
        message = f"{path} cannot be read: it is a folder; expected a YAML file."
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}."
    raise ConfigError([Problem("", message)])


def parse_setting(text: str) -> tuple[str, Any]:
    """`section.key=value` as a dotted field and a value.

    The value is read as YAML where the option is no text, so that `data.columns="prompt: Frage"`
    is a mapping, and a system prompt with a colon in it stays a sentence.
    """
    field, equals, value = text.partition("=")
    if not equals or not field.strip():
        message = f"expected section.key=value, got {shorten(text)}; for example peft_config.r=8."
        raise ConfigError([Problem("--set", message)])
    return field.strip(), _value(field.strip(), value)


def _value(field: str, text: str) -> Any:
    """What was typed for a field, as its kinds have it; what is no YAML is text."""
    kinds = _kinds(dict(fields()).get(field))
    try:
        value = read_typed(text) if dict in kinds else read_yaml(text)
    except ConfigError:
        return text
    if kinds == {str}:
        return value if value is None or isinstance(value, str) else text
    written_so = text.lstrip().startswith(("{", "[", "- "))
    if isinstance(value, dict | list) and not written_so and not kinds & {dict, list, BaseModel}:
        return text
    return value


def _kinds(field: FieldInfo | None) -> set[Any]:
    """The plain types that a field takes, None aside; empty for a field that does not exist."""
    found: set[Any] = set()
    parts = [field.annotation] if field else []
    while parts:
        kind = parts.pop()
        origin = get_origin(kind)
        if origin in (Union, types.UnionType):
            parts += get_args(kind)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            found.add(BaseModel)
        elif kind is not type(None):
            found.add(origin or kind)
    return found


def _set(values: dict[str, Any], field: str, value: Any) -> None:
    """Set a dotted field in nested values; what does not exist is left for the check to name."""
    *sections, name = field.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[name] = value


def _problems(details: list[Any]) -> list[Problem]:
    """Pydantic's findings in our words, one for each field, and not more than anybody reads."""
    found = merged(_problem(detail) for detail in details[:MOST_PROBLEMS])
    if more := len(details) - MOST_PROBLEMS:
        found += [Problem("", f"and {more:,} more.")] if more > 0 else []
    return found


def _problem(detail: Any) -> Problem:
    """One of pydantic's findings; a name that does not exist comes with the one that was meant."""
    place = ".".join(map(str, detail["loc"]))
    field = next((info for name, info in fields() if name == place), None)
    problem = problem_of(detail, bounds_of(field) if field else None)
    if detail["type"] != "extra_forbidden":
        return problem
    return Problem(problem.field, unknown_name(problem.field, [name for name, _ in fields()]))


def _conflicts(config: RunConfig) -> Iterator[Problem]:
    """Combinations that cannot work, each with the reason."""
    yield from _adapter_conflicts(config)
    yield from _training_conflicts(config.training_config)
    yield from _sample_conflicts(config)
    yield from _pattern_conflicts(config.peft_config)
    yield from _device_conflicts(config)
    yield from _metric_conflicts(config)
    yield from method_conflicts(config)
    if config.data.test_size == 0 and not config.data.test_split and needs_held_out(config):
        yield Problem(
            "data.test_size",
            "0 holds nothing out, yet the training looks at held-out rows (best checkpoint, early "
            "stopping, or a schedule that watches the loss); hold some out, such as 0.1.",
        )


def _device_conflicts(config: RunConfig) -> Iterator[Problem]:
    """What several devices cannot do together."""
    if config.devices == 1 or config.distributed not in ("fsdp2", "zero3"):
        return
    way, initial = config.distributed, config.peft_config.init_lora_weights
    if config.model.quantization == "int8":
        message = f"int8 weights cannot be spread by {way}; use nf4, or set distributed to ddp."
        yield Problem("model.quantization", message)
    if config.adapter == "peft" and initial in ("pissa", "pissa_niter_16", "olora", "loftq"):
        message = (
            f"{initial} starts from the base's whole weights, which {way} spreads over the "
            "devices; set distributed to ddp, or start with true."
        )
        yield Problem("peft_config.init_lora_weights", message)


def _pattern_conflicts(peft: PeftConfig) -> Iterator[Problem]:
    """PEFT takes these for regular expressions, and one may hold the interpreter for ever."""
    wanted = peft.target_modules
    names = {
        "target_modules": [wanted] if isinstance(wanted, str) else wanted,
        "modules_to_save": peft.modules_to_save or [],
        "rank_pattern": list(peft.rank_pattern),
        "alpha_pattern": list(peft.alpha_pattern),
    }
    for field, found in names.items():
        wrong = [name for name in found if not MODULE_NAME.match(name)]
        if wrong and wrong != ["all-linear"]:
            message = f"expected names of letters, digits, _ and dots, got {shorten(wrong[0])}."
            yield Problem(f"peft_config.{field}", message)


def needs_held_out(config: RunConfig) -> bool:
    """Whether the training itself depends on held-out rows."""
    training = config.training_config
    return (
        training.load_best_model_at_end
        or training.early_stopping_patience is not None
        or training.lr_scheduler_type == "reduce_lr_on_plateau"
    )


def _adapter_conflicts(config: RunConfig) -> Iterator[Problem]:
    if config.model.adapter is not None and config.adapter == "none":
        yield Problem(
            "model.adapter",
            "`adapter: none` trains every weight of the base, so there is no adapter to go on "
            "with; merge it into its base first, and name the merged model in model.path.",
        )
    if config.model.adapter is not None and config.peft_config.init_lora_weights is not True:
        yield Problem(
            "peft_config.init_lora_weights",
            "training goes on from model.adapter, whose weights are the initial ones; set it to "
            "true.",
        )
    peft, quantized = config.peft_config, config.model.quantization != "none"
    if peft.slices is not None and peft.use_dora:
        yield Problem(
            "peft_config.use_dora",
            "DoRA normalizes over the whole projection, slices train parts of it; choose one.",
        )
    if peft.slices is not None and not any(peft.slices.model_dump().values()):
        yield Problem("peft_config.slices", "every slice is off, so nothing would be trained.")
    initial = peft.init_lora_weights
    if peft.slices is not None and initial not in (True, "gaussian"):
        yield Problem(
            "peft_config.init_lora_weights",
            f"{initial!r} fills the whole update, slices keep parts of it at zero; choose one.",
        )
    if quantized and isinstance(initial, str) and initial.startswith(("pissa", "olora")):
        yield Problem(
            "peft_config.init_lora_weights",
            f"{initial!r} changes the base's own weights, which it needs unquantized; set "
            "model.quantization to none.",
        )
    if initial == "loftq" and config.model.quantization not in ("nf4", "fp4"):
        yield Problem(
            "peft_config.init_lora_weights",
            "'loftq' starts from what 4-bit quantization lost, and this base is not in 4 bits; "
            "set model.quantization to nf4.",
        )
    if config.adapter == "none" and quantized:
        yield Problem(
            "adapter", "`none` trains every weight, and quantized weights cannot be trained."
        )
    if config.adapter == "none" and config.training_config.loraplus_lr_ratio is not None:
        yield Problem(
            "training_config.loraplus_lr_ratio",
            "LoRA+ is a rate for the adapter's B matrices, and adapter: none has no adapter; "
            "leave it empty.",
        )
    if config.adapter == "loralib":
        yield from _loralib_conflicts(config)


def _loralib_conflicts(config: RunConfig) -> Iterator[Problem]:
    peft = config.peft_config
    if config.model.quantization != "none":
        yield Problem(
            "adapter",
            "loralib's layers hold their own weights, so the base cannot be "
            "quantized; use adapter: peft for QLoRA.",
        )
    unsupported = {
        "use_dora": peft.use_dora,
        "use_rslora": peft.use_rslora,
        "rank_pattern": bool(peft.rank_pattern),
        "alpha_pattern": bool(peft.alpha_pattern),
        "modules_to_save": peft.modules_to_save is not None,
        "init_lora_weights": peft.init_lora_weights is not True,
    }
    for name, used in unsupported.items():
        if used:
            yield Problem(f"peft_config.{name}", "loralib has no such thing; use adapter: peft.")


def _training_conflicts(training: TrainingConfig) -> Iterator[Problem]:
    if training.bf16 and training.fp16:
        yield Problem("training_config.fp16", "bf16 and fp16 exclude each other; set one.")
    if training.max_steps == 0:
        yield Problem(
            "training_config.max_steps", "0 would train nothing; -1 lets the epochs decide."
        )
    yield from _argument_conflicts(training)
    yield from _interval_conflicts(training)
    yield from _best_conflicts(training)


def _argument_conflicts(training: TrainingConfig) -> Iterator[Problem]:
    """Free arguments that the chosen schedule, optimizer or checkpointing would refuse."""
    options = training.arguments()["lr_scheduler_kwargs"]
    found = {
        "lr_scheduler_kwargs": schedule_problem(
            training.lr_scheduler_type, options, training.learning_rate
        ),
        "optim_args": optimizer_problem(training.optim, training.optim_args),
        "gradient_checkpointing_kwargs": checkpointing_problem(
            training.gradient_checkpointing_kwargs
        ),
    }
    for name, problem in found.items():
        if problem:
            yield Problem(f"training_config.{name}", problem)


def _interval_conflicts(training: TrainingConfig) -> Iterator[Problem]:
    """transformers takes a share of all steps, or a whole number of them."""
    for name in ("eval_steps", "logging_steps", "save_steps"):
        value = getattr(training, name)
        if value is not None and value > 1 and value != int(value):
            yield Problem(
                f"training_config.{name}",
                f"expected a whole number of updates, or a share below 1, got {value:g}.",
            )


def _sample_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Answers are told after an evaluation, by one process that has all weights."""
    training = config.training_config
    if not training.sample_answers:
        return
    if training.eval_strategy == "no":
        yield Problem(
            "training_config.sample_answers",
            "prompts are asked at each evaluation, and there is none: set eval_strategy to steps "
            "or epoch.",
        )
    if config.devices > 1 and config.distributed != "ddp":
        yield Problem(
            "training_config.sample_answers",
            f"{config.distributed} spreads the weights over the devices, so that none of them can "
            "answer during the training: set it to 0, or distributed to ddp.",
        )


def _best_conflicts(training: TrainingConfig) -> Iterator[Problem]:
    """What choosing the best checkpoint, stopping early and watching the loss need."""
    watched = "no held-out rows are scored: set eval_strategy to steps or epoch."
    if training.early_stopping_patience is not None and not training.load_best_model_at_end:
        yield Problem(
            "training_config.early_stopping_patience",
            "stopping early needs load_best_model_at_end: true, or the best is lost.",
        )
    if training.load_best_model_at_end and training.eval_strategy == "no":
        yield Problem("training_config.load_best_model_at_end", watched)
    elif training.load_best_model_at_end and training.save_strategy != training.eval_strategy:
        yield Problem(
            "training_config.save_strategy",
            f"the best checkpoint must exist: expected {training.eval_strategy!r} as in "
            f"eval_strategy, got {training.save_strategy!r}.",
        )
    elif training.load_best_model_at_end and training.eval_strategy == "steps":
        yield from _unsaved_evaluations(training)
    if training.lr_scheduler_type == "reduce_lr_on_plateau" and training.eval_strategy == "no":
        yield Problem("training_config.lr_scheduler_type", watched)


def _metric_conflicts(config: RunConfig) -> Iterator[Problem]:
    """A figure that the method's evaluation does not have."""
    metric, measured = config.training_config.metric_for_best_model, MEASURED[config.method]
    if metric is not None and metric.removeprefix("eval_") not in measured:
        known = ", ".join(f"eval_{name}" for name in measured)
        message = f"{shorten(metric)} is never measured; expected one of {known}."
        yield Problem("training_config.metric_for_best_model", message)


def _unsaved_evaluations(training: TrainingConfig) -> Iterator[Problem]:
    """Every checkpoint must have been scored: save_steps is a multiple of eval_steps."""
    saved, scored = training.save_steps, training.eval_steps or training.logging_steps
    mixed = (saved < 1) != (scored < 1)
    # As transformers does it, in millionths: shares such as 0.3 and 0.1 are not exact.
    if mixed or round(saved * 1e6) % round(scored * 1e6):
        wanted = "a share as eval_steps is" if mixed else f"a multiple of eval_steps ({scored:g})"
        yield Problem(
            "training_config.save_steps",
            f"each checkpoint must have been scored for the best to be kept: expected {wanted}, "
            f"got {saved:g}.",
        )
