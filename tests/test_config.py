"""RunConfig: what it accepts, what it says of what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi3lora.config import RunConfig, SliceConfig, fields, is_own, parse_setting
from phi3lora.errors import ConfigError

FRAGMENTS = {"of", "at", "in", "if", "as", "by", "for", "from", "such", "with", "another"}


def problems(values: dict) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_values(values)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_yaml_round_trip_is_the_identity(tmp_path: Path) -> None:
    config = RunConfig().with_values({"peft_config.r": 8, "peft_config.slices": {"k": False}})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    again, notices = RunConfig.from_yaml(tmp_path / "run.yaml")
    assert again == config
    assert notices == []


def test_every_option_explains_itself() -> None:
    """In a sentence that is understood without the title; `Of the update.` is none."""
    options = [*fields(), *fields(SliceConfig)]
    for name, field in options:
        words = (field.description or "").split()
        assert len(words) >= 6, name
        assert words[-1].endswith("."), name
        assert words[0].rstrip(":;,").lower() not in FRAGMENTS, name
    titles = [field.title for _, field in options]
    assert len(set(titles)) == len(titles), "a problem is shown by its title alone"


def test_all_problems_are_reported_together_with_their_fields() -> None:
    found = problems(
        {
            "peft_config": {"r": 0},
            "training_config": {"learning_rat": 1e-4, "packing": "maybe"},
            "r": 4,
        }
    )
    assert set(found) == {
        "peft_config.r",
        "training_config.learning_rat",
        "training_config.packing",
        "r",
    }
    assert found["training_config.learning_rat"].endswith(
        "did you mean training_config.learning_rate?"
    )
    assert found["r"].endswith("did you mean peft_config.r?")
    assert "got 0" in found["peft_config.r"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"peft_config": {"use_dora": True, "slices": {}}}, "peft_config.use_dora"),
        (
            {"peft_config": {"slices": dict.fromkeys(["q", "k", "v", "gate", "up"], False)}},
            "peft_config.slices",
        ),
        (
            {"peft_config": {"slices": {}, "init_lora_weights": "pissa"}},
            "peft_config.init_lora_weights",
        ),
        ({"peft_config": {"init_lora_weights": "loftq"}}, "peft_config.init_lora_weights"),
        (
            {"peft_config": {"init_lora_weights": "pissa"}, "model": {"quantization": "nf4"}},
            "peft_config.init_lora_weights",
        ),
        ({"adapter": "none", "model": {"quantization": "nf4"}}, "adapter"),
        ({"adapter": "loralib", "model": {"quantization": "int8"}}, "adapter"),
        ({"adapter": "loralib", "peft_config": {"use_rslora": True}}, "peft_config.use_rslora"),
        ({"training_config": {"bf16": True, "fp16": True}}, "training_config.fp16"),
        (
            {"training_config": {"early_stopping_patience": 2}},
            "training_config.early_stopping_patience",
        ),
        (
            {"training_config": {"load_best_model_at_end": True, "eval_strategy": "no"}},
            "training_config.load_best_model_at_end",
        ),
        (
            {"training_config": {"load_best_model_at_end": True, "eval_strategy": "steps"}},
            "training_config.save_strategy",
        ),
        (
            {"training_config": {"load_best_model_at_end": True}, "data": {"test_size": 0}},
            "data.test_size",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(values: dict, field: str) -> None:
    assert field in problems(values)


def test_old_names_are_translated_with_a_notice() -> None:
    config, notices = RunConfig.from_values(
        {
            "training_config": {"evaluation_strategy": "steps", "warmup_ratio": 0.2},
            "model": {"load_in_4bit": True, "trust_remote_code": True},
            "peft_config": {"target_modules": ["q_proj", "v_proj", "o_proj"]},
        }
    )
    assert config.training_config.eval_strategy == "steps"
    assert config.training_config.warmup_steps == 0.2
    assert config.model.quantization == "nf4"
    assert config.peft_config.target_modules == ["qkv_proj", "o_proj"]
    assert config.peft_config.slices is not None
    assert config.peft_config.slices.model_dump() == {
        "q": True,
        "k": False,
        "v": True,
        "gate": True,
        "up": True,
    }
    assert len(notices) == 5


def test_the_whole_split_list_needs_no_slices() -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config, notices = RunConfig.from_values({"peft_config": {"target_modules": names}})
    assert config.peft_config.target_modules == [
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
        "down_proj",
    ]
    assert config.peft_config.slices is None
    assert len(notices) == 1


@pytest.mark.parametrize("text", ["training_config: [1, 2]", "3", "training_config:\n  - a"])
def test_a_section_of_the_wrong_shape_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError):
        RunConfig.from_yaml(tmp_path / "run.yaml")


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, says in {
        "none.yaml": "No such file",
        "broken.yaml": "is not YAML",
        "binary.yaml": "cannot be read",
    }.items():
        with pytest.raises(ConfigError, match=says):
            RunConfig.from_yaml(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("peft_config.r=8", ("peft_config.r", 8)),
        ("training_config.learning_rate=1e-4", ("training_config.learning_rate", 1e-4)),
        ("peft_config.target_modules=[o_proj]", ("peft_config.target_modules", ["o_proj"])),
        ("model.revision=", ("model.revision", None)),
        ("data.system_prompt=Be brief: please", ("data.system_prompt", "Be brief: please")),
    ],
)
def test_settings_are_read_as_yaml(text: str, expected: tuple) -> None:
    assert parse_setting(text) == expected


def test_a_setting_without_a_value_says_how_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value, got 'r'"):
        parse_setting("r")


def test_the_sections_are_arguments_of_the_libraries() -> None:
    from peft import LoraConfig
    from trl import SFTConfig

    config = RunConfig()
    lora = LoraConfig(**config.peft_config.arguments())
    training = SFTConfig(output_dir="unused", use_cpu=True, **config.training_config.arguments())
    assert (lora.r, lora.lora_alpha) == (16, 32)
    assert training.learning_rate == config.training_config.learning_rate
    assert {"slices", "fast", "loraplus_lr_ratio"} <= {
        name.rpartition(".")[2] for name, field in fields() if is_own(field)
    }


def test_batch_and_scaling() -> None:
    config = RunConfig().with_values(
        {"training_config.gradient_accumulation_steps": 8, "peft_config.use_rslora": True}
    )
    assert config.effective_batch == 32
    assert config.lora_scaling == 8.0
