"""ONNX for onnxruntime-genai, by the model builder that Microsoft makes Phi-3's own files with.

write_onnx(merged_folder, Path("pirate-onnx"), "int4", "cpu")

The builder reads a whole model: an adapter is merged first. It can take one beside the base
(`adapter_path`), and then writes its matrices into the same graph, not into a file of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from phi3lora.errors import ConfigError, ModelError, Problem
from phi3lora.isolation import inherited

Provider = Literal["cpu", "cuda"]
BUILDER = "onnxruntime_genai.models.builder"
NEEDED = ("onnxruntime_genai", "onnx", "onnx_ir")
# What the builder takes for each, the usual one first.
PRECISIONS: dict[Provider, dict[str, str]] = {
    "cpu": {"f32": "fp32", "int8": "int8", "int4": "int4"},
    "cuda": {"f16": "fp16", "bf16": "bf16", "f32": "fp32", "int8": "int8", "int4": "int4"},
}


def write_onnx(
    folder: Path, target: Path, precision: str | None = None, provider: Provider = "cpu"
) -> Path:
    """Write a whole model as a folder that onnxruntime-genai opens; it appears whole or not at all.

    Args:
        folder: safetensors, config, tokenizer: a merged model, or a base.
        precision: of the matrices; by default the first of `PRECISIONS`.
        provider: what will run it.

    Raises ConfigError for a precision that the provider has not or where the builder is not
    installed, ModelError with the builder's last words where it fails.
    """
    check_onnx(precision, provider)
    chosen = PRECISIONS[provider]
    said = chosen[precision] if precision else next(iter(chosen.values()))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=target.parent) as beside:
        made, cache = Path(beside) / "model", Path(beside) / "cache"
        options = ["-i", str(folder), "-o", str(made), "-p", said, "-e", provider]
        words = [sys.executable, "-m", BUILDER, *options, "-c", str(cache)]
        done = subprocess.run(words, env=_environment(), capture_output=True, text=True)
        if done.returncode or not (made / "genai_config.json").is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ModelError(f"onnxruntime-genai's model builder failed: {last[:300]}")
        shutil.move(made, target)
    return target


def check_onnx(precision: str | None, provider: Provider) -> None:
    """Whether this can be written here. Raises ConfigError, before anything is merged."""
    if precision and precision not in PRECISIONS[provider]:
        known = ", ".join(PRECISIONS[provider])
        raise ConfigError(
            [Problem("--precision", f"{precision} is not for ONNX on {provider}; take {known}.")]
        )
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        message = (
            f"{missing[0]} is not installed: `pip install 'phi3lora[onnx]'` brings the builder."
        )
        raise ConfigError([Problem("--to onnx", message)])


def _environment() -> dict[str, str]:
    """No token, no network: everything that the builder reads lies in the folder."""
    return {**inherited(os.environ), "HF_HUB_OFFLINE": "1"}
