"""Killed after the last checkpoint, damaged checkpoints, changed inputs: the end is the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from phi3lora.config import RunConfig
from phi3lora.errors import ChangedInputsError
from phi3lora.evaluation.report import evaluate
from phi3lora.events import Event
from phi3lora.hub.card import write_card
from phi3lora.hub.facts import collect
from phi3lora.inputs import accepted_changes, check_inputs, fingerprint, fingerprint_base
from phi3lora.training import checkpoints, trainer
from phi3lora.training.checkpoints import damage, newest_whole, training_was_over
from tests.small import After, Result, run

BATCH = "training_config.per_device_train_batch_size"
STEPS = {"training_config.save_strategy": "steps", "training_config.save_steps": 3}
STOPS_EARLY = {
    "training_config.early_stopping_patience": 3,
    "training_config.load_best_model_at_end": True,
    "training_config.eval_strategy": "steps",
    "training_config.save_strategy": "steps",
    "training_config.eval_steps": 1,
    "training_config.save_steps": 1,
    "training_config.learning_rate": 0.02,
    "training_config.max_grad_norm": 0,
    "training_config.warmup_steps": 0,
}


def steps(result: Result) -> list[int]:
    return [event.step for event in result.events if event.kind == "step"]


def same_weights(one: Result, other: Result) -> None:
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        assert torch.equal(weight, other.weights[name]), name


def notices(result: Result) -> list[str]:
    return [event.message for event in result.events if event.kind == "notice"]


# Killed between the last checkpoint and the final save


@pytest.mark.parametrize("changes", [STEPS, {}, STOPS_EARLY], ids=["steps", "epochs", "early"])
def test_a_training_that_was_over_is_not_trained_on(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """What the kill left: every checkpoint, and no adapter."""
    whole = run(tmp_path, changes)
    again = run(tmp_path, changes)
    assert steps(again) == []
    assert [event.kind for event in again.events if event.kind != "notice"] == ["loaded", "resumed"]
    assert again.outcome == "finished"
    same_weights(whole, again)


def test_more_steps_are_trained_where_the_config_asks_for_more(tmp_path: Path) -> None:
    run(tmp_path, {**STEPS, "training_config.num_train_epochs": 1})
    assert steps(run(tmp_path, STEPS))[0] == 10


def test_a_stop_is_no_end(tmp_path: Path) -> None:
    run(tmp_path, should_stop=After(4))
    assert not training_was_over(tmp_path / "checkpoints" / "checkpoint-4")
    assert steps(run(tmp_path))[-1] == 18


def test_a_kill_between_save_and_evaluation_loses_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by steps and scored by epochs: the score comes before the checkpoint."""
    changes = {**STEPS, "training_config.eval_strategy": "epoch"}
    whole = run(tmp_path / "whole", changes)

    class Killed(BaseException):
        """The process is gone."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(SFTTrainer, "evaluate", killed)
    parts: list[Event] = []
    with pytest.raises(Killed):
        run(tmp_path / "parts", changes, emit=parts.append)
    monkeypatch.undo()
    second = run(tmp_path / "parts", changes)
    begin = next(event.step for event in second.events if event.kind == "resumed")
    kept = [event for event in parts if getattr(event, "step", 0) <= begin]
    scored = [e for e in [*kept, *second.events] if e.kind == "evaluated"]
    expected = [(e.step, e.loss) for e in whole.events if e.kind == "evaluated"]
    assert [(e.step, e.loss) for e in scored] == expected
    same_weights(whole, second)


# Damaged checkpoints


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [zeros, half, one_bit, os.unlink])
@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "adapter_config.json",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "manifest.json",
    ],
)
def test_every_damage_to_the_newest_is_seen(
    done: Path, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(done / "checkpoints", folder)
    newest = folder / "checkpoint-18"
    harm(newest / name)
    told: list[str] = []
    if harm is os.unlink and name == "manifest.json":  # cut short: removed, as after a kill
        assert newest_whole(folder, pytest.fail) == folder / "checkpoint-15"
        return
    assert newest_whole(folder, told.append) == folder / "checkpoint-15"
    assert "checkpoint-18 is damaged" in told[0]
    assert (folder / "damaged-checkpoint-18").is_dir()
    assert not newest.exists()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    run(folder, STEPS)
    return folder


def test_a_damaged_newest_is_passed_over_with_a_notice(done: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", STEPS)
    shutil.copytree(done / "checkpoints", tmp_path / "parts" / "checkpoints")
    one_bit(tmp_path / "parts" / "checkpoints" / "checkpoint-18" / "optimizer.pt")
    again = run(tmp_path / "parts", STEPS)
    assert "optimizer.pt is not what was written" in notices(again)[0]
    assert steps(again) == [16, 17, 18]
    same_weights(whole, again)


def test_a_damaged_best_leads_further_back(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", STOPS_EARLY)
    folder = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole" / "checkpoints", folder / "checkpoints")
    for file in (folder / "checkpoints").glob("*/trainer_state.json"):
        text = file.read_text().replace(str(tmp_path / "whole"), str(folder))
        file.write_text(text)
        checkpoints.seal(file.parent)
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    best = checkpoints.best_of(last)
    assert best is not None
    one_bit(best / "adapter_model.safetensors")
    again = run(folder, STOPS_EARLY)
    assert any("the best checkpoint" in said for said in notices(again))
    same_weights(whole, again)


def test_checkpoints_of_several_processes_are_whole(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(done / "checkpoints", folder)
    newest = folder / "checkpoint-18"
    for number in (0, 1):
        shutil.copy(newest / "rng_state.pth", newest / f"rng_state_{number}.pth")
    (newest / "rng_state.pth").unlink()
    checkpoints.seal(newest)
    assert newest_whole(folder, pytest.fail) == newest
    (newest / "manifest.json").unlink()  # and as an older version left them
    state = newest / "trainer_state.json"
    state.write_text(state.read_text().replace('"sealed": true', '"sealed": false'))
    assert newest_whole(folder, pytest.fail) == newest


def test_a_clock_that_was_set_back_removes_no_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = {**STEPS, "training_config.save_total_limit": 2}
    real, now = checkpoints.seal, [2e9]

    def seal(folder: Path) -> None:
        real(folder)
        now[0] -= 86_400
        os.utime(folder, (now[0], now[0]))

    monkeypatch.setattr("phi3lora.training.fast.trainer.seal", seal)
    run(tmp_path, limited)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"checkpoint-15", "checkpoint-18"}
    assert damage(tmp_path / "checkpoints" / "checkpoint-18") is None


# Inputs that changed


CONFIG = {
    "model.path": "pocket",
    "model.device": "cpu",
    "data.max_rows": 40,
    "peft_config.r": 2,
    "training_config.max_steps": 4,
    "training_config.per_device_train_batch_size": 2,
    "training_config.max_length": 64,
    "training_config.eval_strategy": "no",
    "training_config.save_strategy": "steps",
    "training_config.save_steps": 2,
    "training_config.logging_steps": 1,
    "evaluation.enabled": False,
}


def rows(file: Path, number: int, answer: str = "Arr") -> None:
    turns = [
        [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{answer} {n}"}]
        for n in range(number)
    ]
    file.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))


def test_rows_that_changed_stop_a_resume_until_it_is_accepted(tmp_path: Path) -> None:
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    rows(data, 30)
    few = {"data.test_size": 0.1, "evaluation.max_new_tokens": 4}
    config = RunConfig().with_values({**CONFIG, "data.path": str(data), **few})
    events: list[Event] = []
    assert trainer.train(config, folder, events.append, should_stop=After(2)) == "stopped"
    rows(data, 30, "Aye")
    with pytest.raises(ChangedInputsError, match="the rows of the data") as stopped:
        trainer.train(config, folder, events.append)
    assert stopped.value.changes == ["the rows of the data"]
    assert not (folder / "adapter").exists()
    assert accepted_changes(folder) == []
    outcome = trainer.train(config, folder, events.append, accept_changes=True)
    assert outcome == "finished"
    assert any("although it changed" in getattr(event, "message", "") for event in events)
    assert accepted_changes(folder) == ["the rows of the data"]
    (folder / "config.yaml").write_text(config.to_yaml())
    card = write_card(collect(folder), "ann/tuned", picture=False)
    assert "went on with changed inputs (the rows of the data)" in card
    report = evaluate(config, folder, 2)
    assert "Its inputs changed on the way: the rows of the data." in report.summary()


def test_options_versions_and_threads_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig().with_values(CONFIG)
    trainer.train(config, tmp_path, lambda _: None, should_stop=After(2))
    changed = config.with_values({"training_config.learning_rate": 0.5, "title": "Other"})
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    monkeypatch.setattr("phi3lora.inputs.library_versions", lambda: {"torch": "9.9"})
    with pytest.raises(ChangedInputsError) as stopped:
        trainer.train(changed, tmp_path, lambda _: None)
    names = [change.split(" ")[0] for change in stopped.value.changes]
    assert names == ["training_config.learning_rate", "torch", "threads"]


def test_a_run_that_starts_over_says_so(tmp_path: Path) -> None:
    """Killed before its first checkpoint: the curve has each step once."""
    from phi3lora.app.views import RunView

    config = RunConfig().with_values({**CONFIG, "training_config.save_steps": 50})
    view = RunView()

    class Killed(BaseException):
        """The process is gone."""

    def emit(event: Event) -> None:
        view.add(event)
        if getattr(event, "step", 0) == 3 and event.kind == "step":
            raise Killed

    with pytest.raises(Killed):
        trainer.train(config, tmp_path, emit)
    trainer.train(config, tmp_path, view.add)
    assert [step for step, _ in view.losses] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        ({}, False),
        ({"method": "kto"}, True),  # answers of a pass are compared with each other
        ({"training_config.dataloader_drop_last": True}, True),
    ],
)
def test_other_passes_of_the_same_updates_are_told_and_need_nobodys_word(
    tmp_path: Path, changes: dict[str, Any], asks: bool
) -> None:
    before = RunConfig().with_values({"training_config.per_device_train_batch_size": 8, **changes})
    first, smaller, other = (
        fingerprint(config, "rows", tmp_path)
        for config in (before, before.with_batch(2), before.with_values({BATCH: 4}))
    )
    told: list[str] = []
    folder = tmp_path / "run"
    check_inputs(folder, first, False, told.append)
    with pytest.raises(ChangedInputsError, match=r"batch_size \(8 → 4\)"):
        check_inputs(folder, other, False, told.append)
    if asks:
        with pytest.raises(ChangedInputsError, match=r"batch_size \(8 → 2\)"):
            check_inputs(folder, smaller, False, told.append)
        return
    for _ in range(2):  # a second resume says nothing new
        assert check_inputs(folder, smaller, False, told.append)
    assert accepted_changes(folder) == ["batches of 8 × 1 → 2 × 4"]
    assert len(told) == 1


def test_a_base_that_was_replaced_is_another(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"1" * 1000)
    (base / "config.json").write_text("{}")
    first = fingerprint_base(base)
    os.utime(base / "model.safetensors", (1, 1))
    assert fingerprint_base(base) == first, "a copy is the same"
    (base / "model.safetensors").write_bytes(b"1" * 999 + b"2")
    assert fingerprint_base(base) != first
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert fingerprint_base(snapshot) == "abc"


def test_a_large_base_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3lora.inputs.WHOLE", 100)
    monkeypatch.setattr("phi3lora.inputs.PIECE", 4)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(1000))
    first = fingerprint_base(tmp_path)
    file.write_bytes(bytes(999) + b"1")
    assert fingerprint_base(tmp_path) != first
