"""What is wrong with a value, in our words: pydantic's findings, and names that do not exist.

problem_of(detail, bounds)               # Problem("peft_config.r", "expected 1 to 1024, got 0.")
unknown_name("training_config.lr", names)    # "unknown option; did you mean training_config.…?"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from phi3lora.errors import Problem
from phi3lora.strict_yaml import SHOWN, shorten

# What pydantic found, by its own name, and what it had expected. The rest is said as it says it.
EXPECTED = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "range": "{ge:g} to {le:g}",  # for either end of it
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of usual size",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (in quotes, if it looks like a number)",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
    "list_type": "a list such as [a, b]",
    "dict_type": "pairs such as {{name: value}}",
    "model_type": "a section of `name: value` pairs",
    "model_attributes_type": "a section of `name: value` pairs",
}
# What other tools and people call an option, by the last part of its name.
ALIASES = {
    "training_config.per_device_train_batch_size": (
        "batch_size train_batch_size per_device_batch_size micro_batch_size batch"
    ),
    "training_config.per_device_eval_batch_size": "eval_batch_size",
    "training_config.gradient_accumulation_steps": (
        "gradient_accumulation grad_accum grad_accumulation accumulation_steps accumulation"
    ),
    "training_config.learning_rate": "lr max_lr peak_lr",
    "training_config.lr_scheduler_type": "scheduler lr_scheduler schedule scheduler_type",
    "training_config.num_train_epochs": "epochs epoch num_epochs n_epochs train_epochs",
    "training_config.max_steps": "steps num_steps train_steps iters",
    "training_config.warmup_steps": "warmup num_warmup_steps",
    "training_config.max_length": (
        "max_seq_len seq_len seq_length sequence_length sequence_len model_max_length cutoff_len "
        "context_length"
    ),
    "training_config.optim": "optimizer",
    "training_config.weight_decay": "wd decay",
    "training_config.max_grad_norm": "grad_clip clip gradient_clipping clip_grad_norm",
    "training_config.packing": "pack sample_packing",
    "training_config.gradient_checkpointing": "checkpointing",
    "training_config.early_stopping_patience": "patience early_stopping",
    "training_config.seed": "random_seed random_state",
    "peft_config.r": "rank lora_r lora_rank",
    "peft_config.lora_alpha": "alpha",
    "peft_config.lora_dropout": "dropout",
    "peft_config.target_modules": "targets lora_target_modules lora_target",
    "peft_config.use_dora": "dora",
    "peft_config.use_rslora": "rslora",
    "model.path": "base_model model_name model_id model_name_or_path model",
    "model.quantization": "load_in_4bit load_in_8bit bits quantize",
    "model.dtype": "precision torch_dtype",
    "data.path": "dataset dataset_name dataset_path data_path datasets",
    "data.test_size": "val_size eval_size test_ratio val_set_size held_out",
    "data.max_rows": "max_samples num_samples limit",
    "data.system_prompt": "system",
}
LONGEST = 60  # characters of a name that may be a misspelt one; comparing takes its time
MEANT = {alias: name for name, aliases in ALIASES.items() for alias in aliases.split()}


def problem_of(detail: Mapping[str, Any], bounds: Mapping[str, float] | None = None) -> Problem:
    """One of pydantic's findings: the field, what was expected, what came.

    Args:
        bounds: all of the field's (`config.bounds_of`); pydantic names the one that was passed.
    """
    field = ".".join(str(part)[:SHOWN] for part in detail["loc"] if not _is_union_branch(part))
    if detail["type"] == "value_error":
        return Problem(field, str(detail["ctx"]["error"]))
    passed = detail["type"] in ("greater_than_equal", "less_than_equal")
    whole = passed and {"ge", "le"} <= set(bounds or {})
    expected = EXPECTED.get("range" if whole else detail["type"])
    if expected is None:
        return Problem(field, f"{detail['msg']}, got {shorten(detail['input'])}.")
    wanted = expected.format(**{**(bounds or {}), **detail.get("ctx", {})})
    return Problem(field, f"expected {wanted}, got {shorten(detail['input'])}.")


def _is_union_branch(part: Any) -> bool:
    """Pydantic names the tried type of a union in the location; people do not write it."""
    return isinstance(part, str) and (part in {"str", "bool", "int", "float"} or "[" in part)


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """One problem for each field: a union says what each of its types had expected."""
    found: dict[str, Problem] = {}
    for problem in problems:
        earlier = found.get(problem.field)
        if earlier is None:
            found[problem.field] = problem
        elif ", got " in earlier.message and problem.message.startswith("expected "):
            start, _, end = earlier.message.partition(", got ")
            wanted = problem.message.removeprefix("expected ").partition(", got ")[0]
            found[problem.field] = Problem(problem.field, f"{start}, or {wanted}, got {end}")
    return list(found.values())


def unknown_name(field: str, names: list[str]) -> str:
    """Say that there is no such option, and which of `names` may have been meant."""
    near = _meant(field, names)
    return f"unknown option; did you mean {near}?" if near else "unknown option."


def _meant(field: str, names: list[str]) -> str | None:
    """The option that a name was meant to be: here, by another name, elsewhere, or misspelt."""
    section, _, last = field.rpartition(".")
    here = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
    if len(last) > LONGEST:
        return None
    alias = MEANT.get(last.lower())
    if alias in here.values():
        return alias
    if near := difflib.get_close_matches(last, here, 1, 0.75):
        return here[near[0]]
    if alias:
        return alias
    anywhere = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = difflib.get_close_matches(last, anywhere, 1, 0.8)
    return anywhere[near[0]] if near else None
