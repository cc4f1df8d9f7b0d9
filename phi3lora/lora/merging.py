"""Merging: the base with an adapter's update added to its weights, as one ordinary checkpoint.

merge(config.model, run_folder / "adapter", target_folder)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phi3lora.config import ModelConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import load_adapter
from phi3lora.models.base import check_base, fetch, resolve_path
from phi3lora.models.hardware import detect_hardware
from phi3lora.models.loading import load_model, load_tokenizer


def merge(base: ModelConfig, adapter: Path, target: Path, token: str | None = None) -> Path:
    """Write base plus adapter to `target`: safetensors, tokenizer and generation config.

    The base is loaded anew and unquantized, whatever it was trained in: adding an update to
    4-bit weights rounds it away. Its own precision is kept unless the config names another.
    Raises AdapterError if the checkpoint itself is quantized, or if `target` holds something
    already.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise AdapterError(f"{target} is not empty; name a new folder for the merged model.")
    path = resolve_path(base.path, detect_hardware(base.device))
    changes = {"path": path, "quantization": "none"}
    if base.dtype == "auto":
        changes["dtype"] = _own_dtype(path, base.revision, token)
    model = load_model(base.model_copy(update=changes), for_training=False, token=token)
    refuse_quantized(model)
    merged: Any = load_adapter(model, adapter)
    merged = merged.merge_and_unload(safe_merge=True)
    merged.save_pretrained(target)
    load_tokenizer(path, base.revision, token).save_pretrained(target)
    return target


def _own_dtype(path: str, revision: str | None, token: str | None) -> str:
    """The precision that the checkpoint is stored in, as its config.json says."""
    folder = fetch(check_base(path, revision, token), token)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = str(config.get("dtype") or config.get("torch_dtype"))
    return name if name in {"bfloat16", "float16", "float32"} else "auto"


def refuse_quantized(model: Any) -> None:
    """Raise AdapterError, with the reason, for a model that cannot be merged into."""
    if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None):
        raise AdapterError(
            "An adapter is not merged into quantized weights: the update is smaller than their "
            "rounding, and quality suffers. Merge into the unquantized checkpoint instead."
        )
