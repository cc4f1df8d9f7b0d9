"""What is decided differently where there is a GPU, tested without one."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from phi3lora.app.application import Application
from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.evaluation import report
from phi3lora.models import hardware
from phi3lora.models.hardware import GIB, Hardware, choose_attention, gpus_of_the_machine
from phi3lora.runs.backends.local import card_of, devices, worker_environment
from phi3lora.runs.store import changed
from phi3lora.settings import Settings
from phi3lora.training import failures, fallbacks
from phi3lora.training.fallbacks import within_reach
from phi3lora.training.preflight import _hidden_gpu
from phi3lora.training.trainer import train, with_precision
from tests import stage
from tests.small import small_base

T4 = Hardware("cuda", "Tesla T4", 15 * GIB, 14 * GIB, False, 4, (7, 5))
A100 = Hardware("cuda", "NVIDIA A100", 80 * GIB, 79 * GIB, True, 4, (8, 0))
H100 = Hardware("cuda", "NVIDIA H100", 80 * GIB, 79 * GIB, True, 4, (9, 0))


# Precision


def asked(**values: Any) -> Any:
    return RunConfig.from_values({"training_config": values})[0].training_config


@pytest.mark.parametrize(("name", "value"), [("bf16", True), ("tf32", True)])
def test_what_a_t4_has_not_falls_back_with_a_notice(
    name: str, value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallbacks, "_installed", lambda package: True)
    before = asked(**{name: value})
    after, (notice,) = within_reach(before, "cuda", bfloat16=False)
    assert notice.startswith(f"training_config.{name}")
    assert after == before.model_copy(update={name: None})
    assert within_reach(before, "cuda", bfloat16=True) == (before, [])


class _Weights:
    """A model's precision and device, and nothing else of it."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.config, self.dtype, self._device = SimpleNamespace(), dtype, device

    def parameters(self) -> Any:
        return iter([SimpleNamespace(device=torch.device(self._device))])


@pytest.mark.parametrize(
    ("bf16", "dtype", "device", "expected"),
    [
        (None, torch.float16, "cuda", (False, True)),
        (False, torch.float16, "cuda", (False, True)),  # gradients of 1 / N would underflow
        (False, torch.float32, "cuda", (False, False)),
        (True, torch.float32, "cuda", (True, False)),
        (None, torch.bfloat16, "cuda", (True, False)),
        (False, torch.bfloat16, "cuda", (False, False)),
        (False, torch.float16, "cpu", (False, False)),
    ],
)
def test_float16_weights_always_get_their_gradients_scaled(
    bf16: bool | None, dtype: torch.dtype, device: str, expected: tuple[bool, bool]
) -> None:
    found = with_precision(asked(bf16=bf16), _Weights(dtype, device))
    assert (found.bf16, found.fp16) == expected


@pytest.mark.parametrize(
    ("name", "machine", "usable"),
    [
        ("flash_attention_2", T4, False),
        ("flash_attention_2", A100, True),
        ("flash_attention_3", A100, False),
        ("flash_attention_3", H100, True),
    ],
)
def test_flash_attention_is_taken_by_generation(
    name: str, machine: Hardware, usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import import_utils

    for check in ("is_flash_attn_2_available", "is_flash_attn_3_available"):
        monkeypatch.setattr(import_utils, check, lambda: True)
    found, notice = choose_attention(name, machine, "float16")
    assert (found == name) is usable
    assert usable or f"{machine.name} is too old" in str(notice)


# Memory


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA driver error: 2",
        "NVML_SUCCESS == r INTERNAL ASSERT FAILED at /pytorch/c10/cuda/CUDACachingAllocator.cpp",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_memory_that_runs_out_is_known_by_all_its_names(words: str) -> None:
    assert failures.is_out_of_memory(RuntimeError(words))
    assert not failures.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


def models() -> list[int]:
    """Every Phi-3 that is alive, whoever holds it."""
    return [id(thing) for thing in gc.get_objects() if type(thing).__name__ == "Phi3ForCausalLM"]


SHORT = {
    "model.path": "pocket",
    "data.max_rows": 24,
    "training_config.max_steps": 1,
    "training_config.per_device_train_batch_size": 2,
    "training_config.max_length": 32,
    "training_config.eval_strategy": "no",
    "training_config.save_strategy": "no",
    "training_config.log_level": "warning",
    "evaluation.rows": 4,
    "evaluation.batch_size": 4,
    "evaluation.max_new_tokens": 2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path, list[int]]:
    folder = tmp_path_factory.mktemp("run")
    chosen = RunConfig().with_values(SHORT)
    gc.collect()
    before = models()
    train(chosen, folder, lambda event: None)
    return chosen, folder, [model for model in models() if model not in before]


def test_the_trained_model_is_gone_when_the_proof_loads_one(
    trained: tuple[RunConfig, Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, folder, left = trained
    assert left == [], "no collection was asked for here: the training did it"
    load, alive = report.load_model, []

    def loading(*args: Any, **kwargs: Any) -> Any:
        alive.append(len(models()))
        return load(*args, **kwargs)

    before = len(models())
    monkeypatch.setattr(report, "load_model", loading)
    report.evaluate(chosen, folder)
    assert alive == [before]


def test_too_little_memory_for_the_proof_halves_its_batch(
    trained: tuple[RunConfig, Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, folder, _ = trained
    score, tried = report.score_rows, []

    def small(*args: Any, batch_size: int, **kwargs: Any) -> Any:
        tried.append(batch_size)
        if batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(*args, batch_size=batch_size, **kwargs)

    monkeypatch.setattr(report, "score_rows", small)
    events: list[Any] = []
    assert report.evaluate(chosen, folder, emit=events.append).rows == 2
    assert tried == [4, 2, 1] * 2
    told = [event.message for event in events if event.kind == "notice"]
    assert (
        told[0] == "Memory ran out while the base answered; rows are answered 2 at a time instead."
    )

    def never(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(report, "score_rows", never)
    with pytest.raises(RunError, match="answered one row at a time"):
        report.evaluate(chosen, folder)


def test_the_allocators_setting_is_the_users_where_there_is_one(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert worker_environment(settings, {})["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        kept = worker_environment(settings, {name: "max_split_size_mb:64"})
        assert {n: v for n, v in kept.items() if "ALLOC" in n} == {name: "max_split_size_mb:64"}


# Which devices there are


def test_gpus_are_counted_where_they_have_no_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "DEVICES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus_of_the_machine() == 0
    (tmp_path / "dxg").touch()  # WSL2
    assert gpus_of_the_machine() == 1, "nvidia-smi does not answer"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: RTX 4090 (UUID: GPU-1)'\necho 'GPU 1: RTX 4090'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    assert devices("cuda", {}) == ["0", "1"]
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl"):
        (tmp_path / name).touch()
    assert devices("cuda", {}) == ["0", "1", "2"]
    assert devices("cuda", {"CUDA_VISIBLE_DEVICES": ""}) == []


def test_a_driver_that_is_too_old_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig()
    assert _hidden_gpu(config) == []
    monkeypatch.setattr(hardware, "_driver", lambda: "535.104.05")
    monkeypatch.setattr(hardware, "_told_to_see_none", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (check,) = _hidden_gpu(config)
    assert (check.name, check.level) == ("Hardware", "red")
    assert "CUDA 13.0, and the driver is 535.104.05" in check.found
    assert "download.pytorch.org/whl/cu126" in check.found
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in _hidden_gpu(config)[0].found
    assert _hidden_gpu(config.with_values({"model.device": "cpu"})) == [], "it was asked for"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _hidden_gpu(config) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "2"),
        ({"LOCAL_RANK": "1"}, None),
    ],
)
def test_one_process_takes_one_gpu(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    hardware.use_one_gpu()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("launched", "expected"), [(False, 3), (True, 1)])
def test_chat_stays_off_the_card_where_training_begins(
    launched: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(hardware, "_told", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((index + 1) * GIB, 15 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "1")
    found = hardware.detect_hardware()
    assert (found.index, found.name) == (expected, f"Card {expected}")
    assert found.memory_free == (expected + 1) * GIB


def test_the_chat_minds_the_trainings_on_its_own_card(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four, the chat has the last: it makes room for what trains there and for nothing else."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    card = Hardware("cuda", "NVIDIA L4", 22 * GIB, 22 * GIB, True, 8, (8, 9), index=3)
    monkeypatch.setattr(hardware, "detect_hardware", lambda *_: card)
    app = Application.open(settings, helper=False)
    held = []
    for taken, counts in ((["4"], False), (["5", "6"], False), (["6", "7"], True), ([], True)):
        run = app.launching.store.create(RunConfig().with_values({"model.path": "pocket"}))
        held.append(stage.hold(run))
        run = changed(run, status="running", cards=taken)
        assert (app.comparing._training_needs() is not None) is counts, taken
        changed(run, status="stopped")
    assert app.comparing._training_needs() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert card_of(card) == "cpu", "where it cannot be counted"
    for lock in held:
        os.close(lock)


CARDS = """0, GPU-aa, NVIDIA L4, 450, 22584, 8.9, [N/A]
1, GPU-bb, NVIDIA L4, 8000, 15034, 8.9, [N/A]"""
T4_BESIDE = "\n2, GPU-cc, Tesla T4, 0, 15000, 7.5, [N/A]"


@pytest.mark.parametrize(
    ("environment", "answer", "free"),
    [
        ({}, CARDS, 15034),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, CARDS, 22584),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bb"}, CARDS, 15034),
        ({"CUDA_VISIBLE_DEVICES": "0"}, CARDS + T4_BESIDE, None),
        (
            {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            CARDS + T4_BESIDE,
            22584,
        ),
        ({"CUDA_VISIBLE_DEVICES": "MIG-12"}, CARDS, None),
        ({}, CARDS.replace("[N/A]", "Enabled"), None),
        ({}, CARDS.replace("15034", "[N/A]"), None),
        ({}, "", None),
    ],
)
def test_looking_at_a_gpu_opens_no_context(
    environment: dict[str, str],
    answer: str,
    free: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """nvidia-smi is asked, as long as it is certain which card is meant."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '%s\\n' '{answer}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    monkeypatch.setattr(hardware, "gpus_of_the_machine", lambda: 2)
    opened: list[int] = []
    visible = len(hardware.visible_gpus())
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: bool(opened),
        "device_count": lambda: visible,
        "mem_get_info": lambda index: opened.append(index) or (5 * GIB, 15 * GIB),
        "get_device_name": lambda index: "asked of torch",
        "get_device_capability": lambda index: (8, 9),
    }
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, value)
    found = hardware.detect_hardware()
    assert bool(opened) is (free is None)
    assert found.memory_free == (5 * GIB if free is None else free * 2**20)
    if free is not None:
        assert (found.name, found.capability) == ("NVIDIA L4", (8, 9))
        assert found.memory_total == 23034 * 2**20


# Attention without a mask for the whole row


def test_masks_hold_a_triangle_and_bounds_are_read_once() -> None:
    from phi3lora.training.fast import attention

    attention._ahead.cache_clear()
    attention._behind.cache_clear()
    model = small_base()
    ids = torch.arange(60)[None] % 60
    bounds = torch.tensor([0, 13, 60], dtype=torch.int32)
    reads = []

    class Counted(torch.Tensor):
        def tolist(self) -> Any:
            reads.append(1)
            return torch.Tensor.tolist(self)

    bounds = bounds.as_subclass(Counted)
    positions = torch.cat([torch.arange(13), torch.arange(47)])[None]
    with attention.packed_attention(model):
        model(
            input_ids=ids, position_ids=positions, cu_seq_lens_q=bounds, labels=ids
        ).loss.backward()
    assert len(reads) == 1, "once a batch, not once a layer"
    assert attention._ahead.cache_info().currsize == 2  # one for each size of a block
    assert all(
        attention._ahead(n, torch.float32, torch.device("cpu")).shape == (n, n) for n in (13, 47)
    )


def test_subspace_iteration_finds_nearly_what_a_whole_decomposition_finds() -> None:
    """On what 4 bits round off, whose directions are nearly equal: the hardest case there is."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from phi3lora.lora.initial import _by_iteration, _directions

    torch.manual_seed(0)
    weight = torch.randn(512, 384) * 0.02
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    lost = weight - dequantize_4bit(packed, state).float()
    left = []
    for found in (_by_iteration, _directions):
        u, s, v = found(lost, 16)
        assert (u.shape, s.shape, v.shape) == ((512, 16), (16,), (16, 384))
        left.append(float((lost - (u * s) @ v).norm() ** 2))
    captured = [float(lost.norm() ** 2) - rest for rest in left]
    assert captured[0] / captured[1] > 0.99
