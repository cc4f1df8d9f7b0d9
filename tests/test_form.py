"""The form comes from RunConfig and goes back into it, losing nothing."""

from __future__ import annotations

import pytest

from phi3lora.config import RunConfig, fields
from phi3lora.errors import ConfigError
from phi3lora.recipes import load_recipe, recipes
from phi3lora.ui import form

SPECS = {spec.field: spec for spec in form.widgets()}


def test_every_option_has_one_widget() -> None:
    assert list(SPECS) == [name for name, _ in fields()]


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("title", "text"),
        ("model.path", "combo"),
        ("model.quantization", "choice"),
        ("data.columns", "yaml"),
        ("peft_config.r", "number"),
        ("peft_config.use_dora", "checkbox"),
        ("peft_config.target_modules", "combo"),
        ("peft_config.init_lora_weights", "choice"),
        ("peft_config.layers_to_transform", "yaml"),
        ("training_config.bf16", "choice"),
        ("training_config.lr_scheduler_type", "choice"),
    ],
)
def test_widget_follows_the_type(field: str, kind: str) -> None:
    assert SPECS[field].kind == kind


def test_title_help_and_bounds_are_the_fields() -> None:
    rank = SPECS["peft_config.r"]
    assert (rank.title, rank.bounds, rank.whole) == ("Rank", "1 to 1024", True)
    assert rank.help == "Rank of the LoRA update. Higher fits more and needs more memory."
    assert SPECS["training_config.learning_rate"].bounds == "above 0, at most 1"
    assert SPECS["peft_config.lora_dropout"].bounds == "at least 0, below 1"
    assert SPECS["title"].bounds == ""


def test_choices_are_the_literals() -> None:
    assert SPECS["model.quantization"].choices == ("none", "nf4", "fp4", "int8")
    assert SPECS["training_config.bf16"].choices == ("unset", "true", "false")
    assert SPECS["peft_config.target_modules"].choices == (
        "all-linear",
        "attention",
        "mlp",
        "embedding",
        "[qkv_proj, o_proj]",
    )
    assert SPECS["peft_config.r"].choices == ()


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_survives_the_form(name: str) -> None:
    config = load_recipe(name)[0]
    assert form.from_widgets(form.to_widgets(config))[0] == config


def test_lists_and_mappings_are_written_as_yaml() -> None:
    config = RunConfig().with_values(
        {
            "data.columns": {"prompt": "Question", "completion": "Answer"},
            "peft_config.target_modules": ["qkv_proj", "down_proj"],
            "peft_config.layers_to_transform": [0, 2],
            "peft_config.slices": {"q": True, "k": False, "v": True, "gate": True, "up": False},
        }
    )
    shown = form.to_widgets(config)
    assert shown["data.columns"] == "{prompt: Question, completion: Answer}"
    assert shown["peft_config.target_modules"] == "[qkv_proj, down_proj]"
    assert shown["peft_config.layers_to_transform"] == "[0, 2]"
    assert form.from_widgets(shown)[0] == config


def test_empty_means_none_where_none_is_allowed() -> None:
    shown = form.to_widgets(RunConfig()) | {
        "training_config.neftune_noise_alpha": None,
        "peft_config.modules_to_save": "",
        "training_config.bf16": "unset",
        "data.max_rows": None,
    }
    config = form.from_widgets(shown)[0]
    assert config == RunConfig()


def test_yes_and_no_of_an_optional_choice() -> None:
    shown = form.to_widgets(RunConfig())
    assert form.from_widgets(shown | {"training_config.bf16": "true"})[0].training_config.bf16
    config = form.from_widgets(shown | {"peft_config.init_lora_weights": "false"})[0]
    assert config.peft_config.init_lora_weights is False


def test_all_problems_at_once_in_the_forms_words() -> None:
    shown = form.to_widgets(RunConfig()) | {
        "peft_config.r": 0,
        "peft_config.lora_alpha": None,
        "peft_config.layers_to_transform": "[1, 2",
        "training_config.max_length": 3.5,
    }
    with pytest.raises(ConfigError) as raised:
        form.from_widgets(shown)
    wrong = {problem.field for problem in raised.value.problems}
    assert wrong == {
        "peft_config.r",
        "peft_config.lora_alpha",
        "peft_config.layers_to_transform",
        "training_config.max_length",
    }
    lines = form.problem_lines(raised.value)
    assert "Alpha: expected a number, got nothing." in lines
    assert any(line.startswith("Rank: ") for line in lines)


def test_a_conflict_between_fields_is_named() -> None:
    shown = form.to_widgets(RunConfig()) | {
        "training_config.load_best_model_at_end": True,
        "training_config.eval_strategy": "no",
    }
    with pytest.raises(ConfigError) as raised:
        form.from_widgets(shown)
    assert [problem.field for problem in raised.value.problems] == [
        "training_config.load_best_model_at_end"
    ]
