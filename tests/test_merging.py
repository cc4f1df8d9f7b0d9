"""Merging: one ordinary checkpoint that says what base and adapter say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phi3lora.config import ModelConfig
from phi3lora.errors import AdapterError, ModelError
from phi3lora.lora.adapters import attach_adapter, load_adapter, save_adapter
from phi3lora.lora.merging import merge, refuse_quantized
from phi3lora.models.loading import load_model, load_tokenizer
from phi3lora.models.pocket import CHECKPOINT
from tests.bases import config_for, logits


def adapter_on(folder: Path, peft: dict[str, Any] | None = None, **model: Any) -> ModelConfig:
    """Write an adapter on the pocket that changes much; returns its base's config."""
    config = config_for(str(CHECKPOINT), peft, model={"device": "cpu", **model})
    attached = attach_adapter(load_model(config.model, for_training=True), config)
    torch.manual_seed(3)
    for name, weight in attached.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    save_adapter(attached, folder, config)
    return config.model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_merged_logits_are_those_of_base_and_adapter(tmp_path: Path, dtype: str) -> None:
    from transformers import Phi3ForCausalLM

    base = adapter_on(tmp_path / "adapter", dtype=dtype)
    target = merge(base, tmp_path / "adapter", tmp_path / "merged")
    merged: Any = Phi3ForCausalLM.from_pretrained(target, dtype="auto")
    own = json.loads((CHECKPOINT / "config.json").read_text())["dtype"]
    assert merged.dtype == getattr(torch, own if dtype == "auto" else dtype)
    exact = base.model_copy(update={"dtype": "float32"})
    untouched = logits(load_model(exact, for_training=False))
    tuned = logits(load_adapter(load_model(exact, for_training=False), tmp_path / "adapter"))
    found = logits(merged.float())
    # bfloat16 keeps 8 bits of each weight: 2^-8 of the largest logit, once a layer.
    bound = 1e-4 if merged.dtype == torch.float32 and dtype == "float32" else 0.05
    scale = tuned.abs().max()
    assert (found - tuned).abs().max() < bound * scale
    assert (found - untouched).abs().max() > 0.2 * scale, "the adapter is in it"


def test_it_is_whole_with_tokenizer_and_generation_config(tmp_path: Path) -> None:
    base = adapter_on(tmp_path / "adapter")
    target = merge(base, tmp_path / "adapter", tmp_path / "merged")
    names = {file.name for file in target.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt")) or "adapter" in name]
    settings = json.loads((target / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2000, 2001, 2007]
    assert load_tokenizer(str(target)).chat_template
    loaded = load_model(ModelConfig(path=str(target)), for_training=False)
    assert loaded.config.use_cache is True


def test_slices_and_dora_are_merged_too(tmp_path: Path) -> None:
    for name, peft in {
        "slices": {"slices": {"q": True, "k": False, "v": True, "gate": True, "up": False}},
        "dora": {"use_dora": True},
    }.items():
        base = adapter_on(tmp_path / name, peft, dtype="float32")
        target = merge(base, tmp_path / name, tmp_path / f"{name}-merged")
        tuned = logits(load_adapter(load_model(base, for_training=False), tmp_path / name))
        own = base.model_copy(update={"path": str(target)})
        torch.testing.assert_close(
            logits(load_model(own, for_training=False)), tuned, rtol=1e-3, atol=1e-3
        )


def test_an_adapter_of_a_4_bit_run_is_merged_into_the_unquantized_base(tmp_path: Path) -> None:
    base = adapter_on(tmp_path / "adapter", quantization="nf4", dtype="float32")
    target = merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    exact = base.model_copy(update={"quantization": "none"})
    tuned = logits(load_adapter(load_model(exact, for_training=False), tmp_path / "adapter"))
    found = logits(load_model(exact.model_copy(update={"path": str(target)}), for_training=False))
    torch.testing.assert_close(found, tuned, rtol=1e-3, atol=1e-3)


def test_merging_into_4_bits_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = load_model(ModelConfig(path="pocket", quantization="nf4"), for_training=False)
    with pytest.raises(AdapterError, match="smaller than their rounding"):
        refuse_quantized(model)
    base = adapter_on(tmp_path / "adapter")
    quantized = tmp_path / "quantized"
    model.save_pretrained(quantized)
    load_tokenizer("pocket").save_pretrained(quantized)
    with pytest.raises((AdapterError, ModelError), match="already quantized"):
        merge(
            base.model_copy(update={"path": str(quantized)}),
            tmp_path / "adapter",
            tmp_path / "merged",
        )
    assert not (tmp_path / "merged").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    base = adapter_on(tmp_path / "adapter")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for target in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(AdapterError, match="name a new folder"):
            merge(base, tmp_path / "adapter", target)
