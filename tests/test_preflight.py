"""What is checked before launch, each check with its remedy."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phi3lora.checks import Check
from phi3lora.config import RunConfig
from phi3lora.data.preparation import prepare
from phi3lora.errors import ConfigError
from phi3lora.lora.folder import WEIGHTS
from phi3lora.models import hardware
from phi3lora.models.hardware import Hardware
from phi3lora.models.loading import load_tokenizer
from phi3lora.settings import Settings
from phi3lora.training import preflight as module
from phi3lora.training.preflight import Preflight, blocking, preflight

GIB = 2**30
NAMES = ["Data", "Model", "Adapter", "Hardware", "Memory", "Sign-in", "Disk"]


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet CPU with 64 GB, whatever this machine is doing."""
    set_machine(monkeypatch, 64 * GIB)


def set_machine(monkeypatch: pytest.MonkeyPatch, total: int, free: int | None = None) -> None:
    machine = Hardware("cpu", "CPU, 2 cores", total, free or total, True, 2)
    monkeypatch.setattr(hardware, "detect_hardware", lambda device="auto": machine)


def config(rows: Path | None = None, **changes: Any) -> RunConfig:
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    data = {"data.path": str(rows)} if rows else {}
    return RunConfig().with_values({"model.path": "pocket", **data, **changes})


def check(look: Preflight, name: str) -> Check:
    (found,) = [check for check in look.checks if check.name == name]
    return found


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve usable rows and two that are not."""
    good = [{"prompt": f"What is {n}?", "completion": f"A number, {n}."} for n in range(12)]
    bad = [{"prompt": "", "completion": ""}, {"prompt": None, "completion": None}]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(good + bad))
    return file


def test_the_pocket_recipe_is_green(settings: Settings) -> None:
    look = preflight(config(), settings)
    assert [check.name for check in look.checks] == NAMES
    assert {check.level for check in look.checks} == {"green"}
    assert blocking(look) == []
    assert look.inspection.kept == 400
    assert check(look, "Data").found.startswith("400 rows, ")
    assert look.estimate.trainable > 0


def test_dropped_rows_are_amber(rows: Path, settings: Settings) -> None:
    data = check(preflight(config(rows), settings), "Data")
    assert data.level == "amber"
    assert "2 cannot be used" in data.found


def test_less_than_a_batch_is_amber_with_a_remedy(rows: Path, settings: Settings) -> None:
    changed = config(rows, training_config__gradient_accumulation_steps=8)
    data = check(preflight(changed, settings), "Data")
    assert (data.level, "one batch of 32" in data.found) == ("amber", True)
    assert "Lower batch size" in data.remedy


def test_cut_rows_are_amber(rows: Path, settings: Settings) -> None:
    data = check(preflight(config(rows, training_config__max_length=18), settings), "Data")
    assert data.level == "amber"


def test_data_that_is_missing_is_red_and_the_rest_is_checked(settings: Settings) -> None:
    look = preflight(config(Path("/nowhere/rows.jsonl")), settings)
    assert check(look, "Data").level == "red"
    assert look.inspection is None
    assert check(look, "Model").level == "green"
    assert blocking(look)[0].startswith("Data: ")


def test_what_is_no_model_is_red_and_nothing_is_read(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "model.gguf").touch()
    look = preflight(config(model__path=str(tmp_path)), settings)
    assert check(look, "Model").level == "red"
    assert "GGUF" in check(look, "Model").found
    assert look.inspection is look.estimate is None


def test_memory_beyond_the_device_is_red(monkeypatch: Any, settings: Settings) -> None:
    set_machine(monkeypatch, GIB // 4)
    memory = check(preflight(config(), settings), "Memory")
    assert memory.level == "red"
    assert "gradient checkpointing" in memory.remedy


def test_memory_that_others_hold_is_amber(monkeypatch: Any, settings: Settings) -> None:
    set_machine(monkeypatch, 64 * GIB, GIB // 4)
    assert check(preflight(config(), settings), "Memory").level == "amber"


@pytest.mark.parametrize(
    ("free", "level"), [(2**20, "red"), (GIB // 2, "amber"), (9 * GIB, "green")]
)
def test_disk(monkeypatch: Any, settings: Settings, free: int, level: str) -> None:
    usage = namedtuple("usage", "total used free")(2 * free, free, free)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    assert check(preflight(config(), settings), "Disk").level == level


def test_a_limit_beyond_the_base_is_cut_with_a_notice_and_a_remedy(
    rows: Path, settings: Settings
) -> None:
    wanted = config(rows, training_config__max_length=4096)
    found = check(preflight(wanted, settings), "Model")
    assert found.level == "amber"
    assert "pocket reads 2,048 tokens; longer conversations are cut there" in found.found
    assert [fix.values for fix in found.fixes] == [{"training_config.max_length": 2048}]
    prepared = prepare(wanted, load_tokenizer("pocket"))
    assert any("The base reads 2,048 tokens" in notice for notice in prepared.notices)


def test_an_earlier_inspection_is_not_made_again(monkeypatch: Any, settings: Settings) -> None:
    inspection = preflight(config(), settings).inspection
    monkeypatch.setattr(module, "_inspect", None)
    assert preflight(config(), settings, inspection=inspection).inspection is inspection


def test_a_known_speed_gives_the_time(settings: Settings) -> None:
    assert preflight(config(), settings).estimate.seconds is None
    need = preflight(config(), settings, tokens_per_second=100.0).estimate
    assert need.seconds == need.tokens / 100


def applied(settings: Settings, before: RunConfig, found: Check, label: str) -> RunConfig:
    """The configuration after the button of that label."""
    (fix,) = [fix for fix in found.fixes if fix.label == label]
    return before.with_values(fix.values)


def test_fewer_rows_than_a_pass_are_red_with_the_size_that_works(
    rows: Path, settings: Settings
) -> None:
    changed = config(rows, training_config__per_device_train_batch_size=32)
    data = check(preflight(changed, settings), "Data")
    assert (data.level, "12 rows, 1 of them held out" in data.found) == ("red", True)
    mended = applied(settings, changed, data, "Use a batch size of 11")
    assert check(preflight(mended, settings), "Data").level != "red"


def test_packed_rows_that_fill_no_pass_are_red(rows: Path, settings: Settings) -> None:
    changed = config(rows, training_config__packing=True)
    data = check(preflight(changed, settings), "Data")
    assert data.level == "red"
    assert "packed, they make 1" in data.found


def test_cut_rows_say_to_what_to_raise_the_limit(rows: Path, settings: Settings) -> None:
    changed = config(rows, training_config__max_length=14)
    look = preflight(changed, settings)
    longest = max(look.inspection.lengths)
    assert look.inspection.longest == longest > 14 == look.inspection.tokens["max"]
    data = check(look, "Data")
    assert f"the longest has {longest} tokens" in data.found
    mended = applied(settings, changed, data, f"Raise to {longest}")
    assert preflight(mended, settings).inspection.truncated == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_config__target_modules": ["q_projj"]},
        {"peft_config__target_modules": ["lm_head"]},
        {"peft_config__layers_to_transform": [99]},
        {"peft_config__modules_to_save": ["value_head"]},
        {"peft_config__rank_pattern": {"gate_proj": 4}},
        {"adapter": "loralib", "peft_config__slices": {"k": False}},
    ],
)
def test_an_adapter_that_does_not_fit_is_red(changes: dict, settings: Settings) -> None:
    adapter = check(preflight(config(**changes), settings), "Adapter")
    assert adapter.level == "red"
    assert "peft_config." in adapter.found


def test_an_adapter_that_fits_says_what_is_trained(settings: Settings) -> None:
    look = preflight(config(), settings)
    trained = f"{look.estimate.trainable:,} of {look.estimate.total:,} parameters are trained."
    assert check(look, "Adapter").found == trained


@pytest.mark.parametrize(
    ("changes", "says", "field"),
    [
        ({"training_config__learning_rate": 1}, "A learning rate of 1", "learning_rate"),
        ({"training_config__learning_rate": 1e-9}, "hardly anything", "learning_rate"),
        ({"peft_config__lora_alpha": 1000}, "Alpha 1000 scales", "lora_alpha"),
        ({"training_config__num_train_epochs": 1000}, "1000 epochs", "num_train_epochs"),
        ({"training_config__warmup_steps": 9999}, "The warm-up of 9999", "warmup_steps"),
    ],
)
def test_odd_values_are_amber_with_the_usual_one(
    changes: dict, says: str, field: str, settings: Settings
) -> None:
    before = config(**changes)
    odd = check(preflight(before, settings), "Settings")
    assert (odd.level, says in odd.found) == ("amber", True)
    (fix,) = odd.fixes
    assert [name.rpartition(".")[2] for name in fix.values] == [field]
    names = [c.name for c in preflight(before.with_values(fix.values), settings).checks]
    assert "Settings" not in names


def test_what_makes_it_fit_is_offered_and_makes_it_fit(
    monkeypatch: Any, settings: Settings
) -> None:
    big = config(training_config__per_device_train_batch_size=64, training_config__packing=True)
    need = preflight(big, settings).estimate.memory_bytes
    set_machine(monkeypatch, int(need * 0.9))
    memory = check(preflight(big, settings), "Memory")
    assert memory.level == "red"
    assert memory.fixes
    for fix in memory.fixes:
        assert check(preflight(big.with_values(fix.values), settings), "Memory").level == "green"
    smaller = applied(settings, big, memory, "Use batches of 1")
    assert smaller.effective_batch == big.effective_batch


def test_a_base_that_is_still_on_the_hub_is_counted_on_the_disk(
    monkeypatch: Any, tmp_path: Path
) -> None:
    from phi3lora.models.base import BaseInfo

    mini = BaseInfo("a/b", None, "0" * 40, 32064, 3072, 8192, 32, 32, 32, False, 4096, tmp_path)
    usage = namedtuple("usage", "total used free")(2 * GIB, GIB, GIB)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    disk = module._disk_check(config(), mini, tmp_path, None)
    assert (disk.level, "7.1 GB to download" in disk.found) == ("red", True)
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors.index.json").write_text("{}")
    assert "download" not in module._disk_check(config(), mini, tmp_path, None).found


# An adapter that training goes on from


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder on the pocket model: rank 3, attention alone, in two layers."""
    from phi3lora.lora.adapters import attach_adapter, save_adapter
    from phi3lora.models.loading import load_model

    changes = {
        "peft_config__r": 3,
        "peft_config__target_modules": "attention",
        "peft_config__layers_to_transform": [0, 2],
        "peft_config__alpha_pattern": {"o_proj": 7},
        "model__dtype": "float32",
    }
    chosen, folder = config(**changes), tmp_path_factory.mktemp("earlier")
    model = attach_adapter(load_model(chosen.model, for_training=True), chosen)
    save_adapter(model, folder, chosen)
    return folder


def test_a_start_of_another_shape_is_red_with_the_options_that_fit(
    earlier: Path, settings: Settings
) -> None:
    wanted = config(model__adapter=str(earlier))
    red = check(preflight(wanted, settings), "Adapter")
    assert red.level == "red"
    assert "(r: 3, lora_alpha: 32)" in red.found
    assert red.remedy.startswith("It fits with peft_config.r=3, ")
    (fix,) = red.fixes
    mended = wanted.with_values(fix.values)
    assert mended.peft_config.target_modules == "attention"
    assert mended.peft_config.layers_to_transform == [0, 2]
    found = preflight(mended, settings)
    assert check(found, "Adapter").level == "green"
    assert f"goes on from {earlier}" in check(found, "Adapter").found
    kept = sum((earlier / name).stat().st_size for name in ("adapter_config.json", WEIGHTS))
    assert found.estimate.start_bytes == kept
    assert "for the adapter it starts from" in check(found, "Disk").found
    assert found.estimate.trainable == preflight(config(**OPTIONS), settings).estimate.trainable


OPTIONS: dict[str, Any] = {
    "peft_config__r": 3,
    "peft_config__target_modules": "attention",
    "peft_config__layers_to_transform": [0, 2],
}


@pytest.mark.parametrize("adapter", ["peft", "loralib"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_config__r": 4}, "expected (4, 256), got (3, 256)"),
        ({"peft_config__target_modules": ["o_proj"]}, "qkv_proj"),
        ({"peft_config__layers_to_transform": [0]}, "no place here"),
        ({"peft_config__layers_to_transform": None}, "is missing in it"),
    ],
)
def test_each_difference_of_a_start_is_named(
    earlier: Path, settings: Settings, adapter: str, change: dict[str, Any], says: str
) -> None:
    wanted = config(**{**OPTIONS, **change}, adapter=adapter, model__adapter=str(earlier))
    red = check(preflight(wanted, settings), "Adapter")
    assert (red.level, says in red.found) == ("red", True), red.found


def test_slices_that_a_start_was_not_trained_with_are_red(
    tmp_path: Path, settings: Settings
) -> None:
    """The shapes are the same; what lies outside the slices is not zero."""
    from safetensors.torch import load_file, save_file

    from phi3lora.lora.adapters import attach_adapter, save_adapter
    from phi3lora.models.loading import load_model

    fused = {"peft_config__target_modules": ["qkv_proj"], "model__dtype": "float32"}
    whole = config(**fused, peft_config__r=12, peft_config__lora_alpha=24)
    save_adapter(attach_adapter(load_model(whole.model, for_training=True), whole), tmp_path, whole)
    state = {name: tensor + 0.01 for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    sliced = {"peft_config__r": 4, "peft_config__lora_alpha": 8, "peft_config__slices": {}}
    wanted = config(**fused, **sliced, model__adapter=str(tmp_path))
    red = check(preflight(wanted, settings), "Adapter")
    assert red.level == "red"
    assert "trained outside the slices" in red.found
    assert wanted.with_values(red.fixes[0].values).peft_config.slices is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere at all", "holds no adapter"),
        ("", "expected"),
        ("\0", "adapter"),
        ("x" * 5000, "adapter"),
    ],
)
def test_a_start_that_is_no_adapter_is_red(settings: Settings, name: str, says: str) -> None:
    if not name:
        with pytest.raises(ConfigError, match=r"model\.adapter"):
            config(model__adapter=name)
        return
    found = preflight(config(model__adapter=name), settings)
    assert check(found, "Adapter").level == "red"
    assert says in check(found, "Adapter").found
    assert check(found, "Data").level == "green"


def test_a_damaged_start_is_red(earlier: Path, tmp_path: Path, settings: Settings) -> None:
    import shutil

    for name, content in ((WEIGHTS, b"\x08"), ("adapter_config.json", b"[]")):
        folder = tmp_path / name
        shutil.copytree(earlier, folder)
        (folder / name).write_bytes(content)
        red = check(preflight(config(model__adapter=str(folder)), settings), "Adapter")
        assert (red.level, name in red.found, red.fixes) == ("red", True, ())


@pytest.mark.parametrize(
    ("changes", "gpus", "level", "said", "values"),
    [
        ({"devices": 4}, "0,1", "red", "the machine has 2", {"devices": 2}),
        ({"devices": 2}, "", "red", "the machine has no GPU", {"devices": 1}),
        (
            {"devices": 2, "distributed": "zero3"},
            "0,1",
            "red",
            "needs the package deepspeed",
            {"distributed": "ddp"},
        ),
        (
            {"devices": 2, "distributed": "fsdp2", "model.device": "cpu"},
            "0,1",
            "red",
            "a CPU has none",
            {"distributed": "ddp"},
        ),
        (
            {"devices": 2, "model.device": "cpu"},
            "0,1",
            "amber",
            "2 processes share this CPU",
            {"devices": 1},
        ),
    ],
)
def test_devices_that_are_not_there_or_cannot_share(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    gpus: str,
    level: str,
    said: str,
    values: dict[str, Any],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    wanted = config().with_values(changes)
    found = [one for one in preflight(wanted, settings).checks if said in one.found]
    assert [one.level for one in found] == [level]
    assert found[0].fixes[0].values == values
    mended = preflight(wanted.with_values(values), settings).checks
    assert not any(said in one.found for one in mended)


def test_zerogpu_lends_one_device(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    lent = replace(settings, zero_gpu=True)
    found = check_of(preflight(config(devices=2), lent), "ZeroGPU lends one")
    assert found.level == "red"


def check_of(look: Preflight, said: str) -> Check:
    return next(check for check in look.checks if said in check.found)


def test_a_pass_is_filled_on_every_device(
    rows: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    look = preflight(
        config(rows, devices=4, training_config__per_device_train_batch_size=4), settings
    )
    data = check(look, "Data")
    assert "Not even one pass of 16 rows" in data.found
    assert data.fixes[0].values == {"training_config.per_device_train_batch_size": 2}


@pytest.mark.parametrize(
    ("method", "row", "words"),
    [
        ("dpo", {"prompt": "Who?", "completion": "I."}, "method dpo learns from"),
        ("orpo", {"prompt": "Who?", "completion": "I."}, "method orpo learns from"),
        ("kto", {"prompt": "Who?", "completion": "I."}, "method kto learns from"),
        ("grpo", {"text": "Once upon a time."}, "nothing is asked"),
        ("grpo", {"chosen": "I.", "rejected": "You."}, "messages: chosen"),
        ("sft", {"prompt": "Who?", "chosen": "I.", "rejected": "You."}, "messages: chosen"),
    ],
)
def test_rows_that_a_method_cannot_learn_from_are_red_in_words(
    method: str, row: dict[str, str], words: str, tmp_path: Path, settings: Settings
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps(row) + "\n") * 12, encoding="utf-8")
    found = check(preflight(config(file, method=method), settings), "Data")
    assert found.level == "red"
    assert words in found.found + found.remedy
