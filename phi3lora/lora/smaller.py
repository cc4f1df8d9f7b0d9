"""Smaller GGUF files, by llama.cpp's own `llama-quantize` where it is installed.

quantize(Path("pirate-f16.gguf"), Path("pirate-q4_k_m.gguf"), "q4_k_m")
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal, get_args

from phi3lora.errors import ConfigError, ModelError, Problem

Small = Literal["q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k"]
SMALL: tuple[Small, ...] = get_args(Small)
TOOL = "llama-quantize"


def quantize(source: Path, target: Path, kind: Small) -> Path:
    """Write a GGUF file of that kind; raises ModelError with the tool's last words."""
    beside = target.with_name(f".{target.name}.part")
    done = subprocess.run(
        [tool(kind), source, beside, kind.upper()], capture_output=True, text=True
    )
    if done.returncode or not beside.is_file():
        beside.unlink(missing_ok=True)
        last = ((done.stderr or done.stdout).strip().splitlines() or ["it said nothing"])[-1]
        raise ModelError(f"{TOOL} failed: {last[:300]}")
    beside.replace(target)
    return target


def tool(kind: str) -> str:
    """Where the tool is. Raises ConfigError where it is not installed."""
    found = shutil.which(TOOL)
    if found is None:
        message = (
            f"{kind} needs llama.cpp's {TOOL}, which is not on the PATH. Install llama.cpp, or "
            "take q8_0."
        )
        raise ConfigError([Problem("--precision", message)])
    return found
