"""The fast path against plain TRL: the same losses, in every combination of options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from phi3lora.lora.adapters import attach_adapter
from phi3lora.training.fast.layers import fast_layers
from tests.small import run, small_base, small_config, small_model, small_rows

FIFTY = {
    "training_config.max_steps": 50,
    "training_config.learning_rate": 3e-3,
    "training_config.save_strategy": "no",
    "training_config.eval_strategy": "steps",
    "training_config.eval_steps": 25,
}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packing": {"training_config.packing": True},
    "accumulation": {"training_config.gradient_accumulation_steps": 3},
    "accumulation and packing": {
        "training_config.gradient_accumulation_steps": 2,
        "training_config.packing": True,
    },
    "checkpointing": {"training_config.gradient_checkpointing": True},
    "checkpointing and packing": {
        "training_config.gradient_checkpointing": True,
        "training_config.packing": True,
    },
    "slices": {"peft_config.slices": {"k": False, "gate": False}},
    "slices and packing": {"peft_config.slices": {"q": False}, "training_config.packing": True},
    "dora": {"peft_config.use_dora": True},
    "rslora": {"peft_config.use_rslora": True},
    "embedding": {"peft_config.target_modules": "embedding"},
    "head trained": {"peft_config.modules_to_save": ["lm_head"]},
    "loralib": {"adapter": "loralib"},
    "all weights": {"adapter": "none"},
    "label smoothing": {"training_config.label_smoothing_factor": 0.1},
    "eager attention": {"model.attention": "eager"},
    # Sixteen bits round differently in each order of the same sums; at the tenfold rate the two
    # ways drift apart by more than the bound, with TRL's own layers too.
    "bfloat16": {"training_config.bf16": True, "training_config.learning_rate": 3e-4},
    "bfloat16 and packing": {
        "training_config.bf16": True,
        "training_config.packing": True,
        "training_config.learning_rate": 3e-4,
    },
}


def ready(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    attention = "eager" if config.model.attention == "eager" else "sdpa"
    return attach_adapter(small_base(dtype, attn_implementation=attention), config)


def both(folder: Path, changes: dict[str, Any], make: Any = ready) -> tuple[Any, Any]:
    """Fifty steps by us and by TRL."""
    changes = {"peft_config.lora_dropout": 0.0, "peft_config.r": 4, **FIFTY, **changes}
    results = []
    for fast in (True, False):
        settings = {**changes, "training_config.fast": fast}
        model = make(small_config(settings))
        results.append(run(folder / str(fast), settings, model=model))
    return results[0], results[1]


@pytest.mark.parametrize("changes", COMBINATIONS.values(), ids=COMBINATIONS)
def test_same_figures_as_plain_trl(tmp_path: Path, changes: dict[str, Any]) -> None:
    fast, plain = both(tmp_path, changes)
    assert len(fast.figures) == 52  # fifty steps and two evaluations
    assert fast.losses == pytest.approx(plain.losses, abs=1e-3)
    assert [figure[5] for figure in fast.figures] == [figure[5] for figure in plain.figures]
    if not changes.get("training_config.bf16"):
        accuracies = [[f[4] for f in result.figures] for result in (fast, plain)]
        assert accuracies[0] == pytest.approx(accuracies[1], abs=1e-3)
    moved = [float(w.abs().max()) for n, w in fast.weights.items() if "lora_B" in n]
    assert not moved or max(moved) > 1e-4  # it did learn something


def test_same_losses_with_dropout_on_packed_rows(tmp_path: Path) -> None:
    changes = {"training_config.packing": True, "peft_config.lora_dropout": 0.2}
    fast, plain = both(tmp_path, changes)
    assert fast.losses == pytest.approx(plain.losses, abs=1e-3)


@pytest.mark.parametrize("packing", [False, True])
def test_same_losses_on_a_four_bit_base(tmp_path: Path, packing: bool) -> None:
    pytest.importorskip("bitsandbytes")
    from phi3lora.config import ModelConfig
    from phi3lora.models.loading import load_model

    small_base(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    small = ModelConfig(path=str(tmp_path / "base"), quantization="nf4", dtype="bfloat16")

    def make(config: Any) -> Any:
        return attach_adapter(load_model(small, for_training=True), config)

    changes = {"training_config.packing": packing, "training_config.learning_rate": 3e-4}
    fast, plain = both(tmp_path, changes, make)
    assert fast.losses == pytest.approx(plain.losses, abs=1e-3)


def test_layers_give_the_same_values_gradients_and_draws_as_peft() -> None:
    model = small_model(dropout=0.3).train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    ids = torch.arange(12).view(2, 6)
    results = []
    for fast in (True, False):
        torch.manual_seed(3)
        model.zero_grad()
        if fast:
            with fast_layers(model) as replaced:
                loss = model(ids, labels=ids).loss
            assert replaced == 2 * (4 + 1 + 1 + 2) + 1  # projections, attention, gate, norms
        else:
            loss = model(ids, labels=ids).loss
        loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        results.append((loss.detach(), grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_layers_are_given_back() -> None:
    model = small_model()
    with pytest.raises(RuntimeError, match="in between"), fast_layers(model):
        raise RuntimeError("in between")
    assert not any("forward" in vars(module) for module in model.modules())


def test_what_is_not_plain_lora_stays_pefts() -> None:
    model = small_model(use_dora=True)
    with fast_layers(model):
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        assert layers
        assert not any("forward" in vars(layer) for layer in layers)


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    model = small_model(dropout=0)
    with fast_layers(model):
        model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert all((p.grad is None) is not p.requires_grad for p in model.parameters())


def test_evaluation_weighs_batches_as_trl_does(tmp_path: Path) -> None:
    # Nine held-out rows in batches of four: the last batch has one row alone.
    rows = small_rows(9, seed=5)
    scores = []
    for fast in (True, False):
        changes = {"training_config.fast": fast, "training_config.max_steps": 1}
        result = run(tmp_path / str(fast), changes, test_rows=rows, model=small_model(dropout=0))
        scores.append(next(e.loss for e in result.events if e.kind == "evaluated"))
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
