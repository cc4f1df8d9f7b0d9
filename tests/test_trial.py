"""An adapter on a model of shapes: what does not fit is known before a weight is fetched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.trial import attach_on_trial
from phi3lora.models.base import BaseInfo, check_base

POCKET = check_base("pocket")
EQUAL = replace(POCKET, key_value_heads=POCKET.heads)  # the pocket has grouped queries
MINI = BaseInfo("mini", None, None, 32064, 3072, 8192, 32, 32, 32, False, 4096)


def config(**changes: Any) -> RunConfig:
    return RunConfig().with_values({name.replace("__", "."): v for name, v in changes.items()})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"peft_config__slices": {"k": False}},
        {"peft_config__use_dora": True},
        {"peft_config__target_modules": "embedding"},
        {"peft_config__modules_to_save": ["lm_head"]},
        {"peft_config__init_lora_weights": "pissa"},
        {"peft_config__rank_pattern": {"down_proj": 5}},
        {"adapter": "loralib"},
        {"adapter": "none"},
    ],
)
def test_the_trial_counts_what_the_real_model_counts(changes: dict[str, Any]) -> None:
    from phi3lora.lora.adapters import attach_adapter
    from phi3lora.lora.targets import count_parameters
    from phi3lora.models.loading import load_model

    settings = config(**{"model__path": "pocket", "model__dtype": "float32", **changes})
    model = attach_adapter(load_model(settings.model, for_training=True), settings)
    assert attach_on_trial(settings, POCKET) == count_parameters(model)


def test_the_full_size_has_the_parameters_of_the_paper_and_no_weights() -> None:
    trained, total = attach_on_trial(config(), MINI)
    assert (trained, total - trained) == (25_165_824, 3_821_079_552)


def test_the_random_numbers_of_the_process_stay_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    attach_on_trial(config(), POCKET)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_config__target_modules": ["q_projj"]}, "target_modules: q_projj"),
        ({"peft_config__target_modules": ["lm_head"]}, "modules_to_save to [lm_head]"),
        ({"peft_config__layers_to_transform": [99]}, "layers_to_transform"),
        ({"peft_config__layers_to_transform": []}, "layers_to_transform"),
        ({"peft_config__modules_to_save": ["value_head"]}, "modules_to_save"),
        ({"peft_config__rank_pattern": {"q_proj": 4}}, "rank_pattern: q_proj"),
        ({"peft_config__alpha_pattern": {"layers.77.mlp.down_proj": 4}}, "alpha_pattern"),
        (
            {
                "peft_config__target_modules": ["o_proj"],
                "peft_config__rank_pattern": {"qkv_proj": 4},
            },
            "rank_pattern: qkv_proj",
        ),
        ({"adapter": "loralib", "peft_config__target_modules": ["lm_head"]}, "lm_head"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(AdapterError) as caught:
        attach_on_trial(config(**changes), POCKET)
    assert says in str(caught.value)


def test_unequal_slices_do_not_fit_loralib() -> None:
    changes = {"adapter": "loralib", "peft_config__slices": {"k": False}}
    with pytest.raises(AdapterError, match="equal"):
        attach_on_trial(config(**changes), POCKET)
    attach_on_trial(config(**changes), EQUAL)
    attach_on_trial(config(peft_config__slices={"k": False}), POCKET)
