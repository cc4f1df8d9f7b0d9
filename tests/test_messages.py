"""What torch, bitsandbytes and the system say, told in words that are safe to follow."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes

from phi3lora.app.views import Follower
from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError, ModelError, TrainingError
from phi3lora.evaluation.metrics import METRICS
from phi3lora.events import Evaluated
from phi3lora.hub import card
from phi3lora.hub.facts import collect
from phi3lora.lora.loralib.layers import read_loralib
from phi3lora.models.loading import load_model
from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings
from phi3lora.training.failures import explained
from phi3lora.ui.curves import loss_curves
from phi3lora.wording import describe
from tests import stage


class Code:
    """What a hostile file would run."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def pickled(file: Path) -> Path:
    torch.save({"lora_A": Code()}, file)
    return file


def test_nobody_is_told_to_switch_a_guard_off(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        read_loralib(pickled(tmp_path / "hostile.pt"))
    assert "it holds other objects" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "trust" not in str(caught.value)


def test_a_damaged_file_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(AdapterError, match="it is damaged, or no checkpoint"):
        read_loralib(tmp_path / "half.pt")


def test_a_checkpoint_with_code_ends_the_run_in_words(tmp_path: Path) -> None:
    file = pickled(tmp_path / "optimizer.pt")
    with pytest.raises(TrainingError) as caught, explained(RunConfig(), lambda: 7):
        torch.load(file, weights_only=True)
    assert "at step 7: a file of the checkpoint is damaged" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)


def test_memory_that_ran_out_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Phi3ForCausalLM

    def full(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Phi3ForCausalLM, "from_pretrained", full)
    config = RunConfig().with_values({"model.path": "pocket"})
    with pytest.raises(ModelError) as caught:
        load_model(config.model, for_training=True)
    assert "0.0 G" not in str(caught.value)
    assert " MB in 16 bits" in str(caught.value)
    assert "are free on CPU" in str(caught.value)


def test_the_log_is_free_of_advice_about_kernels() -> None:
    from phi3lora.runs import worker

    level = logging.getLogger("bitsandbytes.backends.cpu.ops").level
    try:
        worker.begin_log("warning")
        assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
    finally:
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(level)
        logging.captureWarnings(False)


def test_the_two_held_out_losses_are_told_apart(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of batches while training, by token in the report: on page, card and terminal."""
    assert "mean of batches" in describe(Evaluated(step=4, loss=1.5))
    assert next(metric.title for metric in METRICS if metric.name == "loss") == "Loss by token"
    run = stage.finished(RunStore(settings))
    view = Follower(RunStore(settings)).view(run)
    curves = json.loads(loss_curves(run.id, view))["curves"]
    assert [curve["name"] for curve in curves] == ["training", "held out, mean of batches"]
    labels: list[str] = []
    monkeypatch.setattr(Axes, "plot", lambda axes, *_, label, **__: labels.append(label))
    card.draw_losses(collect(run.folder))
    assert labels == ["training", "held out, mean of batches"]
