"""What a machine lacks falls back with a notice; what it has is left alone. And the log's level."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig, TrainingConfig
from phi3lora.runs import worker
from phi3lora.training import fallbacks
from phi3lora.training.fallbacks import within_reach
from tests.small import run


def asked(**values: Any) -> TrainingConfig:
    return RunConfig.from_values({"training_config": values})[0].training_config


@pytest.mark.parametrize(
    ("values", "device", "expected", "words"),
    [
        ({"report_to": "wandb"}, "cuda", {"report_to": "none"}, "pip install wandb"),
        ({"report_to": "trackio"}, "cpu", {"report_to": "none"}, "pip install trackio"),
        ({"report_to": "tensorboard"}, "cpu", {"report_to": "none"}, "pip install tensorboard"),
        ({"optim": "paged_adamw_8bit"}, "cuda", {"optim": "adamw_torch"}, "bitsandbytes"),
        ({"optim": "lion_8bit"}, "cpu", {"optim": "adamw_torch"}, "adamw_torch is used"),
        ({"fp16": True}, "cpu", {"fp16": False}, "needs a GPU"),
        ({"tf32": True}, "cpu", {"tf32": None}, "float32 is used"),
    ],
)
def test_what_is_missing_is_replaced(
    values: dict[str, Any],
    device: str,
    expected: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fallbacks, "_installed", lambda package: False)
    before = asked(**values)
    after, (notice,) = within_reach(before, device)
    assert notice.startswith(f"training_config.{next(iter(values))}")
    assert words in notice
    assert after == before.model_copy(update=expected)


@pytest.mark.parametrize(
    ("values", "device"),
    [
        ({"report_to": "wandb", "optim": "paged_adamw_8bit"}, "cuda"),
        ({"fp16": True, "tf32": True}, "cuda"),
        ({"report_to": "none", "optim": "adamw_torch_fused"}, "cpu"),
    ],
)
def test_what_is_there_is_left_alone(
    values: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallbacks, "_installed", lambda package: True)
    assert within_reach(asked(**values), device) == (asked(**values), [])


def test_a_folder_of_a_package_s_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb leaves a folder `wandb` where it ran."""
    (tmp_path / "a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not fallbacks._installed("a_tracker")
    (tmp_path / "a_tracker" / "__init__.py").touch()
    __import__("importlib").invalidate_caches()
    assert fallbacks._installed("a_tracker")


def test_a_run_without_its_tracker_trains_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallbacks, "_installed", lambda package: package != "wandb")
    result = run(
        tmp_path,
        {
            "training_config.report_to": "wandb",
            "training_config.max_steps": 1,
            "training_config.fp16": True,
        },
    )
    assert result.outcome == "finished"
    notices = [event.message for event in result.events if event.kind == "notice"]
    assert [text.split(":")[0] for text in notices] == [
        "training_config.report_to",
        "training_config.fp16",
    ]


@pytest.mark.parametrize(
    ("name", "level"),
    [("debug", logging.DEBUG), ("error", logging.ERROR), ("passive", logging.WARNING)],
)
def test_the_log_is_as_loud_as_asked(
    name: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(logging, "basicConfig", given.update)
    monkeypatch.setattr(logging, "captureWarnings", lambda on: None)
    worker.begin_log(name)
    assert logging.getLevelName(given["level"]) in (level, logging.getLevelName(level))
