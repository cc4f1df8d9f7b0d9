"""GRPO in each way that a training can go: quantized, from an adapter, every weight, hot, cut."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.bases import make_speaker
from tests.test_grpo import figures, learn

SHORT: dict[str, Any] = {
    "data.max_rows": 10,
    "training_config.max_steps": 2,
    "training_config.save_strategy": "steps",
    "training_config.save_steps": 1,
    "grpo_config.length": 40,
}
CUT = "cut answers left out"  # all of them here
EARLIER = "an earlier run's adapter"  # of which a copy is what the model is held near
NO_REFERENCE = {"grpo_config.beta": 0.0}
WAYS: dict[str, dict[str, Any]] = {
    "QLoRA, slices, by batch": {
        "model.quantization": "nf4",
        "peft_config.slices": {"k": False},
        "grpo_config.scale_rewards": "batch",
        "grpo_config.loss_type": "dr_grpo",
    },
    "DoRA, checkpointing, dropout": {
        "peft_config.use_dora": True,
        "peft_config.lora_dropout": 0.1,
        "training_config.gradient_checkpointing": True,
    },
    "every weight": {"adapter": "none", "training_config.learning_rate": 1e-4, **NO_REFERENCE},
    "loralib, hot, evaluated": {
        "adapter": "loralib",
        **NO_REFERENCE,
        "grpo_config.temperature": 1.7,
        "grpo_config.top_p": 0.9,
        "grpo_config.top_k": 50,
        "training_config.eval_strategy": "steps",
        "training_config.eval_steps": 1,
    },
    "from an adapter": {"model.adapter": EARLIER},
    CUT: {"grpo_config.mask_truncated_completions": True},
}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*/*model.safetensors")))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_speaker(tmp_path_factory.mktemp("base") / "phi"))


@pytest.fixture(scope="module")
def earlier(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("earlier")
    learn(folder, {**SHORT, "model.path": base, "training_config.max_steps": 1})
    return str(folder / "adapter")


@pytest.mark.parametrize("way", WAYS)
def test_stop_and_resume_is_the_same_to_the_bit(
    way: str, base: str, earlier: str, tmp_path: Path
) -> None:
    """And the fast path begins as TRL's own does: the same answers, the same gradient."""
    changes = {**SHORT, "model.path": base, **WAYS[way]}
    if "model.adapter" in changes:
        changes["model.adapter"] = earlier
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    steps = figures(learn(whole, changes))
    assert len(steps) == 2
    assert [norm > 0 for *_, norm, _ in steps] == [way != CUT] * 2, "of what can be learnt"
    unfinished = shutil.ignore_patterns("checkpoint-2", "adapter", "model")
    shutil.copytree(whole, resumed, ignore=unfinished)
    again = figures(learn(resumed, changes))
    assert again == steps[1:]
    ours, theirs = tensors(whole), tensors(resumed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if "peft_config.lora_dropout" in changes:
        return  # on fewer, unpadded numbers it is another dropout
    one = {"training_config.max_steps": 1, "training_config.fast": False}
    (plain,) = figures(learn(tmp_path / "plain", {**changes, **one}))
    near = 0.05 if "model.quantization" in changes else 0.01  # of bfloat16, and of float32
    assert steps[0][1:3] == pytest.approx(plain[1:3], abs=1e-4)
    assert steps[0][4] == pytest.approx(plain[4], rel=near)
    assert steps[0][5] == plain[5], "as many tokens were answered"
