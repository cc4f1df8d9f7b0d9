"""The estimate against what runs really need."""

from __future__ import annotations

import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import POCKET, RunConfig
from phi3lora.data.conversation import Detected
from phi3lora.data.inspection import Inspection
from phi3lora.models.base import BaseInfo
from phi3lora.models.hardware import Hardware, detect_hardware
from phi3lora.training.estimate import estimate, estimate_for

GIB = 2**30
GPU = Hardware("cuda", "a GPU", 24 * GIB, 24 * GIB, True, 8)
CPU = Hardware("cpu", "a CPU", 24 * GIB, 24 * GIB, True, 2)


def config(changes: dict[str, Any] | None = None) -> RunConfig:
    return RunConfig().with_values({"model.path": POCKET, **(changes or {})})


def inspection(kept: int = 100, length: int = 60) -> Inspection:
    return Inspection(
        format="messages",
        columns={},
        rows=kept,
        kept=kept,
        dropped={},
        tokens={"p50": length, "p95": length, "max": length},
        total_tokens=kept * length,
        supervised_tokens=kept * length // 2,
        truncated=0,
        preview=[],
        detected=Detected("messages", {}, {}, ""),
        lengths=array("I"),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"peft_config.r": 3, "peft_config.target_modules": "attention"},
        {"peft_config.target_modules": "embedding"},
        {"peft_config.layers_to_transform": [0, 2]},
        {"peft_config.rank_pattern": {"down_proj": 5}},
        {"peft_config.use_dora": True},
        {"peft_config.slices": {"k": False}},
        {"peft_config.modules_to_save": ["lm_head"]},
        {"adapter": "loralib"},
        {"adapter": "none"},
    ],
)
def test_parameters_are_counted_without_a_model(changes: dict[str, Any]) -> None:
    from phi3lora.lora.adapters import attach_adapter
    from phi3lora.lora.targets import count_parameters
    from phi3lora.models.loading import load_model

    settings = config({"model.dtype": "float32", **changes})
    model = attach_adapter(load_model(settings.model, for_training=True), settings)
    assert estimate(settings, CPU).trainable == count_parameters(model)[0]


def test_steps_and_tokens_follow_from_the_data() -> None:
    base = {
        "data.test_size": 0.1,
        "training_config.num_train_epochs": 2,
        "training_config.per_device_train_batch_size": 4,
    }
    need = estimate(config(base), CPU, inspection())
    assert (need.steps, need.tokens) == (2 * 23, 2 * 90 * 60)  # 90 rows are 23 batches of 4
    accumulated = {**base, "training_config.gradient_accumulation_steps": 5}
    assert estimate(config(accumulated), CPU, inspection()).steps == 2 * 5
    packed = {**base, "training_config.packing": True, "training_config.max_length": 600}
    assert estimate(config(packed), CPU, inspection()).steps == 2 * 3  # 10 rows of 600
    limited = {**base, "training_config.max_steps": 23}
    need = estimate(config(limited), CPU, inspection(), tokens_per_second=1000)
    assert (need.steps, need.seconds) == (23, pytest.approx(5.4))
    assert estimate(config(base), CPU).steps is None


def test_what_saves_memory_lowers_the_estimate() -> None:
    def need(changes: dict[str, Any]) -> int:
        mini = {"model.dtype": "bfloat16", "training_config.max_length": 4096}
        return estimate(config({**mini, **changes}), GPU).memory_bytes

    usual = need({})
    for saving in (
        {"training_config.gradient_checkpointing": True},
        {"training_config.per_device_train_batch_size": 1},
        {"training_config.max_length": 512},
        {"peft_config.lora_dropout": 0.0},
        {"training_config.optim": "paged_adamw_8bit"},
        {"peft_config.r": 1},
    ):
        assert need(saving) < usual, saving
    assert need({"training_config.fast": False}) > usual


def test_each_method_needs_what_it_reads_and_holds() -> None:
    """As counted in `test_fake_cuda`, in docs/methods.md."""

    def parts(method: str, changes: dict[str, Any] | None = None) -> dict[str, int]:
        return estimate(config({"method": method, **(changes or {})}), CPU, rows).parts

    rows = replace(inspection(length=256), lengths=array("I", [256] * 100))
    sft, dpo, kto, orpo = (parts(method) for method in ("sft", "dpo", "kto", "orpo"))
    assert not [part for one in (sft, dpo, kto, orpo) for part in one if part == "reference"]
    going_on = parts("dpo", {"model.adapter": "earlier"})
    assert going_on["reference"] == going_on["adapter"], "a copy of what training goes on from"
    assert dpo["activations"] == orpo["activations"] < sft["activations"]
    dropping = parts("dpo", {"dpo_config.disable_dropout": False})
    assert dropping["activations"] > dpo["activations"], "masks of what is dropped"
    short = parts("grpo", {"grpo_config.max_completion_length": 16})["activations"]
    long = parts("grpo", {"grpo_config.max_completion_length": 256})["activations"]
    assert long == pytest.approx(short * (256 + 256) / (256 + 16), rel=1e-6)
    many = {"training_config.gradient_accumulation_steps": 4096}
    few = estimate(config({"method": "grpo"}), CPU, rows).memory_bytes
    assert estimate(config({"method": "grpo", **many}), CPU, rows).memory_bytes > 2 * few


def test_answers_of_grpo_are_counted_by_whole_updates() -> None:
    need = estimate(
        config({"method": "grpo", "training_config.per_device_train_batch_size": 16}),
        CPU,
        inspection(),
    )
    assert need.steps == 3 * (90 // 4), "four answers to each of four rows behind an update"
    assert need.tokens == need.steps * 16 * (60 + 128)


def test_four_bits_of_a_weight_are_half_a_byte() -> None:
    plain = estimate(config({"model.dtype": "bfloat16"}), GPU)
    four = estimate(config({"model.dtype": "bfloat16", "model.quantization": "nf4"}), GPU)
    # Pocket's linear layers: from two bytes to 0.516; the rest goes up to four.
    assert four.parts["base"] != plain.parts["base"]
    assert four.parts["adapter"] == plain.parts["adapter"] / 2


MEASURE = """
    import sys, tempfile
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from phi3lora.config import RunConfig
    from phi3lora.training.trainer import train
    events = []
    config, _ = RunConfig.from_yaml(Path(sys.argv[1]))
    train(config, Path(tempfile.mkdtemp()), events.append)
    print("PEAK", events[-1].peak_memory)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"training_config.packing": True, "training_config.per_device_train_batch_size": 16},
        {"training_config.fast": False, "training_config.per_device_train_batch_size": 32},
    ],
    ids=["fast, packed", "plain"],
)
def test_peak_of_a_real_run_is_within_a_factor_of_two(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = config(
        {
            "model.dtype": "float32",
            "training_config.max_steps": 2,
            "training_config.max_length": 256,
            "training_config.eval_strategy": "no",
            **changes,
        }
    )
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    import textwrap

    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / "config.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    peak = int(ended.stdout.rpartition("PEAK")[2])

    from phi3lora.data.inspection import inspect
    from phi3lora.models.base import resolve_path
    from phi3lora.models.loading import load_tokenizer

    hardware = detect_hardware("cpu")
    tokenizer = load_tokenizer(resolve_path(POCKET, hardware))
    need = estimate(settings, hardware, inspect(settings, tokenizer))
    assert peak / 2 < need.memory_bytes < peak * 2, need.parts


MINI = BaseInfo("mini", None, None, 32064, 3072, 8192, 32, 32, 32, False, 4096)
FULL = {
    "adapter": "none",
    "training_config.max_length": 128,
    "training_config.per_device_train_batch_size": 7,
    "training_config.gradient_checkpointing": True,
    "training_config.optim": "paged_adamw_32bit",
}


@pytest.mark.parametrize(
    ("changes", "gib"),
    [
        ({"training_config.gradient_checkpointing": True}, 10.8),
        ({}, 42.7),
        ({"peft_config.lora_dropout": 0.0}, 32.7),
        (
            {
                "model.quantization": "nf4",
                "training_config.gradient_checkpointing": True,
                "training_config.per_device_train_batch_size": 2,
            },
            5.4,
        ),
        ({"model.quantization": "nf4", "training_config.gradient_checkpointing": True}, 7.5),
        (
            {"model.quantization": "nf4", "training_config.per_device_train_batch_size": 2},
            22.3,
        ),
        # 57 for weights, gradients and states; autocast keeps what it casts of them beside that.
        ({**FULL, "model.dtype": "float16", "training_config.fp16": True}, 66),
        (FULL, 43),
    ],
)
def test_full_size_is_within_15_percent_of_the_counted_peak(
    changes: dict[str, Any], gib: float
) -> None:
    """Counted tensor by tensor over two whole steps of Phi-3-mini, 4 rows of 2,048 tokens."""
    wanted = {
        "training_config.packing": True,
        "training_config.max_length": 2048,
        "evaluation.enabled": False,
        **changes,
    }
    need = estimate_for(RunConfig().with_values(wanted), MINI, GPU)
    assert need.memory_bytes / GIB == pytest.approx(gib, rel=0.15), need.parts


def test_states_of_bitsandbytes_are_float32_whatever_the_weights_are() -> None:
    def states(optim: str) -> float:
        changed = RunConfig().with_values({**FULL, "training_config.optim": optim})
        return estimate_for(changed, MINI, GPU).parts["optimizer"] / MINI.parameters

    found = {name: states(name) for name in ("adamw_torch", "paged_adamw_32bit", "adamw_8bit")}
    assert found == {"adamw_torch": 4, "paged_adamw_32bit": 8, "adamw_8bit": 2}  # in bfloat16


def test_the_largest_pass_counts_and_not_the_usual_one() -> None:
    usual, one_long = array("I", [50] * 400), array("I", [50] * 399 + [1000])
    looks = [replace(inspection(400, 50), lengths=lengths) for lengths in (usual, one_long)]
    less, more = (estimate(config(), CPU, look).parts["activations"] for look in looks)
    assert more / less == pytest.approx((1000 + 3 * 50) / (4 * 50))
    padded = {"training_config.fast": False}
    less, more = (estimate(config(padded), CPU, look).parts["activations"] for look in looks)
    assert more / less == pytest.approx(1000 / 50)


def test_the_peak_of_the_final_evaluation_counts_where_it_is_the_larger() -> None:
    small = {
        "model.quantization": "nf4",
        "training_config.per_device_train_batch_size": 1,
        "training_config.max_length": 2048,
        "training_config.gradient_checkpointing": True,
    }
    changed = RunConfig().with_values(small)
    need = estimate_for(changed, MINI, GPU)
    assert need.memory_bytes == need.proof_bytes > sum(need.parts.values())
    # 8 answers of 2,176 tokens: their keys and values alone take 6.4 GiB.
    assert need.proof_bytes > 8 * 2176 * 2 * 32 * 3072 * 2
    without = changed.with_values({"evaluation.enabled": False})
    assert estimate_for(without, MINI, GPU).proof_bytes == 0


@pytest.mark.parametrize(
    ("way", "spread"),
    [
        ("ddp", set()),
        ("zero2", {"gradients", "optimizer"}),
        ("fsdp2", {"base", "adapter", "gradients", "optimizer"}),
        ("zero3", {"base", "adapter", "gradients", "optimizer"}),
    ],
)
def test_several_devices_share_what_their_way_spreads(way: str, spread: set[str]) -> None:
    alone = estimate(config(), GPU, inspection())
    four = estimate(config({"devices": 4, "distributed": way}), GPU, inspection())
    smaller = {name for name, size in alone.parts.items() if 0 < four.parts[name] < size}
    assert smaller == spread
    assert all(four.parts[name] == alone.parts[name] // 4 for name in spread)
    assert alone.steps
    assert four.steps == -(-alone.steps // 4)
    assert four.tokens == alone.tokens


def test_a_base_that_one_card_does_not_hold_fits_four() -> None:
    medium = BaseInfo("medium", None, None, 32064, 5120, 17920, 40, 40, 10, False, 4096)
    # The final evaluation is one device's, which must hold the base whole.
    whole = config({"training_config.gradient_checkpointing": True, "evaluation.enabled": False})
    alone = estimate_for(whole, medium, GPU).memory_bytes
    spread = whole.with_values({"devices": 4, "distributed": "fsdp2"})
    assert alone > GPU.memory_total > estimate_for(spread, medium, GPU).memory_bytes
