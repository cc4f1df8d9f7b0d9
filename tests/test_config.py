"""RunConfig: what it accepts, what it says of what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi3lora.config import RunConfig, SliceConfig, fields, parse_setting
from phi3lora.errors import ConfigError
from phi3lora.options import is_own

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
        ("data.columns=prompt: foo", ("data.columns", {"prompt": "foo"})),
        ("data.columns.prompt=foo", ("data.columns.prompt", "foo")),
        ("peft_config.slices=k: false", ("peft_config.slices", {"k": False})),
        ("training_config.eval_strategy=no", ("training_config.eval_strategy", "no")),
        ("title=no", ("title", "no")),
        ("title=42", ("title", "42")),
        ("model.revision=12e4567", ("model.revision", "12e4567")),
        ("data.test_split=null", ("data.test_split", None)),
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


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("training_config.batch_size", "training_config.per_device_train_batch_size"),
        ("batch_size", "training_config.per_device_train_batch_size"),
        ("evaluation.batchsize", "evaluation.batch_size"),
        ("training_config.lr", "training_config.learning_rate"),
        ("lr", "training_config.learning_rate"),
        ("training_config.epochs", "training_config.num_train_epochs"),
        ("training_config.lerning_rate", "training_config.learning_rate"),
        ("training_config.r", "peft_config.r"),
        ("model.dataset", "data.path"),
        ("peft_config.lora_r", "peft_config.r"),
        ("data.max_samples", "data.max_rows"),
    ],
)
def test_what_was_meant_is_found_by_the_last_part_of_a_name(name: str, meant: str) -> None:
    values: dict = {}
    section, _, last = name.rpartition(".")
    (values.setdefault(section, {}) if section else values)[last] = 1
    assert problems(values)[name].endswith(f"did you mean {meant}?")


def test_what_resembles_nothing_is_given_no_wrong_advice() -> None:
    assert problems({"training_config": {"zzz": 1}})["training_config.zzz"] == "unknown option."
    assert problems({"x" * 5000: 1})["x" * 200] == "unknown option."


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("training_config", {"save_steps": 100}, {"save_strategy": "steps", "save_steps": 100}),
        ("training_config", {"eval_steps": 50}, {"eval_strategy": "steps", "eval_steps": 50}),
        ("training_config", {"eval_steps": None}, {"eval_strategy": "epoch"}),
        (
            "training_config",
            {"save_steps": 100, "save_strategy": "epoch"},
            {"save_strategy": "epoch"},
        ),
        ("training_config", {"do_eval": False}, {"eval_strategy": "no"}),
        (
            "training_config",
            {"do_eval": False, "eval_steps": 9},
            {"eval_strategy": "no", "eval_steps": 9},
        ),
        (
            "training_config",
            {"do_eval": False, "evaluation_strategy": "epoch"},
            {"eval_strategy": "epoch"},
        ),
        ("training_config", {"do_eval": True}, {"eval_strategy": "epoch"}),
        ("training_config", {"optim": "adamw_hf"}, {"optim": "adamw_torch"}),
        ("training_config", {"report_to": ["wandb"]}, {"report_to": "wandb"}),
        ("training_config", {"report_to": []}, {"report_to": "none"}),
        ("training_config", {"warmup_ratio": 0.3, "warmup_steps": 0}, {"warmup_steps": 0.3}),
        ("training_config", {"warmup_steps": 0, "warmup_ratio": 0.3}, {"warmup_steps": 0.3}),
        ("training_config", {"dataset_text_field": "text", "run_name": "x"}, {}),
        ("training_config", {"disable_tqdm": True, "group_by_length": True}, {}),
        ("training_config", {"dataset_num_proc": 4, "assistant_only_loss": True}, {}),
        ("model", {"torch_dtype": "torch.bfloat16"}, {"dtype": "bfloat16"}),
        ("peft_config", {"peft_type": "LORA", "base_model_name_or_path": "x"}, {}),
    ],
)
def test_dictionaries_keep_their_meaning(section: str, values: dict, expected: dict) -> None:
    config, notices = RunConfig.from_values({section: values})
    default = getattr(RunConfig(), section).model_dump()
    assert getattr(config, section).model_dump() == {**default, **expected}
    assert notices or values.items() <= getattr(config, section).model_dump().items()
    # As dotted fields, in whatever order they are given, they mean the same.
    dotted = {f"{section}.{name}": value for name, value in reversed(values.items())}
    assert RunConfig().with_values(dotted) == config


def test_what_would_change_the_training_is_not_dropped_in_silence() -> None:
    assert "training_config.assistant_only_loss" in problems(
        {"training_config": {"assistant_only_loss": False}}
    )
    assert "training_config.report_to" in problems(
        {"training_config": {"report_to": ["wandb", "tensorboard"]}}
    )
    found = problems({"peft_config": {"peft_type": "IA3", "exclude_modules": ["o_proj"]}})
    assert set(found) == {"peft_config.peft_type", "peft_config.exclude_modules"}


def test_a_whole_adapter_config_is_a_peft_config() -> None:
    from peft import LoraConfig

    published = LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj"], task_type="CAUSAL_LM")
    values = {**published.to_dict(), "peft_type": "LORA", "target_modules": ["o_proj"]}
    config, notices = RunConfig.from_values({"peft_config": values})
    assert (config.peft_config.r, config.peft_config.target_modules) == (4, ["o_proj"])
    assert len([notice for notice in notices if "say nothing here" in notice]) == 1


def test_names_that_are_patterns_are_refused() -> None:
    found = problems(
        {
            "peft_config": {
                "target_modules": "(a+)+$",
                "rank_pattern": {"(a|a)*b": 3},
                "modules_to_save": ["lm_head|x"],
            }
        }
    )
    assert set(found) == {
        "peft_config.target_modules",
        "peft_config.rank_pattern",
        "peft_config.modules_to_save",
    }


def test_loraplus_needs_an_adapter() -> None:
    found = problems({"adapter": "none", "training_config": {"loraplus_lr_ratio": 16}})
    assert set(found) == {"training_config.loraplus_lr_ratio"}


def test_messages_are_in_our_words() -> None:
    found = problems(
        {
            "title": 5,
            "data": 3,
            "peft_config": {"r": 1.5, "lora_dropout": 1, "target_modules": 3, "rank_pattern": 1},
            "training_config": {"packing": "maybe", "eval_strategy": "often", "seed": "x" * 999},
        }
    )
    assert found["peft_config.r"] == "expected a whole number, got 1.5."
    assert found["training_config.eval_strategy"] == (
        "expected 'no', 'steps' or 'epoch', got 'often'."
    )
    assert all(message.startswith("expected ") for message in found.values())
    assert not [message for message in found.values() if "Input should" in message]
    assert max(map(len, found.values())) < 300


@pytest.mark.parametrize(
    ("batch", "accumulation", "smaller"),
    [(4, 1, 2), (8, 4, 4), (3, 1, 1), (3, 2, 1), (5, 2, 2), (1, 8, None)],
)
def test_a_smaller_batch_makes_the_same_updates(
    batch: int, accumulation: int, smaller: int | None
) -> None:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    values = dict(zip(names, (batch, accumulation), strict=True))
    config = RunConfig.from_values({"training_config": values})[0]
    assert config.smaller_batch == smaller
    if smaller:
        again = config.with_batch(smaller)
        assert again.training_config.per_device_train_batch_size == smaller
        assert again.effective_batch == config.effective_batch
    for rows in (0, -2, batch * accumulation + 1):
        with pytest.raises(ConfigError, match=f"divisor of the {batch * accumulation} rows"):
            config.with_batch(rows)


def test_batch_and_scaling() -> None:
    config = RunConfig().with_values(
        {"training_config.gradient_accumulation_steps": 8, "peft_config.use_rslora": True}
    )
    assert config.effective_batch == 32
    assert config.lora_scaling == 8.0
