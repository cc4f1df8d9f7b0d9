"""Runs on a machine of the Hub: the client's own calls, a Hub on loopback that executes the Job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.events import Step
from phi3lora.hub.jobs import JobRequest
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import Run
from phi3lora.settings import Settings
from tests import fake_training
from tests.fake_training import kill_all, wait, wait_for
from tests.hub import LoopbackHub
from tests.hub.faults import Rule
from tests.hub.machine import Machine

TOKEN = "hf_" + "Jb7" * 11
CHEAP = JobRequest("a10g-small", 2.0)


@pytest.fixture
def jobs_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    from phi3lora.hub import jobs

    jobs._PRICES.clear()
    hub.add_user("ann", token=TOKEN, pays=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("PHI3LORA_POLL_SECONDS", "0.3")
    return hub


@pytest.fixture
def machine(jobs_hub: LoopbackHub, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(jobs_hub, tmp_path / "machines")
    jobs_hub.jobs.runner = machine
    yield machine
    machine.close()


@pytest.fixture
def queue(settings: Settings) -> Iterator[Queue]:
    queue = Queue(settings)
    yield queue
    kill_all(queue.store)


def config(**changes: Any) -> RunConfig:
    return RunConfig().with_values(
        {
            "model.path": "pocket",
            "data.path": "example:pirate",
            "data.max_rows": 40,
            "training_config.max_steps": 6,
            "training_config.save_steps": 3,
            "training_config.save_strategy": "steps",
            "training_config.logging_steps": 1,
            "training_config.per_device_train_batch_size": 2,
            "training_config.gradient_accumulation_steps": 1,
            "training_config.eval_strategy": "no",
            "evaluation.rows": 2,
            "evaluation.max_new_tokens": 8,
            **changes,
        }
    )


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def started(queue: Queue, run: Run) -> Run:
    return queue.submit(run, TOKEN)


@pytest.mark.slow
def test_a_job_that_dies_is_gone_on_with_in_another(
    jobs_hub: LoopbackHub, machine: Machine, queue: Queue, tmp_path: Path
) -> None:
    """Two Jobs on rows of this machine give what one uninterrupted run here gives, to the bit."""
    from phi3lora.training.trainer import train

    rows = tmp_path / "my rows.jsonl"
    example = Path(__file__).parent.parent / "examples" / "pirate.jsonl"
    rows.write_bytes(b"".join(example.read_bytes().splitlines(keepends=True)[:60]))
    wanted = config(**{"data.path": str(rows)})
    run = started(queue, queue.store.create(wanted, job=CHEAP))
    repo = f"ann/phi3lora-{run.id}"
    wait(lambda: run if has_checkpoint(jobs_hub, repo) else None)
    machine.close()  # nobody is asked first, nothing is saved
    run = wait_for(run, "failed", "finished")
    assert "ended without a last word" in run.message
    assert "exit code: -9" in run.message
    queue.resume(run, TOKEN)
    run = wait_for(run, "finished")
    whole = queue.store.create(wanted)
    train(whole.config, whole.folder, lambda event: None)
    assert weights(run.folder) == weights(whole.folder)
    steps = {event.step for event in run.events()[0] if isinstance(event, Step)}
    assert steps == {1, 2, 3, 4, 5, 6}
    assert (run.folder / "report.json").exists()
    assert "about $0.0" in run.message
    assert run.state.job is None
    assert "step 6/6" in run.log_tail(200)
    first, second = jobs_hub.jobs.all.values()
    assert (first.stage, second.stage) == ("ERROR", "COMPLETED")
    assert second.spec["timeoutSeconds"] == pytest.approx(2.0 / 0.016667 * 60, rel=0.01)
    assert second.spec["secrets"] == {"HF_TOKEN": TOKEN}
    told = [{k: v for k, v in job.spec.items() if k != "secrets"} for job in (first, second)]
    assert TOKEN not in str(told)
    assert not any(TOKEN in line["data"] for line in [*first.lines, *second.lines])
    assert not any(TOKEN.encode() in data for _, data in jobs_hub.store.stored())
    assert not any(TOKEN.encode() in f.read_bytes() for f in run.folder.rglob("*") if f.is_file())


def has_checkpoint(hub: LoopbackHub, repo: str) -> bool:
    found = hub.store.find("model", repo)
    return found is not None and any("checkpoints/" in path for path in found.head.tree)


# Beside the way: the training is a fake of the image's, the Hub's client and process are real


@pytest.fixture
def quick(jobs_hub: LoopbackHub, tmp_path: Path) -> Iterator[Machine]:
    """Machines whose image has a training that does what the run's title says."""
    image = tmp_path / "image"
    image.mkdir()
    (image / "sitecustomize.py").write_text(fake_training.SOURCE, encoding="utf-8")
    machine = Machine(jobs_hub, tmp_path / "machines", path=image)
    jobs_hub.jobs.runner = machine
    yield machine
    machine.close()


def at_work(queue: Queue, title: str = "slow") -> Run:
    """A run whose Job has sent its first step."""
    run = started(queue, queue.store.create(fake_training.config(title), job=CHEAP))
    wait_for(run, "running")
    return wait(lambda: run if any(isinstance(e, Step) for e in run.events()[0]) else None)


def the_job(hub: LoopbackHub) -> Any:
    [job] = hub.jobs.all.values()
    return job


def test_a_stop_saves_first(jobs_hub: LoopbackHub, quick: Machine, queue: Queue) -> None:
    run = at_work(queue)
    queue.stop(run)
    run = wait_for(run, "stopped")
    assert the_job(jobs_hub).stage == "COMPLETED", "it was not cancelled"
    assert [event.kind for event in run.events()[0]][-1] == "ended"


def test_one_that_does_not_hear_is_cancelled(
    jobs_hub: LoopbackHub,
    quick: Machine,
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PHI3LORA_STOP_SECONDS", "0")
    run = at_work(queue, "deaf")
    queue.stop(run)
    run = wait_for(run, "stopped")
    assert the_job(jobs_hub).stage == "CANCELED"
    assert "was cancelled" in run.message


def test_one_that_waits_for_a_machine_is_cancelled_at_once(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue
) -> None:
    quick.delay = 60
    run = started(queue, queue.store.create(fake_training.config(), job=CHEAP))
    wait(lambda: run if jobs_hub.jobs.all else None)
    assert run.refresh().status == "queued"
    queue.cancel(run)
    run = wait_for(run, "stopped")
    assert the_job(jobs_hub).started is None


def test_cancelled_elsewhere(jobs_hub: LoopbackHub, quick: Machine, queue: Queue) -> None:
    run = at_work(queue)
    the_job(jobs_hub).end("CANCELED")
    run = wait_for(run, "stopped")
    assert "Its Job was cancelled." in run.message
    assert run.events()[0][-1].kind == "ended"


def test_who_follows_is_killed_and_the_job_goes_on(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue
) -> None:
    run = at_work(queue, "slow")
    fake_training.kill(run)
    run = wait_for(run, "interrupted")
    assert "no second one is started" in run.message
    queue.resume(run, TOKEN)
    run = wait_for(run, "running")
    queue.stop(run)
    run = wait_for(run, "stopped")
    assert len(jobs_hub.jobs.all) == 1
    lines = run.log_tail(100_000).splitlines()
    steps = [line.rpartition("step ")[2] for line in lines if "step " in line]
    assert len(set(steps)) == len(steps), "no line of its log is copied twice"


def test_killed_before_the_job_was_written_down(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue
) -> None:
    """The order was carried out, and nobody here knows: it is found by its label."""
    from phi3lora.runs.store import changed

    run = at_work(queue)
    fake_training.kill(run)
    run = changed(wait_for(run, "interrupted"), job=None)
    queue.resume(run, TOKEN)
    run = wait_for(run, "running")
    queue.stop(run)
    wait_for(run, "stopped")
    assert len(jobs_hub.jobs.all) == 1


def test_the_hub_wants_money(jobs_hub: LoopbackHub, quick: Machine, queue: Queue) -> None:
    jobs_hub.store.users["ann"].pays = False
    run = wait_for(started(queue, queue.store.create(fake_training.config(), job=CHEAP)), "failed")
    assert "Pre-paid credit balance is insufficient" in run.message
    assert jobs_hub.jobs.all == {}
    jobs_hub.store.users["ann"].pays = True
    queue.resume(run, TOKEN)
    assert wait_for(run, "finished").result.whole


def test_a_sign_in_without_the_permission(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue
) -> None:
    jobs_hub.add_token("ann", "hf_oauth_narrow", "oauth", ["contribute-repos"], app="space")
    run = queue.store.create(fake_training.config(), job=CHEAP)
    run = wait_for(queue.submit(run, "hf_oauth_narrow"), "failed")
    assert "may not use Jobs" in run.message


def test_the_sign_in_ends_and_another_goes_on(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue
) -> None:
    from phi3lora.runs.renewal import renew

    jobs_hub.add_token("ann", "hf_another", "write")
    run = at_work(queue)
    jobs_hub.revoke(TOKEN)
    wait(lambda: run if "sign in again" in run.refresh().state.message else None)
    assert run.refresh().status == "running"
    assert renew(run.folder, "hf_another")
    wait(lambda: run if not run.refresh().state.message else None)
    the_job(jobs_hub).end("CANCELED")
    assert "Its Job was cancelled." in wait_for(run, "stopped").message


def test_its_repository_is_deleted(jobs_hub: LoopbackHub, quick: Machine, queue: Queue) -> None:
    """The Job makes it anew, and what it came to arrives."""
    run = at_work(queue)
    del jobs_hub.store.repos["model", f"ann/phi3lora-{run.id}"]
    wait(lambda: run if ("model", f"ann/phi3lora-{run.id}") in jobs_hub.store.repos else None)
    queue.stop(run)
    assert wait_for(run, "stopped").status == "stopped"


def test_its_repository_is_deleted_with_the_job(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue
) -> None:
    run = at_work(queue)
    the_job(jobs_hub).end("CANCELED")
    del jobs_hub.store.repos["model", f"ann/phi3lora-{run.id}"]
    run = wait_for(run, "failed", "stopped")
    assert "was deleted" in run.message or "was cancelled" in run.message


def test_a_lost_answer_starts_no_second_job(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue
) -> None:
    lost = jobs_hub.faults.add(Rule("^POST /api/jobs/ann$", "lose", times=1))
    run = wait_for(
        started(queue, queue.store.create(fake_training.config(), job=CHEAP)), "finished"
    )
    assert lost.hits == 1
    assert len(jobs_hub.jobs.all) == 1
    assert run.result.whole


def test_what_the_job_says_of_a_mistake(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue
) -> None:
    run = queue.store.create(fake_training.config("leaky"), job=CHEAP)
    run = wait_for(started(queue, run), "failed")
    assert run.message.startswith("refused for hf_…")
    assert run.state.exit_status == 1
    assert "stdout has hf_…" in run.log_tail(1000)
    assert the_job(jobs_hub).message.startswith("Job failed with exit code: 1")


# From a terminal


def test_from_the_terminal(
    jobs_hub: LoopbackHub,
    quick: Machine,
    queue: Queue,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checked, sent, followed to its end; then resumed nowhere, since it is finished."""
    from typer.testing import CliRunner

    from phi3lora import cli
    from phi3lora.hub import access

    monkeypatch.setattr(access, "_IDENTITIES", {})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    wanted = ["pocket", "--set", "data.max_rows=40", "--on", "jobs", "--flavor", "a10g-small"]
    done = CliRunner().invoke(cli.app, ["train", *wanted, "--at-most", "0.75"])
    assert done.exit_code == 0, done.output
    assert "about $0.0" in done.stderr
    assert "step 3/3" in done.stdout
    assert TOKEN not in done.output
    [run] = queue.store.all()
    assert (run.status, run.state.flavor, run.state.at_most) == ("finished", "a10g-small", 0.75)
    assert the_job(jobs_hub).spec["timeoutSeconds"] == int(0.75 / (0.016667 / 60))


def test_it_goes_on_on_another_machine_with_another_cap(
    jobs_hub: LoopbackHub, quick: Machine, queue: Queue, settings: Settings
) -> None:
    from phi3lora.app.application import Application
    from phi3lora.app.callers import Caller

    launching, ann = Application.open(settings, helper=False).launching, Caller("local", TOKEN)
    jobs_hub.store.users["ann"].pays = False
    run = queue.store.create(fake_training.config(), job=CHEAP)
    run = wait_for(started(queue, run), "failed")
    jobs_hub.store.users["ann"].pays = True
    launching.resume(run, ann, job=JobRequest("l4x4", 5.0))
    run = wait_for(run, "finished")
    assert the_job(jobs_hub).spec["flavor"] == "l4x4"
    here = queue.store.create(fake_training.config())
    with pytest.raises(RunError, match="cannot go on in a Job"):
        launching.resume(here, ann, job=CHEAP)
