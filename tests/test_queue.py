"""The line of runs, with real processes and a training without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.errors import ConfigError, RunError
from phi3lora.events import Ended, Stage
from phi3lora.runs.backends.local import devices, worker_environment
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import JobRef, Run, changed
from phi3lora.settings import Settings
from tests import fake_training
from tests.fake_training import config, kill, kill_all, pid_of, wait, wait_for


@pytest.fixture
def queue(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    fake_training.install(tmp_path / "fake", monkeypatch)
    queue = Queue(settings)
    yield queue
    kill_all(queue.store)


def submit(queue: Queue, title: str, owner: str = "local") -> Run:
    return queue.submit(queue.store.create(config(title), owner=owner))


def began(run: Run) -> Run:
    """The run once its first events are there."""
    return wait(lambda: run.refresh() if len(run.events()[0]) > 1 else None)


def test_a_run_goes_through(queue: Queue) -> None:
    run = wait_for(submit(queue, "quick"), "finished")
    assert run.message == "better"
    assert run.state.exit_status == 0
    assert run.state.created <= run.state.queued <= run.state.started <= run.state.ended
    events, _ = run.events()
    assert [event.step for event in events if event.kind == "step"] == [1, 2, 3]
    assert isinstance(events[-1], Ended)
    assert "step 3/3, loss 0.3333" in run.log_tail()
    with pytest.raises(RunError, match="start a new one"):
        queue.resume(run)
    with pytest.raises(RunError, match="cannot be stopped"):
        queue.stop(run)


def test_one_computes_and_the_others_wait_in_order(queue: Queue) -> None:
    first = began(submit(queue, "slow"))
    second, third, fourth = (submit(queue, "slow") for _ in range(3))
    assert first.refresh().status == "running"
    assert [queue.position(run) for run in (first, second, third, fourth)] == [None, 1, 2, 3]
    wait(lambda: second if Stage(name="waiting for the device", time=0) in stages(second) else None)
    with pytest.raises(RunError, match="already"):
        queue.submit(second)
    with pytest.raises(RunError, match="stop it instead"):
        queue.cancel(first)
    queue.cancel(second)
    cancelled = wait_for(second, "stopped")
    assert "Cancelled" in cancelled.message
    assert cancelled.state.started is None
    assert queue.position(third) == 1
    queue.stop(first)
    assert wait_for(first, "stopped").events()[0][-2].kind == "saved"
    wait_for(third, "running")
    assert fourth.refresh().status == "queued"


def stages(run: Run) -> list[Stage]:
    return [replace(event, time=0) for event in run.events()[0] if isinstance(event, Stage)]


def test_a_killed_run_is_interrupted_and_resumes(queue: Queue) -> None:
    run = began(submit(queue, "slow"))
    waiting = submit(queue, "quick")
    first = pid_of(run)
    kill(run)
    assert "process is gone" in wait_for(run, "interrupted").message
    wait_for(waiting, "finished")  # the device is free at once
    with pytest.raises(RunError, match="resume it or delete it"):
        queue.stop(run)
    again = queue.resume(run)
    assert again.status == "queued"
    assert pid_of(again) != first
    wait_for(run, "running")
    queue.stop(run)
    wait_for(run, "stopped")


def test_a_stopped_run_resumes(queue: Queue) -> None:
    run = began(submit(queue, "slow"))
    queue.stop(run)
    assert wait_for(run, "stopped").stop_file.exists()
    run = queue.resume(run)
    wait_for(run, "running")
    assert not run.stop_file.exists()


def test_what_ran_out_of_memory_goes_on_with_a_smaller_batch(
    settings: Settings, queue: Queue
) -> None:
    app = Application.open(settings, helper=False)
    own = Caller("local")
    run = began(submit(queue, "slow"))
    for status in ("is running", "is stopping"):
        with pytest.raises(RunError, match=status):
            app.launching.resume(run, own, batch_size=2)
        queue.stop(run) if run.refresh().status == "running" else None
    run = wait_for(run, "stopped")
    for wrong in (0, 3, 5):
        with pytest.raises(ConfigError, match="divisor of the 4 rows"):
            app.launching.resume(run, own, batch_size=wrong)
    assert (run.refresh().config, run.refresh().status) == (run.config, "stopped")
    again = began(app.launching.resume(run, own, batch_size=2))
    training = again.config.training_config
    assert training.per_device_train_batch_size == training.gradient_accumulation_steps == 2
    # The command that it was started by goes on with it, as it did before.
    assert app.launching.launch_in(run.folder, config("slow"), own).id == run.id
    larger = config("slow").with_values({"training_config.per_device_train_batch_size": 8})
    with pytest.raises(RunError, match="differs in training_config"):
        app.launching.launch_in(run.folder, larger, own)
    with pytest.raises(RunError, match=r"is (queued|running)"):  # the second click
        app.launching.resume(run, own, batch_size=1)
    assert again.refresh().config == again.config
    kill(again)
    run = wait_for(again, "interrupted")
    changed(run, job=JobRef(id="1", key="k", owner="ann", repo="ann/run"))
    with pytest.raises(RunError, match="has a Job"):
        app.launching.resume(run.refresh(), own, batch_size=1)


def test_a_limit_for_each_owner(settings: Settings, queue: Queue) -> None:
    queue = Queue(replace(settings, runs_per_user=1))
    submit(queue, "slow", owner="ada")
    with pytest.raises(RunError, match="1 unfinished runs and may have 1"):
        submit(queue, "slow", owner="ada")
    submit(queue, "slow", owner="eve")


def test_the_submitter_dies_before_a_worker_is_there(queue: Queue) -> None:
    run = queue.store.create(config())
    gone = changed(run, status="queued")  # written, and then the power failed
    assert gone.status == "interrupted"
    wait_for(queue.resume(gone), "finished")


def test_a_spaces_secrets_stay_out_of_a_visitors_run(settings: Settings) -> None:
    space = replace(settings, space_id="owner/space")
    secrets = ("HF_TOKEN", "OAUTH_CLIENT_SECRET", "OPENAI_API_KEY", "MY_DATABASE")
    environ = {**dict.fromkeys(secrets, "secret"), "PATH": "/bin", "HF_HOME": "/cache"}
    mine = worker_environment(space, environ)
    assert mine.keys() & environ.keys() == {"PATH", "HF_HOME"}
    assert mine["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    at_home = worker_environment(settings, environ)
    assert "HF_TOKEN" not in at_home, "tokens come by a pipe"
    assert at_home["MY_DATABASE"] == "secret"
    assert mine["PHI3LORA_HOME"] == str(settings.home)


def test_devices_by_name() -> None:
    assert devices("cpu") == ["cpu"]
    assert devices("cuda", {"CUDA_VISIBLE_DEVICES": "2, 3"}) == ["2", "3"]
    assert devices("cuda", {"CUDA_VISIBLE_DEVICES": ""}) == []
    assert devices("cuda", {"CUDA_VISIBLE_DEVICES": "-1"}) == []
