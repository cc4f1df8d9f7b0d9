"""Runs in slices on a lent GPU: the real `spaces` package, a scheduler on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.events import Notice, Saved, Step
from phi3lora.runs.store import Run, RunStore
from phi3lora.settings import Settings
from tests.zerogpu import LoopbackScheduler

REPOSITORY = Path(__file__).parent.parent
# What a page's event does, in an app of its own: one visitor's run, slice after slice.
DRIVE = """
import sys
from tests.zerogpu.pretend import pretend
pretend()
from pathlib import Path
from phi3lora.runs.backends import zerogpu
from phi3lora.runs.store import open_run
from phi3lora.settings import Settings
zerogpu.FIRST = zerogpu.LONGEST = float(sys.argv[2])
zerogpu.SAVING = 1.0
settings = Settings.from_environment()
for run in zerogpu.drive(open_run(Path(sys.argv[1])), settings, "hf_of_the_visitor"):
    print(run.state.status, run.state.message, flush=True)
"""


@pytest.fixture
def scheduler() -> Iterator[LoopbackScheduler]:
    with LoopbackScheduler() as found:
        yield found


def config(**changes: Any) -> RunConfig:
    return RunConfig().with_values(
        {
            "model.path": "pocket",
            "data.path": "example:pirate",
            "data.max_rows": 60,
            "training_config.max_steps": 30,
            "training_config.save_steps": 5,
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


def driven(
    scheduler: LoopbackScheduler, settings: Settings, run: Run, seconds: float
) -> subprocess.Popen[str]:
    """The page's event, under way."""
    environ = {
        **os.environ,
        "PHI3LORA_HOME": str(settings.home),
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": scheduler.url,
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.Popen(
        [sys.executable, "-c", DRIVE, str(run.folder), str(seconds)],
        env=environ,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def weights(run: Run) -> bytes:
    return (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_slices_that_are_killed_equal_one_run_to_the_bit(
    scheduler: LoopbackScheduler, settings: Settings
) -> None:
    from phi3lora.training.trainer import train

    whole = RunStore(settings).create(config())
    losses: dict[int, float] = {}

    def note(event: Any) -> None:
        if isinstance(event, Step) and event.loss is not None:
            losses[event.step] = event.loss

    train(whole.config, whole.folder, note)

    run = RunStore(settings).create(config())
    process = driven(scheduler, settings, run, 60)
    killed = False
    for event in wait_for_saved(run, process):
        if isinstance(event, Saved) and not killed:
            scheduler.kill()  # in the middle of the first slice
            killed = True
    said = process.stdout.read() if process.stdout else ""
    assert process.wait(120) == 0
    assert "taken away in the middle" in said
    assert run.refresh().status == "finished", said
    assert len(scheduler.grants) >= 3, "a slice that was killed, one that ended it, and the proof"
    assert [grant.failed for grant in scheduler.grants][:2] == [True, False]
    assert weights(run) == weights(whole)
    again = {e.step: e.loss for e in run.events()[0] if isinstance(e, Step) and e.loss is not None}
    assert again == losses
    assert (run.folder / "report.json").exists()
    costs = [e.message for e in run.events()[0] if isinstance(e, Notice) and "slice" in e.message]
    assert costs
    kept = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    assert b"hf_of_the_visitor" not in kept


def wait_for_saved(run: Run, process: subprocess.Popen[str]) -> Iterator[Any]:
    """The run's events until its process ends."""
    import time

    offset = 0
    while process.poll() is None:
        events, offset = run.events(offset)
        yield from events
        time.sleep(0.05)


def test_a_spent_quota_pauses_the_run_and_says_until_when(
    scheduler: LoopbackScheduler, settings: Settings
) -> None:
    scheduler.quota[""] = 10
    run = RunStore(settings).create(config())
    process = driven(scheduler, settings, run, 60)
    assert process.wait(120) == 0
    assert scheduler.grants == []
    run = run.refresh()
    assert run.status == "paused"
    assert "quota" in run.message
    assert "1:00:00" in run.message or "Sign in" in run.message


def test_the_app_reports_that_it_has_a_function_for_the_gpu(
    scheduler: LoopbackScheduler, tmp_path: Path
) -> None:
    """A ZeroGPU Space without one is ended while it starts."""
    from tests.zerogpu import space

    with space(scheduler, tmp_path) as _:
        assert scheduler.started == 1
        assert scheduler.grants == []


def test_a_comparison_space_has_one_too(scheduler: LoopbackScheduler, tmp_path: Path) -> None:
    from phi3lora.hub.space import APP
    from tests.zerogpu import space

    (tmp_path / "app.py").write_text(APP.format(adapter="ann/pirate"), encoding="utf-8")
    main = f"import runpy; runpy.run_path({str(tmp_path / 'app.py')!r}, run_name='__main__')"
    with space(scheduler, tmp_path / "home", main=main) as _:
        assert scheduler.started == 1
        assert scheduler.grants == []


ASK = """
import json
from tests.zerogpu.pretend import pretend
pretend()
from phi3lora.chat.options import Options
from phi3lora.errors import Phi3LoraError
from phi3lora.runs.backends.zerogpu import LentChat
from phi3lora.settings import Settings
chat = LentChat(Settings.from_environment())
chat.load("pocket")
question = [{"role": "user", "content": "Name the capital of Brazil."}]
pairs = list(chat.reply(question, options=Options(max_new_tokens=24)))
print(json.dumps([len(pairs), pairs[-1].base, pairs[-1].done]))
stopped = list(chat.reply(question, options=Options(max_new_tokens=24), should_stop=lambda: True))
print(json.dumps([stopped[-1].done, len(stopped[-1].base) <= len(pairs[-1].base)]))
try:
    list(chat.reply(question, options=Options(max_new_tokens=4000)))
except Phi3LoraError as error:
    print(json.dumps(str(error)))
"""


def test_a_lent_chat_says_what_one_of_its_own_would(
    scheduler: LoopbackScheduler, settings: Settings
) -> None:
    import json

    from phi3lora.chat.engine import ChatEngine
    from phi3lora.chat.options import Options

    scheduler.longest = 60
    environ = {
        **os.environ,
        "PHI3LORA_HOME": str(settings.home),
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": scheduler.url,
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environ, cwd=REPOSITORY, capture_output=True, text=True
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line[:1] in '["']
    assert len(said) == 3, done.stdout + done.stderr
    question: list[Any] = [{"role": "user", "content": "Name the capital of Brazil."}]
    engine = ChatEngine(settings)
    engine.load("pocket")
    *_, here = engine.reply(question, options=Options(max_new_tokens=24))
    assert said[0][0] > 1, "it streams"
    assert said[0][1:] == [here.base, True]
    assert said[1] == [True, True]
    assert "may not hold the GPU that long" in said[2]
    assert [grant.failed for grant in scheduler.grants] == [False, False]
    assert scheduler.running() == []
