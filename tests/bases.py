"""Bases and little helpers for tests of loading and LoRA: real Phi-3s of a few thousand weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from phi3lora.config import RunConfig
from phi3lora.models.pocket import CHECKPOINT

# (1, 17): ids that every base here has.
TOKENS = torch.arange(3, 20)[None]


def make_base(folder: Path, *, key_value_heads: int = 2, tied: bool = False) -> Path:
    """A random Phi-3 of two layers and four heads, saved as a checkpoint."""
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


def make_speaker(folder: Path) -> Path:
    """A random Phi-3 that writes pocket's tokens: no two of its answers are the same."""
    from transformers import Phi3Config, Phi3ForCausalLM

    unlike = shutil.ignore_patterns("*.safetensors", "config.json")
    shutil.copytree(CHECKPOINT, folder, ignore=unlike)
    config = Phi3Config.from_pretrained(CHECKPOINT)
    config.update({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2})
    config.update({"num_key_value_heads": 4, "dtype": "float32"})  # equal slices, for loralib
    torch.manual_seed(0)
    Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


def config_for(base: Path | str, peft: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    """A config on a base, without dropout, so that passes can be compared."""
    values = {
        "model": {"path": str(base)} | sections.pop("model", {}),
        "peft_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0} | (peft or {}),
        **sections,
    }
    return RunConfig.from_values(values)[0]


def train(model: Any, steps: int = 3, tokens: torch.Tensor = TOKENS, **options: Any) -> None:
    """A few steps of AdamW on one row, at a rate that moves much."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, **({"lr": 1e-2} | options))
    model.train()
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """(1, tokens, vocabulary), in eval mode."""
    return model.eval()(input_ids=tokens).logits
