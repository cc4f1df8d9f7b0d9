"""What this machine offers, and the precision and attention that follow from it.

    hardware = detect_hardware()
    dtype, notice = choose_dtype("auto", hardware)
    attention, notice = choose_attention("flash_attention_2", hardware, dtype)

A choice that the machine cannot honour falls back to the nearest one that works, with a notice
that says what was taken instead and why.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from phi3lora.errors import ModelError

Device = Literal["cpu", "cuda"]
GIB = 2**30
FLASH = {"flash_attention_2", "flash_attention_3"}


@dataclass(frozen=True)
class Hardware:
    """One computing device.

    Attributes:
        device: `cpu` or `cuda`.
        name: as its maker calls it.
        memory_total: bytes; of the GPU, or of the machine.
        memory_free: bytes that are free now.
        bfloat16: whether it computes in bfloat16; T4 and older do not.
        cores: CPU cores of the machine.
    """

    device: Device
    name: str
    memory_total: int
    memory_free: int
    bfloat16: bool
    cores: int


def detect_hardware(device: str = "auto") -> Hardware:
    """The device that `model.device` names; `auto` takes a GPU where there is one.

    Raises ModelError when a GPU is asked for and none is there.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "model.device: expected a GPU that PyTorch can use, found none. Set model.device to "
            "auto or cpu, or install a CUDA build of PyTorch."
        )
    if device == "cpu" or not torch.cuda.is_available():
        return _cpu()
    index = torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(index)
    return Hardware(
        device="cuda",
        name=torch.cuda.get_device_name(index),
        memory_total=total,
        memory_free=free,
        bfloat16=torch.cuda.get_device_capability(index) >= (8, 0),
        cores=_cores(),
    )


def _cpu() -> Hardware:
    import psutil

    memory = psutil.virtual_memory()
    return Hardware(
        device="cpu",
        name=f"CPU, {_cores()} cores",
        memory_total=memory.total,
        memory_free=memory.available,
        bfloat16=True,
        cores=_cores(),
    )


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_dtype(
    requested: str, hardware: Hardware, parameters: int | None = None
) -> tuple[str, str | None]:
    """The precision of the base's weights: a torch dtype's name, and a notice if it fell back.

    `auto` is bfloat16 on a GPU that has it, float16 on one that has not, and float32 on a CPU
    unless `parameters` of four bytes each would fill more than half of its free memory.
    """
    on_gpu = hardware.device == "cuda"
    if requested in {"auto", "bfloat16"} and on_gpu and not hardware.bfloat16:
        return "float16", (
            f"{hardware.name} has no bfloat16: the base is loaded in float16, and the adapter is "
            "trained in float32."
        )
    if requested != "auto":
        return requested, None
    if on_gpu:
        return "bfloat16", None
    if parameters and 4 * parameters > hardware.memory_free / 2:
        return "bfloat16", (
            f"float32 weights would take {4 * parameters / GIB:.1f} of "
            f"{hardware.memory_free / GIB:.1f} GiB free memory: the base is loaded in bfloat16."
        )
    return "float32", None


def choose_attention(
    requested: str, hardware: Hardware, dtype: str = "bfloat16"
) -> tuple[str, str | None]:
    """The attention implementation by transformers' name, and a notice if it fell back.

    `auto` is FlashAttention 2 where it is installed and can run, `sdpa` elsewhere.
    """
    if requested == "auto":
        return (
            "sdpa" if _unusable("flash_attention_2", hardware, dtype) else "flash_attention_2"
        ), None
    reason = _unusable(requested, hardware, dtype)
    if reason is None:
        return requested, None
    return "sdpa", f"{requested} cannot be used here, {reason}: sdpa is used instead."


def _unusable(attention: str, hardware: Hardware, dtype: str) -> str | None:
    """Why an implementation cannot run here; None when it can."""
    from transformers.utils import import_utils

    if attention in FLASH:
        if hardware.device == "cpu":
            return "it needs a GPU"
        if dtype == "float32":
            return "it needs 16-bit weights, and the base is in float32"
        installed = {
            "flash_attention_2": import_utils.is_flash_attn_2_available,
            "flash_attention_3": import_utils.is_flash_attn_3_available,
        }[attention]
        return None if installed() else "the package flash-attn is not installed"
    if attention == "flex_attention":
        if hardware.device == "cpu":
            return "its backward pass needs a GPU"
        return None if import_utils.is_torch_flex_attn_available() else "this PyTorch lacks it"
    return None
