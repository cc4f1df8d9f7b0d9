"""Runs in slices on a lent GPU: the real `spaces` package, a scheduler on loopback."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.events import Loaded, Resumed, Saved, Stage, Step
from phi3lora.models.hardware import lend
from phi3lora.runs.copies import Copy
from phi3lora.runs.preparing import get_ready
from phi3lora.runs.store import Run, RunStore, changed
from phi3lora.settings import Settings
from tests.hub import LoopbackHub
from tests.serving import PATIENCE
from tests.zerogpu import LoopbackScheduler
from tests.zerogpu.scheduler import Grant

REPOSITORY = Path(__file__).parent.parent
VISITOR = "hf_of_the_visitor"
# What a page's event does, in an app of its own: one visitor's run, slice after slice.
DRIVE = """
import sys
from tests.zerogpu.pretend import pretend
pretend()
from pathlib import Path
from phi3lora.runs.backends import quota, zerogpu
from phi3lora.runs.store import open_run
from phi3lora.settings import Settings
quota.FIRST = quota.LONGEST = zerogpu.LONGEST = float(sys.argv[2])
quota.SAVING = zerogpu.SAVING = 1.0
settings = Settings.from_environment()
for run in zerogpu.drive(open_run(Path(sys.argv[1])), settings, "hf_of_the_visitor"):
    print(run.state.status, run.state.message, flush=True)
import torch
print("CUDA was begun here:", torch.cuda._initialized)
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
        start_new_session=True,
    )


def weights(run: Run) -> bytes:
    return (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_slices_that_are_killed_equal_one_run_to_the_bit(
    scheduler: LoopbackScheduler,
    hub: LoopbackHub,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The Space is restarted in the middle of a slice; the next one is taken away; backed up."""
    from phi3lora.training.trainer import train

    hub.add_user("ann", token=VISITOR)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    wanted = config(**{"hub.backup": True})
    whole = RunStore(settings).create(wanted)
    losses: dict[int, float] = {}

    def note(event: Any) -> None:
        if isinstance(event, Step) and event.loss is not None:
            losses[event.step] = event.loss

    train(whole.config, whole.folder, note)

    run = RunStore(settings).create(wanted)
    first = driven(scheduler, settings, run, 60)
    next(event for event in wait_for(run, first) if isinstance(event, Saved))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert run.refresh().status == "interrupted"
    assert scheduler.release(scheduler.grants[0].token, failed=True), "by the platform"

    process = driven(scheduler, settings, run, 60)
    resumed = killed = False
    for event in wait_for(run, process, run.events_end()):
        resumed = resumed or isinstance(event, Resumed)
        if isinstance(event, Saved) and resumed and not killed:
            scheduler.kill()
            killed = True
    said = process.stdout.read() if process.stdout else ""
    assert process.wait(PATIENCE) == 0
    assert "taken away in the middle" in said
    run = run.refresh()
    assert run.status == "finished", said
    assert len(scheduler.grants) == 4, "two that were killed, one that ended it, and the proof"
    assert [grant.failed for grant in scheduler.grants] == [True, True, False, False]
    assert weights(run) == weights(whole)
    again = {e.step: e.loss for e in run.events()[0] if isinstance(e, Step) and e.loss is not None}
    assert again == losses
    assert (run.folder / "report.json").exists()
    assert run.state.lent.slices == 2, "what came back from them is counted"
    assert 0 < run.state.lent.lost < 1
    assert "of GPU quota in 2 slices" in run.message
    assert "of that was loading" in run.message
    kept = b"".join(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    assert VISITOR.encode() not in kept
    repo = hub.files("model", f"ann/phi3lora-{run.id}")
    assert repo["adapter/adapter_model.safetensors"] == weights(whole)
    assert any(name.startswith("checkpoints/checkpoint-30/") for name in repo)


def wait_for(run: Run, process: subprocess.Popen[str], offset: int = 0) -> Iterator[Any]:
    """The run's events until its process ends."""
    while process.poll() is None:
        events, offset = run.events(offset)
        yield from events
        time.sleep(0.05)


def test_a_spent_quota_pauses_the_run_and_says_until_when(
    scheduler: LoopbackScheduler, settings: Settings
) -> None:
    """What needs no GPU was done before one was asked for."""
    scheduler.quota[""] = 10
    run = RunStore(settings).create(config())
    process = driven(scheduler, settings, run, 60)
    assert process.wait(PATIENCE) == 0
    assert scheduler.grants == []
    run = run.refresh()
    assert run.status == "paused"
    assert "quota" in run.message
    assert "1:00:00" in run.message or "Sign in" in run.message
    stages = [event.name for event in run.events()[0] if isinstance(event, Stage)]
    assert "preparing the data" in stages
    assert any((settings.cache_folder / "local").rglob("*.arrow"))


def test_a_slice_that_is_too_long_for_an_account_is_cut_and_waits_for_its_turn(
    scheduler: LoopbackScheduler, settings: Settings
) -> None:
    """One of 60 s is refused, half of it is not; 4-bit weights load where the device is."""
    scheduler.longest = 40
    few = {"evaluation.enabled": False, "training_config.max_steps": 5}
    run = RunStore(settings).create(config(**few, **{"model.quantization": "nf4"}))
    other = scheduler.schedule("eve", 20)
    assert isinstance(other, Grant)
    process = driven(scheduler, settings, run, 60)
    while not scheduler.queued:
        assert process.poll() is None
        time.sleep(0.05)
    assert scheduler.grants == [other]
    scheduler.release(other.token, failed=False)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0
    run = run.refresh()
    assert run.status == "finished", said
    assert next(e for e in run.events()[0] if isinstance(e, Loaded)).quantization == "nf4"
    assert scheduler.refusals
    assert {grant.seconds for grant in scheduler.grants[1:]} == {30}
    assert "CUDA was begun here: False" in said, "the app itself never touches it"


def test_spaces_is_imported_before_all_else() -> None:
    """Else the package refuses to lend: gradio or torch was there before it."""
    from phi3lora.hub.space import APP

    for code in ((REPOSITORY / "app.py").read_text(encoding="utf-8"), APP.format(adapter="a/b")):
        found = [
            node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = [getattr(node, "module", None) or node.names[0].name for node in found]
        others = [name for name in names if name not in sys.stdlib_module_names]
        assert others[0] == "spaces"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_neither_token_nor_model_crosses_into_a_fork(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a decorated function is given is pickled: plain values, and a pipe for the token."""
    from phi3lora.chat.options import Pair
    from phi3lora.runs.backends import zerogpu

    lend(None)  # as that module does for a Space's process: other tests share this one
    given: list[Any] = []

    def lent(*args: Any) -> Any:
        given.append(args)
        return iter([asdict(Pair())]) if len(args) == 1 else {}

    for name in ("answer", "train_slice", "prove_slice"):
        monkeypatch.setattr(zerogpu, name, lent)
    chat = zerogpu.LentChat(settings)
    chat.load("pocket", token=VISITOR)
    list(chat.reply([{"role": "user", "content": "Hi"}], token=VISITOR))
    for outcome in (None, "finished"):
        run = changed(RunStore(settings).create(config()), outcome=outcome)
        with suppress(TypeError, ValueError):  # nothing came back of it
            zerogpu._slice(run, VISITOR, 60, Copy(run, lambda _: None, VISITOR, settings))
    assert len(given) == 3
    assert VISITOR not in json.dumps(given)


def test_what_cannot_be_prepared_is_said_before_a_device_is_lent(
    settings: Settings, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{ this is no JSON\n" * 40)
    run = RunStore(settings).create(config(**{"data.path": str(rows)}))
    with pytest.raises(RunError, match=r"rows\.jsonl"):
        get_ready(run, settings, None)
    run.stop_file.touch()
    assert get_ready(run, settings, None) is False, "who stops it does not wait for it"


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
import json, sys
from tests.zerogpu.pretend import pretend
pretend()
import phi3lora.runs.backends.zerogpu
here = {"trl.trainer.sft_trainer", "transformers.models.phi3.modeling_phi3", "peft"}
print(json.dumps(sorted(here - set(sys.modules))))
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
    assert len(said) == 4, done.stdout + done.stderr
    assert said.pop(0) == [], "imported by the app, on nobody's quota"
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
