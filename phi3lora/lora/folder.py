"""An adapter's folder: the names in it, its settings, and its tensors' shapes.

Only safetensors are read; a pickled adapter is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phi3lora.errors import AdapterError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# PEFT's models hold the base two levels down, and so do the names of its tensors.
PREFIX = "base_model.model."


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a folder that has its weights in safetensors.

    Raises AdapterError.
    """
    if not (folder / CONFIG).is_file():
        whole = (folder / "config.json").is_file()
        raise AdapterError(
            f"{folder.name} holds a whole model, not an adapter: load it as a base."
            if whole
            else f"{folder.name} is no adapter: expected a folder with {CONFIG} and {WEIGHTS}."
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise AdapterError(
            f"The adapter {folder.name} has no {WEIGHTS}"
            + (
                ", only adapter_model.bin, a pickle that can run code when it is read. Save it "
                "again with safe_serialization=True."
                if pickled
                else ": its training may not have ended. Train it, or copy it whole."
            )
        )
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"The adapter {folder.name}: {CONFIG} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise AdapterError(f"The adapter {folder.name}: {CONFIG} holds no settings.")
    return settings


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of an adapter, from the file's header alone.

    Raises AdapterError when the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"The adapter {folder.name}: {WEIGHTS} is damaged ({error}). Copy or train it again."
        ) from None
