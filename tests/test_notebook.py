"""phi3lora from Python: the README's lines in a real notebook, and each function beside the way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import phi3lora
from phi3lora import notebook
from phi3lora.errors import (
    AccessError,
    ConfigError,
    DataError,
    Phi3LoraError,
    RunError,
    TrainingError,
)
from phi3lora.events import Event, Step
from phi3lora.hub import access
from phi3lora.runs.store import RunState, RunStore, write_state
from phi3lora.settings import Settings
from tests import stage
from tests.hub import LoopbackHub
from tests.published import make_run

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RUN = "20261121-093000-4f1a2b"


@pytest.fixture(autouse=True)
def home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    return settings


def test_the_readme_runs_in_a_notebook_with_a_bar(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the first rows of its file."""
    rows = (REPOSITORY / "examples" / "pirate.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "pirate.jsonl").write_text("\n".join(rows[:60]), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (block,) = re.findall(r"```python\n(import phi3lora\n.*?)```", README, flags=re.DOTALL)
    cells = [nbformat.v4.new_code_cell(line) for line in block.splitlines() if line]
    book = nbformat.v4.new_notebook(cells=cells)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=place).execute()
    _, inspected, estimated, trained, asked, listed = [str(cell.outputs) for cell in book.cells]
    assert "supervised_tokens" in inspected
    assert "memory_bytes" in estimated
    assert "Training" in trained
    assert "20/20" in trained
    assert "Warning" not in trained
    assert "base: " in asked
    assert "tuned: " in asked
    assert "finished>" in listed
    (run,) = phi3lora.list_runs()
    assert (run.status, run.loss is not None) == ("finished", True)
    assert run.folder.parent == home.runs_folder


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, phi3lora; assert 'phi3lora.notebook' not in sys.modules; "
        "assert {'train', 'ask', 'inspect', 'estimate', 'list_runs'} <= set(dir(phi3lora)); "
        "phi3lora.train; assert not {'torch', 'transformers', 'gradio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_no_other_name_is_invented() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        phi3lora.trian  # noqa: B018


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        ("pokcet", {}, r"no YAML file and no recipe \(pocket"),
        ("pocket", {"training_config": {"lr": 1}}, "did you mean training_config.learning_rate"),
        ("pocket", {"trainng": {"x": 1}}, "trainng"),
        ("pocket", {"peft_config": {"r": "many"}}, "peft_config.r"),
    ],
)
def test_wrong_options_are_refused_before_anything(
    home: Settings, config: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        phi3lora.train(config, **options)
    assert not home.runs_folder.exists()


def test_old_names_are_taken_and_told() -> None:
    with pytest.warns(UserWarning, match="now lora_alpha"):
        config = notebook._config("pocket", {"path": "x", "max_rows": 9}, {"peft_config": OLD})
    assert (config.peft_config.lora_alpha, config.data.path, config.data.max_rows) == (7, "x", 9)


OLD = {"alpha": 7}


def test_red_checks_make_no_run(home: Settings) -> None:
    with pytest.raises(Phi3LoraError, match=r"Not launched.*\n.*no file nowhere\.jsonl"):
        phi3lora.train("pocket", "nowhere.jsonl")
    with pytest.raises(DataError):
        phi3lora.inspect("nowhere.jsonl")
    assert phi3lora.list_runs() == []


def test_a_run_says_how_it_stands(home: Settings) -> None:
    store = RunStore(home)
    failed, done = stage.failed(store), stage.finished(store)
    runs = {run.id: run for run in phi3lora.list_runs()}
    assert runs.keys() == {failed.id, done.id}
    assert repr(runs[done.id]) == f"<Run {done.id}: Pirate, finished>"
    assert runs[done.id].loss == pytest.approx(0.35, abs=0.1)
    assert "not a number" in runs[failed.id].message
    with pytest.raises(RunError, match="no adapter"):
        runs[failed.id].ask("Hello")
    with pytest.raises(AccessError, match="hf auth login"):
        runs[done.id].publish("ann/pirate")


def test_what_does_not_exist_cannot_be_asked() -> None:
    with pytest.raises(RunError, match="There is no run 'nobody'"):
        phi3lora.ask("Hello", "nobody")
    with pytest.raises(ConfigError, match="temprature: no such option"):
        phi3lora.ask("Hello", temprature=1)
    with pytest.raises(ConfigError, match="temperature: expected 0 or more"):
        phi3lora.ask("Hello", "", temperature=-1)


def test_a_conversation_is_asked_on(home: Settings) -> None:
    folder = make_run(home.runs_folder / RUN)
    write_state(folder, RunState(id=RUN, title="Pirate", status="finished"))
    talk = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    both = phi3lora.ask(talk, phi3lora.Run(folder), max_new_tokens=4)
    alone = phi3lora.ask(talk, max_new_tokens=4)
    assert both.base == alone.base
    assert both.tuned not in ("", both.base)
    assert alone.tuned == ""
    assert str(alone) == alone.base


def test_a_run_is_published(
    hub: LoopbackHub, home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_user("ann", token="hf_ann")
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    monkeypatch.setattr(access, "_IDENTITIES", {})
    folder = make_run(home.runs_folder / RUN)
    write_state(folder, RunState(id=RUN, title="Pirate", status="finished"))
    run = phi3lora.Run(folder)
    assert run.publish("ann/pirate", private=True) == f"{hub.url}/ann/pirate"
    assert hub.repo("model", "ann/pirate").private


class Interrupted:
    """A stored run whose watching is interrupted once, as by a notebook's stop button."""

    folder, message = Path("x"), "The loss is not a number."

    def __init__(self, status: str) -> None:
        self.status, self.stopped = status, False

    def follow(self, begin: int = 0) -> Any:
        if not self.stopped:
            raise KeyboardInterrupt
        event: Event = Step(step=3, total_steps=9, loss=1.0)
        yield event

    def events_end(self) -> int:
        return 7

    def refresh(self) -> Interrupted:
        return self


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_an_interrupt_saves_and_stops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    run: Any = Interrupted(status)
    launching = SimpleNamespace(stop=lambda run: setattr(run, "stopped", True))
    monkeypatch.setattr(notebook, "_here", lambda: (SimpleNamespace(launching=launching), None))
    if status == "failed":
        with pytest.raises(TrainingError, match="not a number"):
            notebook._follow(run, 0, True)
    else:
        assert notebook._follow(run, 0, True).folder == Path("x")
    assert run.stopped
    assert "3/9" in capsys.readouterr().err


def test_a_run_is_resumed_and_only_what_is_new_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = Interrupted("finished")
    run.stopped, begun = True, []
    monkeypatch.setattr(run, "follow", lambda begin: begun.append(begin) or iter(()))
    launching = SimpleNamespace(find=lambda *_: run, resume=lambda stored, *_, **__: stored)
    monkeypatch.setattr(notebook, "_here", lambda: (SimpleNamespace(launching=launching), None))
    assert phi3lora.Run(Path("x")).resume(progress=False).status == "finished"
    assert begun == [7]
