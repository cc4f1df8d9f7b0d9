"""What a run produced: found, checked for wholeness, and offered whatever was trained."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.publishing import check_publishable
from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.hub.backup import Backup, RunNote
from phi3lora.lora.result import Result, find_result, result_in, safetensors_whole
from phi3lora.runs.copies import restore
from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings
from phi3lora.ui import compare_show, runs_page, runs_show
from tests import stage
from tests.hub import LoopbackHub

EMPTY = (2).to_bytes(8, "little") + b"{}"


@pytest.fixture
def store(settings: Settings) -> RunStore:
    return RunStore(settings)


@pytest.mark.parametrize(
    ("adapter", "folder", "kind"),
    [("peft", "adapter", "adapter"), ("loralib", "adapter", "loralib"), ("none", "model", "model")],
)
def test_each_kind_has_its_place(tmp_path: Path, adapter: str, folder: str, kind: str) -> None:
    result = find_result(tmp_path, RunConfig().with_values({"adapter": adapter}))
    assert (result.folder, result.kind) == (tmp_path / folder, kind)
    assert (result.exists, result.whole) == (False, False)
    with pytest.raises(RunError, match=f"has no {result.noun} yet; let it finish, or resume it"):
        result.ready()


@pytest.mark.parametrize("adapter", ["peft", "none"])
def test_damage_is_named(store: RunStore, adapter: str) -> None:
    result = stage.finished(store, adapter=adapter).result
    assert result.whole
    assert result.ready() == result.folder
    assert result_in(result.folder) == result
    [weights] = result.folder.glob("*.safetensors")
    weights.write_bytes(EMPTY[:-1])
    with pytest.raises(RunError, match=f"{weights.name} is missing or cut short"):
        result.ready()
    weights.write_bytes(EMPTY)
    [settings] = result.folder.glob("*.json")
    settings.write_text('{"half')
    assert result.damage == f"{settings.name} cannot be read"


def test_every_shard_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path / "model-1.safetensors").write_bytes(EMPTY)
    result = Result(tmp_path, "model")
    assert result.damage == "model-2.safetensors is missing or cut short"
    (tmp_path / "model-2.safetensors").write_bytes(EMPTY)
    assert result.whole


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 64, EMPTY + b"1", (2**63).to_bytes(8, "little") + b"{}", b"\x02" * 9]
)
def test_what_is_no_whole_safetensors_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    assert not safetensors_whole(tmp_path / "x.safetensors")


def test_a_real_file_is_whole_until_a_byte_is_missing(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3, 5), "b": torch.ones(2)}, file)
    assert safetensors_whole(file)
    file.write_bytes(file.read_bytes()[:-1])
    assert not safetensors_whole(file)


# A run that trained every weight is offered what every run is


def test_the_runs_page_offers_a_whole_model(store: RunStore, settings: Settings) -> None:
    run = stage.finished(store, adapter="none")
    app = Application.open(settings)
    with gr.Blocks() as demo:
        page = runs_page.build(app, demo)
    values = runs_show.show_run(run, app.views.view(run), None, on_space=False)
    assert all(values[name]["visible"] for name in ("compare", "publish"))
    assert "adapter" in values["menu"]
    event = SimpleNamespace(_data={"take": "adapter"})
    *_, (_, made) = page.downloads.on_take(run.id, SimpleNamespace(), event)
    archive = Path(made["value"])
    assert archive.name == f"model-{run.id}.zip"
    assert "model.safetensors" in zipfile.ZipFile(archive).namelist()
    assert check_publishable(run) == run.result.folder
    assert compare_show.adapter_choices(app.comparing.runs(Caller()))[0][1] == run.id


def test_a_whole_model_answers_beside_its_base(settings: Settings, store: RunStore) -> None:
    import shutil

    from phi3lora.chat.options import Options
    from phi3lora.models.base import resolve_path
    from phi3lora.models.hardware import detect_hardware

    run = store.create(stage.config("Whole", adapter="none"))
    pocket = Path(resolve_path("pocket", detect_hardware("cpu")))
    shutil.copytree(pocket, run.result.folder)
    comparing = Application.open(settings).comparing
    subject = comparing.subject(run.id, Caller())
    assert list(comparing.load(subject, Caller()))
    asked: list[dict[str, Any]] = [{"role": "user", "content": "What is the capital of France?"}]
    options = Options(max_new_tokens=6)
    *_, last = comparing.reply(subject, asked, asked, options, caller=Caller())
    assert last.done
    assert last.base == last.tuned != ""


def test_a_backup_brings_the_model_back(
    hub: LoopbackHub, store: RunStore, settings: Settings, tmp_path: Path
) -> None:
    hub.add_user("ann", token="hf_ann")
    run = stage.finished(store, adapter="none")
    note = RunNote(run.id, run.title, run.state.created)
    told: list[str] = []
    Backup(run.folder, note, run.config, "hf_ann", told.append).finish()
    assert told == []
    elsewhere = RunStore(Settings(home=tmp_path / "elsewhere"))
    back = restore(elsewhere, f"ann/phi3lora-{run.id}", "hf_ann", "ann")
    assert back.status == "finished"
    assert back.result.kind == "model"
    assert back.result.whole
