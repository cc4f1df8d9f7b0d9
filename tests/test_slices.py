"""Slices of fused projections: equal to loralib where it can, right where it cannot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3lora.config import POCKET, RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import attach_adapter, save_adapter
from phi3lora.lora.folder import CONFIG
from phi3lora.lora.slices import block_mask, slices_of
from phi3lora.models.loading import load_model
from tests.bases import TOKENS, config_for, logits, make_base, train


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads, two key/value heads: q has 64 rows, k and v 32."""
    return make_base(tmp_path_factory.mktemp("grouped") / "phi")


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads and as many key/value heads: q, k and v have 64 rows each."""
    return make_base(tmp_path_factory.mktemp("equal") / "phi", key_value_heads=4)


def attach(config: RunConfig) -> Any:
    return attach_adapter(load_model(config.model, for_training=True), config)


def qkv(model: Any, layer: int = 0) -> Any:
    """The attention's fused projection, in PEFT's model or in a plain one."""
    return next(
        m for path, m in model.named_modules() if path.endswith(f"{layer}.self_attn.qkv_proj")
    )


def test_rows_of_the_slices(grouped: Path) -> None:
    parts = slices_of(load_model(config_for(grouped).model, for_training=False))
    assert parts == {
        "qkv_proj": [("q", 0, 64), ("k", 64, 96), ("v", 96, 128)],
        "gate_up_proj": [("gate", 0, 128), ("up", 128, 256)],
    }


def test_the_pocket_is_grouped_query() -> None:
    model = load_model(config_for(POCKET).model, for_training=False)
    sizes = [part.stop - part.start for part in slices_of(model)["qkv_proj"]]
    assert sizes == [256, 128, 128]
    assert sum(sizes) == qkv(model).out_features


def test_the_mask_keeps_each_slice_to_its_columns(grouped: Path) -> None:
    parts = slices_of(load_model(config_for(grouped).model, for_training=False))["qkv_proj"]
    mask = block_mask(parts, [True, False, True], rank=2)
    expected = torch.zeros(128, 4, dtype=torch.bool)
    expected[:64, :2] = True  # q
    expected[96:, 2:] = True  # v
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    "off", [{}, {"k": False}, {"q": False, "up": False}, {"gate": False, "v": False}]
)
def test_thirty_steps_equal_loralib_merged_linear(equal: Path, off: dict[str, bool]) -> None:
    """The same A to begin with, the same 30 steps of AdamW: the same A, B and outputs."""
    ours = attach(config_for(equal, {"slices": off}))
    theirs = attach(config_for(equal, {"slices": off}, adapter="loralib"))
    pairs = [
        (module, theirs.get_submodule(path.removeprefix("base_model.model.")))
        for path, module in ours.named_modules()
        if hasattr(module, "lora_A") and not path.endswith(".lora_A")
    ]
    assert len(pairs) == 8
    for mine, other in pairs:
        other.lora_A.data.copy_(mine.lora_A["default"].weight)
    for model in (ours, theirs):
        train(model, steps=30, lr=2e-3, weight_decay=0.1)

    torch.testing.assert_close(logits(ours), logits(theirs), atol=3e-5, rtol=0)
    for mine, other in pairs:
        a, b = mine.lora_A["default"].weight, mine.lora_B["default"].weight
        torch.testing.assert_close(a, other.lora_A, atol=3e-6, rtol=0)
        update = other.merge_AB() if hasattr(other, "merge_AB") else other.lora_B @ other.lora_A
        torch.testing.assert_close(b @ a, update, atol=3e-6, rtol=0)
        assert b.abs().max() > 0.01  # or nothing was compared


def test_unequal_slices_equal_three_separate_layers(grouped: Path) -> None:
    """q, k and v with 64, 32 and 32 rows, against three Linear layers with LoRA of their own."""
    layer = qkv(attach(config_for(grouped, {"slices": {}, "target_modules": ["qkv_proj"]})))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # (12, 64), (128, 12)
    parts, rank, scale = [(0, 64), (64, 96), (96, 128)], 4, 8 / 4
    separate_a = [a[i * rank : (i + 1) * rank].detach().clone().requires_grad_() for i in range(3)]
    separate_b = [torch.zeros(end - start, rank, requires_grad=True) for start, end in parts]
    fused = torch.optim.AdamW([a, b], lr=1e-2, weight_decay=0.1)
    apart = torch.optim.AdamW([*separate_a, *separate_b], lr=1e-2, weight_decay=0.1)
    torch.manual_seed(1)
    for _ in range(30):
        x, wanted = torch.randn(16, 64), torch.randn(16, 128)
        (layer(x) - wanted).square().mean().backward()
        outputs = [
            x @ layer.base_layer.weight[start:end].T + scale * x @ separate_a[i].T @ separate_b[i].T
            for i, (start, end) in enumerate(parts)
        ]
        (torch.cat(outputs, dim=1) - wanted).square().mean().backward()
        for optimizer in (fused, apart):
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(a, torch.cat(separate_a), atol=3e-6, rtol=0)
    torch.testing.assert_close(b, torch.block_diag(*separate_b), atol=3e-6, rtol=0)


OPTIMIZERS: dict[str, Callable[[list[Any]], Any]] = {
    "adamw with decay": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=1e-1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adafactor": lambda p: __import__("transformers").Adafactor(p, lr=1e-2, relative_step=False),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("dtype", "quantization"), [("float32", "none"), ("bfloat16", "none"), ("float32", "nf4")]
)
def test_what_is_off_stays_exactly_zero(
    grouped: Path, optimizer: str, dtype: str, quantization: str
) -> None:
    model = attach(
        config_for(
            grouped,
            {"slices": {"k": False, "up": False}},
            model={"dtype": dtype, "quantization": quantization},
        )
    )
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    step = OPTIMIZERS[optimizer](trainable)
    for _ in range(5):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        step.step()
        step.zero_grad()
    b = qkv(model).lora_B["default"].weight  # (128, 8)
    assert torch.count_nonzero(b[64:96]) == 0  # k is off
    assert torch.count_nonzero(b[:64, 4:]) == 0  # q's rows, v's columns
    assert torch.count_nonzero(b[96:, :4]) == 0  # v's rows, q's columns
    assert torch.count_nonzero(b[:64, :4]) > 200
    assert torch.count_nonzero(b[96:, 4:]) > 100
    gate_up = next(m for p, m in model.named_modules() if p.endswith("gate_up_proj"))
    assert torch.count_nonzero(gate_up.lora_B["default"].weight[128:]) == 0


def test_the_frozen_slice_answers_like_the_base(grouped: Path) -> None:
    """With k off, the keys of a trained model are the base's keys."""
    model = attach(config_for(grouped, {"slices": {"k": False}, "target_modules": ["qkv_proj"]}))
    train(model)
    x = torch.randn(5, 64)
    tuned, before = qkv(model)(x), qkv(model).base_layer(x)
    assert torch.equal(tuned[:, 64:96], before[:, 64:96])
    assert (tuned - before).abs().amax(0)[:64].min() > 0


def test_masks_survive_what_trainers_do(grouped: Path) -> None:
    """A cast, a move, or weights loaded from a checkpoint keep the slices apart."""
    model = attach(config_for(grouped, {"slices": {"k": False}}))
    b = qkv(model).lora_B["default"].weight
    b.data = b.data.to(torch.bfloat16).to(torch.float32)
    model.load_state_dict(model.state_dict())
    model.to("cpu")
    train(model, steps=2)
    assert torch.count_nonzero(qkv(model).lora_B["default"].weight[64:96]) == 0


def test_a_new_parameter_in_the_place_of_b_is_masked_too(grouped: Path) -> None:
    """As PEFT puts one there when it loads a checkpoint in another precision."""
    model = attach(config_for(grouped, {"slices": {"k": False}}))
    layer = qkv(model).lora_B["default"]
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    train(model, steps=2)
    assert torch.count_nonzero(layer.weight[64:96]) == 0
    assert torch.count_nonzero(layer.weight) > 0


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_slices_stay_apart_after_a_resume(grouped: Path, tmp_path: Path, quantization: str) -> None:
    """What the Trainer does: the checkpoint is loaded into the attached adapter."""
    config = config_for(grouped, {"slices": {"k": False}}, model={"quantization": quantization})
    first = attach(config)
    train(first)
    first.save_pretrained(tmp_path)
    model = attach(config)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    train(model)
    b = qkv(model).lora_B["default"].weight
    assert torch.count_nonzero(b[64:96]) == 0
    assert not torch.equal(b.float(), qkv(first).lora_B["default"].weight.float())


def test_the_result_is_an_ordinary_adapter(grouped: Path, tmp_path: Path) -> None:
    config = config_for(grouped, {"slices": {"k": False, "gate": False, "up": False}})
    save_adapter(attach(config), tmp_path, config)
    settings = json.loads((tmp_path / CONFIG).read_text())
    assert settings["target_modules"] == ["down_proj", "o_proj", "qkv_proj"]
    assert settings["rank_pattern"] == {"qkv_proj": 8}
    assert settings["alpha_pattern"] == {"qkv_proj": 16}
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)


@pytest.mark.parametrize(("peft", "scale"), [({}, 8 / 4), ({"use_rslora": True}, 8 / math.sqrt(4))])
def test_each_slice_keeps_the_scale_of_its_own_rank(
    grouped: Path, peft: dict[str, Any], scale: float
) -> None:
    model = attach(config_for(grouped, {"slices": {}, **peft}))
    assert qkv(model).scaling["default"] == pytest.approx(scale, abs=1e-12)
    assert qkv(model).r["default"] == 12


def test_patterns_hold_for_one_slice(grouped: Path) -> None:
    model = attach(
        config_for(
            grouped,
            {
                "slices": {"v": False},
                "rank_pattern": {"layers.1.self_attn.qkv_proj": 2},
                "alpha_pattern": {"self_attn.qkv_proj": 6},
            },
        )
    )
    assert [qkv(model, layer).r["default"] for layer in (0, 1)] == [8, 4]
    assert [qkv(model, layer).scaling["default"] for layer in (0, 1)] == [6 / 4, 6 / 2]


def test_a_gaussian_start_is_as_wide_as_that_of_one_slice(grouped: Path) -> None:
    model = attach(config_for(grouped, {"r": 32, "slices": {}, "init_lora_weights": "gaussian"}))
    spread = qkv(model).lora_A["default"].weight.std().item()  # (96, 64) values of spread 1 / 32
    assert spread == pytest.approx(1 / 32, rel=0.05)


@pytest.mark.parametrize(
    ("peft", "reason"),
    [
        ({"target_modules": ["o_proj"], "slices": {}}, "o_proj has no slices"),
        (
            {"target_modules": ["qkv_proj", "o_proj"], "slices": dict.fromkeys("qkv", False)},
            "every slice of qkv_proj is off",
        ),
    ],
)
def test_slices_of_nothing_are_refused(grouped: Path, peft: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        attach(config_for(grouped, peft))
