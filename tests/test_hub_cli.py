"""The Hub from a terminal: push, deploy, search, whoami, runs restore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phi3lora import cli
from phi3lora.config import RunConfig
from phi3lora.hub import access, sending
from phi3lora.hub.backup import Backup, RunNote
from phi3lora.runs.store import RunState, write_state
from phi3lora.settings import Settings
from tests.hub import LoopbackHub
from tests.published import base_files, make_run

RUN = "20261121-093000-4f1a2b"


@pytest.fixture
def ann(
    hub: LoopbackHub, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> LoopbackHub:
    """ann sits at this terminal, signed in."""
    hub.add_user("ann", token="hf_ann", orgs=["crew"], pays=True)
    monkeypatch.setattr(access, "_IDENTITIES", {})
    monkeypatch.setattr(sending, "RETRY_SECONDS", ())
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def run(settings: Settings) -> Path:
    folder = make_run(settings.runs_folder / RUN, {"data.path": "example:pirate"})
    write_state(folder, RunState(id=RUN, title="Pirate", status="finished"))
    return folder


def call(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def test_push_lays_exports_beside_the_adapter(ann: LoopbackHub, run: Path) -> None:
    call("push", RUN, "--repo", "ann/pirate", "--also", "gguf-adapter")
    files = ann.files("model", "ann/pirate")
    assert files["pirate-adapter.gguf"].startswith(b"GGUF")
    assert b"ADAPTER ./pirate-adapter.gguf" in files["pirate-adapter.Modelfile"]
    assert "adapter_model.safetensors" in files


def test_push_heads_the_card_as_told(ann: LoopbackHub, run: Path) -> None:
    head = ["--title", "Ahoy", "--licence", "apache-2.0", "--language", "en", "--language", "uk"]
    call("push", RUN, "--repo", "ann/pirate", *head)
    card = ann.files("model", "ann/pirate")["README.md"].decode()
    assert "\n# Ahoy\n" in card
    assert "license: apache-2.0" in card
    assert "language:\n- en\n- uk" in card
    assert (
        "expected gguf-adapter or gguf"
        in call("push", RUN, "--repo", "ann/x", "--also", "onnx", status=2).output
    )


def test_push_prints_the_address_and_how_to_load_it(ann: LoopbackHub, run: Path) -> None:
    result = call("push", RUN, "--repo", "pirate", "--private")
    assert result.stdout.startswith(f"{ann.url}/ann/pirate\n\nfrom peft import PeftModel")
    assert ann.repo("model", "ann/pirate").private
    files = ann.files("model", "ann/pirate")
    assert b"peft" in files["train.py"]
    assert str(run).encode() not in b"".join(files.values())


def test_a_card_is_drafted_edited_and_published(
    ann: LoopbackHub, run: Path, tmp_path: Path
) -> None:
    draft = call("push", RUN, "--repo", "ann/pirate", "--draft").stdout
    assert not ann.store.repos
    card = tmp_path / "card.md"
    card.write_text(draft.replace("# Pirate", "# Mine"), encoding="utf-8")
    done = json.loads(call("push", RUN, "--repo", "ann/pirate", "--card", card, "--json").stdout)
    assert done["commit"] == ann.commits("model", "ann/pirate")[0].oid
    assert b"# Mine" in ann.files("model", "ann/pirate")["README.md"]
    missing = call("push", RUN, "--repo", "ann/pirate", "--card", "none.md", status=2)
    assert "--card: none.md cannot be read" in missing.stderr


def test_mistakes_are_one_line_and_status_2(
    ann: LoopbackHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = call("push", RUN, "--repo", "bob/pirate", status=2)
    assert refused.stderr.count("\n") == 1
    assert "would belong to bob, and you are ann" in refused.stderr
    monkeypatch.delenv("HF_TOKEN")
    for command in (["push", RUN, "--repo", "x"], ["deploy", "x"], ["whoami"], ["runs", "restore"]):
        assert "Sign in with `hf auth login`" in call(*command, status=2).stderr


def test_deploy_reads_secrets_from_the_environment(
    ann: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "very secret")
    result = call(
        "deploy",
        "studio",
        "--private",
        "--hardware",
        "t4-small",
        "--secret",
        "MY_SECRET",
        "--variable",
        "PHI3LORA_WHO_MAY_TRAIN=owner",
        "--volume",
        "ann/runs",
    )
    assert result.stdout == f"{ann.url}/spaces/ann/studio\n"
    space = ann.repo("space", "ann/studio").space
    assert space["secrets"]["MY_SECRET"]["value"] == "very secret"
    assert space["variables"]["PHI3LORA_WHO_MAY_TRAIN"]["value"] == "owner"
    assert space["hardware"] == "t4-small"
    wrong = call("deploy", "studio", "--secret", "NO_SUCH", status=2)
    assert "the variable NO_SUCH holds nothing here" in wrong.stderr


def test_deploy_a_comparison(ann: LoopbackHub, run: Path) -> None:
    call("push", RUN, "--repo", "ann/pirate", "--private")
    done = call("deploy", "pirate-chat", "--compare", "ann/pirate", "--json")
    assert json.loads(done.stdout)["space"] == "ann/pirate-chat"
    assert "give the Space a secret HF_TOKEN" in done.stderr


def test_search_and_whoami(ann: LoopbackHub) -> None:
    card = "---\nlicense: mit\n---\n"
    ann.add_repo("dataset", "ann/chat", {"README.md": card}, downloads=1234, private=True)
    ann.add_repo("model", "ann/phi", base_files())
    row = call("search", "chat").stdout.splitlines()[1].split()
    assert row[:3] == ["ann/chat", "1,234", "0"]
    assert row[-2:] == ["mit", "private"]
    [found] = json.loads(call("search", "phi", "--models", "--json").stdout)
    assert (found["id"], found["licence"]) == ("ann/phi", "apache-2.0")
    assert "Nothing on the Hub is called 'zzz'" in call("search", "zzz").stderr
    assert call("whoami").stdout.split()[:2] == ["name", "ann"]
    who = json.loads(call("whoami", "--json").stdout)
    assert (who["name"], who["orgs"], who["can_write"]) == ("ann", ["crew"], True)
    assert "hf_ann" not in json.dumps(who)


def test_runs_are_listed_and_brought_back(
    ann: LoopbackHub, settings: Settings, tmp_path: Path
) -> None:
    assert "No run of yours is on the Hub" in call("runs", "restore").stderr
    folder = make_run(tmp_path / "run", {"hub.backup": True})
    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    note = RunNote(RUN, "Pirate", 1_795_000_000.0)
    Backup(folder, note, config, "hf_ann", lambda message: None).finish()
    repo = f"ann/phi3lora-{RUN}"
    assert call("runs", "restore").stdout.splitlines()[1].split()[:3] == [
        repo,
        "Pirate",
        "finished",
    ]
    [found] = json.loads(call("runs", "restore", "--json").stdout)
    assert (found["id"], found["repo"]) == (RUN, repo)
    assert f"Run {RUN} is back in {settings.runs_folder / RUN}." in (
        call("runs", "restore", repo).stderr
    )
    assert json.loads(call("runs", "show", RUN, "--json").stdout)["status"] == "finished"


def test_the_terminals_token_is_used_for_what_needs_one(ann: LoopbackHub) -> None:
    rows = b'{"question": "What is 1?", "answer": "It is 1."}\n' * 30
    ann.add_repo("dataset", "ann/secret", {"train.jsonl": rows}, private=True)
    found = json.loads(call("inspect", "ann/secret", "--model", "pocket", "--json").stdout)
    assert found["rows"] == 30
