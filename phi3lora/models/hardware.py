"""What this machine offers, and the precision and attention that follow from it.

    hardware = detect_hardware()
    dtype, notice = choose_dtype("auto", hardware)
    attention, notice = choose_attention("flash_attention_2", hardware, dtype)

A choice that the machine cannot honour falls back to the nearest one that works, with a notice
that says what was taken instead and why.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from phi3lora import words
from phi3lora.errors import ModelError, TrainingError

Device = Literal["cpu", "cuda"]
GIB, MIB = 2**30, 2**20
ORDER = "CUDA_DEVICE_ORDER"
LENT = "PHI3LORA_LENT_GPU"  # the card that ZeroGPU lends, as JSON
AMPERE = (8, 0)  # the first with bfloat16, TF32 and FlashAttention
# The first generation that each runs on; the third is written for Hopper's instructions.
FLASH = {"flash_attention_2": AMPERE, "flash_attention_3": (9, 0)}
DEVICES = Path("/dev")


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
        capability: of a GPU, as CUDA counts generations: (7, 5) is a T4, (9, 0) an H100.
        index: of a GPU among those that this process sees.
        share: of the card's processors, where only a part of them is lent.
    """

    device: Device
    name: str
    memory_total: int
    memory_free: int
    bfloat16: bool
    cores: int
    capability: tuple[int, int] | None = None
    index: int = 0
    share: float = 1.0


def lend(hardware: Hardware | None) -> None:
    """What `detect_hardware` says where a GPU is lent by the call, and this process has none.

    The app of a ZeroGPU Space checks and estimates for that card, in its helper processes too,
    which inherit it; the call that has the card says None.
    """
    if hardware is None:
        os.environ.pop(LENT, None)
    else:
        os.environ[LENT] = json.dumps(asdict(hardware))


def detect_hardware(device: str = "auto") -> Hardware:
    """The device that `model.device` names; `auto` takes a GPU where there is one.

    Raises ModelError when a GPU is asked for and none is there.
    """
    if device != "cpu" and (lent := os.environ.get(LENT)):
        card = json.loads(lent)
        return Hardware(**{**card, "capability": tuple(card["capability"])})
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "model.device: expected a GPU that PyTorch can use, found none. Set model.device to "
            "auto or cpu, or install a CUDA build of PyTorch."
        )
    if device == "cpu" or not torch.cuda.is_available():
        return _cpu()
    index = _index()
    told = None if torch.cuda.is_initialized() else _told(index, torch.cuda.device_count())
    if told is None:
        free, total = torch.cuda.mem_get_info(index)
        capability = torch.cuda.get_device_capability(index)
        told = torch.cuda.get_device_name(index), total, free, capability
    name, total, free, capability = told
    return Hardware(
        device="cuda",
        name=name,
        memory_total=total,
        memory_free=free,
        bfloat16=capability >= AMPERE,
        cores=_cores(),
        capability=capability,
        index=index,
    )


def _told(index: int, count: int) -> tuple[str, int, int, tuple[int, int]] | None:
    """(name, bytes in all, bytes free, generation) of a visible GPU, as nvidia-smi says.

    PyTorch would open a context to find out, which takes 0.1 to 0.5 GiB of the card from those
    who compute, as long as this process lives. None where nvidia-smi does not answer, where a card
    is cut into parts (MIG), and where its order of the cards may be another than CUDA's: fastest
    first, unless that is told.
    """
    fields = "index,uuid,name,memory.used,memory.free,compute_cap,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
        cards = [[part.strip() for part in line.split(",")] for line in answer.stdout.splitlines()]
        known = {key: card for card in cards for key in card[:2]}
        alike = len({card[2] for card in cards}) == 1
        visible = visible_gpus()
        if len(visible) != count or not (alike or os.environ.get(ORDER) == "PCI_BUS_ID"):
            return None
        _, _, name, used, free, capability, parts = known[visible[index]]
        if parts == "Enabled":
            return None
        major, minor = capability.split(".")
        return name, (int(used) + int(free)) * MIB, int(free) * MIB, (int(major), int(minor))
    except (OSError, subprocess.SubprocessError, LookupError, ValueError):
        return None


def _index() -> int:
    """Which of several visible GPUs: the last, where no launcher gave this process its own.

    A run sees one GPU, and takes the first that is free. Who sees several is the app: its chat
    and its checks stay off the card where training begins.
    """
    import torch

    if "LOCAL_RANK" in os.environ:
        return torch.cuda.current_device()
    return max(torch.cuda.device_count() - 1, 0)


def hidden_gpu() -> str | None:
    """Why PyTorch cannot use the GPU that this machine has; None where it can, or has none.

    A driver that is older than PyTorch's CUDA makes it a CPU machine without a word.
    """
    import torch

    driver = _driver()
    if driver is None or torch.cuda.is_available() or _told_to_see_none() or LENT in os.environ:
        return None
    built = torch.version.cuda
    if built is None:
        return (
            f"This machine has a GPU (driver {driver}), but this PyTorch {torch.__version__} was "
            "built without CUDA: everything runs on the CPU. Install a CUDA build of it."
        )
    return (
        f"This machine has a GPU, but PyTorch {torch.__version__} cannot use it: it was built for "
        f"CUDA {built}, and the driver is {driver}. Everything runs on the CPU. Update the driver "
        "(CUDA 13 needs 580 or later), or install a build for an older one: pip install torch "
        "--index-url https://download.pytorch.org/whl/cu126"
    )


def _driver() -> str | None:
    """The NVIDIA driver's version; `unknown` where there is a GPU that does not say, else None."""
    version = Path("/sys/module/nvidia/version")
    try:
        return version.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown" if gpus_of_the_machine() else None


def _told_to_see_none() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}


def gpus_of_the_machine() -> int:
    """How many GPUs there are, counted without torch.

    NVIDIA's driver has a device file for each. WSL2 (/dev/dxg) and ROCm (/dev/kfd) have one for
    all; there nvidia-smi is asked, and one is taken where it does not answer.
    """
    files = len(list(DEVICES.glob("nvidia[0-9]*")))
    if files or not any((DEVICES / name).exists() for name in ("dxg", "kfd")):
        return files
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return 1
    return max(answer.stdout.count("GPU "), 1)


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them; without torch."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and name != "-1"]
    return [str(index) for index in range(gpus_of_the_machine())]


def use_one_gpu() -> str | None:
    """One process trains on one GPU; a launcher that gives each process its own says so.

    Of several that are visible TRL would make a DataParallel, which it then refuses. Returns what
    to do to use them all, where others are left idle. Raises TrainingError where PyTorch has taken
    hold of them already, so that they cannot be hidden.
    """
    import torch

    number = 0 if "LOCAL_RANK" in os.environ else torch.cuda.device_count()
    if number < 2:
        return None
    all_of_them = (
        f"To use them all, set devices to {number}, or start it with accelerate launch "
        f"--num_processes {number}."
    )
    if torch.cuda.is_initialized():
        raise TrainingError(
            f"{number} GPUs are visible to one process, which trains on one, and PyTorch holds "
            "them already. Set CUDA_VISIBLE_DEVICES=0 before the process starts. "
            f"{all_of_them}"
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = names.split(",")[0]
    return f"{number} GPUs are visible; this run trains on the first. {all_of_them}"


def free_memory() -> None:
    """Give back what nobody uses: a trained model lies in circles that only a collection breaks."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
            f"float32 weights would take {words.size(4 * parameters)} of "
            f"{words.size(hardware.memory_free)} free memory: the base is loaded in bfloat16."
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
        if hardware.capability is not None and hardware.capability < FLASH[attention]:
            return f"{hardware.name} is too old for it"
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
