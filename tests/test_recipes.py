"""Every recipe loads; the guide's five samples train on the pocket, with no other change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError
from phi3lora.events import Event
from phi3lora.recipes import describe, find_config, load_recipe, recipes
from phi3lora.training.trainer import train

SAMPLES = [name for name in recipes() if name.startswith("sample")]
# As `phi3lora train NAME --set …` would have it.
ON_POCKET = {
    "model.path": "pocket",
    "data.path": "example:pirate",
    "training_config.max_steps": 2,
}
# What each sample says that this machine, or this data, does not have.
FALLBACKS = {
    "sample-finetune": ["data.test_split", "data.split", "flash_attention_2"],
    "sample-lora-python": ["training_config.report_to"],
    "sample-qlora-python": [],
    "sample-inference-finetuning": [],
    "sample-fine-training-script": ["float16", "training_config.fp16"],
}


def test_there_is_a_recipe_for_each_of_the_five_samples() -> None:
    assert set(SAMPLES) == set(FALLBACKS)
    assert next(iter(recipes())) == "pocket"


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_loads_and_says_what_it_is(name: str) -> None:
    config, notices = load_recipe(name)
    assert config.title
    # What the notices announce is all that was changed: today's names load silently.
    assert RunConfig.from_values(yaml.safe_load(config.to_yaml())) == (config, [])
    assert describe(name).endswith(".")
    assert bool(notices) == name.startswith("sample"), "only the samples keep their old names"


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "q;a\nHi;Ho\n"), ("a.json", "[]"), ("a.jsonl", '{"q": "Hi"}\n{}\n')],
)
def test_data_in_the_place_of_a_configuration_is_told_where_it_goes(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"pocket --set data\.path=\S+{name}"):
        find_config(str(tmp_path / name))


def test_a_configuration_of_any_name_keeps_its_own_error(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"data": {"max_rows": -1}}')
    with pytest.raises(ConfigError, match="max_rows"):
        find_config(str(file))


def test_an_unknown_recipe_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="sample-finetune"):
        load_recipe("sample-finetun")


VALUES: dict[str, dict[str, Any]] = {
    "sample-finetune": {
        "model.dtype": "bfloat16",
        "model.attention": "flash_attention_2",
        "data.split": "train_sft",
        "data.test_split": "test_sft",
        "peft_config.r": 16,
        "peft_config.lora_alpha": 32,
        "peft_config.lora_dropout": 0.05,
        "peft_config.target_modules": "all-linear",
        "peft_config.bias": "none",
        "training_config.learning_rate": 5e-6,
        "training_config.lr_scheduler_type": "cosine",
        "training_config.warmup_steps": 0.2,
        "training_config.num_train_epochs": 1,
        "training_config.per_device_train_batch_size": 4,
        "training_config.packing": True,
        "training_config.gradient_checkpointing_kwargs": {"use_reentrant": False},
        "training_config.logging_steps": 20,
        "training_config.save_steps": 100,
        "training_config.save_total_limit": 1,
        "training_config.seed": 0,
        "training_config.max_length": 2048,
        "training_config.log_level": "info",
    },
    "sample-lora-python": {
        "data.test_size": 0.05,
        "data.seed": 1234,
        "peft_config.lora_alpha": 16,
        "peft_config.target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
        "peft_config.slices": None,
        "training_config.per_device_train_batch_size": 8,
        "training_config.gradient_accumulation_steps": 4,
        "training_config.eval_steps": 100,
        "training_config.report_to": "wandb",
        "training_config.max_length": 512,
        "training_config.warmup_steps": 0.1,
        "training_config.save_strategy": "epoch",
    },
    "sample-qlora-python": {
        "model.quantization": "nf4",
        "model.double_quantization": True,
        "model.compute_dtype": "bfloat16",
        "training_config.optim": "paged_adamw_8bit",
        "training_config.per_device_train_batch_size": 4,
        "training_config.gradient_accumulation_steps": 8,
        "peft_config.lora_alpha": 16,
    },
    "sample-inference-finetuning": {
        "adapter": "none",
        "data.max_rows": 100,
        "training_config.max_length": 128,
        "training_config.per_device_train_batch_size": 7,
        "training_config.optim": "paged_adamw_32bit",
        "training_config.logging_steps": 10,
    },
    "sample-fine-training-script": {
        "adapter": "none",
        "model.dtype": "float16",
        "training_config.fp16": True,
    },
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_keeps_its_values(name: str) -> None:
    values = load_recipe(name)[0].model_dump()
    for field, expected in VALUES[name].items():
        found: Any = values
        for part in field.split("."):
            found = found[part]
        assert found == expected, field


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_trains_on_the_pocket(name: str, tmp_path: Path) -> None:
    config = load_recipe(name)[0].with_values(ON_POCKET)
    events: list[Event] = []
    assert train(config, tmp_path, events.append) == "finished"
    steps = [event for event in events if event.kind == "step" and event.loss is not None]
    assert [event.total_steps for event in steps] == [2] * len(steps)
    assert steps[0].loss < 10
    notices = [event.message for event in events if event.kind == "notice"]
    assert len(notices) == len(FALLBACKS[name])
    assert all(text.startswith(w) for text, w in zip(notices, FALLBACKS[name], strict=True))
    saved = "model" if config.adapter == "none" else "adapter_model"
    assert list(tmp_path.glob(f"*/{saved}.safetensors"))
