"""Attach an adapter to a model of shapes alone, to see whether the real one will take it.

    trained, total = attach_on_trial(config, check_base("microsoft/Phi-3-mini-4k-instruct"))

The model lies on torch's meta device: it has every module and no weights, and is made from the
base's `config.json` in less than a second. So targets, layers, slices and modules to save are
checked before anything is downloaded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import attach_adapter
from phi3lora.lora.targets import count_parameters
from phi3lora.models.base import BaseInfo
from phi3lora.models.phi3 import HEAD

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attach_on_trial(config: RunConfig, base: BaseInfo) -> tuple[int, int]:
    """Trained and all parameters of the run, weight for weight as they will be counted.

    Raises AdapterError for what does not fit the base, and where nothing would be trained.
    """
    _check_head(config)
    # What follows depends on these sections alone; a form asks again at every change.
    return _attach(
        RunConfig(adapter=config.adapter, peft_config=config.peft_config).to_yaml(), base
    )


@lru_cache(maxsize=64)
def _attach(config_text: str, base: BaseInfo) -> tuple[int, int]:
    import torch

    config, _ = RunConfig.from_text(config_text)
    # Initial weights come from the base's own, which are not here; they change no shape.
    peft = config.peft_config.model_copy(update={"init_lora_weights": True})
    config = config.model_copy(update={"peft_config": peft})
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model: Any = attach_adapter(shapes_of(base), config)
    trained, total = count_parameters(model)
    if not trained:
        raise AdapterError(
            "peft_config: nothing would be trained. Choose other target_modules, layers or slices."
        )
    return trained, total


def _check_head(config: RunConfig) -> None:
    """TRL's loss and ours multiply by the head's own weights, past any adapter on it."""
    wanted = config.peft_config.target_modules
    names = [wanted] if isinstance(wanted, str) else wanted
    if config.adapter != "none" and HEAD in {name.rpartition(".")[2] for name in names}:
        raise AdapterError(
            f"peft_config.target_modules: an adapter on {HEAD} would not be trained, since the "
            f"loss reads its weights directly. Set peft_config.modules_to_save to [{HEAD}] to "
            "train it whole."
        )


def shapes_of(base: BaseInfo) -> PreTrainedModel:
    """The base's modules without their weights."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    settings = Phi3Config(
        vocab_size=base.vocabulary,
        hidden_size=base.hidden,
        intermediate_size=base.intermediate,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.key_value_heads,
        tie_word_embeddings=base.tied,
        pad_token_id=0,
    )
    with torch.device("meta"):
        model: Any = Phi3ForCausalLM(settings)
    model.files_folder = ""
    return model
