"""What an exported script's template is filled with: a config's values and facts as Python source.

values(config, lora, skeleton, marks, pad)      # name → source
facts(config, marks)                            # which blocks are kept
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.data.plan import holds_out
from phi3lora.lora.initial import replaces_base, starts_apart
from phi3lora.lora.slices import slices_of, switched_on
from phi3lora.methods import JUDGED, PAIRED, REWARDED, has_reference
from phi3lora.models.phi3 import PHI3
from phi3lora.training.fallbacks import TRACKERS, needs_bitsandbytes
from phi3lora.training.script_marks import Marks

# Shown whether or not they differ from the libraries' own: what people look for first.
USUAL = {
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "seed",
    "packing",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "logging_steps",
    "logging_strategy",
    "log_level",
    "warmup_steps",
    "max_length",
    "optim",
    "report_to",
    "eval_strategy",
    "save_strategy",
    "save_steps",
}
USUAL_PEFT = {"r", "lora_alpha", "lora_dropout", "bias", "task_type", "target_modules"}
LORALIB = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules")
FOUR_BIT = {"nf4", "fp4"}


def code(value: Any) -> str:
    """A plain value as Python source, text in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{code(k)}: {code(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(code(item) for item in value) + "]"
    return repr(value)


def dictionary(values: Mapping[str, str]) -> str:
    """`{…}`, a line for each key; values are source already."""
    lines = [f"    {code(key)}: {value}," for key, value in values.items()]
    return "\n".join(["{", *lines, "}"])


def facts(config: RunConfig, marks: Marks) -> set[str]:
    """Which blocks of the template the config asks for."""
    peft, training = config.peft_config, config.training_config
    has_peft = config.adapter == "peft"
    tracked, paged = training.report_to in TRACKERS, needs_bitsandbytes(training.optim)
    found = {
        "revision": config.model.revision is not None,
        "held_out": holds_out(config.data),
        "four_bits": config.model.quantization in FOUR_BIT,
        "quantized": config.model.quantization != "none",
        "adapter": config.adapter != "none",
        "peft": has_peft,
        "loralib": config.adapter == "loralib",
        "package": tracked or paged,
        "tracker": tracked,
        "bitsandbytes_optimizer": paged,
        "slices": has_peft and peft.slices is not None,
        "gaussian": peft.init_lora_weights == "gaussian",
        "loftq": has_peft and peft.init_lora_weights == "loftq",
        "replaced": has_peft and replaces_base(peft.init_lora_weights),
        "start": config.model.adapter is not None,
        "strip": marks.strip,
        "loraplus": training.loraplus_lr_ratio is not None,
        "patience": training.early_stopping_patience is not None,
        "float16": _may_be_float16(config),
        "judged": config.method in JUDGED,
        "paired": config.method in PAIRED,
        "from_base": has_reference(config) and not starts_apart(config),
        **{method: config.method == method for method in (*sorted(JUDGED), "sft", "grpo")},
        **{name: name in config.grpo_config.rewarded for name in _REWARDS},
    }
    return {name for name, true in found.items() if true}


_REWARDS = {
    "exact": "exact",
    "pattern": "pattern",
    "length": "length",
    "json": "is_json",
    "function": "function",
}


def values(
    config: RunConfig, lora: dict[str, Any], skeleton: Any, marks: Marks, pad: str
) -> dict[str, str]:
    """The template's values as source, by name; `lora` are the arguments of LoraConfig."""
    return {
        **_precision(config),
        "training_config": dictionary(_training_values(config)),
        "peft_config": dictionary(_peft_values(config, lora)),
        "TRACKER": code(TRACKERS.get(config.training_config.report_to, "")),
        "REVISION": code(config.model.revision),
        "PAD": code(pad),
        "attention": _attention(config.model.attention),
        "quantization": _quantization(config),
        **_slices(config, skeleton),
        "INITIAL": code(config.peft_config.init_lora_weights),
        "START": code(marks.start),
        "ADAPTER": code(config.model.adapter),
        "OPEN": code(marks.open),
        "CLOSE, LAST": f"{code(marks.close)}, {code(marks.last)}",
        "RATIO": code(config.training_config.loraplus_lr_ratio),
        "PATIENCE": code(config.training_config.early_stopping_patience),
        **_rewards(config),
    }


def _rewards(config: RunConfig) -> dict[str, str]:
    """What answers earn for."""
    grpo = config.grpo_config
    file, _, name = (grpo.function or "").rpartition(":")
    return {
        "AFTER": code(grpo.exact_after),
        "PATTERN": code(grpo.pattern),
        "LENGTH": code(grpo.length),
        "FILE, NAME": f"{code(file)}, {code(name)}",
        "REWARDS": "[" + ", ".join(_REWARDS[name] for name in grpo.rewarded) + "]",
        "LIMIT": code(config.training_config.max_length),
    }


# Precision


def _precision(config: RunConfig) -> dict[str, str]:
    named = config.model.compute_dtype
    found = {"dtype": _dtype(config.model.dtype)}
    if config.model.device == "cpu":
        found["cuda"] = "False"
    return {**found, "compute_dtype": "dtype" if named == "auto" else _dtype(named)}


def _dtype(name: str) -> str:
    """A precision as an expression, falling back as a run does."""
    sixteen = "torch.bfloat16 if ampere else torch.float16"
    if name == "auto":
        return f"({sixteen}) if cuda else torch.float32"
    if name == "bfloat16":
        return sixteen
    return "torch.float16 if cuda else torch.float32" if name == "float16" else f"torch.{name}"


def _autocast(config: RunConfig) -> dict[str, str]:
    """`bf16` and `fp16`, from the precision of the base where nothing else is said."""
    training = config.training_config
    if training.fp16:
        return {"bf16": code(bool(training.bf16)), "fp16": "cuda"}
    if config.model.quantization == "int8":  # the rest of the base is in float32
        return {"bf16": "ampere" if training.bf16 else "False", "fp16": "False"}
    name = "compute_dtype" if config.model.quantization in FOUR_BIT else "dtype"
    bf16 = f"{name} == torch.bfloat16"
    if training.bf16 is not None:
        bf16 = "ampere" if training.bf16 else "False"
    return {"bf16": bf16, "fp16": f"cuda and {name} == torch.float16"}


def _may_be_float16(config: RunConfig) -> bool:
    """Whether the training may run under float16's autocast."""
    return config.training_config.fp16 or config.model.quantization != "int8"


# The two dictionaries


def _training_values(config: RunConfig) -> dict[str, str]:
    """TRL's arguments as source: the usual ones, and all that differ from its own."""
    own = _defaults(config.method)
    found = {"output_dir": "OUTPUT"}
    for name, value in _arguments(config).items():
        if name in ("bf16", "fp16"):
            continue
        if name in USUAL or value != own[name]:
            found[name] = code(value)
    if config.training_config.tf32:
        found["tf32"] = "True if cuda and ampere else None"
    return {**found, **_autocast(config), "use_cpu": "not cuda"}


def _arguments(config: RunConfig) -> dict[str, Any]:
    arguments = config.training_config.arguments()
    if not holds_out(config.data):
        arguments.update(eval_strategy="no", eval_on_start=False)
    if config.method_config is not None:
        del arguments["packing"]
        arguments |= config.method_config.arguments()
    if config.method in REWARDED:
        del arguments["max_length"]
    return arguments


def _defaults(method: str) -> dict[str, Any]:
    """The own values of TRL's arguments; `...` where it has none."""
    from phi3lora.training.kinds import kind_of

    return {
        field.name: field.default if field.default is not dataclasses.MISSING else ...
        for field in dataclasses.fields(kind_of(method).arguments)
    }


def _peft_values(config: RunConfig, lora: dict[str, Any]) -> dict[str, str]:
    from peft import LoraConfig

    if config.adapter == "loralib":
        return {name: code(lora[name]) for name in LORALIB}
    own = LoraConfig().to_dict()
    return {
        name: code(value)
        for name, value in lora.items()
        if name in USUAL_PEFT or value != own.get(name)
    }


# Model and adapter


def _attention(name: str) -> str:
    """FlashAttention needs a GPU of 2020 or later; `auto` takes it where it is installed."""
    if name == "auto":
        found = "cuda and ampere and is_flash_attn_2_available()"
        return f'"flash_attention_2" if {found} else "sdpa"'
    return f'{code(name)} if cuda and ampere else "sdpa"' if "flash" in name else code(name)


def _quantization(config: RunConfig) -> str:
    if config.model.quantization == "int8":
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        "BitsAndBytesConfig(\n"
        "    load_in_4bit=True,\n"
        f"    bnb_4bit_quant_type={code(config.model.quantization)},\n"
        f"    bnb_4bit_use_double_quant={config.model.double_quantization},\n"
        "    bnb_4bit_compute_dtype=compute_dtype,\n"
        ")"
    )


def _slices(config: RunConfig, skeleton: Any) -> dict[str, str]:
    """Which parts of the fused projections are adapted, for PEFT's layers and for loralib's."""
    chosen = config.peft_config.slices
    if chosen is None:
        on: dict[str, list[bool]] = {}
    else:
        on = {name: switched_on(chosen, name) for name in PHI3.fused}
    rows = {name: [part.stop - part.start for part in s] for name, s in slices_of(skeleton).items()}
    return {
        "SLICES": code({name: switches for name, switches in on.items() if any(switches)}),
        "ROWS": code(rows),
        "ENABLED": code(on),
        "LAYERS": code(config.peft_config.layers_to_transform),
    }
