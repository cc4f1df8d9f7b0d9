"""The terminal: exit statuses, what is printed where, runs followed and stopped; generated docs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import phi3lora
from phi3lora import cli
from phi3lora.app.export_page import export_page
from phi3lora.app.preflights import PreflightPool
from phi3lora.chat.options import Pair
from phi3lora.checks import Check
from phi3lora.cli.reference import command_page, option_page
from phi3lora.config import RunConfig
from phi3lora.errors import TrainingError
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import LOCAL, RunStore, open_run
from phi3lora.serve.reference import api_page
from phi3lora.settings import Settings
from phi3lora.training.preflight import Preflight
from tests import fake_training, stage
from tests.fake_training import config, wait, wait_for
from tests.serving import PATIENCE

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[Settings]:
    """Commands work in a home of their own, with a training that needs no torch."""
    fake_training.install(tmp_path / "fake", monkeypatch)
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PreflightPool, "preflight", lambda *_: Preflight([]))
    yield settings
    fake_training.kill_all(RunStore(settings))


def call(*arguments: str, status: int = 0) -> Any:
    """The result of a command that must end with this status."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def test_models_lists_the_family_with_what_fits_here(home: Settings) -> None:
    shown = call("models").output
    assert "microsoft/Phi-4-mini-instruct" in shown
    assert "does not fit here: it needs a GPU" in shown
    found = json.loads(call("models", "--json").output)
    assert found[0]["path"] == "pocket"
    assert found[0]["fit"] == "fits"
    assert {"context", "licence", "size", "note", "here"} <= set(found[1])


def start(*arguments: str) -> subprocess.Popen[str]:
    """A command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "phi3lora", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write(path: Path, title: str, **changes: object) -> Path:
    path.write_text(config(title).with_values(changes).to_yaml(), encoding="utf-8")
    return path


def test_train_into_a_folder(home: Settings, tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", "quick")
    result = call("train", file, "--output", "out", "--json", "--set", "peft_config.r=4")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3]
    assert events[-1]["kind"] == "ended"
    run = open_run(tmp_path / "out")
    assert (run.status, run.config.peft_config.r) == ("finished", 4)
    assert str(tmp_path / "out" / "adapter") in result.stderr
    again = call("train", file, "--output", "out", "--set", "peft_config.r=4")
    assert "this very run, finished" in again.stderr
    other = call("train", file, "--output", "out", "--set", "peft_config.r=5", status=2)
    assert "differs in peft_config.r." in other.stderr
    listed = json.loads(call("runs", "list", "--json").stdout)
    assert [(entry["id"], entry["status"]) for entry in listed] == [(run.id, "finished")]


def test_train_in_words(home: Settings, tmp_path: Path) -> None:
    result = call("train", write(tmp_path / "run.yaml", "quick"))
    assert result.stdout.splitlines()[:2] == ["step 1/3, loss 1.0000", "step 2/3, loss 0.5000"]
    assert "better" in result.stderr


@pytest.mark.parametrize(
    ("title", "status", "said"),
    [("bad data", 2, "No rows fit."), ("bug", 1, "A fault of ours")],
)
def test_a_failed_run(home: Settings, tmp_path: Path, title: str, status: int, said: str) -> None:
    result = call("train", write(tmp_path / "run.yaml", title), status=status)
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_ctrl_c_saves_and_the_same_command_goes_on(home: Settings, tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", "slow")
    process = start("train", "--force", file, "--output", tmp_path / "out", "--json")
    assert process.stdout
    while '"kind": "step"' not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert [json.loads(line)["kind"] for line in output.splitlines()[-2:]] == ["saved", "ended"]
    assert "Saving" in errors
    assert "Traceback" not in errors
    run = open_run(tmp_path / "out")
    assert run.status == "stopped"
    again = start("train", "--force", file, "--output", tmp_path / "out", "--json")
    assert again.stdout
    assert json.loads(again.stdout.readline())["kind"] == "step", "old events are not shown again"
    call("runs", "stop", run.id)
    assert "stopped" in again.communicate(timeout=PATIENCE)[1]
    assert again.returncode == 1, "somebody else stopped it"


def test_a_killed_terminal_leaves_the_run(home: Settings, tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", "slow")
    process = start("train", "--force", file, "--output", tmp_path / "out", "--json")
    assert process.stdout
    process.stdout.readline()
    process.kill()
    process.communicate()
    run = open_run(tmp_path / "out")
    assert run.status == "running"
    again = start("train", "--force", file, "--output", tmp_path / "out", "--json")
    assert again.stdout
    assert json.loads(again.stdout.readline())["kind"] == "step"
    fake_training.kill(run)
    assert "process is gone" in again.communicate(timeout=PATIENCE)[1]
    assert again.returncode == 1


def test_runs_by_id_and_by_folder(home: Settings) -> None:
    queue = Queue(home)
    run = queue.submit(queue.store.create(config("slow")))
    wait(lambda: run if len(run.events()[0]) > 2 else None)
    shown = json.loads(call("runs", "show", run.id, "--json").stdout)
    assert (shown["status"], shown["total_steps"]) == ("running", 10_000)
    assert shown["loss"] == pytest.approx(1 / shown["step"])
    assert "status" in call("runs", "show", run.folder).stdout
    waiting = queue.submit(queue.store.create(config("quick")))
    assert json.loads(call("runs", "show", waiting.id, "--json").stdout)["position"] == 1
    call("runs", "cancel", waiting.id)
    wait_for(waiting, "stopped")
    assert "stop it first" in call("runs", "delete", run.id, "--yes", status=2).stderr
    call("runs", "stop", run.folder)
    wait_for(run, "stopped")
    assert (
        "divisor of the 4" in call("runs", "resume", waiting.id, "--batch-size", 3, status=2).stderr
    )
    call("runs", "resume", waiting.id, "--batch-size", 2)
    assert open_run(waiting.folder).config.training_config.gradient_accumulation_steps == 2
    assert "step 3/3" in call("runs", "follow", waiting.id).stdout
    call("runs", "delete", run.id, "--yes")
    assert [entry.id for entry in RunStore(home).list(LOCAL)] == [waiting.id]
    assert waiting.id in call("runs", "list").stdout
    assert "no run" in call("runs", "show", run.id, status=2).stderr


def test_inspect_needs_no_weights(home: Settings) -> None:
    folder = home.home.parent / "base"
    folder.mkdir()
    for file in CHECKPOINT.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    found = json.loads(call("inspect", "example:pirate", "--model", folder, "--json").stdout)
    assert found["kept"] == found["rows"] > 0


def test_inspect(home: Settings) -> None:
    file = home.home.parent / "rows.csv"
    file.write_text("Question,Answer\nTwo plus two?,Four.\n,Nothing.\nA colour?,Blue.\n")
    columns = ["--column", "prompt=Question", "--column", "completion=Answer"]
    arguments = ["inspect", file, "--format", "prompt_completion", *columns, "--model", "pocket"]
    found = json.loads(call(*arguments, "--json").stdout)
    assert list(found) == [
        "format",
        "columns",
        "unread",
        "rows",
        "kept",
        "dropped",
        "changes",
        "notices",
        "tokens",
        "total_tokens",
        "supervised_tokens",
        "truncated",
        "preview",
    ]
    assert (found["format"], found["rows"], found["kept"]) == ("prompt_completion", 3, 2)
    assert sum(found["dropped"].values()) == 1
    assert [piece["text"] for piece in found["preview"][0] if piece["supervised"]] == [
        "Four.<|end|>"
    ]
    shown = call(*arguments).stdout
    assert "Four.<|end|>" in shown
    assert "kept" in shown


def test_chat(home: Settings, tmp_path: Path) -> None:
    from torch import nn

    from phi3lora.lora.adapters import attach_adapter, save_adapter
    from phi3lora.models.loading import load_model

    settings = config().with_values({"model.path": "pocket", "model.dtype": "float32"})
    model = attach_adapter(load_model(settings.model, for_training=True), settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.5)
    save_adapter(model, tmp_path / "adapter", settings)
    arguments = ["chat", "--adapter", tmp_path / "adapter", "--prompt", "What is the capital?"]
    answers = json.loads(call(*arguments, "--max-new-tokens", "12", "--json").stdout)
    assert list(answers) == [
        "base",
        "tuned",
        "stopped_base",
        "stopped_tuned",
        "tokens_base",
        "tokens_tuned",
    ]
    assert answers["base"]
    assert answers["base"] != answers["tuned"]
    assert answers["tokens_tuned"] <= 12
    shown = CliRunner().invoke(cli.app, list(map(str, arguments[:3])), input="Hello\n\n")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("tuned: ") == 1
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    assert "adapter_config.json" in call(*arguments, status=2).stderr


def test_red_checks_end_with_status_2_and_make_no_run(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    red = Preflight([Check("Data", "red", "There is no file rows.jsonl.", "Name another.")])
    monkeypatch.setattr(PreflightPool, "preflight", lambda *_: red)
    file = write(tmp_path / "run.yaml", "quick")
    said = call("train", file, "--output", "out", status=2).stderr
    assert "Not launched." in said
    assert "Data: There is no file rows.jsonl. Name another." in said
    assert RunStore(home).all() == []
    assert not (tmp_path / "out").exists()
    call("train", file, "--output", "out", "--force")
    assert open_run(tmp_path / "out").status == "finished"


def test_a_misspelt_file_is_found_out_before_there_is_a_run(home: Settings) -> None:
    """The real checks, in the helper process."""
    command = ["train", "pocket", "--set", "data.path=nowhere.jsonl"]
    process = start(*command)
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, RunStore(home).all()) == (2, [])
    assert "nowhere.jsonl" in errors
    assert "Traceback" not in errors


def test_the_base_answers_alone(home: Settings) -> None:
    arguments = ["chat", "--model", "pocket", "--prompt", "Name a colour.", "--max-new-tokens", "8"]
    shown = call(*arguments).stdout
    assert shown.startswith("base: ")
    assert "tuned" not in shown
    said = json.loads(call(*arguments, "--json").stdout)
    assert said["base"]
    assert said["tuned"] == ""


def test_a_blind_vote_at_the_terminal(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made:
        def load(self, *_: Any, **__: Any) -> list[str]:
            return []

        def reply(self, *_: Any, **__: Any) -> Iterator[Pair]:
            yield Pair("plain", "arr", True, True)

    monkeypatch.setattr("phi3lora.app.comparing.Comparing.engine", lambda self: Made())
    monkeypatch.setattr("phi3lora.app.comparing.secrets.choice", lambda sides: "tuned")
    run = stage.finished(RunStore(home))
    arguments = ["chat", "--adapter", run.id, "--blind"]
    result = CliRunner().invoke(cli.app, arguments, input="Hello\na\n\n")
    assert result.exit_code == 0, result.output
    shown = result.stdout.replace("you: ", "")
    assert shown.startswith("A: arr\n\nB: plain\n")
    assert "A was tuned, B was base." in shown
    votes = (home.home / "votes.jsonl").read_text()
    assert json.loads(votes)["choice"] == "left"
    assert shown.endswith(
        "1 blind vote: Tuned wins 100% (95 % interval 21% to 100%), which cannot tell them apart\n"
    )
    assert "name an --adapter" in call("chat", "--blind", status=2).stderr


def test_two_runs_and_a_tournament_at_the_terminal(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Made:
        def load(self, *_: Any, **__: Any) -> list[str]:
            return []

        def reply(self, *given: Any, **named: Any) -> Any:
            talk, _, options, *_ = given
            asked.append({**named, "talk": list(talk), "strength": options.strength})
            yield Pair("two", "one", True, True)

    monkeypatch.setattr("phi3lora.app.comparing.Comparing.engine", lambda self: Made())
    one, two = (stage.finished(RunStore(home), title) for title in ("Pirate", "Poet"))
    pair = ["chat", "--adapter", one.id, "--against", two.id]
    shown = call(*pair, "--prompt", "Hello", "--strength", "0.5").stdout
    assert shown.split() == ["Poet:", "two", "Pirate", "×", "0.5:", "one"]
    assert asked[0]["against"] == two.result.folder
    assert asked[0]["strength"] == 0.5
    said = json.loads(call(*pair, "--prompt", "Hello", "--json").stdout)
    assert (said["base"], said["tuned"], said["against"]) == ("two", "one", two.id)
    three = [*pair, "--against", "base", "--blind"]
    result = CliRunner().invoke(cli.app, three, input="Hello\na\nAgain\nb\n\n")
    assert result.exit_code == 0, result.output
    assert [len(one["talk"]) for one in asked[-2:]] == [1, 1]  # a vote ends a conversation
    assert result.stdout.count(" rounds; ") == 3
    assert f"{one.id} against {two.id}: " in result.stdout
    votes = [json.loads(line) for line in (home.home / "votes.jsonl").read_text().splitlines()]
    assert all(vote["adapter"] in (one.id, two.id) for vote in votes)
    assert "stands beside an --adapter" in call("chat", "--against", one.id, status=2).stderr
    assert "--blind tournament" in call(*pair, "--against", "base", status=2).stderr


def test_an_adapter_on_the_hub_is_known_by_its_name(home: Settings) -> None:
    said = call("chat", "--adapter", "ann/pirate", "--prompt", "Hello", status=2).stderr
    assert "ann/pirate" in said
    assert "no run" not in said, "it is the Hub that was asked"


def test_version() -> None:
    assert call("--version").stdout == f"phi3lora {phi3lora.__version__}\n"


def test_a_finished_run_has_no_time_left(home: Settings) -> None:
    run = stage.finished(RunStore(home))
    shown = json.loads(call("runs", "show", run.id, "--json").stdout)
    assert shown["loss"] == pytest.approx(stage._loss(stage.STEPS))
    assert "seconds_left" not in shown
    running = stage.running(RunStore(home))
    assert json.loads(call("runs", "show", running.id, "--json").stdout)["seconds_left"] > 0


def test_every_help_line_is_a_sentence() -> None:
    """Understood without its title: it begins with a capital and ends with a full stop."""
    root = typer.main.get_command(cli.app)

    def lines(command: Any, path: str) -> Iterator[tuple[str, str]]:
        yield path, command.help or ""
        for parameter in command.params:
            if parameter.name not in ("help", "folder"):
                yield f"{path} {parameter.name}", parameter.help or ""
        for name, inner in getattr(command, "commands", {}).items():
            yield from lines(inner, f"{path} {name}")

    wrong = [
        path
        for path, text in lines(root, "phi3lora")
        if not (text and (text[0].isupper() or text[0] == "`") and text.rstrip().endswith("."))
        or len(text.split()) < 4
    ]
    assert wrong == []


def test_a_run_without_an_adapter_has_nothing_to_say(home: Settings) -> None:
    run = RunStore(home).create(config())
    said = call("chat", "--adapter", run.id, "--prompt", "Hello", status=2).stderr
    assert "has no adapter yet; let it finish, or resume it, first" in said


def test_no_runs_yet(home: Settings) -> None:
    assert "phi3lora train pocket" in call("runs", "list").stderr
    assert call("runs", "list", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nothing"], "no recipe (pocket, "),
        (["train", "nothing.yaml"], "nothing.yaml cannot be read"),
        (["train", "pocket", "--set", "peft_config.rnk=3"], "peft_config.rnk: unknown option"),
        (["train", "pocket", "--set", "rank"], "expected section.key=value, got 'rank'"),
        (["train", "pocket", "--set", "peft_config.r=0", "--set", "x=1"], "x: unknown option"),
        (["runs", "stop", "../../etc"], "no run"),
        (["runs", "show", "."], "holds no run"),
        (["inspect", "x.csv", "--column", "prompt"], "--column: expected NAME=VALUE, got 'prompt'"),
        (["inspect", "x.csv", "--format", "xml"], "data.format"),
        (["chat", "--adapter", "nowhere", "--json"], "give it with --prompt"),
        (["chat", "--adapter", "nowhere", "--prompt", "x"], "no run 'nowhere'"),
        (["train"], "CONFIG: name a YAML file or a recipe, or a run with --from"),
        (["fly"], "No such command"),
    ],
)
def test_a_users_mistake_is_told_and_costs_status_2(
    home: Settings, arguments: list[str], said: str
) -> None:
    result = call(*arguments, status=2)
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_folder_that_is_somebody_elses(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "other files" in call("train", "pocket", "--output", tmp_path, status=2).stderr


def test_old_names_are_told(home: Settings, tmp_path: Path) -> None:
    text = "title: quick\nmodel: {device: cpu}\nlora_config: {rank: 4}\n"
    (tmp_path / "old.yml").write_text(text)
    result = call("train", tmp_path / "old.yml", "--output", "out")
    assert "peft_config.rank is now r." in result.stderr
    assert open_run(tmp_path / "out").config.peft_config.r == 4


def test_one_place_turns_errors_into_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr("phi3lora.cli.data.recipes", fail)

    raises(TrainingError("no memory"))
    assert call("recipes", status=1).stderr == "Error: no memory\n"
    raises(KeyboardInterrupt())
    assert call("recipes", status=130).output == ""
    raises(ValueError("ours"))
    assert isinstance(call("recipes", status=1).exception, ValueError), "a fault of ours is loud"


def test_a_reader_who_has_seen_enough(home: Settings) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "phi3lora", "recipes"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.stderr, result.returncode) == ("", 1)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom phi3lora import cli\n"
        "heavy = {'torch', 'transformers', 'datasets', 'gradio', 'huggingface_hub', 'rich'}\n"
        "print(heavy & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n", result.stderr


def test_recipes_are_named() -> None:
    assert "pocket" in json.loads(call("recipes", "--json").stdout)
    assert call("recipes").stdout.startswith("pocket\n    ")


def test_the_pages_of_the_docs_are_as_the_code() -> None:
    commands = command_page(typer.main.get_command(cli.app))
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == commands, "run `make docs`"
    assert (DOCS / "config.md").read_text(encoding="utf-8") == option_page(), "run `make docs`"
    assert (DOCS / "api.md").read_text(encoding="utf-8") == api_page(), "run `make docs`"
    assert (DOCS / "export.md").read_text(encoding="utf-8") == export_page(), "run `make docs`"


def test_docs_are_written(tmp_path: Path) -> None:
    call("docs", tmp_path)
    assert "## phi3lora runs list" in (tmp_path / "cli.md").read_text()
    page = (tmp_path / "config.md").read_text()
    assert "| `r` | `16` | whole number, ≥ 1, ≤ 1024 |" in page
    assert page.count("\n| `") == len(list(_options()))


def _options() -> Iterator[str]:
    from phi3lora.config import fields

    yield from (name for name, _ in fields(RunConfig))
