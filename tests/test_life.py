"""Who lives, who is damaged, and what a stop comes to in the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from phi3lora.app.views import Follower
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, RunError
from phi3lora.events import Evaluated, EventLog, Step
from phi3lora.files import damage, seal, write_whole
from phi3lora.runs import life
from phi3lora.runs import store as store_module
from phi3lora.runs.backends import backend_of, local
from phi3lora.runs.backends.ending import end
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import Run, RunStore, changed, open_run
from phi3lora.settings import Settings
from phi3lora.ui.runs_list import run_list
from phi3lora.ui.runs_show import show_run
from tests import fake_training
from tests.fake_training import config, kill_all, wait_for
from tests.serving import PATIENCE


@pytest.fixture
def store(settings: Settings) -> RunStore:
    return RunStore(settings)


@pytest.fixture
def queue(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    fake_training.install(tmp_path / "fake", monkeypatch)
    queue = Queue(settings)
    yield queue
    kill_all(queue.store)


# The lock


def test_a_lock_is_taken_once_and_asked_about_by_many(tmp_path: Path) -> None:
    assert not life.is_held(tmp_path)
    first = life.take(tmp_path)
    assert first is not None
    life.sign(first, 12)
    assert life.take(tmp_path, seconds=0) is None
    assert all(life.is_held(tmp_path) for _ in range(3))
    assert life.holder(tmp_path) == 12
    os.close(first)
    assert life.holder(tmp_path) is None
    again = life.take(tmp_path, seconds=0)
    assert again is not None
    os.close(again)


def test_a_lock_passes_to_a_child_without_a_gap(tmp_path: Path) -> None:
    lock = life.take(tmp_path)
    assert lock is not None
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock]
    )
    os.close(lock)
    assert life.is_held(tmp_path)
    child.communicate(b"\n")
    assert not life.is_held(tmp_path)


def test_a_disk_without_locks_has_them_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(life, "_has_locks", lambda *_: False)
    folder = tmp_path / "run"
    folder.mkdir()
    lock = life.take(folder)
    assert lock is not None
    life.sign(lock, 7)
    assert list(folder.iterdir()) == []
    assert life.holder(folder) == 7
    os.close(lock)
    assert not life.is_held(folder)


def test_there_is_no_other_backend() -> None:
    assert backend_of("local").offers(config()) == "cpu"
    with pytest.raises(RunError, match="no backend 'mars'"):
        backend_of("mars")


# A launch that fails half-way, and a clock that is set


def test_a_launch_without_a_process_blocks_nobody(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state says queued, and then nothing can be written nor started any more."""
    run = queue.store.create(config("quick"))
    written = []

    def write_once(folder: Path, state: object) -> None:
        written.append(state)
        if len(written) > 1:
            raise OSError(28, "No space left on device")
        real(folder, state)

    def cannot_start(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    real = store_module.write_state
    monkeypatch.setattr(store_module, "write_state", write_once)
    monkeypatch.setattr(local, "_start", cannot_start)
    with pytest.raises(RunError, match=r"could not be started: .*Resource"):
        queue.submit(run)
    monkeypatch.undo()
    assert run.refresh().state.status == "queued"
    assert run.refresh().status == "interrupted"
    assert queue.position(run) is None
    other = queue.store.create(config("quick"))
    fake_training.install(queue.settings.home / "fake", monkeypatch)
    wait_for(queue.submit(other), "finished")
    queue.store.delete(run.refresh())


def test_a_clock_that_steps_interrupts_nobody(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = wait_for(queue.submit(queue.store.create(config("slow"))), "running")
    before = time.time()
    for step in (-86_400.0, 86_400.0 * 365):
        monkeypatch.setattr(time, "time", lambda step=step: before + step)
        assert RunStore(queue.settings).get(run.id, "local").status == "running"
        with pytest.raises(RunError, match="stop it first"):
            queue.store.delete(run)
    monkeypatch.undo()
    assert run.folder.is_dir()


def test_two_resumes_at_once_make_one_worker(queue: Queue) -> None:
    run = wait_for(queue.submit(queue.store.create(config("slow"))), "running")
    with pytest.raises(RunError, match="already running"):
        Queue(queue.settings).submit(run)
    lock = life.take(run.folder, seconds=0)
    assert lock is None


# Stop, in the end by force

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(600)
"""


def stubborn(run: Run) -> subprocess.Popen[bytes]:
    """A process that holds the run and hears nobody."""
    lock = life.take(run.folder)
    assert lock is not None
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, pass_fds=[lock]
    )
    life.sign(lock, process.pid)
    os.close(lock)
    assert process.stdout
    process.stdout.readline()
    return process


def test_a_worker_that_hears_nobody_is_ended(store: RunStore) -> None:
    run = changed(store.create(RunConfig()), status="running")
    process = stubborn(run)
    assert end(run.folder, process.pid, seconds=0.1, last=0.1)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    ended = run.refresh()
    assert (ended.status, ended.state.exit_status) == ("stopped", 1)
    assert "Ended by force" in ended.message


def test_a_worker_that_left_is_not_touched(store: RunStore) -> None:
    run = changed(store.create(RunConfig()), status="running")
    process = stubborn(run)
    assert not end(run.folder, process.pid + 1, seconds=0.1, last=0.1)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert not end(run.folder, process.pid, seconds=0.1)
    assert run.refresh().status == "interrupted"


def test_stop_ends_a_stubborn_run_from_any_door(settings: Settings, store: RunStore) -> None:
    run = changed(store.create(RunConfig()), status="running")
    process = stubborn(run)
    watched = Queue(replace(settings, stop_seconds=0.0), store)
    assert watched.stop(run).status == "stopping"
    os.kill(process.pid, signal.SIGCONT)
    assert process.poll() is None, "SIGTERM comes first"
    process.kill()
    process.wait()
    wait_for(run, "interrupted")


# Damage


def test_a_damaged_state_is_shown_and_harms_no_other(store: RunStore, settings: Settings) -> None:
    torn, empty, foreign, absurd = (store.create(RunConfig(), "ada", "T") for _ in range(4))
    good = store.create(RunConfig(), "ada")
    (torn.folder / "state.json").write_text('{"id": "2026')
    (empty.folder / "state.json").unlink()
    (foreign.folder / "state.json").write_bytes((good.folder / "state.json").read_bytes())
    state = json.loads((absurd.folder / "state.json").read_text())
    (absurd.folder / "state.json").write_text(json.dumps({**state, "created": 1e300}))
    shown = {run.id: run.status for run in store.list("ada")}
    damaged = {run.id: "damaged" for run in (torn, empty, foreign, absurd)}
    assert shown == {**damaged, good.id: "stopped"}
    assert store.list("eve") == []
    page = run_list(store.list("ada"), torn.id, Follower(store))
    assert page.count("damaged") >= 4
    run = store.get(torn.id, "ada")
    assert "resume it to go on" in run.message
    view = Follower(store).view(run)
    assert re.search(r'id="delete"[^>]*data-of="[^"]*">', show_run(run, view, None, False)["more"])
    store.delete(run)
    assert not torn.folder.exists()


def test_a_damaged_run_resumes_from_what_is_left(queue: Queue) -> None:
    run = queue.store.create(config("quick"))
    (run.folder / "state.json").write_text("")
    damaged = queue.store.get(run.id, "local")
    assert damaged.status == "damaged"
    finished = wait_for(queue.resume(damaged), "finished")
    assert finished.title == run.title


def test_whose_run_is_not_known_is_nobodys_on_a_space(settings: Settings) -> None:
    run = RunStore(settings).create(RunConfig(), owner="ada")
    (run.folder / "state.json").unlink()
    (run.folder / "identity.json").unlink()
    space = RunStore(replace(settings, space_id="ada/space"))
    assert [found.owner for found in space.all()] == [store_module.UNKNOWN]
    assert [found.status for found in RunStore(settings).list("local")] == ["damaged"]


@pytest.mark.parametrize("keep", [0, 40, 400])
def test_a_config_that_was_cut_is_no_default_recipe(queue: Queue, keep: int) -> None:
    run = queue.store.create(RunConfig().with_values({"peft_config.r": 3}))
    file = run.folder / "config.yaml"
    file.write_text(file.read_text()[:keep])
    again = queue.store.get(run.id, "local")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        queue.resume(open_run(again.folder))
    assert not open_run(again.folder).has_result


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "step", "step": "many", "total_steps": 9}',
        '{"kind": "step", "step": 1, "total_steps": 9, "loss": [1]}',
        '{"kind": "evaluated", "step": 1, "loss": {}}',
        '{"kind": "notice", "message": 5}',
        '{"kind": "ended", "outcome": "lost"}',
        '{"kind": "prepared", "dropped": 3}',
        '{"kind": ["step"]}',
    ],
)
def test_an_event_of_a_wrong_type_breaks_no_page(store: RunStore, line: str) -> None:
    run = store.create(RunConfig())
    with (run.folder / "events.jsonl").open("w") as file:
        file.write(line + "\n")
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Step(step=2, total_steps=9, loss=1.0))
        log.emit(Evaluated(step=2, loss=1.5))
    view = Follower(store).view(run)
    assert view.losses == [(2, 1.0)]
    assert view.held_out == [(2, 1.5)]
    assert show_run(run, view, None, False)


def test_run_folders_are_closed_to_others(store: RunStore) -> None:
    assert store.create(RunConfig()).folder.stat().st_mode & 0o777 == 0o700


def test_a_run_appears_whole_or_not_at_all(
    store: RunStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "write_state", full)
    with pytest.raises(RunError, match="cannot be written"):
        store.create(RunConfig())
    assert list(settings.runs_folder.iterdir()) == []


# Files


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_seal_shows_every_damage(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "a").write_bytes(b"1234")
    (folder / "b").write_bytes(b"5678")
    (folder / "args.bin").write_bytes(b"x")
    seal(folder, without=["args.bin"])
    assert damage(folder) is None
    (folder / "args.bin").unlink()
    assert damage(folder) is None
    (folder / "a").write_bytes(b"123")
    assert damage(folder) == "a has 3 bytes instead of 4"
    (folder / "a").write_bytes(b"1235")
    assert damage(folder) == "a is not what was written"
    assert damage(folder, without=["a"]) is None
    (folder / "a").unlink()
    assert damage(folder) == "a is missing"
    for text in ("", "[]", '{"files": {"b": 3}}', '{"files": 3}'):
        (folder / "manifest.json").write_text(text)
        assert damage(folder) == "manifest.json cannot be read"
