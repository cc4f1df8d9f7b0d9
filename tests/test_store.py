"""Runs on disk: whole states, owners, what is gone, and what is broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.events import EventLog, Step
from phi3lora.runs.redaction import redact, redact_event
from phi3lora.runs.store import (
    ID,
    RunStore,
    changed,
    open_run,
    with_whole_paths,
)
from phi3lora.settings import Settings
from tests.stage import hold


@pytest.fixture
def store(settings: Settings) -> RunStore:
    return RunStore(settings)


def test_a_new_run_is_on_disk_and_in_the_list(store: RunStore, settings: Settings) -> None:
    config = RunConfig().with_values({"peft_config.r": 3})
    run = store.create(config, owner="ada", title="First")
    assert ID.fullmatch(run.id)
    again = RunStore(settings).get(run.id, "ada")
    assert (again.title, again.status, again.message) == ("First", "stopped", "Not started yet.")
    assert again.config == config
    assert [listed.id for listed in store.list("ada")] == [run.id]


def test_newest_first(store: RunStore) -> None:
    runs = [store.create(RunConfig()) for _ in range(3)]
    for run, created in zip(runs, (20.0, 30.0, 10.0), strict=True):
        changed(run, created=created)
    assert [run.state.created for run in store.list("local")] == [30.0, 20.0, 10.0]


def test_somebody_elses_run_does_not_exist(store: RunStore) -> None:
    run = store.create(RunConfig(), owner="ada")
    with pytest.raises(RunError) as missing:
        store.get("20200101-000000-abcdef", "eve")
    with pytest.raises(RunError) as foreign:
        store.get(run.id, "eve")
    assert store.list("eve") == []
    assert str(foreign.value).replace(run.id, "ID") == str(missing.value).replace(
        "20200101-000000-abcdef", "ID"
    )


@pytest.mark.parametrize(
    "run_id", ["..", "../runs", "", "/etc", "20200101-000000-abcdef/../x", "."]
)
def test_an_id_is_no_path(store: RunStore, run_id: str) -> None:
    store.create(RunConfig())
    with pytest.raises(RunError, match="no run"):
        store.get(run_id, "local")


def test_what_is_no_run_is_passed_over(store: RunStore, settings: Settings) -> None:
    good = store.create(RunConfig())
    (settings.runs_folder / "notes.txt").write_text("hello")
    (settings.runs_folder / "20260101-000000-aaaaaa").symlink_to("nowhere")
    (settings.runs_folder / "20260101-000000-bbbbbb").mkdir()
    (settings.runs_folder / ".new-x").mkdir()
    assert [run.id for run in store.list("local")] == [good.id]


def test_the_list_sees_every_change(store: RunStore) -> None:
    run = store.create(RunConfig())
    assert store.list("local")[0].status == "stopped"
    for status in ("failed", "finished", "paused"):
        changed(run, status=status)
        assert store.list("local")[0].status == status


def test_a_list_reads_no_file_twice(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [store.create(RunConfig()) for _ in range(5)]
    store.list("local")
    read: list[Path] = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or whole(path))
    store.list("local")
    assert read == []
    changed(runs[2], title="new")
    store.list("local")
    assert read == [runs[2].folder / "state.json"]


def test_a_run_whose_worker_is_gone_was_interrupted(store: RunStore) -> None:
    run = changed(store.create(RunConfig()), status="running")
    lock = hold(run)
    assert run.status == "running"
    assert changed(run, status="queued").status == "queued"
    os.close(lock)
    assert run.status == "interrupted"
    assert "Resume it" in run.message
    assert changed(run, status="finished").status == "finished"


def test_the_last_word_of_a_worker_is_heard(store: RunStore) -> None:
    """A reader has the state from before the end, and finds the lock free a moment later."""
    run = changed(store.create(RunConfig()), status="running")
    changed(run, status="finished")
    assert run.state.status == "running"
    assert run.status == "finished"


def test_a_dead_child_nobody_waited_for_does_not_live(store: RunStore) -> None:
    run = store.create(RunConfig())
    pid = os.fork()
    if pid == 0:
        hold(run)
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert not run.alive
    os.waitpid(pid, 0)


def test_stopping_is_shown(store: RunStore) -> None:
    run = changed(store.create(RunConfig()), status="running")
    hold(run)
    run.stop_file.touch()
    assert run.status == "stopping"
    assert changed(run, status="stopped").status == "stopped"


def test_deleting(store: RunStore, settings: Settings) -> None:
    run = changed(store.create(RunConfig()), status="running")
    hold(run)
    with pytest.raises(RunError, match="stop it first"):
        store.delete(run)
    run = changed(run, status="stopped")
    (run.folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    store.delete(run)
    assert list(settings.runs_folder.iterdir()) == []
    with pytest.raises(RunError, match="holds no run"):
        run.refresh()


def test_a_run_in_a_folder_of_ones_own(store: RunStore, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    run = store.create(RunConfig(), folder=folder)
    assert open_run(folder).id == run.id
    assert [listed.id for listed in store.list("local")] == [run.id]
    (folder / "notes.txt").write_text("mine")
    (folder / "adapter").mkdir()
    store.delete(open_run(folder))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert list(settings.runs_folder.iterdir()) == []
    with pytest.raises(RunError, match="other files"):
        store.create(RunConfig(), folder=folder)


def test_deleting_a_copy_leaves_the_original(store: RunStore, tmp_path: Path) -> None:
    run = store.create(RunConfig())
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in run.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    store.delete(open_run(copy))
    assert not copy.exists()
    assert [listed.id for listed in store.list("local")] == [run.id]


def test_files_are_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "pocket").mkdir()
    monkeypatch.chdir(tmp_path)
    changes = {"data.path": "rows.jsonl", "model.path": "pocket"}
    config = with_whole_paths(RunConfig().with_values(changes))
    assert config.data.path == str(tmp_path / "rows.jsonl")
    assert config.model.path == "pocket"
    hub = RunConfig().with_values({"data.path": "user/rows", "model.path": "user/base"})
    assert with_whole_paths(hub) == hub


def test_a_folder_of_data_is_named_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path)
    config = with_whole_paths(RunConfig().with_values({"data.path": "./rows"}))
    assert config.data.path == str(tmp_path / "rows")


def test_events_from_an_offset(store: RunStore) -> None:
    run = store.create(RunConfig())
    assert run.events() == ([], 0)
    assert run.events_end() == 0
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Step(step=1, total_steps=2))
        _, offset = run.events()
        log.emit(Step(step=2, total_steps=2))
    events, end = run.events(offset)
    assert [event.step for event in events] == [2]
    assert end == run.events_end()
    assert [event.step for event in run.follow()] == [1, 2]


@pytest.mark.parametrize("lines", [0, 1, 3, 5000])
def test_the_end_of_a_log(store: RunStore, lines: int) -> None:
    run = store.create(RunConfig())
    assert run.log_tail(lines) == ""
    text = [f"line {number} " + "é" * (number % 40) for number in range(4000)]
    (run.folder / "log.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    assert run.log_tail(lines).splitlines() == (text[-lines:] if lines else [])


USER_TOKEN = "hf_" + "aB3" * 11 + "x"


def test_tokens_are_hidden() -> None:
    assert redact(f"401 for {USER_TOKEN}!") == "401 for hf_…!"
    oauth = "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzY29wZSI6.c2lnbmF0dXJl-_x"
    assert redact(f"Bearer {oauth} sent") == "Bearer hf_… sent"
    assert redact("a plain secret of ours", "secret") == "a plain hf_… of ours"
    front = "hf_oauth: true\nhf_oauth_expiration_minutes: 10080\nhf_oauth_scopes:\n"
    assert redact(front) == front
    harmless = "hf_hub_download, hf_transfer and HF_TOKEN are names"
    assert redact(harmless) == harmless
    event = redact_event(Step(step=3, total_steps=9, loss=1.5))
    assert (event.step, event.loss) == (3, 1.5)


def test_a_config_that_was_checked_is_the_one_that_is_computed(store: RunStore) -> None:
    run = store.create(RunConfig())
    checked = run.config
    other = RunConfig().with_values({"data.path": "/proc/1/environ"})
    (run.folder / "config.yaml").write_text(other.to_yaml())
    assert changed(run, status="running").config is checked
    assert store.get(run.id, run.owner).config.data.path == "/proc/1/environ"
