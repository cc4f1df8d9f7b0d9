"""GRPO where others lend the device: slices on ZeroGPU and a Job give what one training gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.events import Saved, Step
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import Run, RunStore
from phi3lora.settings import Settings
from phi3lora.training.trainer import train
from tests.fake_training import wait_for
from tests.hub.machine import Machine
from tests.serving import PATIENCE
from tests.test_grpo import config
from tests.test_jobs import CHEAP, jobs_hub, machine, queue, started  # noqa: F401
from tests.test_zerogpu import driven, scheduler, weights  # noqa: F401
from tests.test_zerogpu import wait_for as events_of
from tests.zerogpu import LoopbackScheduler

UPDATES = 8


def wanted() -> RunConfig:
    return config(
        {
            "training_config.max_steps": UPDATES,
            "training_config.save_strategy": "steps",
            "training_config.save_steps": 2,
        }
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    """One training from its beginning to its end, here."""
    folder, events = tmp_path_factory.mktemp("whole"), list[Any]()
    train(wanted(), folder, events.append)
    return folder, rewarded(events)


def rewarded(events: list[Any]) -> dict[int, Any]:
    steps = (event for event in events if isinstance(event, Step) and event.loss is not None)
    return {step.step: (step.loss, step.reward) for step in steps}


def check(run: Run, whole: tuple[Path, dict[int, Any]]) -> None:
    """The same weights, losses and rewards, to the bit."""
    folder, steps = whole
    assert weights(run) == (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert rewarded(run.events()[0]) == steps
    assert len(steps) == UPDATES


@pytest.mark.slow
def test_slices_of_a_lent_gpu_are_one_training(
    whole: tuple[Path, dict[int, Any]],
    scheduler: LoopbackScheduler,  # noqa: F811
    settings: Settings,
) -> None:
    """The first is taken away in the middle; the second goes on from its last checkpoint."""
    run = RunStore(settings).create(wanted())
    process = driven(scheduler, settings, run, 60)
    killed = False
    for event in events_of(run, process):
        if isinstance(event, Saved) and not killed:
            scheduler.kill()
            killed = True
    assert process.wait(PATIENCE) == 0
    assert run.refresh().status == "finished", run.message
    assert [grant.failed for grant in scheduler.grants] == [True, False]
    check(run, whole)


@pytest.mark.slow
def test_a_job_is_one_training(
    whole: tuple[Path, dict[int, Any]],
    machine: Machine,  # noqa: F811
    queue: Queue,  # noqa: F811
) -> None:
    run = started(queue, queue.store.create(wanted(), job=CHEAP))
    run = wait_for(run, "finished", "failed")
    assert run.status == "finished", run.message
    check(run, whole)
