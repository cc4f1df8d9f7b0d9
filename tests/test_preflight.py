"""What is checked before launch, each check with its remedy."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.models import hardware
from phi3lora.models.hardware import Hardware
from phi3lora.settings import Settings
from phi3lora.training import preflight as module
from phi3lora.training.preflight import Check, Preflight, blocking, preflight

GIB = 2**30
NAMES = ["Data", "Model", "Hardware", "Memory", "Token", "Disk"]


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


def test_an_earlier_inspection_is_not_made_again(monkeypatch: Any, settings: Settings) -> None:
    inspection = preflight(config(), settings).inspection
    monkeypatch.setattr(module, "_inspect", None)
    assert preflight(config(), settings, inspection=inspection).inspection is inspection


def test_a_known_speed_gives_the_time(settings: Settings) -> None:
    assert preflight(config(), settings).estimate.seconds is None
    need = preflight(config(), settings, tokens_per_second=100.0).estimate
    assert need.seconds == need.tokens / 100
