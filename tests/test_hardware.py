"""What the machine offers, and which precision and attention follow from it."""

from __future__ import annotations

import dataclasses

import psutil
import pytest
import torch

from phi3lora.errors import ModelError
from phi3lora.models.hardware import (
    GIB,
    Hardware,
    choose_attention,
    choose_dtype,
    detect_hardware,
)

CPU = Hardware("cpu", "CPU, 2 cores", 16 * GIB, 12 * GIB, True, 2)
T4 = Hardware("cuda", "Tesla T4", 15 * GIB, 14 * GIB, False, 4, (7, 5))
A10 = Hardware("cuda", "NVIDIA A10G", 22 * GIB, 21 * GIB, True, 4)


def test_a_cpu_reports_its_memory_and_cores() -> None:
    hardware = detect_hardware("cpu")
    assert hardware.device == "cpu"
    assert hardware.memory_total == psutil.virtual_memory().total
    assert 0 < hardware.memory_free <= hardware.memory_total
    assert f"{hardware.cores} cores" in hardware.name


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert detect_hardware("auto").device == "cpu"
    with pytest.raises(ModelError, match=r"Set model\.device to auto or cpu"):
        detect_hardware("cuda")


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("phi3lora.models.hardware._told", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (14 * GIB, 15 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert detect_hardware() == dataclasses.replace(T4, cores=detect_hardware("cpu").cores)
    assert detect_hardware("cpu").device == "cpu"


@pytest.mark.parametrize(
    ("requested", "hardware", "expected"),
    [
        ("auto", CPU, "float32"),
        ("auto", A10, "bfloat16"),
        ("auto", T4, "float16"),
        ("bfloat16", T4, "float16"),
        ("float32", T4, "float32"),
        ("float16", A10, "float16"),
        ("bfloat16", CPU, "bfloat16"),
    ],
)
def test_precision(requested: str, hardware: Hardware, expected: str) -> None:
    dtype, notice = choose_dtype(requested, hardware)
    assert dtype == expected
    assert (notice is not None) == (hardware is T4 and requested in {"auto", "bfloat16"})


def test_the_notice_names_the_gpu_and_what_was_taken() -> None:
    notice = choose_dtype("auto", T4)[1] or ""
    assert notice.startswith("Tesla T4 has no bfloat16")
    assert "float16" in notice
    assert "adapter is trained in float32" in notice


def test_a_large_base_on_a_cpu_is_loaded_in_half_the_bytes() -> None:
    assert choose_dtype("auto", CPU, 2_000_000) == ("float32", None)
    dtype, notice = choose_dtype("auto", CPU, 3_821_079_552)
    assert dtype == "bfloat16"
    assert "14.2 GB of 12.0 GB" in (notice or "")
    assert choose_dtype("float32", CPU, 3_821_079_552) == ("float32", None)


def test_attention_falls_back_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_flash_attn_2_available", lambda: False)
    assert choose_attention("auto", A10) == ("sdpa", None)
    assert choose_attention("eager", CPU) == ("eager", None)
    name, notice = choose_attention("flash_attention_2", A10)
    assert name == "sdpa"
    assert "flash_attention_2 cannot be used here, the package" in (notice or "")
    assert "needs a GPU" in (choose_attention("flash_attention_2", CPU)[1] or "")


def test_flash_attention_is_taken_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_flash_attn_2_available", lambda: True)
    assert choose_attention("auto", A10, "bfloat16") == ("flash_attention_2", None)
    assert choose_attention("auto", A10, "float32") == ("sdpa", None)
    assert "16-bit weights" in (choose_attention("flash_attention_2", A10, "float32")[1] or "")
    assert choose_attention("auto", CPU) == ("sdpa", None)
