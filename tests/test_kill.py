"""Kill -9 of the app and of a training, with the real trainer: nothing is lost, nothing differs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phi3lora.config import RunConfig
from phi3lora.events import Resumed, Saved, Step
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import LOCAL, Run, RunStore
from phi3lora.settings import Settings
from tests.fake_training import kill, kill_all, wait, wait_for

# What an app does, as far as a run can tell: submit, and be there.
APP = """
import time
from pathlib import Path
from phi3lora.config import RunConfig
from phi3lora.runs.queue import Queue
from phi3lora.settings import Settings
queue = Queue(Settings.from_environment())
print(queue.submit(queue.store.create(RunConfig.from_yaml(Path({path!r}))[0])).id, flush=True)
time.sleep(600)
"""


@pytest.fixture
def queue(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    queue = Queue(settings)
    yield queue
    kill_all(queue.store)


def tiny() -> RunConfig:
    """Twenty steps with dropout, saved every third, each logged."""
    return RunConfig().with_values(
        {
            "model.path": "pocket",
            "model.dtype": "float32",
            "model.device": "cpu",
            "data.max_rows": 64,
            "peft_config.r": 4,
            "peft_config.lora_dropout": 0.1,
            "training_config.max_steps": 20,
            "training_config.per_device_train_batch_size": 2,
            "training_config.max_length": 64,
            "training_config.eval_strategy": "no",
            "training_config.logging_steps": 1,
            "training_config.save_strategy": "steps",
            "training_config.save_steps": 3,
            "evaluation.enabled": False,
        }
    )


def losses(run: Run) -> dict[int, float]:
    """The loss of each step; of a step that was done twice, the later one."""
    steps = [event for event in run.events()[0] if isinstance(event, Step)]
    return {step.step: step.loss for step in steps if step.loss is not None}


def last_saved(run: Run) -> int:
    return max((event.step for event in run.events()[0] if isinstance(event, Saved)), default=0)


@pytest.mark.slow
def test_kill_the_app_then_the_training_and_go_on(queue: Queue, tmp_path: Path) -> None:
    whole = queue.submit(queue.store.create(tiny()))
    (tmp_path / "run.yaml").write_text(tiny().to_yaml())
    code = APP.format(path=str(tmp_path / "run.yaml"))
    app = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert app.stdout
    run = queue.store.get(app.stdout.readline().strip(), LOCAL)
    app.kill()
    app.communicate()
    assert run.refresh().status in {"queued", "running"}, "the line outlives the app"

    wait_for(whole, "finished")
    wait(lambda: run if last_saved(run) >= 6 else None)
    restarted = RunStore(queue.settings).get(run.id, LOCAL)
    assert restarted.status == "running"
    kill(restarted)
    interrupted = wait_for(run, "interrupted")
    assert not interrupted.has_result
    assert set(losses(interrupted)) < set(losses(whole))

    queue.resume(interrupted)
    finished = wait_for(run, "finished")
    resumed = [event.step for event in finished.events()[0] if isinstance(event, Resumed)]
    assert len(resumed) == 1
    assert resumed[0] >= 6
    assert losses(finished) == losses(whole)
    one, other = (each.folder / "adapter" / "adapter_model.safetensors" for each in (whole, run))
    assert one.read_bytes() == other.read_bytes()
