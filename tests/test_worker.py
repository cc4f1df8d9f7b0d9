"""The process of a run: how it ends, what it writes, what it keeps to itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.errors import DataError, TrainingError
from phi3lora.events import Ended
from phi3lora.runs import worker
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings
from tests import fake_training
from tests.fake_training import config, kill_all, pid_of, wait, wait_for

TOKEN = "hf_" + "Qx7" * 11


@pytest.fixture
def queue(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    fake_training.install(tmp_path / "fake", monkeypatch)
    queue = Queue(settings)
    yield queue
    kill_all(queue.store)


def test_a_users_mistake(queue: Queue) -> None:
    run = wait_for(queue.submit(queue.store.create(config("bad data"))), "failed")
    assert (run.message, run.state.exit_status) == ("No rows fit.", 2)
    assert "Traceback" not in run.log_tail(1000)
    assert run.events()[0][-1].message == "No rows fit."


def test_a_fault_of_ours(queue: Queue) -> None:
    run = wait_for(queue.submit(queue.store.create(config("bug"))), "failed")
    assert run.state.exit_status == 1
    assert "A fault of ours" in run.message
    assert "KeyError: 'surprise'" in run.message
    assert "Traceback" not in run.message
    assert "Traceback" in run.log_tail(1000)
    assert not (run.folder / ".reserve").exists()


def test_no_file_contains_the_token(queue: Queue) -> None:
    run = queue.submit(queue.store.create(config("leaky")), TOKEN)
    run = wait_for(run, "failed")
    assert run.message == "refused for hf_…"
    assert "stdout has hf_…" in run.log_tail(1000)
    for file in run.folder.rglob("*"):
        assert TOKEN not in file.read_text(), file.name


def test_a_failed_evaluation_does_not_undo_the_training(queue: Queue) -> None:
    run = wait_for(queue.submit(queue.store.create(config("no proof"))), "finished")
    assert "its evaluation is not: No rows were held out." in run.message
    assert run.events()[0][-1].kind == "notice"
    assert run.has_result


def test_sigterm_saves_first(queue: Queue) -> None:
    run = queue.submit(queue.store.create(config("slow")))
    wait(lambda: run if run.events()[0] else None)
    os.kill(pid_of(run), signal.SIGHUP)  # the terminal is closed
    os.kill(pid_of(run), signal.SIGTERM)
    run = wait_for(run, "stopped")
    assert [event.kind for event in run.events()[0][-2:]] == ["saved", "ended"]


def test_memory_runs_out_here_first(queue: Queue) -> None:
    run = queue.submit(queue.store.create(config("slow")))
    wait(lambda: run if run.events()[0] else None)
    pid = pid_of(run)
    score = Path(f"/proc/{pid}/oom_score_adj")
    if not score.exists():
        pytest.skip("not Linux")
    assert int(score.read_text()) == worker.OOM_SCORE
    assert os.getsid(pid) == pid, "it outlives the terminal"


def test_waiting_is_light() -> None:
    code = (
        "import sys, phi3lora.runs.worker\n"
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'numpy'}\n"
        "print(heavy & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


def test_two_devices_compute_two_runs(settings: Settings, tmp_path: Path) -> None:
    settings.home.mkdir()
    one = worker.lock_one(settings, ["0", "1"])
    two = worker.lock_one(settings, ["0", "1"])
    assert one
    assert two
    assert (one[0], two[0]) == ("0", "1")
    assert worker.lock_one(settings, ["0", "1"]) is None
    os.close(one[1])
    free = worker.lock_one(settings, ["0", "1"])
    assert free
    assert free[0] == "0"


def test_a_turn_ends_with_its_run(settings: Settings) -> None:
    store = RunStore(settings)
    run = store.create(RunConfig())
    emitted: list[object] = []

    def fail_in_turn() -> None:
        with worker.turn(run, store, emitted.append, lambda: False) as held:
            assert held == ["cpu"]
            assert worker.lock_one(settings, ["cpu"]) is None
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_turn()
    assert worker.lock_one(settings, ["cpu"])
    with worker.turn(run, store, emitted.append, lambda: True) as held:
        assert held is None
    assert emitted == []


def test_a_failure_is_told_before_its_copy_on_the_hub_is_finished(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last upload may take a quarter of an hour, and the Hub may not answer at all."""
    run = RunStore(settings).create(config("bad data"), "local")
    heard: list[str] = []
    monkeypatch.setattr(worker.Copy, "finish", lambda copy: heard.append(run.refresh().status))
    monkeypatch.setattr(worker, "compute", refused)
    assert worker.work(run, settings, lambda: False) == 2
    assert heard == ["failed"]


def refused(*_: Any) -> Any:
    raise DataError("No rows fit.")


def test_errors_in_words() -> None:
    assert worker.explain(DataError("no rows")) == ("no rows", 2)
    assert worker.explain(TrainingError("too big")) == ("too big", 1)
    message, status = worker.explain(OSError(28, "No space left on device"))
    assert "disk is full" in message
    assert status == 1
    assert worker.explain(ValueError(f"odd {TOKEN}")) == (
        "A fault of ours ended the run (ValueError: odd hf_…); its log has the details.",
        1,
    )


def test_the_event_log_says_how_it_ended_once(queue: Queue) -> None:
    for title in ("bug", "quick"):
        run = queue.submit(queue.store.create(config(title)))
        run = wait_for(run, "failed", "finished")
        assert len([event for event in run.events()[0] if isinstance(event, Ended)]) == 1
