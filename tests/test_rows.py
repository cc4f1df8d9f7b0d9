"""Rows opened one by one, edited turn by turn and left out by hand; the source stays as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from phi3lora import cli
from phi3lora.app.application import Application
from phi3lora.app.callers import ANONYMOUS, Caller
from phi3lora.config import RunConfig
from phi3lora.data.edits import open_edited
from phi3lora.data.inspection import inspect
from phi3lora.data.opened import open_row, with_row_left_out, with_texts, without_edits
from phi3lora.errors import AccessError, DataError, Phi3LoraError
from phi3lora.hub import access
from phi3lora.models.loading import load_tokenizer
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.settings import Settings
from phi3lora.ui import train_page
from phi3lora.ui.row_show import changes_html, place_of
from tests.hub import LoopbackHub

ME = Caller("local")
TURNS = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A <b>pirate</b>.\r\nArr."},
]
ROWS = [{"prompt": f"Q{n}?", "completion": f"A{n}."} for n in range(12)]


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load_tokenizer(str(CHECKPOINT), None, None)


@pytest.fixture
def app(settings: Settings) -> Application:
    return Application.open(settings, helper=False)


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def config(path: Path | str, **data: Any) -> RunConfig:
    values = {f"data.{name}": value for name, value in data.items()}
    return RunConfig().with_values(
        {"data.path": str(path), "model.path": "pocket", "model.device": "cpu", **values}
    )


def rows_of(wanted: RunConfig) -> list[dict[str, Any]]:
    return list(open_edited(wanted.data).rows())


# ------------------------------------------------------------------ a row and its texts


@pytest.mark.parametrize(
    ("row", "place", "label"),
    [
        ({"prompt": "Who?", "completion": "A <b>pirate</b>.\r\nArr."}, "completion", "completion"),
        ({"messages": TURNS}, "messages.1.content", "assistant"),
        ({"messages": json.dumps(TURNS)}, "messages.1.content", "assistant"),
        (
            {"conversations": [{"from": t["role"], "value": t["content"]} for t in TURNS]},
            "conversations.1.value",
            "assistant",
        ),
        (
            {"messages": [TURNS[0], {**TURNS[1], "content": [{"type": "text", "text": "A."}]}]},
            "messages.1.content.0.text",
            "assistant",
        ),
    ],
)
def test_the_last_turn_of_any_format_is_edited_in_place(
    row: dict[str, Any], place: str, label: str, tmp_path: Path, pocket: Any
) -> None:
    wanted = config(written(tmp_path, [row, row]))
    opened = open_row(wanted, 1, pocket)
    text = opened.texts[-1]
    assert (text.row, text.place, text.label, opened.unused) == (1, place, label, "")
    said = [one.said for one in opened.texts]
    assert with_texts(wanted, opened, [one.replace("\r\n", "\n") for one in said]) == wanted
    changed = with_texts(wanted, opened, [*said[:-1], "A sailor."])
    assert changed.data.edits == {1: {place: "A sailor."}}
    again = open_row(changed, 1, pocket)
    assert (again.texts[-1].said, again.texts[-1].before) == ("A sailor.", text.said)
    assert rows_of(changed)[0] == row
    assert "A sailor." in json.dumps(rows_of(changed)[1])
    assert without_edits(changed, again) == wanted
    assert with_texts(changed, again, said) == wanted, "as it was before is no edit"
    assert RunConfig.from_text(changed.to_yaml())[0] == changed


def test_turns_of_a_tree_are_edited_where_they_stand(tmp_path: Path, pocket: Any) -> None:
    tree = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Who?"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "A robot.", "rank": 1},
        {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "Arr!", "rank": 0},
        {"message_id": "4", "parent_id": None, "role": "prompter", "text": "Where?"},
        {"message_id": "5", "parent_id": "4", "role": "assistant", "text": "At sea."},
    ]
    wanted = config(written(tmp_path, tree))
    first, second = (open_row(wanted, number, pocket) for number in (0, 1))
    assert [(text.row, text.label, text.said) for text in first.texts] == [
        (0, "prompter", "Who?"),
        (2, "assistant", "Arr!"),
    ]
    changed = with_texts(wanted, second, ["Where?", "In port."])
    assert changed.data.edits == {4: {"text": "In port."}}
    assert open_row(changed, 1, pocket).texts[1].said == "In port."
    assert open_row(changed, 4, pocket, edited=True) == open_row(changed, 1, pocket)
    with pytest.raises(DataError, match="Row 1 of the source is in no conversation"):
        open_row(changed, 1, pocket, edited=True)  # an answer that another one is preferred to
    assert 'data-open="open-edited" data-row="0:4"' in changes_html(changed, None)
    assert without_edits(changed, second) == wanted


def test_both_answers_of_a_pair_are_edited(pocket: Any) -> None:
    wanted = config("example:pirate_preferences", columns={}).with_values({"method": "dpo"})
    opened = open_row(wanted, 2, pocket)
    labels = [text.label for text in opened.texts]
    assert len(labels) == len({text.place for text in opened.texts}) >= 3
    alike = [*(text.said for text in opened.texts)][:-1]
    worse = with_texts(wanted, opened, [*alike, opened.texts[-2].said])
    assert "same" in open_row(worse, 2, pocket).unused


def test_a_row_of_another_source_is_edited_in_its_section(tmp_path: Path, pocket: Any) -> None:
    file = written(tmp_path, ROWS)
    wanted = config("example:pirate", more=[{"path": str(file)}])
    opened = open_row(wanted, 3, pocket, source=1)
    changed = with_texts(wanted, opened, ["Q3?", "B."])
    changed = with_row_left_out(changed, 1, 5, out=True)
    assert changed.data.edits == {}
    assert changed.data.more[0].edits == {3: {"completion": "B."}}
    assert changed.data.more[0].leave_out_rows == [5]
    with pytest.raises(DataError, match="no source 3"):
        open_row(wanted, 0, pocket, source=2)


def test_an_empty_text_says_that_the_row_drops_out(tmp_path: Path, pocket: Any) -> None:
    wanted = config(written(tmp_path, ROWS))
    opened = open_row(wanted, 1, pocket)
    empty = with_texts(wanted, opened, ["Q1?", ""])
    assert open_row(empty, 1, pocket).unused == "empty answer"
    assert inspect(empty, pocket).dropped == {"empty answer": 1}


def test_what_is_too_much_or_not_there_is_said(tmp_path: Path, pocket: Any) -> None:
    wanted = config(written(tmp_path, [*ROWS, {"prompt": "Q", "completion": "x" * 60_000}]))
    opened = open_row(wanted, 1, pocket)
    with pytest.raises(DataError, match="the most"):
        with_texts(wanted, opened, ["Q1?", "x" * 70_000])
    with pytest.raises(DataError, match="characters; rows of up to 50,000"):
        open_row(wanted, 12, pocket)
    with pytest.raises(DataError, match="no row 99; the last one is row 12"):
        open_row(wanted, 99, pocket)
    with pytest.raises(DataError, match="Expected 2 texts"):
        with_texts(wanted, opened, ["one"])
    for wrong in ("messages.0", "completion.0.x", "0", "completion."):
        edited = wanted.with_values({"data.edits": {0: {wrong: "x"}}})
        with pytest.raises(DataError, match=r"data\.edits"):
            rows_of(edited)


def test_the_preview_shows_what_is_left_and_names_its_rows(tmp_path: Path, pocket: Any) -> None:
    wanted = config(written(tmp_path, ROWS), leave_out_rows=[0, 2])
    seen = inspect(wanted, pocket)
    assert seen.places == [(0, 1), (0, 3), (0, 4)]
    assert "Q1?" in "".join(part["text"] for part in seen.preview[0])
    assert len(seen.preview_tokens) == len(seen.preview_lengths) == 3


# ------------------------------------------------------------------ what is kept


def test_edits_are_kept_for_the_source_and_found_again(app: Application, tmp_path: Path) -> None:
    file = written(tmp_path, ROWS)
    before, wanted = file.read_bytes(), config(file)
    one = app.editing.save(wanted, ME, app.editing.open(wanted, ME, 1), ["Q1?", "One."])
    two = app.editing.leave_out(wanted, ME, 0, 4, out=True)  # another tab, that knows of nothing
    assert two.data.edits == one.data.edits == {1: {"completion": "One."}}
    assert two.data.leave_out_rows == [4]
    kept = app.editing.kept(wanted.data, ME)
    assert kept is not None
    assert (kept.data.edits, kept.data.leave_out_rows, kept.stale) == (two.data.edits, [4], False)
    assert file.read_bytes() == before
    assert kept.file.is_relative_to(app.settings.uploads("local"))
    assert app.editing.kept(config("example:pirate").data, ME) is None
    file.write_text(file.read_text() + "\n", encoding="utf-8")
    later = kept.file.stat().st_mtime + 5
    os.utime(file, (later, later))
    again = app.editing.kept(wanted.data, ME)
    assert again is not None
    assert again.stale
    assert "was written after" in changes_html(two, again)
    assert app.editing.undo_all(two, ME) == wanted
    assert not kept.file.exists()
    kept.file.write_text("]", encoding="utf-8")  # damaged
    assert app.editing.kept(wanted.data, ME) is None


def test_a_stranger_edits_nothing_that_is_not_theirs(tmp_path: Path, settings: Settings) -> None:
    space = Settings(home=settings.home, space_id="ann/space", who_may_train="signed-in")
    editing = Application.open(space, helper=False).editing
    wanted, bob = config(written(tmp_path, ROWS)), Caller("bob")
    for caller, named in ((bob, wanted), (Caller(ANONYMOUS), config("example:pirate"))):
        for refused in (
            lambda caller=caller, named=named: editing.open(named, caller, 0),
            lambda caller=caller, named=named: editing.leave_out(named, caller, 0, 1, out=True),
            lambda caller=caller, named=named: editing.undo_all(named, caller),
            lambda caller=caller, named=named: editing.keep(named, caller),
        ):
            with pytest.raises(AccessError):
                refused()
    pirate = config("example:pirate")
    mine = editing.save(pirate, bob, editing.open(pirate, bob, 0), ["Ahoy?", "Arr."])
    assert editing.kept(mine.data, bob) is not None
    assert editing.kept(mine.data, Caller("ann")) is None


def test_the_terminal_opens_edits_and_keeps(
    app: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHI3LORA_HOME", str(app.settings.home))
    file = written(tmp_path, [{"messages": TURNS}] * 2)
    ask = ["inspect", str(file), "--model=pocket"]
    done = CliRunner().invoke(cli.app, [*ask, "--row=1"])
    assert "1:messages.1.content (assistant)\nA <b>pirate</b>." in done.output
    edit = ["--edit=1:messages.1.content=A sailor.", "--leave-out-row=0", "--keep"]
    done = CliRunner().invoke(cli.app, [*ask, *edit])
    assert "A sailor." in done.output
    kept = app.editing.kept(config(file).data, ME)
    assert kept is not None
    assert str(kept.file) in done.output.replace("\n", "")
    assert kept.data.leave_out_rows == [0]
    wanted = app.editing.with_file(config(file), kept.file)
    assert wanted.data.edits == {1: {"messages.1.content": "A sailor."}}
    with pytest.raises(DataError, match="edits rows of"):
        app.editing.with_file(config("example:pirate"), kept.file)
    said = json.loads(CliRunner().invoke(cli.app, [*ask, *edit[:1], "--row=1", "--json"]).output)
    assert said["texts"][1]["said"] == "A sailor."


def test_a_row_that_a_finding_left_out_is_used_once_it_is_mended(
    tmp_path: Path, pocket: Any
) -> None:
    rows = [*ROWS, {"prompt": "Q12?", "completion": "N/A"}]
    wanted = config(written(tmp_path, rows), leave_out=["empty"])
    assert inspect(wanted, pocket).dropped == {"empty answers (data.leave_out)": 1}
    mended = with_texts(wanted, open_row(wanted, 12, pocket), ["Q12?", "A12."])
    assert inspect(mended, pocket).dropped == {}


def test_edits_of_a_hub_dataset_hold_for_its_commit(
    hub: LoopbackHub, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else writes rows before it: what was edited stays the row that was seen."""
    monkeypatch.setattr(access, "_IDENTITIES", {})
    hub.add_user("ann", token="hf_ann")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    hub.add_repo("dataset", "ann/rows", {"train.jsonl": lines})
    wanted, ann = config("ann/rows"), Caller("local", "hf_ann")
    opened = app.editing.open(wanted, ann, 3)
    edited = app.editing.save(wanted, ann, opened, ["Q3?", "Mended."])
    assert edited.data.revision == opened.commit
    first = json.dumps({"prompt": "New?", "completion": "New."}) + "\n"
    HfApi(token="hf_ann").upload_file(
        path_or_fileobj=(first + lines).encode(),
        path_in_repo="train.jsonl",
        repo_id="ann/rows",
        repo_type="dataset",
    )
    again = app.editing.open(edited, ann, 3)
    assert [text.said for text in again.texts] == ["Q3?", "Mended."]
    kept = app.editing.kept(wanted.data, ann)
    assert kept is not None
    assert kept.data.revision == opened.commit, "who picks it anew has the commit with the edits"


# ------------------------------------------------------------------ the page's handlers


class _Page:
    """The Train page's editor with a form that its answers are put into, as a browser would."""

    def __init__(self, app: Application) -> None:
        with gr.Blocks() as demo:
            self.page = train_page.build(app, demo)
        self.editor = self.page.data.rows
        self.form = {name: box.value for name, box in self.page.fields.by_name.items()}
        self.seen: list[Any] = [None] * len(self.editor.seen)
        self.request = SimpleNamespace(session_hash="a", headers={}, cookies={}, username=None)

    @property
    def config(self) -> RunConfig:
        return self.page.fields.config(self.form.values())[0]

    def take(self, answer: list[Any]) -> None:
        shown, form = answer[: len(self.seen)], answer[len(self.seen) :]
        for name, value in zip(("data.edits", "data.leave_out_rows"), form, strict=False):
            if not isinstance(value, dict):
                self.form[name] = value
        self.seen = [
            old if isinstance(new, dict) and new == gr.skip() else new
            for old, new in zip(self.seen, shown, strict=True)
        ]

    def click(self, **sent: str) -> None:
        event = SimpleNamespace(_data=sent)
        self.take(self.editor.on_click(event, self.request, *self.form.values()))

    def do(self, handler: Any, *texts: str) -> None:
        boxes = [*texts, *[""] * (8 - len(texts))] if texts else []
        self.take(handler(self.seen[0], self.request, *boxes, *self.form.values()))


@pytest.fixture
def page(app: Application, tmp_path: Path) -> _Page:
    made = _Page(app)
    long = {"messages": [TURNS[n % 2] | {"content": f"T{n}"} for n in range(20)]}
    file = written(tmp_path, [{"messages": TURNS}, long, {"messages": TURNS}])
    made.form |= {"data.path": str(file), "model.path": "pocket", "model.device": "cpu"}
    return made


def test_a_row_is_saved_undone_and_left_out(page: _Page) -> None:
    page.click(row="0:0", do="open")
    assert page.seen[3]["label"] == "1 · user"
    page.do(page.editor.on_save, "Who are you?", "Arr.")
    assert page.config.data.edits == {0: {"messages.1.content": "Arr."}}
    assert "edited" in page.seen[2]
    page.do(page.editor.on_out)
    assert page.config.data.leave_out_rows == [0]
    assert "left out" in page.seen[2]
    shown = page.editor.on_changes(page.request, *page.form.values())
    assert "1 row edited · 1 row left out by hand" in shown["value"]
    assert 'data-edited="0:0" data-out="0:0"' in shown["value"]
    page.do(page.editor.on_out)
    page.do(page.editor.on_undo)
    assert (page.config.data.edits, page.config.data.leave_out_rows) == ({}, [])
    assert not page.editor.on_changes(page.request, *page.form.values())["visible"]
    page.click(row="0:2", do="leave-out")
    page.click(row="", do="undo-all")
    assert page.config.data.leave_out_rows == []


def test_twenty_turns_are_edited_eight_at_a_time_and_nothing_typed_is_lost(page: _Page) -> None:
    page.click(row="0:1", do="open")
    texts = [f"T{n}" for n in range(20)]
    page.do(page.editor.on_later, "New", *texts[1:8])
    assert page.seen[3]["value"] == "T8"
    page.do(page.editor.on_later, *texts[8:16])
    page.do(page.editor.on_next, *texts[16:19], "Last")
    assert page.seen[0].row.row == 2
    assert page.config.data.edits == {
        1: {"messages.0.content": "New", "messages.19.content": "Last"}
    }
    with pytest.raises(gr.Error, match="no row 3"):
        page.do(page.editor.on_next, "Who are you?", "A <b>pirate</b>.\nArr.")


def test_other_data_has_edits_of_its_own(page: _Page) -> None:
    page.click(row="0:0", do="open")
    page.do(page.editor.on_save, "Who are you?", "Arr.")
    mine = dict(page.form)
    page.form["data.path"] = "example:pirate"
    of, edits, *_ = page.editor.on_data("what was before", page.request, *page.form.values())
    assert edits == ""
    again = page.editor.on_data(of, page.request, *mine.values())
    assert "Arr." in again[1]
    kept = page.editor.on_data(again[0], page.request, *mine.values())
    assert all(one == gr.skip() for one in kept), "an edit that stands in the form stays"


@pytest.mark.parametrize("sent", ["", "0", "a:b", "0:-1", "-1:0", "9:0", "0:9", "0:" + "9" * 40])
def test_what_names_no_row_is_refused(page: _Page, sent: str) -> None:
    with pytest.raises(gr.Error):
        page.click(row=sent, do="open")
    with pytest.raises(gr.Error, match="open it again"):
        page.do(page.editor.on_out)


def test_a_place_is_two_numbers() -> None:
    assert place_of("1:17") == (1, 17)
    with pytest.raises(Phi3LoraError):
        place_of("1:17:2")
