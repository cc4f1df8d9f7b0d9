"""What a Space's visitor may use, what is swept, and what a long or damaged file costs others."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phi3lora.app.views import POINTS, Follower, RunView
from phi3lora.config import RunConfig
from phi3lora.data.preparation import prepare
from phi3lora.errors import RunError
from phi3lora.evaluation import report
from phi3lora.events import EventLog, Step
from phi3lora.models.loading import load_tokenizer
from phi3lora.runs import life, worker
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import RunStore
from phi3lora.runs.sweep import folder_for_download, sweep
from phi3lora.settings import Settings
from phi3lora.training.preflight import _checkpoints_kept
from tests import fake_training
from tests.fake_training import config, kill_all, wait_for
from tests.serving import PATIENCE


@pytest.fixture
def queue(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    fake_training.install(tmp_path / "fake", monkeypatch)
    queue = Queue(settings)
    yield queue
    kill_all(queue.store)


def test_limits_stand_on_a_space_and_can_be_set(tmp_path: Path) -> None:
    home = {"PHI3LORA_HOME": str(tmp_path)}
    own = Settings.from_environment(home)
    assert (own.runs_per_day, own.hours_per_run) == (None, None)
    space = Settings.from_environment({**home, "SPACE_ID": "ann/space"})
    assert (space.runs_per_day, space.hours_per_run) == (20, 24.0)
    said = {"PHI3LORA_RUNS_PER_DAY": "3", "PHI3LORA_HOURS_PER_RUN": "0"}
    other = Settings.from_environment({**home, "SPACE_ID": "ann/space", **said})
    assert (other.runs_per_day, other.hours_per_run) == (3, None)


def test_runs_a_day_are_counted_though_they_are_deleted(queue: Queue) -> None:
    limited = Queue(replace(queue.settings, runs_per_day=2), queue.store)
    for _ in range(2):
        run = limited.submit(limited.store.create(config("quick"), "ada"))
        queue.store.delete(wait_for(run, "finished"))
    with pytest.raises(RunError, match=r"may start 2; the next one may start in 2[34]\.\d hours"):
        limited.submit(limited.store.create(config("quick"), "ada"))
    wait_for(limited.submit(limited.store.create(config("quick"), "eve")), "finished")


def test_hours_a_run_pause_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(worker, "watch", lambda *arguments: watched.append(arguments))
    run = RunStore(settings).create(RunConfig())
    limited = replace(settings, hours_per_run=2.0)
    deadline = worker._deadline(run, limited)
    assert deadline is not None
    assert 0 < deadline - time.monotonic() <= 7200
    assert watched == [(run.folder, os.getpid(), 7800.0, "hours")]
    assert worker._deadline(run, settings) is None


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"save_strategy": "epoch", "num_train_epochs": 40, "save_total_limit": None}, 40),
        ({"save_strategy": "epoch", "num_train_epochs": 40, "save_total_limit": 3}, 3),
        ({"save_strategy": "steps", "save_steps": 10, "max_steps": 995}, 100),
        ({"save_strategy": "steps", "save_steps": 0.25, "max_steps": 1000}, 4),
        ({"save_strategy": "steps", "save_steps": 10}, 10),
        ({"save_strategy": "no"}, 1),
    ],
)
def test_every_checkpoint_that_stays_is_counted(changes: dict[str, Any], kept: int) -> None:
    values: dict[str, Any] = {"save_total_limit": None, **changes}
    options = {f"training_config.{name}": value for name, value in values.items()}
    assert _checkpoints_kept(RunConfig().with_values(options), None) == kept


# Leftovers


def test_leftovers_are_swept_and_nothing_else(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    store = RunStore(settings)
    run, alive, damaged = (store.create(RunConfig()) for _ in range(3))
    (damaged.folder / "state.json").unlink()
    runs, cache = settings.runs_folder, settings.cache_folder / "ada" / "prepared"
    folders = [
        runs / ".new-x",
        runs / ".restored-y",
        runs / f".{run.id}",
        runs / "20260101-000000-aaaaaa",
        run.folder / "adapter.unfinished",
        run.folder / "merged-1",
        alive.folder / "adapter.unfinished",
        cache / "abc.12345678.part",
        tmp_path / "tmp" / "phi3lora-zip",
    ]
    for folder in folders:
        folder.mkdir(parents=True)
    files = [run.folder / ".state.json-1-2.part", cache / "free.lock", cache / "held.lock"]
    for file in files:
        file.touch()
    held = life.take(cache, name="held.lock")
    worker_lock = life.take(alive.folder)
    assert sweep(settings) == [], "nothing is a day old"
    for path in (*folders, *files):
        os.utime(path, (1, 1))
    gone = set(sweep(settings))
    kept = {alive.folder / "adapter.unfinished", cache / "held.lock"}
    assert gone == {*folders, *files} - kept
    assert all(path.exists() for path in kept)
    assert {found.id for found in store.all()} == {run.id, alive.id, damaged.id}
    for lock in (held, worker_lock):
        assert lock is not None
        os.close(lock)


def test_a_download_that_was_taken_goes_with_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app that is never restarted would keep a copy of all that was ever downloaded."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    taken, fresh, other = folder_for_download(), folder_for_download(), tmp_path / "phi3lora-zip"
    other.mkdir()
    (taken / "adapter.zip").touch()
    for path in (taken, other):
        os.utime(path, (1, 1))
    newest = folder_for_download()
    assert set(tmp_path.iterdir()) == {fresh, newest, other}


def test_sweeping_a_home_that_is_not_there(settings: Settings) -> None:
    sweep(settings)
    assert not settings.runs_folder.exists()


# Rights


def test_missing_rights_are_said_in_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(settings)
    store.create(RunConfig())

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "state.json")

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(RunError, match=r"cannot be listed: Permission denied\. Give this user"):
        store.list("local")
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(RunError, match=r"device-cpu\.lock cannot be written: Permission denied"):
        worker.lock_one(settings, ["cpu"])
    message, status = worker.explain(PermissionError(errno.EACCES, "Permission denied", "log.txt"))
    assert message.startswith("Permission denied (log.txt): give this user the right")
    assert status == 1


# Caches


PREPARED = RunConfig().with_values({"model.path": "pocket", "data.max_rows": 30})


@pytest.mark.parametrize("harm", ["cut", "bit", "gone", "info", "old"])
def test_damaged_prepared_rows_are_prepared_again(tmp_path: Path, harm: str) -> None:
    tokenizer = load_tokenizer("pocket")
    first = prepare(PREPARED, tokenizer, cache_folder=tmp_path)
    expected = first.train["input_ids"][:]
    del first
    [table] = tmp_path.glob("prepared/*/rows.arrow")
    data = bytearray(table.read_bytes())
    if harm == "cut":
        table.write_bytes(data[: len(data) // 2])
    elif harm == "bit":
        data[len(data) // 2] ^= 1
        table.write_bytes(data)
    elif harm == "gone":
        table.unlink()
    else:
        text = "{" if harm == "info" else '{"rows": 30, "dropped": {}, "truncated": 0}'
        (table.parent / "info.json").write_text(text)
    again = prepare(PREPARED, tokenizer, cache_folder=tmp_path)
    assert again.train["input_ids"][:] == expected


@pytest.mark.parametrize("text", ["", "[]", '{"scores": []}', '{"sha256": "x", "scores": [{}]}'])
def test_damaged_base_scores_are_made_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert report._read_scores(tmp_path / "a.json") is None
    kept = {"sha256": report._hash([]), "scores": []}
    (tmp_path / "a.json").write_text(json.dumps(kept))
    assert report._read_scores(tmp_path / "a.json") == []


# A long run


def test_a_long_run_holds_up_no_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(settings)
    long, short = store.create(RunConfig()), store.create(RunConfig())
    with EventLog(short.folder / "events.jsonl") as log:
        log.emit(Step(step=1, total_steps=2, loss=1.0))
    follower, reading, go_on = Follower(store), threading.Event(), threading.Event()
    real = type(long).events

    def slowly(run: Any, offset: int = 0) -> Any:
        if run.id == long.id:
            reading.set()
            assert go_on.wait(PATIENCE)
        return real(run, offset)

    monkeypatch.setattr(type(long), "events", slowly)
    reader = threading.Thread(target=follower.view, args=(long,))
    reader.start()
    assert reading.wait(PATIENCE)
    assert follower.view(short).losses == [(1, 1.0)]
    go_on.set()
    reader.join()


def test_a_curve_is_thinned_and_keeps_its_ends() -> None:
    view = RunView()
    for step in range(1, 50_001):
        view.add(Step(step=step, total_steps=50_000, loss=1 / step, learning_rate=1e-3))
    assert POINTS <= len(view.losses) < 2 * POINTS
    steps = [step for step, _ in view.losses]
    assert (steps[0], steps[-1]) == (1, 50_000)
    assert steps == sorted(set(steps))
    assert len(view.rates) == len(view.losses)
