"""The dictionaries of the guide's five samples, word for word, mean here what they mean there.

Whatever a sample sets reaches transformers, TRL and PEFT as it would without us; where it says
nothing, our defaults hold. Those that differ are listed in docs/guide.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from trl import SFTConfig

from phi3lora.config import RunConfig
from phi3lora.events import Event
from phi3lora.training.trainer import train

GUIDE = (Path(__file__).parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")
SEVEN = ["k_proj", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
# sample_finetune.py of the model card; the QLoRA notebook has the same dictionary.
CARD = {
    "bf16": True,
    "do_eval": False,
    "learning_rate": 5.0e-06,
    "log_level": "info",
    "logging_steps": 20,
    "logging_strategy": "steps",
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "max_steps": -1,
    "output_dir": "./checkpoint_dir",
    "overwrite_output_dir": True,
    "per_device_eval_batch_size": 4,
    "per_device_train_batch_size": 4,
    "remove_unused_columns": True,
    "save_steps": 100,
    "save_total_limit": 1,
    "seed": 0,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_accumulation_steps": 1,
    "warmup_ratio": 0.2,
}
FULL = {
    "output_dir": "./results",
    "num_train_epochs": 3,
    "per_device_train_batch_size": 7,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": True,
    "optim": "paged_adamw_32bit",
    "logging_steps": 10,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "max_seq_length": 128,
}
TRAINING: dict[str, dict[str, Any]] = {
    "sample_finetune.py": {
        **CARD,
        "max_seq_length": 2048,
        "dataset_text_field": "text",
        "packing": True,
    },
    "Phi-3-finetune-lora-python.ipynb": {
        "output_dir": "./phi-3-mini-LoRA",
        "evaluation_strategy": "steps",
        "do_eval": True,
        "optim": "adamw_torch",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "per_device_eval_batch_size": 8,
        "log_level": "debug",
        "save_strategy": "epoch",
        "logging_steps": 100,
        "learning_rate": 1e-4,
        "fp16": False,
        "bf16": True,
        "eval_steps": 100,
        "num_train_epochs": 3,
        "warmup_ratio": 0.1,
        "lr_scheduler_type": "linear",
        "report_to": "wandb",
        "seed": 42,
        "max_seq_length": 512,
        "dataset_text_field": "text",
    },
    "Phi-3-finetune-qlora-python.ipynb": CARD,
    "Phi_3_Inference_Finetuning.ipynb": FULL,
    "FineTrainingScript.py": {**FULL, "fp16": True},
}
PEFT: dict[str, dict[str, Any]] = {
    "sample_finetune.py": {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "target_modules": "all-linear",
        "modules_to_save": None,
    },
    "Phi-3-finetune-lora-python.ipynb": {
        "r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "task_type": "CAUSAL_LM",
        "target_modules": SEVEN,
    },
    "Phi-3-finetune-qlora-python.ipynb": {
        "r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "target_modules": SEVEN,
    },
}
# How transformers 5 and TRL 1 call what the samples were written with.
TODAY = {
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup_steps",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
GONE = {"overwrite_output_dir"}
SILENT = GUIDE.partition("## Where a dictionary says nothing")[2]
OURS = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| `([^`]+)` \|", SILENT, re.MULTILINE)


def config(name: str) -> RunConfig:
    """What a person gets who pastes the sample's dictionaries."""
    values: dict[str, Any] = {"training_config": TRAINING[name]}
    values |= {"peft_config": PEFT[name]} if name in PEFT else {"adapter": "none"}
    return RunConfig.from_values(values)[0]


def theirs(name: str) -> SFTConfig:
    given = {key: value for key, value in TRAINING[name].items() if key not in GONE}
    given |= {"output_dir": "unused", "use_cpu": True}
    return SFTConfig(**{TODAY.get(key, key): value for key, value in given.items()})


@pytest.mark.parametrize("name", TRAINING)
def test_what_a_sample_sets_reaches_the_trainer(name: str) -> None:
    arguments = config(name).training_config.arguments()
    ours = SFTConfig(output_dir="unused", use_cpu=True, **arguments).to_dict()
    expected = theirs(name).to_dict()
    differing = {key for key, value in expected.items() if ours[key] != value}
    listed = {key for key, _, _ in OURS}
    assert differing <= listed, {key: (expected[key], ours[key]) for key in differing - listed}
    set_by_it = {TODAY.get(key, key) for key in TRAINING[name]}
    assert not differing & set_by_it, "what the sample says is in force"


def test_the_list_of_differing_defaults_is_the_whole_truth() -> None:
    ours = SFTConfig("unused", use_cpu=True, **RunConfig().training_config.arguments()).to_dict()
    plain = SFTConfig("unused", use_cpu=True).to_dict()
    differing = {
        key: (str(ours[key]), str(value)) for key, value in plain.items() if ours[key] != value
    }
    assert {key: (here, there) for key, here, there in OURS} == differing


@pytest.mark.parametrize("name", PEFT)
def test_what_a_sample_sets_reaches_the_adapter(name: str) -> None:
    ours = LoraConfig(**config(name).peft_config.arguments()).to_dict()
    expected = LoraConfig(**PEFT[name]).to_dict()
    differing = {key for key, value in expected.items() if ours[key] != value}
    # Phi-3 has no q_proj: PEFT would pass over five of the seven in silence.
    assert differing <= {"target_modules"}
    if PEFT[name]["target_modules"] == SEVEN:
        assert ours["target_modules"] == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


@pytest.mark.parametrize("name", TRAINING)
def test_the_dictionaries_run(name: str, tmp_path: Path) -> None:
    here = {"model.path": "pocket", "training_config.max_steps": 2}
    events: list[Event] = []
    assert train(config(name).with_values(here), tmp_path, events.append) == "finished"
    assert [event.step for event in events if event.kind == "step"]
