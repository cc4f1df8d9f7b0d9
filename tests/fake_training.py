"""A training without torch for worker processes: what it does is in the run's title.

`install` puts it before the real one in processes that are started from here.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from phi3lora.config import RunConfig
from phi3lora.runs.life import holder
from phi3lora.runs.store import Run, RunStore, Status
from tests.serving import PATIENCE

SOURCE = """
import os, sys, time, types
from phi3lora.errors import ChangedInputsError, DataError, TrainingError
from phi3lora.events import Ended, Saved, Stage, Step

def train(config, folder, emit, should_stop, deadline, token, cache_folder, accept_changes):
    if config.title == "bad data":
        raise DataError("No rows fit.")
    if config.title == "bad data on the second device" and os.environ.get("RANK") == "1":
        raise DataError("No rows fit there.")
    if config.title == "rows that changed" and not accept_changes:
        raise ChangedInputsError(["the rows of the data"])
    if config.title == "bug":
        raise KeyError("surprise")
    if config.title == "leaky":
        print("stdout has " + token)
        emit(Stage(name="using " + token))
        raise TrainingError("refused for " + token)
    if config.title == "fills the disk":
        with open(folder / "big", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    steps = 10_000 if config.title in ("slow", "deaf", "bad data on the second device") else 3
    for step in range(1, steps + 1):
        emit(Step(step=step, total_steps=steps, loss=1 / step))
        if config.title != "deaf" and should_stop():
            emit(Saved(step=step, path="checkpoints/checkpoint-1"))
            emit(Ended(outcome="stopped", step=step))
            return "stopped"
        time.sleep(0.01)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    empty = (2).to_bytes(8, "little") + b"{}"
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(empty)
    emit(Ended(outcome="finished", step=steps))
    return "finished"

class Report:
    def summary(self):
        return "better"

def evaluate(config, folder, *, emit, should_stop, cache_folder, token):
    if config.title == "no proof":
        raise DataError("No rows were held out.")
    return Report()

import phi3lora.runs.group
phi3lora.runs.group.HANG_SECONDS = 0.2

for name, function in (("training.trainer", train), ("evaluation.report", evaluate)):
    module = types.ModuleType("phi3lora." + name)
    setattr(module, function.__name__, function)
    sys.modules["phi3lora." + name] = module
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes find the fake: Python imports `sitecustomize` at its start."""
    folder.mkdir(parents=True, exist_ok=True)
    package = str(Path(__file__).parent.parent)
    source = f"import sys; sys.path.insert(0, {package!r})\n{SOURCE}"
    (folder / "sitecustomize.py").write_text(source, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONPATH", path)


def config(title: str = "quick") -> RunConfig:
    """A run on the CPU that does what its title says."""
    return RunConfig().with_values({"title": title, "model.device": "cpu"})


def pid_of(run: Run) -> int:
    """The process of a run that lives."""
    found = holder(run.folder)
    assert found is not None, f"{run.id} is {run.status}"
    return found


def kill(run: Run) -> None:
    """End a run's process as a crash does."""
    os.kill(pid_of(run), signal.SIGKILL)


def kill_all(store: RunStore) -> None:
    """The same with every run that lives in another process."""
    for run in store.all():
        pid = holder(run.folder)
        if pid not in (None, os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for(run: Run, *wanted: Status, seconds: float = PATIENCE) -> Run:
    """The run once its status is one of these."""
    return wait(lambda: found if (found := run.refresh()).status in wanted else None, seconds)


def wait(look: Callable[[], Run | None], seconds: float = PATIENCE) -> Run:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing came")
