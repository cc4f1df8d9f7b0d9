"""Runs on a machine of the Hub: the client's own calls, a Hub on loopback that executes the Job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.events import Step
from phi3lora.hub.jobs import JobRequest
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import Run, RunStore
from phi3lora.settings import Settings
from tests import fake_training
from tests.fake_training import kill_all, wait_for
from tests.hub import LoopbackHub
from tests.hub.machine import Machine

TOKEN = "hf_" + "Jb7" * 11
CHEAP = JobRequest("a10g-small", 2.0)


@pytest.fixture
def jobs_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    from phi3lora.hub import jobs

    jobs._PRICES.clear()
    hub.add_user("ann", token=TOKEN, pays=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("PHI3LORA_LOOK_SECONDS", "0.3")
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
def test_a_job_trains_what_this_machine_would(
    jobs_hub: LoopbackHub, machine: Machine, queue: Queue, tmp_path: Path
) -> None:
    from phi3lora.training.trainer import train

    rows = tmp_path / "my rows.jsonl"
    example = Path(__file__).parent.parent / "examples" / "pirate.jsonl"
    rows.write_bytes(b"".join(example.read_bytes().splitlines(keepends=True)[:60]))
    wanted = config(**{"data.path": str(rows)})
    run = wait_for(started(queue, queue.store.create(wanted, job=CHEAP)), "finished", seconds=180)
    here = queue.store.create(wanted)
    train(here.config, here.folder, lambda event: None)
    assert weights(run.folder) == weights(here.folder)
    steps = [event.step for event in run.events()[0] if isinstance(event, Step)]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (run.folder / "report.json").exists()
    assert "about $0.0" in run.message
    assert run.state.job is None
    [job] = jobs_hub.jobs.all.values()
    assert job.stage == "COMPLETED"
    assert job.spec["timeoutSeconds"] == pytest.approx(2.0 / 0.016667 * 60, rel=0.01)
    assert job.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in str({k: v for k, v in job.spec.items() if k != "secrets"})
    assert not any(TOKEN in line["data"] for line in job.lines)
    assert not any(TOKEN.encode() in data for _, data in jobs_hub.store.stored())
    assert not any(TOKEN.encode() in f.read_bytes() for f in run.folder.rglob("*") if f.is_file())
    assert "step 6/6" in run.log_tail(200)
