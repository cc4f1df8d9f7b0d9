"""What the pages show and do, without a browser and without a model."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from phi3lora import words
from phi3lora.app.application import Application
from phi3lora.app.callers import Caller, Callers, Session, check_may_train
from phi3lora.app.comparing import Comparing, Subject
from phi3lora.app.datasets import Datasets, Parts, Suggestion
from phi3lora.app.launching import Launching
from phi3lora.app.models import Models
from phi3lora.app.publishing import Publishing
from phi3lora.app.strength import level_of
from phi3lora.chat.options import Options, Pair
from phi3lora.checks import Check
from phi3lora.config import RunConfig
from phi3lora.errors import (
    AccessError,
    ConfigError,
    DataError,
    Problem,
    RunError,
    StoredConfigError,
)
from phi3lora.events import EventLog, Resumed, Step
from phi3lora.hub.access import Found
from phi3lora.models.hardware import GIB, Hardware
from phi3lora.recipes import load_recipe
from phi3lora.runs.permission import check_paths
from phi3lora.serve.operations import Operations
from phi3lora.settings import Settings
from phi3lora.training.preflight import Preflight
from phi3lora.ui import runs_page, train_page
from phi3lora.ui.app import build
from phi3lora.ui.guard import Guard, Rules
from phi3lora.ui.theme import STYLES
from phi3lora.ui.widgets import SPECS, shown, texts_told, told
from tests import stage

INSPECTION = SimpleNamespace(
    format="messages",
    reason="'messages' holds turns.",
    columns={},
    rows=5,
    expected=None,
    read=5,
    unread_in_words="none",
    mix="",
    notices=[],
    changes={},
    kept=3,
    dropped={"no answer": 2},
    tokens={"p50": 24, "p95": 40, "max": 300},
    total_tokens=400,
    supervised_tokens=100,
    truncated=1,
    complete=True,
    median=24,
    longest=300,
    lengths=array("I", [20, 24, 300]),
    answers=None,
    rejected_preview=[],
    places=[(0, 4)],
    preview_lengths=[20],
    preview_tokens=[[{"text": "<|user|>\n", "supervised": False}]],
    preview=[
        [
            {"text": "<|user|>\n<script>alert(1)</script>", "supervised": False},
            {"text": "<b>Arr</b><|end|>", "supervised": True},
        ]
    ],
)
GREEN = Preflight([Check("Data", "green", "3 rows.")], INSPECTION, None)


class FakeCallers(Callers):
    """Everybody is `name`."""

    name = "local"

    def caller(self, session: Session = Session()) -> Caller:  # noqa: B008 - frozen
        return Caller(self.name)


class FakePreflights:
    """Finds what the test puts here."""

    found = GREEN
    first: Any = None  # what is known of the data before anything is checked

    def inspection(self, *_: Any) -> Any:
        return self.first

    def preflight(self, *_: Any) -> Preflight:
        return self.found

    def parts(self, *_: Any) -> tuple[list[str], list[str]]:
        return [], ["train"]

    def hardware(self) -> Hardware:
        return Hardware("cpu", "CPU, 2 cores", 8 * GIB, 8 * GIB, True, 2)

    def close(self) -> None: ...


class FakeComparing(Comparing):
    """Real subjects and votes; the answers are made up."""

    def load(self, subject: Subject, caller: Caller) -> Iterator[str]:
        yield "loading the model"

    def suggestions(self, name: str, caller: Caller) -> list[str]:
        return ['Say "hi" <now>']

    def reply(  # type: ignore[override]
        self,
        subject: Subject,
        base: Any,
        tuned: Any,
        options: Options,
        should_stop: Any,
        *,
        caller: Caller,
    ) -> Iterator[Pair]:
        self.asked = (subject, base, tuned, options)
        yield Pair(note="1 before you")
        yield Pair("The", "Arr,")
        if not should_stop():
            yield Pair("The end.", "Arr, the end!", True, True, True, False, 3, 5)


def fake(settings: Settings) -> Any:
    """An application with a real store and views; nothing is read, queued or answered."""
    real = Application.open(settings)
    callers, preflights = FakeCallers(settings), FakePreflights()
    store = real.launching.store
    return replace(
        real,
        callers=callers,
        preflights=preflights,
        datasets=Datasets(settings, store, preflights),
        models=Models(preflights),
        launching=Launching(settings, store, real.launching.queue, real.views, preflights),
        comparing=FakeComparing(settings, store, real.views, callers),
    )


@pytest.fixture
def app(settings: Settings) -> Any:
    return fake(settings)


def page_of(module: Any, app: Any) -> Any:
    with gr.Blocks() as demo:
        return module.build(app, demo)


def request(session: str = "tab", **query: str) -> Any:
    return SimpleNamespace(query_params=query, session_hash=session)


def clicked(**data: Any) -> Any:
    """What a component of ours sends along with a click."""
    return SimpleNamespace(_data=data)


def form_values(page: Any, **changes: Any) -> list[Any]:
    """What the browser would send: every widget's value."""
    values = {name: component.value for name, component in page.fields.by_name.items()}
    return list((values | changes).values())


# ------------------------------------------------------------------------------------- Train


def test_the_form_starts_as_the_pocket_recipe(app: Any) -> None:
    page = page_of(train_page, app)
    if page.start == "pocket":
        config, _ = page.fields.config(form_values(page))
        assert config == load_recipe("pocket")[0].model_copy(update={"title": ""})


def found_by(page: Any, values: list[Any]) -> dict[str, Any]:
    """What a preflight fills, by name."""
    names = ("summary", "line", "bar", "checks", "estimate", "launch", "spoken", "problems")
    return dict(zip(names, values, strict=True))


def test_look_says_that_it_reads_then_shows(app: Any) -> None:
    page = page_of(train_page, app)
    waiting, shown = list(page.on_preflight("Example", request(), *form_values(page)))
    assert "Checking" in found_by(page, waiting)["checks"]
    seen = found_by(page, shown)
    summary = seen["summary"]
    assert "3 of 5" in summary
    assert "2 × no answer" in summary
    assert "1 conversations are cut at 256 tokens" in summary
    assert "3 rows." in seen["checks"]
    assert seen["estimate"] == ""
    assert "pirate · 3 conversations · 25 % learnt" in seen["line"]


def test_the_preview_is_there_before_the_checks_and_stays(app: Any) -> None:
    page = page_of(train_page, app)
    app.preflights.first = INSPECTION
    _, early, last = page.on_preflight("Example", request(), *form_values(page))
    early, last = found_by(page, early), found_by(page, last)
    assert "pirate · 3 conversations" in early["line"]
    assert "Arr" in early["summary"]
    assert "Checking" in early["checks"]
    assert [last["summary"], last["line"]] == [gr.skip(), gr.skip()]  # whoever turned pages stays
    assert "1 check passed" in last["checks"]


def test_more_rows_than_were_read_are_not_counted_as_all(app: Any) -> None:
    page = page_of(train_page, app)
    part = SimpleNamespace(**{**vars(INSPECTION), "complete": False, "expected": "28,202"})
    app.preflights.found = Preflight([Check("Data", "green", "3 rows.")], part, None)
    *_, found = page.on_preflight("Example", request(), *form_values(page))
    seen = found_by(page, found)
    assert "pirate · ≥ 3 conversations" in seen["line"]
    assert "<dd>≥ 3</dd>" in seen["summary"]
    assert "Counted in the first 5 of 28,202 rows" in seen["summary"]


def test_a_stranger_sees_the_bundled_data_and_signs_in_to_launch(tmp_path: Path) -> None:
    app = fake(Settings(home=tmp_path, space_id="ann/space"))
    app.callers.name = ""
    page = page_of(train_page, app)
    *_, found = page.on_preflight("Example", request(), *form_values(page))
    assert "3 of 5" in found_by(page, found)["summary"]
    launch, sign_in, why_not = page.panel.on_visitor(request())
    assert (visible(launch), visible(sign_in), visible(why_not)) == (False, True, False)
    theirs = form_values(page, **{"data.path": "ann/secret"})
    *_, found = page.on_preflight("Hub", request(), *theirs)
    assert "sign in" in found_by(page, found)["checks"]
    with pytest.raises(gr.Error, match="sign in"):
        page.on_launch(request(), *form_values(page))


def test_who_may_not_launch_reads_why(tmp_path: Path) -> None:
    app = fake(Settings(home=tmp_path, space_id="ann/space", who_may_train="owner"))
    app.callers.name = "bob"
    launch, sign_in, why_not = page_of(train_page, app).panel.on_visitor(request())
    assert (visible(launch), visible(sign_in), visible(why_not)) == (False, False, True)
    assert "Only ann may train" in why_not["value"]


def test_a_base_that_cannot_be_read_is_no_fault_of_the_data(app: Any) -> None:
    app.preflights.found = Preflight([Check("Model", "red", "There is no model x/y.")])
    page = page_of(train_page, app)
    *_, found = page.on_preflight("Example", request(), *form_values(page))
    seen = found_by(page, found)
    assert "There is no model" not in seen["summary"]
    assert "There is no model" in seen["checks"]
    assert seen["launch"]["interactive"] is False


def test_another_configuration_brings_its_splits_and_one_that_exists_stays(app: Any) -> None:
    page = page_of(train_page, app)
    app.datasets.parts = lambda path, name, caller: Parts(  # type: ignore[method-assign]
        ["plain", "more"], ["train", "test"], name, "train"
    )
    *_, (names, splits, _) = page.data.on_parts("ann/chat", "more", "test[:9]", request())
    assert names["choices"] == ["plain", "more"]
    assert splits["choices"] == ["train", "test"]
    assert "value" not in {**names, **splits}, "another may be chosen by now"
    *_, (_, splits, _) = page.data.on_parts("ann/chat", "more", "gone", request())
    assert splits["value"] == "train"


def test_a_remedy_sets_its_options_and_nothing_else(app: Any) -> None:
    page = page_of(train_page, app)
    mended = page.on_fix(gr.EventData(None, {"values": {"training_config.max_length": 512}}))
    found = dict(zip(page.fields.by_name, mended, strict=True))
    assert found["training_config.max_length"] == "512"
    assert [name for name, value in found.items() if value != gr.skip()] == [
        "training_config.max_length"
    ]
    for hostile in (None, [], {"launched": "x"}, {"data": {"path": "/etc"}}, "r"):
        with pytest.raises(gr.Error, match="none of this page"):
            page.on_fix(gr.EventData(None, {"values": hostile}))
    with pytest.raises(gr.Error, match="none of this page"):
        page.on_fix(gr.EventData(None, None))


def test_addresses_on_the_hub_are_links_and_what_failed_can_be_tried_again(app: Any) -> None:
    said = "Ask at https://huggingface.co/datasets/bob/gate. <b>"
    app.preflights.found = Preflight([Check("Data", "red", said)])
    page = page_of(train_page, app)
    *_, found = page.on_preflight("Hub", request(), *form_values(page))
    checks = found_by(page, found)["checks"]
    assert '<a href="https://huggingface.co/datasets/bob/gate" ' in checks
    assert "&lt;b&gt;" in checks
    assert "Try again" in checks


def test_the_slider_stands_for_four_numbers(app: Any) -> None:
    page = page_of(train_page, app)
    values = form_values(page, **{"model.path": "microsoft/Phi-3-mini-4k-instruct"})
    found = dict(zip(page.fields.by_name, page.on_strength(5, *values), strict=True))
    names = ("num_train_epochs", "learning_rate")
    numbers = [found[f"training_config.{name}"] for name in names]
    assert [*numbers, found["peft_config.r"], found["peft_config.lora_alpha"]] == [
        *("6", "0.0002", "64", "128")
    ]
    config, _ = page.fields.config(
        [
            value if found[name] == gr.skip() else found[name]
            for name, value in zip(page.fields.by_name, values, strict=True)
        ]
    )
    assert level_of(config) == 5


def test_a_slow_look_does_not_replace_a_later_one(app: Any) -> None:
    page = page_of(train_page, app)
    slow, later = (page.on_preflight("Example", request(), *form_values(page)) for _ in range(2))
    other = page.on_preflight("Example", request("another tab"), *form_values(page))
    for look in (slow, later, other):
        assert "Checking" in found_by(page, next(look))["checks"]
    assert "3 rows." in found_by(page, next(later))["checks"]
    assert list(slow) == []
    assert "3 rows." in found_by(page, next(other))["checks"]


def test_batch_scaling_and_yaml_follow_the_form_at_once(app: Any) -> None:
    page = page_of(train_page, app)
    changes = {"peft_config.r": "4", "training_config.gradient_accumulation_steps": "3"}
    derived, yaml, drawn, *_ = page.on_live("", "pocket", *form_values(page, **changes))
    assert "Effective batch <b>24</b> (8 × 3)" in derived
    assert "LoRA scaling <b>8</b> (32 / 4)" in derived
    assert page.on_yaml(yaml)[1 : -len(page.data.tabs)] == form_values(page, **changes)
    again = page.on_live(drawn, "pocket", *form_values(page, **changes))
    assert again[:3] == [derived, gr.skip(), yaml]  # what somebody types there meanwhile stays
    broken = form_values(page, **{"peft_config.r": 0})
    assert page.on_live("", "pocket", *broken)[0] == ""  # its field says what is wrong


def test_search_follows_the_typing_and_forgets_what_was_overtaken(app: Any) -> None:
    page, asked = page_of(train_page, app), []

    def search(query: str, caller: Caller) -> list[Suggestion]:
        asked.append(query)
        if query == "pir":  # somebody types on while the Hub is asked
            page.data._typed["page"] = object()
        return [Suggestion(Found(query, rows="3"))]

    app.datasets.search = search
    visitor = request(session="page")
    assert page.data.on_type("", None, visitor)[0]["choices"] == [("3 rows", "")]
    assert page.data.on_type("pir", None, visitor) == (gr.skip(), gr.skip())
    found, _ = page.data.on_type("https://huggingface.co/datasets/ann/pirates", {}, visitor)
    assert found["choices"] == [("ann/pirates · 3 rows", "ann/pirates")]
    typing = threading.Thread(target=page.data.on_type, args=["p", None, visitor])
    typing.start()
    while not page.data._typed:
        pass
    page.data.on_type("pi", None, visitor)
    typing.join()
    chosen, _ = page.data.on_type("ann/pirates", {"Hub": "ann/pirates"}, visitor)
    assert visible(chosen) is False
    assert asked == ["", "pir", "ann/pirates", "pi"]


def test_dataset_text_is_escaped_and_supervised_text_is_tinted(app: Any) -> None:
    page = page_of(train_page, app)
    *_, found = page.on_preflight("Example", request(), *form_values(page))
    summary = found_by(page, found)["summary"]
    assert "<script>" not in summary
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in summary
    assert "(learnt from here on:) </span>&lt;b&gt;Arr&lt;/b&gt;&lt;|end|&gt;" in summary


def test_a_broken_form_is_named_and_not_looked_at(app: Any) -> None:
    app.preflights.found = None  # type: ignore[assignment]
    page = page_of(train_page, app)
    *_, shown = page.on_preflight("Example", request(), *form_values(page, **{"peft_config.r": 0}))
    seen = found_by(page, shown)
    assert "Go to Rank" in seen["checks"]
    assert seen["launch"]["interactive"] is False
    assert seen["summary"] == gr.skip()
    assert json.loads(seen["problems"]) == {
        "field-peft_config-r": {"message": "expected 1 to 1024, got 0.", "fold": "numbers"}
    }


def test_launch_makes_a_run_of_the_caller(app: Any, monkeypatch: Any) -> None:
    submitted = []
    monkeypatch.setattr(
        app.launching.queue, "submit", lambda run, token: submitted.append(run) or run
    )
    app.callers.name = "ann"
    page = page_of(train_page, app)
    run_id = page.on_launch(request(), *form_values(page, title="Mine"))
    assert app.launching.store.get(run_id, "ann").title == "Mine"
    assert [run.id for run in submitted] == [run_id]


def test_the_form_opens_with_the_run_of_the_address(app: Any) -> None:
    page = page_of(train_page, app)
    run = stage.failed(app.launching.store, "Again")
    note, *values = page.on_open("", request(**{"from": run.id}))
    assert "settings of Again" in note["value"]
    shown_now = values[: len(page.fields.by_name)]
    assert page.fields.config(shown_now)[0] == run.config
    other, *kept = page.on_open("", request(**{"from": "20260101-000000-abcdef"}))
    assert "There is no run" in other["value"]
    assert all(value == gr.skip() for value in kept)
    app.callers.name = "ann"  # somebody else's run is none
    assert "There is no run" in page.on_open("", request(**{"from": run.id}))[0]["value"]


def test_a_draft_fills_what_it_knows_and_nothing_else(app: Any) -> None:
    page = page_of(train_page, app)
    draft = {"title": "Mine", "peft_config.r": 8, "data.path": "ann/chat", "nonsense": 1}
    draft["data.columns"] = ["no", "text"]
    _, *values = page.on_open(json.dumps(draft), request())
    found = dict(zip(page.fields.by_name, values, strict=False))
    assert (found["title"], found["peft_config.r"], found["data.path"]) == ("Mine", 8, "ann/chat")
    assert found["data.columns"] == found["training_config.seed"] == gr.skip()
    assert values[len(page.fields.by_name)] == "Hub"
    for broken in ("", "{", "[1]", "[" * 100_000, "7" * 300_000, "null"):
        assert all(value == gr.skip() for value in page.on_open(broken, request()))


def test_the_bundled_adapter_is_there_for_everybody(settings: Settings) -> None:
    space = Application.open(Settings(home=settings.home, space_id="ann/space"))
    for caller in (Caller("local"), Caller(""), Caller("bob")):
        found = space.comparing.subject("example:pirate", caller)
        assert (found.kind, found.base.path) == ("adapter", "pocket")
        assert len(space.comparing.suggestions("example:pirate", caller)) >= 3


def test_each_tab_owns_its_choice(app: Any, tmp_path: Path) -> None:
    data = page_of(train_page, app).data
    dropped = tmp_path / "chat.jsonl"
    dropped.write_text('{"messages": []}\n')
    path, choices = data.on_file(str(dropped), dict(data.choices.value), request())
    assert Path(path).name == "chat.jsonl"
    assert data.on_source("Example", choices)[-1] == "example:pirate"
    assert data.on_source("Your file", choices)[-1] == path
    assert data.on_source("Hub", choices)[-1] == ""
    emptied, choices = data.on_file(None, choices, request())
    assert emptied == ""
    assert data.on_source("Your file", choices)[-1] == ""
    assert data.on_result("ann/chat", choices, request())[2] == "ann/chat"


def test_a_tab_without_data_says_so_and_launches_nothing(app: Any) -> None:
    page = page_of(train_page, app)
    values = form_values(page, **{"data.path": ""})
    *_, found = page.on_preflight("Your file", request(), *values)
    seen = found_by(page, found)
    assert "No data is chosen" in seen["summary"]
    assert "Drop a JSON" in seen["checks"]
    assert seen["estimate"] == ""
    assert seen["launch"]["interactive"] is False
    with pytest.raises(gr.Error, match="Choose data first"):
        page.on_launch(request(), *values)


def test_the_data_is_named_over_its_preview_and_beside_launch(app: Any) -> None:
    page = page_of(train_page, app)
    *_, found = page.on_preflight("Example", request(), *form_values(page))
    seen = found_by(page, found)
    assert '<h3 class="data-name">pirate</h3>' in seen["summary"]
    assert "Trains on <b>pirate</b>" in seen["checks"]


def test_a_number_is_no_number_field(app: Any) -> None:
    """Gradio's Number turns nothing into 0 as its fold opens, and a browser 0,001 into 1."""
    page = page_of(train_page, app)
    numbers = [name for name, spec in SPECS.items() if spec.kind == "number"]
    assert {"data.max_rows", "training_config.learning_rate"} <= set(numbers)
    for name in numbers:
        assert isinstance(page.fields.by_name[name], gr.Textbox), name
    values = form_values(page, **{"data.max_rows": "20", "training_config.weight_decay": 0.1})
    assert page.fields.config(values)[0].data.max_rows == 20
    with pytest.raises(ConfigError, match=r"expected a number such as 0\.001, got 'many'"):
        page.fields.config(form_values(page, **{"data.max_rows": "many"}))
    with pytest.raises(ConfigError, match=r"with a decimal point, such as 0\.001 or 1000"):
        page.fields.config(form_values(page, **{"training_config.learning_rate": "0,001"}))


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (RunError("There is no run."), "The run"),
        (StoredConfigError([Problem("", "config.yaml is damaged.")]), "The run"),
        (AccessError("No."), "Not allowed"),
    ],
)
def test_the_title_of_a_message_fits_it(error: Any, title: str) -> None:
    @shown
    def fail() -> None:
        raise error

    with pytest.raises(gr.Error) as raised:
        fail()
    assert raised.value.title == title


def test_a_handler_that_takes_a_text_gets_one() -> None:
    """Gradio says None for an empty text, and a program may send anything in a page's name."""

    class Page:
        @shown
        def on_name(self, name: str, note: str | None) -> tuple[str, str | None]:
            return name.strip(), note

        @shown
        def on_stream(self, name: str) -> Any:
            yield name.strip()

    page = Page()
    assert page.on_name(None, None) == ("", None)  # type: ignore[arg-type]
    assert list(page.on_stream(" a ")) == ["a"]
    for forged in ([["x"]], {"path": "/etc/passwd"}, 10**30):
        with pytest.raises(gr.Error, match="Expected a text"):
            page.on_name(forged, "")  # type: ignore[arg-type]
        with pytest.raises(gr.Error, match="Expected a text"):
            list(page.on_stream(forged))  # type: ignore[arg-type]
        with pytest.raises(gr.Error, match="Expected a text"):
            page.on_name("", forged)  # type: ignore[arg-type]


def test_an_event_says_a_text_or_nothing() -> None:
    def event(data: Any) -> gr.EventData:
        return gr.EventData(None, data)

    assert told(event({"run": "a"}), "run") == "a"
    for forged in (None, -1, "x", [], {}, {"run": None}):
        assert told(event(forged), "run") == ""
    with pytest.raises(DataError, match="Expected a text"):
        told(event({"run": ["x"]}), "run")
    assert texts_told(event({"several": ["a", "b"]}), "several") == ["a", "b"]
    assert texts_told(event({"run": "a"}), "several") is texts_told(event(None), "several") is None
    for forged in (1, "ab", [["x"]], {}):
        with pytest.raises(DataError, match="Expected"):
            texts_told(event({"several": forged}), "several")


def test_red_checks_keep_a_run_from_launching(app: Any) -> None:
    app.preflights.found = Preflight([Check("Disk", "red", "No <room>.", "Make room.")])
    page = page_of(train_page, app)
    with pytest.raises(gr.Error, match=r"Disk: No &lt;room&gt;. Make room\."):
        page.on_launch(request(), *form_values(page))
    assert app.launching.store.list("local") == []


def test_a_recipe_keeps_the_data_and_the_title(app: Any) -> None:
    page = page_of(train_page, app)
    notes, recipe, card, more, *values = page.on_recipe("sample-lora-python")
    assert (recipe, card["value"], more["value"]) == (recipe, None, "sample-lora-python")
    filled = dict(zip(page.fields.by_name, values, strict=True))
    assert filled["data.path"] == filled["title"] == gr.skip()
    assert filled["training_config.gradient_accumulation_steps"] == "4"
    assert "Your data is kept" in notes["value"]


def test_yaml_fills_the_form_or_says_why_not(app: Any) -> None:
    page = page_of(train_page, app)
    _, *values = page.on_yaml("peft_config: {r: 4}\ndata: {path: a.jsonl}")
    filled = dict(zip(page.fields.by_name, values, strict=False))
    assert values[-len(page.data.tabs)] == "Your file", "the tab follows the data"
    assert (filled["peft_config.r"], filled["data.path"]) == ("4", "a.jsonl")
    with pytest.raises(gr.Error, match="unknown option"):
        page.on_yaml("peft_config: {banana: 4}")
    with pytest.raises(gr.Error, match="not YAML"):
        page.on_yaml("a: [1")


def test_a_dropped_file_is_kept_under_its_content(app: Any, tmp_path: Path) -> None:
    page = page_of(train_page, app)
    dropped = tmp_path / "chat.jsonl"
    dropped.write_text('{"messages": []}\n')
    kept = Path(page.data.on_file(str(dropped), {}, request())[0])
    assert kept.read_text() == '{"messages": []}\n'
    assert kept.is_relative_to(app.settings.home)
    assert page.data.on_file(str(dropped), {}, request())[0] == str(kept)


def test_on_a_space_only_uploads_can_be_named(tmp_path: Path) -> None:
    app = Application.open(Settings(home=tmp_path / "home", space_id="ann/space"))
    secret = tmp_path / "secret.jsonl"
    secret.write_text("{}")
    for field in ("data.path", "model.path"):
        config = RunConfig().with_values({field: str(secret)})
        with pytest.raises(AccessError, match=field):
            app.launching.preflight(config, Caller("bob"))
        with pytest.raises(AccessError, match=field):
            app.launching.inspection(config, Caller("bob"))
    (tmp_path / "chat.jsonl").write_text("{}")
    kept = app.datasets.keep_upload(tmp_path / "chat.jsonl", Caller("bob"))
    config = RunConfig().with_values({"data.path": str(kept)})
    check_paths(config, "bob", app.settings)
    with pytest.raises(AccessError, match="files of this machine"):
        check_paths(config, "eve", app.settings)
    with pytest.raises(AccessError, match="sign in"):
        app.datasets.keep_upload(tmp_path / "chat.jsonl", Caller(""))


@pytest.mark.parametrize(
    ("who", "allowed", "fine"),
    [
        ("", "signed-in", False),
        ("bob", "signed-in", True),
        ("bob", "owner", False),
        ("ann", "owner", True),
    ],
)
def test_who_may_train(tmp_path: Path, who: str, allowed: Any, fine: bool) -> None:
    settings = Settings(home=tmp_path, space_id="ann/space", who_may_train=allowed)
    if fine:
        check_may_train(Caller(who), settings)
    else:
        with pytest.raises(AccessError):
            check_may_train(Caller(who), settings)


# -------------------------------------------------------------------------------------- Runs


def parts(page: Any, values: list[Any]) -> dict[str, Any]:
    return dict(zip(("list", "bin", *page.parts), values, strict=True))


def visible(value: Any) -> bool:
    return not isinstance(value, dict) or value.get("visible", True)


def test_no_runs_says_what_to_do(app: Any) -> None:
    page = page_of(runs_page, app)
    run_id, *values = page.on_open(request())
    shown = parts(page, values)
    assert run_id == ""
    assert "Train something" in shown["head"]
    assert not visible(shown["actions"])
    assert shown["loss"] == shown["report"] == shown["menu"] == ""


def test_the_address_names_the_run_and_the_newest_is_first(app: Any) -> None:
    page = page_of(runs_page, app)
    runs = stage.fill(app.launching.store)
    newest = app.launching.store.list("local")[0].id
    assert page.on_open(request())[0] == newest
    chosen = runs["failed"].id
    run_id, *values = page.on_open(request(run=chosen))
    shown = parts(page, values)
    assert run_id == chosen
    assert "The loss is not a number since step 12" in shown["head"]
    assert re.findall(r'data-run="([^"]+)"', shown["list"]) == [
        run.id for run in app.launching.store.list("local")
    ]
    assert shown["list"].count("aria-current") == 1


@pytest.mark.parametrize(
    ("kind", "buttons"),
    [
        ("running", {"stop"}),
        ("queued", {"cancel"}),
        ("failed", {"resume"}),
        ("interrupted", {"resume"}),
        ("finished", {"compare", "publish"}),
    ],
)
def test_buttons_fit_the_status(app: Any, kind: str, buttons: set[str]) -> None:
    page = page_of(runs_page, app)
    run = getattr(stage, kind)(app.launching.store)
    shown = parts(page, page.on_show(run.id, request()))
    names = ("stop", "resume", "cancel", "compare", "publish")
    assert {name for name in names if visible(shown[name])} == buttons
    assert run.title in shown["head"]
    over = kind not in ("running", "queued")
    assert ("disabled" not in shown["more"]) == over
    assert f'href="./?from={run.id}"' in shown["again"]
    assert ("further=1" in shown["again"]) == (kind == "finished")


def test_somebody_elses_run_is_not_there(app: Any, monkeypatch: Any) -> None:
    page = page_of(runs_page, app)
    run = stage.finished(app.launching.store)
    app.callers.name = "eve"
    shown = parts(page, page.on_show(run.id, request()))
    assert "This run is not here" in shown["head"]
    assert run.title not in shown["list"]
    for handler in (page.on_stop, page.on_cancel, page.on_resume):
        with pytest.raises(gr.Error, match="There is no run"):
            handler(run.id, request())
    for do in ("rename", "discard"):
        with pytest.raises(gr.Error, match="There is no run"):
            page.on_more("", request(), clicked(do=do, of=run.id))
    with pytest.raises(gr.Error, match="There is no run"):
        page.on_rename(run.id, "Mine", request())
    with pytest.raises(gr.Error, match="There is no run"):
        page.on_list("", request(), clicked(several=[run.id, run.id]))
    with pytest.raises(gr.Error, match="There is no run"):
        next(page.downloads.on_take(run.id, request(), clicked(take="log")))
    assert app.views.pulse("eve", run.id).endswith("gone")
    assert run.folder.exists()


def test_running_shows_progress_figures_and_curves(app: Any) -> None:
    page = page_of(runs_page, app)
    run = stage.running(app.launching.store)
    shown = parts(page, page.on_show(run.id, request()))
    assert "step 80 of 135" in shown["head"]
    assert "23 s of training left" in shown["head"]
    assert "1,480 tokens/s" in shown["head"]
    training, held_out = json.loads(shown["loss"])["curves"]
    assert [step for step, _, _ in training["points"]] == list(range(1, 81))
    assert [step for step, _, _ in held_out["points"]] == [45]
    rates = json.loads(shown["rate"])["curves"][0]["points"]
    assert [step for step, _, _ in rates] == list(range(1, 81))
    assert "step 80 of 135" in shown["log"]


def test_a_second_visitor_sees_the_same(app: Any) -> None:
    page = page_of(runs_page, app)
    run = stage.finished(app.launching.store)
    first = parts(page, page.on_show(run.id, request()))
    for value in first.values():  # as Gradio does with what it is given
        if isinstance(value, dict):
            value.clear()
    second = parts(page, page.on_show(run.id, request()))
    assert "Better than its base" in second["report"]
    assert len(json.loads(second["loss"])["curves"][0]["points"]) == stage.STEPS


def test_the_report_is_shown_with_its_verdict(app: Any) -> None:
    page = page_of(runs_page, app)
    run = stage.finished(app.launching.store)
    report = parts(page, page.on_show(run.id, request()))["report"]
    assert "Better than its base" in report
    assert "−3.094" in report
    assert "Arr, the capital of Ukraine be Kyiv, matey!" in report


def test_titles_and_logs_are_escaped(app: Any) -> None:
    page = page_of(runs_page, app)
    run = stage.running(app.launching.store, "<img src=x>")
    (run.folder / "log.txt").write_text("<script>1</script>")
    shown = parts(page, page.on_show(run.id, request()))
    assert "<img" not in shown["head"] + shown["list"]
    assert "<script>" not in shown["log"]


def test_the_pulse_beats_when_something_happens_and_only_then(app: Any) -> None:
    run = stage.running(app.launching.store)
    before = app.views.pulse("local", run.id)
    assert app.views.pulse("local", run.id) == before
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Step(step=81, total_steps=135, loss=0.3))
    assert app.views.pulse("local", run.id) != before


def test_new_events_are_added_and_a_resumed_run_rewinds(app: Any) -> None:
    run = stage.interrupted(app.launching.store)
    assert [step for step, _ in app.views.view(run).losses] == list(range(1, 41))
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Resumed(step=30))
        log.emit(Step(step=31, total_steps=135, loss=9.0))
    view = app.views.view(run)
    assert view.losses[-2][0] == 30
    assert view.losses[-1] == (31, 9.0)
    assert view.step is not None
    assert view.step.step == 31


@pytest.mark.parametrize(("kind", "name"), [("script", "train.py"), ("notebook", "train.ipynb")])
def test_the_form_and_a_run_are_downloaded_as_code(app: Any, kind: Any, name: str) -> None:
    page = page_of(train_page, app)
    config, _ = page.fields.config(form_values(page, **{"peft_config.r": 4}))
    make = page.amount.code._maker(kind, lambda request: config)
    archive = zipfile.ZipFile(make(request())["value"])
    assert set(archive.namelist()) == {name, "train.jsonl", "test.jsonl"}
    assert re.search(r'\\?"r\\?": 4,', archive.read(name).decode())


def test_code_made_on_a_space_names_no_path_of_the_machine(tmp_path: Path) -> None:
    publishing = Publishing(Settings(home=tmp_path, space_id="ann/app"))
    recipe = load_recipe("pocket")[0]
    file = publishing.code(recipe, "script", tmp_path / "train.py", Caller("ann"))
    assert str(Path(__file__).parent.parent) not in file.read_text()


# ------------------------------------------------------------------------------- the whole app


def test_three_pages_and_no_outside_address(app: Any) -> None:
    demo = build(app)
    assert [path for path, *_ in demo.pages] == ["", "runs", "compare"]
    assert demo.analytics_enabled is False
    style = (Path(train_page.__file__).parent / "style.css").read_text()
    assert "http" not in style.replace("http://www.w3.org/2000/svg", "")  # a name, no address
    assert "@import" not in style


@pytest.mark.parametrize("sheet", STYLES, ids=lambda sheet: sheet.name)
def test_no_style_forbids_several_things_at_once(sheet: Path) -> None:
    """Gradio parts a selector at its commas: of `:not(:has(a, b))` its copy forbids a alone."""
    found = re.findall(r":not\((?:[^()]|\([^()]*\))*,(?:[^()]|\([^()]*\))*\)", sheet.read_text())
    assert found == []


def test_no_choice_is_dropped_while_its_like_is_at_work(app: Any) -> None:
    """Only what acts may be: a button, an Enter, a page that opens; a program's call is its own."""
    from phi3lora.ui.app import build

    acting, dropped = {"click", "submit", "stop", "load"}, {}
    for wired in build(app).config["dependencies"]:
        if wired["backend_fn"] and wired["trigger_mode"] == "once":
            after, events = wired["trigger_after"], {event for _, event in wired["targets"]}
            if after is not None or not events <= acting:
                dropped[wired["id"]] = events
    assert not dropped


def test_handlers_of_pages_are_hidden_from_the_api(app: Any) -> None:
    demo = build(app)
    public = [fn.api_name for fn in demo.fns.values() if fn.fn and fn.api_visibility == "public"]
    assert public == [operation.__name__ for operation in Operations(app).offered]


@pytest.mark.parametrize(
    ("method", "origin", "status"),
    [
        ("POST", None, 200),
        ("POST", "https://app.example", 200),
        ("POST", "https://evil.example", 403),
        ("DELETE", "null", 403),
        ("POST", "https://proxy.example", 200),
        ("GET", "https://evil.example", 200),
    ],
)
def test_foreign_pages_change_nothing(method: str, origin: str | None, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"host", b"app.example")] + ([(b"origin", origin.encode())] if origin else [])
    scope = {"type": "http", "method": method, "path": "/", "headers": headers}
    guard = Guard(app, Rules(hosts=None, own=frozenset({"proxy.example"})))
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (words.duration(9.4), "9 s"),
        (words.duration(75), "1 min 15 s"),
        (words.duration(3900), "1 h 05 min"),
        (words.duration(90_000), "1 day 1 h"),
        (words.size(512), "512 B"),
        (words.size(3_221_225_472), "3.0 GB"),
        (words.short_count(9_963), "9,963"),
        (words.short_count(3_812_000), "3.8 M"),
        (words.figure(None), "–"),
        (words.figure(0.00012), "1.2e-04"),
        (words.signed(-3.0941), "−3.094"),
    ],
)
def test_numbers_have_units(value: str, text: str) -> None:
    assert value == text
