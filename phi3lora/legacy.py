"""Old names for today's options: what people still have in their notebooks and YAML files.

`translate` rewrites them and says so. Sources: the guide's five samples, and the renames of
transformers 5 and TRL 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi3lora.models.phi3 import PHI3

SECTION_RENAMES = {
    "training_arguments": "training_config",
    "training_args": "training_config",
    "lora_config": "peft_config",
}
RENAMES = {
    "training_config": {
        "evaluation_strategy": "eval_strategy",
        "max_seq_length": "max_length",
        "warmup_ratio": "warmup_steps",
        "activation_checkpointing": "gradient_checkpointing",
        "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    },
    "model": {
        "torch_dtype": "dtype",
        "attn_implementation": "attention",
        "model_name_or_path": "path",
        "bnb_4bit_use_double_quant": "double_quantization",
        "bnb_4bit_compute_dtype": "compute_dtype",
        "bnb_4bit_quant_type": "quantization",
    },
    "peft_config": {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"},
}
DROPPED = {
    "training_config": {
        "output_dir": "every run has a folder of its own",
        "overwrite_output_dir": "every run has a folder of its own",
        "do_train": "a run trains",
        "dataset_text_field": "data.format and data.columns say what is read from where",
        "run_name": "the run's title is its name",
        "disable_tqdm": "the log has lines, not bars",
        "group_by_length": "the fast path pads nothing, so there is nothing to gain",
        "dataset_num_proc": "rows are prepared in one pass",
        "dataset_batch_size": "rows are prepared in one pass",
        "hub_model_id": "publish a run with `phi3lora push`",
        "hub_private_repo": "publish a run with `phi3lora push`",
        "hub_strategy": "publish a run with `phi3lora push`",
        "save_safetensors": "weights are always saved so",
        "dataloader_pin_memory": "it is always so on a GPU",
        "ddp_find_unused_parameters": "every trained weight is used",
        "logging_nan_inf_filter": "a loss that is not a number ends the run",
        "assistant_only_loss": "the loss is on the assistant's tokens only",
        "completion_only_loss": "the loss is on the assistant's tokens only",
        "remove_unused_columns": "rows arrive as tokens",
        "logging_dir": "logs go to the run's folder",
        "push_to_hub": "publish a run with `phi3lora push`",
        "hub_token": "a token has no place in a file; it comes from the environment",
    },
    "model": {
        "trust_remote_code": "transformers has Phi-3 itself; code from the Hub is never run",
        "use_cache": "off in training, on in chat, by itself",
        "device_map": "model.device says it",
        "low_cpu_mem_usage": "it is always so",
    },
    "peft_config": {
        "inference_mode": "a run trains",
        "peft_type": "it is LORA",
        "base_model_name_or_path": "model.path says it",
        "revision": "model.revision says it",
        "auto_mapping": "model.path says it",
        "peft_version": "the installed one trains",
    },
}
# Dropped for one value alone; any other would change what is trained, and is an error.
ONLY = {"peft_type": "LORA", "assistant_only_loss": True, "completion_only_loss": True}
# What every adapter_config.json says, and means nothing while it is empty.
EMPTY = {
    *("alora_invocation_tokens", "arrow_config", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "fan_in_fan_out", "layer_replication", "layers_pattern"),
    *(
        "kasa_config",
        "loftq_config",
        "lora_bias",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
    ),
    *("monteclora_config", "qalora_group_size", "target_parameters", "trainable_token_indices"),
    *("use_bdlora", "use_qalora", "velora_config"),
}
DEFAULTS = {"megatron_core": "megatron.core", "qalora_group_size": 16}
TORCH_NAMES = {f"torch.{name}": name for name in ("bfloat16", "float16", "float32")}
# Values by other names, for each option.
VALUES = {
    "optim": {
        "adamw_hf": "adamw_torch",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw": "paged_adamw_32bit",
        "paged_lion": "paged_lion_32bit",
    },
    "dtype": TORCH_NAMES,
    "compute_dtype": TORCH_NAMES,
}
SPLIT_NAMES = PHI3.split_names


def translate(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values with today's names, and one notice for each name that was changed or dropped.

    A section that is not a mapping is left as it is, for the config's own check to name.
    """
    notices: list[str] = []
    translated: dict[str, Any] = {}
    for section, content in values.items():
        section = _renamed_section(section, notices)
        if isinstance(content, Mapping):
            content = _section(section, dict(content), notices)
        translated[section] = content
    return translated, notices


def translate_fields(changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """As `translate`, for dotted fields: `{"training_config.warmup_ratio": 0.1}`."""
    translated: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for field, value in changes.items():
        section, _, name = field.partition(".")
        if not name or "." in name:
            translated[field] = value
        else:
            sections.setdefault(section, {})[name] = value
    found, notices = translate(sections)
    for section, content in found.items():
        translated |= {f"{section}.{name}": value for name, value in content.items()}
    return translated, notices


def _renamed_section(section: str, notices: list[str]) -> str:
    renamed = SECTION_RENAMES.get(section, section)
    if renamed != section:
        notices.append(f"{section} is called {renamed}.")
    return renamed


def _section(section: str, content: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    content = _rename(section, content, notices)
    content = _revalued(section, content, notices)
    if section == "training_config":
        content = _strategies(content, notices)
    if section == "model":
        content = _quantization(content, notices)
    if section == "peft_config":
        content = _split_targets(content, notices)
    return content


def _rename(section: str, content: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    renames, dropped = RENAMES.get(section, {}), DROPPED.get(section, {})
    result: dict[str, Any] = {}
    empty: list[str] = []
    for name, value in content.items():
        if name in dropped and value == ONLY.get(name, value):
            notices.append(f"{section}.{name} is not needed: {dropped[name]}.")
            continue
        if section == "peft_config" and name in EMPTY and _is_empty(name, value):
            empty.append(name)
            continue
        if name in renames and content.get(renames[name]) in (None, 0):
            notices.append(f"{section}.{name} is now {renames[name]}.")
            result[renames[name]] = value
        elif name not in result:  # an old name's value is in force over a 0 by the new one
            result[name] = value
    if empty:
        notices.append(f"{section}: {', '.join(empty)} say nothing here and are left out.")
    return result


def _is_empty(name: str, value: Any) -> bool:
    return not value or value == DEFAULTS.get(name)


def _revalued(section: str, content: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    """Values by their names of today, and a list of one tracker as that tracker."""
    for name, value in content.items():
        new = value
        if isinstance(value, str):
            new = VALUES.get(name, {}).get(value, value)
        elif name == "report_to" and isinstance(value, list) and len(value) < 2:
            new = value[0] if value else "none"
        if new is not value:
            content[name] = new
            notices.append(f"{section}.{name}: {value} is now {new}.")
    return content


def _strategies(content: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    """`save_steps: 100` alone means every 100 steps, `do_eval: false` no evaluation.

    transformers' own strategies are `steps` for saving and `no` for evaluation, ours are `epoch`.
    """
    if "do_eval" in content:
        wanted = content.pop("do_eval")
        if wanted is False and "eval_strategy" not in content:
            content["eval_strategy"] = "no"
            notices.append("training_config.do_eval: false is now eval_strategy: no.")
        else:
            notices.append("training_config.do_eval is not needed: eval_strategy says it.")
    for name in ("eval", "save"):
        if content.get(f"{name}_steps") and f"{name}_strategy" not in content:
            content[f"{name}_strategy"] = "steps"
            notices.append(
                f"training_config.{name}_steps is given without {name}_strategy, which is now "
                "steps."
            )
    return content


def _quantization(content: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    """`load_in_4bit: true` is NF4, `load_in_8bit: true` is int8."""
    for old, new in {"load_in_4bit": "nf4", "load_in_8bit": "int8"}.items():
        if old in content:
            wanted = content.pop(old)
            if wanted:
                content.setdefault("quantization", new)
            notices.append(f"model.{old} is now quantization: {new if wanted else 'none'}.")
    return content


def _split_targets(content: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    """Phi-3 fuses q, k, v and gate, up: name the fused projections, with slices for a part."""
    targets = content.get("target_modules")
    if not isinstance(targets, list) or not set(targets) & set(SPLIT_NAMES):
        return content
    content["target_modules"] = list(dict.fromkeys(SPLIT_NAMES.get(name, name) for name in targets))
    notice = "Phi-3 fuses its projections: " + ", ".join(
        f"{name} is part of {SPLIT_NAMES[name]}" for name in targets if name in SPLIT_NAMES
    )
    off = _slices_off(targets)
    if off:
        content.setdefault("slices", dict.fromkeys(off, False))
        notice += f"; the slices {', '.join(off)} stay off"
    notices.append(notice + ".")
    return content


def _slices_off(targets: list[str]) -> list[str]:
    """The parts of a named fused projection that the list does not ask for."""
    fused = {SPLIT_NAMES[name] for name in targets if name in SPLIT_NAMES} - set(targets)
    return [
        part.removesuffix("_proj")
        for part, whole in SPLIT_NAMES.items()
        if whole in fused and part not in targets
    ]
