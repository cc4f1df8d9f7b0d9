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
        "do_eval": "eval_strategy says it",
        "do_train": "a run trains",
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
    "peft_config": {"inference_mode": "a run trains"},
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
    notices: list[str] = []
    translated: dict[str, Any] = {}
    for field, value in changes.items():
        section, _, name = field.partition(".")
        if not name or "." in name:
            translated[field] = value
            continue
        found, said = translate({section: {name: value}})
        notices += said
        for own, content in found.items():
            translated |= {f"{own}.{key}": inner for key, inner in content.items()}
    return translated, notices


def _renamed_section(section: str, notices: list[str]) -> str:
    renamed = SECTION_RENAMES.get(section, section)
    if renamed != section:
        notices.append(f"{section} is called {renamed}.")
    return renamed


def _section(section: str, content: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    content = _rename(section, content, notices)
    if section == "model":
        content = _quantization(content, notices)
    if section == "peft_config":
        content = _split_targets(content, notices)
    return content


def _rename(section: str, content: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    renames, dropped = RENAMES.get(section, {}), DROPPED.get(section, {})
    result: dict[str, Any] = {}
    for name, value in content.items():
        if name in dropped:
            notices.append(f"{section}.{name} is not needed: {dropped[name]}.")
            continue
        if name in renames and renames[name] not in content:
            notices.append(f"{section}.{name} is now {renames[name]}.")
            name = renames[name]
        result[name] = value
    return result


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
