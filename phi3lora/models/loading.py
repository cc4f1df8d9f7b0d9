"""Load the base: its tokenizer, and its weights in the precision and quantization asked for.

    notices = []
    model = load_model(config.model, for_training=True, token=token, notices=notices)
    tokenizer = load_tokenizer(model.name_or_path)

Always transformers' own `Phi3ForCausalLM`, always from safetensors, never with code from the Hub.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora import words
from phi3lora.config import ModelConfig
from phi3lora.errors import ModelError
from phi3lora.models.base import BaseInfo, check_base, fetch, read_config, resolve_path
from phi3lora.models.hardware import (
    Hardware,
    choose_attention,
    choose_dtype,
    detect_hardware,
)
from phi3lora.models.phi3 import PHI3

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Bytes: the family's largest vocabulary (200,064 tokens) takes 16 MB, its longest template 4 KB.
TOKENIZER_BYTES = {
    "tokenizer.json": 2**26,
    "tokenizer_config.json": 2**24,
    "chat_template.jinja": 2**18,
    "special_tokens_map.json": 2**20,
    "added_tokens.json": 2**22,
    "tokenizer.model": 2**25,
}


def load_tokenizer(
    path: str,
    revision: str | None = None,
    token: str | None = None,
    cache_folder: Path | None = None,
    *,
    weights: bool = True,
) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padding on the right with a token that must never be learnt.

    With `weights=False` a folder will do that holds only the config and the tokenizer.

    Raises ModelError or HubError when the base is refused or missing.
    """
    from transformers import AutoTokenizer

    from phi3lora.data.rendering import pad_token

    base = check_base(path, revision, token, cache_folder, weights=weights)
    folder = fetch(base, token, cache_folder, weights=False)
    _check_sizes(base, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # noqa: BLE001  (a stranger's files raise anything)
        raise ModelError(f"{base.name}: its tokenizer cannot be loaded: {_words(error)}") from None
    tokenizer.model_max_length = base.max_length
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token(tokenizer))
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(
    model: ModelConfig,
    *,
    for_training: bool,
    token: str | None = None,
    notices: list[str] | None = None,
    cache_folder: Path | None = None,
    spread: bool = False,
) -> PreTrainedModel:
    """The base on its device: for training without a cache, for chat with one and in eval mode.

    Args:
        model: the config's section.
        for_training: also prepares a quantized base for training (norms, embedding and head in
            float32, everything frozen).
        token: of the caller, for private and gated bases.
        notices: receives a line for each choice that fell back.
        cache_folder: where Hub files are kept.
        spread: the weights will be spread over several devices. 4-bit ones are then stored as
            numbers of the compute precision, four of them in one: only floats can be spread.
            https://huggingface.co/docs/peft/accelerate/fsdp

    `name_or_path` of the result is the base's portable name, `files_folder` where its files lie.
    Raises ModelError or HubError.
    """
    notices = [] if notices is None else notices
    hardware = detect_hardware(model.device)
    base = check_base(resolve_path(model.path, hardware), model.revision, token, cache_folder)
    options = _load_options(model, base, hardware, notices, for_training)
    if spread and model.quantization in {"nf4", "fp4"}:
        four_bits = options["quantization_config"]
        four_bits.bnb_4bit_quant_storage = four_bits.bnb_4bit_compute_dtype
    folder = fetch(base, token, cache_folder)
    loaded: Any = _from_folder(folder, base, options)
    loaded.files_folder = str(folder)
    loaded.name_or_path = loaded.config._name_or_path = base.name
    loaded.config.use_cache = not for_training
    if model.quantization in {"nf4", "fp4"}:
        _keep_packing_off(loaded)
    if for_training and model.quantization != "none":
        from peft import prepare_model_for_kbit_training

        # Gradient checkpointing is the trainer's to switch on, from its own options.
        loaded = prepare_model_for_kbit_training(loaded, use_gradient_checkpointing=False)
    return loaded.train(for_training)


def _load_options(
    model: ModelConfig,
    base: BaseInfo,
    hardware: Hardware,
    notices: list[str],
    for_training: bool,
) -> dict[str, Any]:
    """Arguments of `from_pretrained`: precision, attention, quantization and device."""
    import torch

    size = base.parameters if model.quantization == "none" else None
    dtype, dtype_notice = choose_dtype(model.dtype, hardware, size)
    if for_training and hardware.device == "cpu" and dtype == "float16":
        # Gradients underflow, and their scaling needs a GPU.
        dtype, dtype_notice = (
            "float32",
            ("float16 cannot be trained on a CPU: the base is loaded in float32."),
        )
    attention, attention_notice = choose_attention(model.attention, hardware, dtype)
    notices.extend(notice for notice in (dtype_notice, attention_notice) if notice)
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "attn_implementation": attention,
        "device_map": {"": _device(hardware)},
    }
    if model.quantization != "none":
        options["quantization_config"] = _quantization(model, hardware, dtype, notices)
    return options


def _device(hardware: Hardware) -> str:
    """Under `accelerate launch` every process has a GPU of its own."""
    if hardware.device == "cpu":
        return "cpu"
    if hardware.index and "LOCAL_RANK" not in os.environ:
        return f"cuda:{hardware.index}"
    from accelerate import PartialState

    return str(PartialState().device)


def _quantization(model: ModelConfig, hardware: Hardware, dtype: str, notices: list[str]) -> Any:
    """`BitsAndBytesConfig` for `nf4`, `fp4` or `int8`."""
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization: {model.quantization} needs the package bitsandbytes, which is "
            "not installed. Install it, or set model.quantization to none."
        )
    if model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute, notice = dtype, None
    if model.compute_dtype != "auto":
        compute, notice = choose_dtype(model.compute_dtype, hardware)
    if notice:
        notices.append(
            f"4-bit weights are multiplied in {compute}: {hardware.name} has no bfloat16."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=model.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, compute),
    )


def _keep_packing_off(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    Its first forward pass in eval mode would round their scales to bfloat16 for good; after that
    no gradient passes through them, DoRA and merging read them wrongly, and projections whose
    width is not a multiple of 64 fail.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _from_folder(folder: Path, base: BaseInfo, options: dict[str, Any]) -> PreTrainedModel:
    """The weights; ModelError when they do not fill the model, or memory does not hold them."""
    import torch

    try:
        loaded: Any = PHI3.load_class().from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            **_old_longrope(folder, base),
            **options,
        )
    except (torch.OutOfMemoryError, MemoryError):
        machine = detect_hardware()
        raise ModelError(
            f"{base.name} was not loaded, as memory ran out: its weights take "
            f"{words.size(2 * base.parameters)} in 16 bits and a quarter of that in 4, and "
            f"{words.size(machine.memory_free)} of {words.size(machine.memory_total)} are free on "
            f"{machine.name}. Set model.quantization to nf4, or end what else uses this device."
        ) from None
    except Exception as error:  # noqa: BLE001  (transformers raises anything on odd settings)
        raise ModelError(f"{base.name} cannot be loaded: {_words(error)}") from None
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{base.name}: {len(missing)} weights are missing from its files, the first is "
            f"{missing[0]}. They are incomplete, or of another model: fetch them again."
        )
    return model


def _old_longrope(folder: Path, base: BaseInfo) -> dict[str, Any]:
    """A config for `from_pretrained` where the checkpoint's own has a name that is not read."""
    import transformers

    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = stored.get("rope_scaling")
    if not isinstance(rope, dict) or rope.get("type") != "su":
        return {}
    kind: Any = getattr(transformers, PHI3.config_class)
    return {"config": kind.from_dict(read_config(base.name, folder / "config.json"))}


def _check_sizes(base: BaseInfo, folder: Path) -> None:
    """ModelError for a tokenizer's file of a size that none of the family has."""
    for name, most in TOKENIZER_BYTES.items():
        file = folder / name
        if file.is_file() and file.stat().st_size > most:
            raise ModelError(
                f"{base.name}: its {name} has {file.stat().st_size:,} bytes: expected {most:,} at "
                "most. Choose the original checkpoint."
            )


def _words(error: Exception) -> str:
    """The first line of what a library says, cut."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
