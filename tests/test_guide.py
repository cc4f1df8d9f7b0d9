"""docs/guide.md: every command parses with values that a run accepts, every file is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from phi3lora.cli import app
from phi3lora.config import parse_setting
from phi3lora.hub import access
from phi3lora.recipes import load_recipe, recipes
from phi3lora.runs.store import Run, RunStore, changed
from phi3lora.settings import Settings
from tests.hub import LoopbackHub
from tests.published import base_files

REPOSITORY = Path(__file__).parent.parent
GUIDE = (REPOSITORY / "docs" / "guide.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in GUIDE.partition("## Where a dictionary says nothing")[0].splitlines()
    if line.startswith("|") and not line.startswith(("| The ", "| ---"))
]
COMMANDS = re.findall(r"`(phi3lora [^`]+)`", GUIDE)


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The command and its parameters, as the terminal reads them."""
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    names = []
    while hasattr(command, "commands"):
        names.append(words.pop(0))
        command = command.commands[names[-1]]
    with command.make_context(names[-1], words) as context:
        return " ".join(names), context.params


def test_every_row_has_a_step_an_answer_and_a_place() -> None:
    assert len(ROWS) > 45
    assert all(len(row) == 3 and all(row) for row in ROWS)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    name, values = parsed(line)
    named = values.get("config") or values.get("run")
    if name == "train":
        assert named in recipes()
        changes = dict(parse_setting(text) for text in values["changes"] or [])
        load_recipe(named)[0].with_values(changes)


TRAININGS = [line for line in COMMANDS if line.startswith("phi3lora train ")]
# Little of everything, whatever the command says of base and data.
QUICK: dict[str, Any] = {
    "model.path": "pocket",
    "data.path": "example:pirate",
    "data.max_rows": 120,
    "training_config.max_steps": 1,
    "training_config.per_device_train_batch_size": 1,
    "training_config.gradient_accumulation_steps": 1,
}

MORE = {"training_config.max_steps": 3, "training_config.warmup_steps": 0}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What RUN and FILE stand for: a finished training, and a loralib checkpoint of another."""
    from phi3lora.training.trainer import train

    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("peft", "loralib")}
    for kind, folder in folders.items():
        # The first step of a warm-up changes nothing yet.
        wanted = load_recipe("pocket")[0].with_values({**QUICK, **MORE, "adapter": kind})
        assert train(wanted, folder, lambda event: None) == "finished"
    return {"RUN": folders["peft"], "FILE": next((folders["loralib"] / "adapter").glob("*.pt"))}


@pytest.mark.parametrize("line", TRAININGS)
def test_every_training_trains(line: str, tmp_path: Path, earlier: dict[str, Path]) -> None:
    from phi3lora.training.trainer import train

    _, values = parsed(line)
    changes = dict(parse_setting(text) for text in values["changes"] or [])
    if start := values.get("start"):
        changes["model.adapter"] = str(earlier[start])
    wanted = load_recipe(values["config"])[0].with_values(changes).with_values(QUICK)
    assert train(wanted, tmp_path, lambda event: None) == "finished"
    assert any((tmp_path / wanted.result).iterdir())


@pytest.mark.parametrize("kind", ["RUN", "FILE"])
def test_training_further_begins_where_the_checkpoint_ended(
    kind: str, earlier: dict[str, Path], tmp_path: Path
) -> None:
    """One step at a rate of nearly nothing leaves the weights of the checkpoint."""
    from safetensors.torch import load_file

    from phi3lora.training.trainer import train

    still = {**QUICK, "training_config.learning_rate": 1e-30, "model.adapter": str(earlier[kind])}
    still["adapter"] = "peft" if kind == "RUN" else "loralib"
    wanted = load_recipe("pocket")[0].with_values(still)
    assert train(wanted, tmp_path, lambda event: None) == "finished"
    before = earlier[kind] / "adapter" if kind == "RUN" else earlier[kind].parent
    name = "adapter_model.safetensors"
    old, new = load_file(before / name), load_file(tmp_path / "adapter" / name)
    assert old.keys() == new.keys()
    assert all(bool((old[key] == new[key]).all()) for key in old)
    assert any(bool(old[key].any()) for key in old if "lora_B" in key)


@pytest.mark.parametrize("line", [line for line in COMMANDS if " example:" in line])
def test_every_look_at_bundled_data_shows_it(line: str) -> None:
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    assert "supervised" in done.output


DONE = ("phi3lora train ", "phi3lora inspect example:", "phi3lora export pocket ")
OTHERS = [line for line in dict.fromkeys(COMMANDS) if not line.startswith(DONE)]
SAYS = {  # a word of what each says, or leaves behind
    "export RUN --to loralib": ".pt",
    "export RUN --to merged": "model.safetensors",
    "export RUN --to notebook": "train.ipynb",
    "import FILE": "adapter_model.safetensors",
    "runs show RUN --lines 40": "finished",
    "runs show RUN --json": '"status": "finished"',
    "inspect HuggingFaceH4/ultrachat_200k": "supervised",
    "evaluate RUN": "loss by token",
    "chat --adapter RUN": "tuned",
    "push RUN --repo USER/NAME": "/ann/pirate",
    "runs resume RUN": "is queued",
}


@pytest.fixture
def home(
    earlier: dict[str, Path],
    hub: LoopbackHub,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """The run, at home where ann sits, with a Hub that has what the guide names."""
    hub.add_user("ann", token="hf_ann")
    hub.add_repo("model", "microsoft/Phi-3-mini-4k-instruct", files=base_files())
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    rows = {"data/train_sft.jsonl": (json.dumps(row) + "\n").encode() * 20}
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += b"  - split: train_sft\n    path: data/train_sft.jsonl\n---\n"
    rows["README.md"] = card
    hub.add_repo("dataset", "HuggingFaceH4/ultrachat_200k", files=rows)
    for name, value in {"HF_TOKEN": "hf_ann", "PHI3LORA_HOME": str(settings.home)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(access, "_IDENTITIES", {})
    monkeypatch.chdir(tmp_path)
    run = RunStore(settings).create(load_recipe("pocket")[0].with_values(QUICK | MORE))
    shutil.copytree(earlier["RUN"], run.folder, dirs_exist_ok=True)
    return changed(run, status="finished", outcome="finished", message="", exit_status=0)


@pytest.mark.parametrize("line", OTHERS)
def test_every_other_command_runs(line: str, home: Run, earlier: dict[str, Path]) -> None:
    if "resume" in line:
        changed(home, status="stopped", outcome="stopped")
    names = {"RUN": home.id, "FILE": str(earlier["FILE"]), "USER/NAME": "ann/pirate"}
    given = [names.get(word, word) for word in shlex.split(line)[1:]]
    done = CliRunner().invoke(app, given, input="Hello\n" if " chat " in line else None)
    assert done.exit_code == 0, done.output
    (says,) = [says for start, says in SAYS.items() if line.startswith(f"phi3lora {start}")]
    left = " ".join(str(path) for path in Path.cwd().rglob("*"))
    assert says in done.output + left
    if "resume" in line:
        assert CliRunner().invoke(app, ["runs", "follow", home.id]).exit_code == 0


def test_the_script_of_a_recipe_holds_the_very_lines_of_the_guide(tmp_path: Path) -> None:
    (line,) = [line for line in COMMANDS if line == "phi3lora export pocket --to script"]
    script = tmp_path / "train.py"
    done = CliRunner().invoke(app, [*shlex.split(line)[1:], "--output", str(script)])
    assert done.exit_code == 0, done.output
    text = script.read_text(encoding="utf-8")
    assert "SFTConfig(" in text
    assert "LoraConfig(" in text


@pytest.mark.parametrize("path", sorted({row[2].strip("`") for row in ROWS}))
def test_every_file_is_there(path: str) -> None:
    assert (REPOSITORY / path).is_file()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", GUIDE):
        assert (REPOSITORY / "docs" / target).exists(), target


def test_all_samples_are_in_it() -> None:
    assert {name for name in recipes() if name.startswith("sample")} <= set(
        re.findall(r"phi3lora train (sample[\w-]+)`", GUIDE)
    )
