"""Merging: the base with an adapter's update added to its weights, as one ordinary checkpoint.

merge(config.model, run_folder / "adapter", target_folder)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phi3lora.config import ModelConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import load_adapter
from phi3lora.models.loading import load_model, load_tokenizer


def merge(base: ModelConfig, adapter: Path, target: Path, token: str | None = None) -> Path:
    """Write base plus adapter to `target`: safetensors, tokenizer and generation config.

    The base is loaded anew and unquantized, whatever it was trained in: adding an update to
    4-bit weights rounds it away. Raises AdapterError if the checkpoint itself is quantized, or
    if `target` holds something already.
    """
    if target.exists() and any(target.iterdir()):
        raise AdapterError(f"{target} is not empty; name a new folder for the merged model.")
    unquantized = base.model_copy(update={"quantization": "none"})
    model = load_model(unquantized, for_training=False, token=token)
    refuse_quantized(model)
    merged = load_adapter(model, adapter).merge_and_unload(safe_merge=True)
    merged.config.use_cache = True
    merged.save_pretrained(target)
    load_tokenizer(base.path, base.revision, token).save_pretrained(target)
    return target


def refuse_quantized(model: Any) -> None:
    """Raise AdapterError, with the reason, for a model that cannot be merged into."""
    if getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None):
        raise AdapterError(
            "An adapter is not merged into quantized weights: the update is smaller than their "
            "rounding, and quality suffers. Merge into the unquantized checkpoint instead."
        )
