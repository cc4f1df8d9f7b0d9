"""How a link to a comparison looks elsewhere: title, words, and a picture of both answers."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from phi3lora.app.callers import Caller
from phi3lora.app.comparing import BUNDLED, Subject
from phi3lora.app.shared import LONGEST, Recent, Shared, asked_of
from phi3lora.config import ModelConfig
from phi3lora.hub.upload import draft_card
from phi3lora.settings import Settings
from phi3lora.ui import compare_page
from phi3lora.ui.app import preview
from phi3lora.ui.comparison import settled
from phi3lora.ui.frame import link_tags
from phi3lora.ui.picture import picture
from phi3lora.ui.watch import beside
from tests import stage
from tests.test_compare_page import DEFAULTS, ask
from tests.test_ui import app, page_of  # noqa: F401

PAGE = """<html><head><meta property="og:title" content="Gradio" /></head>
<script>gradio_config = {"version":"6","title":"phi3lora","space_id":null};</script></html>"""
SHARED = Shared("Who?", ("Base", "Tuned"), ("A robot.", "Arr!"))
HTML = {"accept": "text/html"}


def client(app: Any) -> TestClient:  # noqa: F811
    """The layers round a page, without Gradio."""
    made = beside(lambda _: "", app.callers, preview=lambda visit: preview(app, visit))
    pages = [Route(path, lambda _: HTMLResponse(PAGE)) for path in ("/", "/compare")]
    return TestClient(Starlette(routes=[*pages, *made["routes"]], middleware=made["middleware"]))


def test_a_link_shows_what_the_report_kept_and_no_model_is_asked(app: Any) -> None:  # noqa: F811
    run = stage.finished(app.launching.store)
    visitor = client(app)
    head = visitor.get(f"/compare?adapter={run.id}", headers=HTML).text
    assert 'og:title" content="Name the capital of Ukraine. · phi3lora"' in head
    assert "Base: The capital of Ukraine is Kyiv." in head
    assert f'og:image" content="http://testserver/compare.png?adapter={run.id}"' in head
    assert "Gradio" not in head
    drawn = visitor.get(f"/compare.png?adapter={run.id}")
    assert drawn.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(drawn.content)).size == (1200, 630)
    unknown = f"adapter={run.id}&q=Something+else"
    assert "og:image" not in visitor.get(f"/compare?{unknown}", headers=HTML).text
    assert visitor.get(f"/compare.png?{unknown}").status_code == 404
    assert not hasattr(app.comparing, "asked")


def test_a_space_of_one_adapter_shows_the_sample_of_its_card(app: Any, tmp_path: Path) -> None:  # noqa: F811
    assert "og:image" not in client(app).get("/", headers=HTML).text
    one = settled(app, "ann/pirate")
    card = draft_card(stage.finished(app.launching.store).folder, "ann/pirate")
    (tmp_path / "README.md").write_text(card)
    subject = Subject(ModelConfig(path="pocket"), tmp_path, "adapter", "ann/pirate")
    one.comparing._subject = subject
    visitor = client(one)
    head = visitor.get("/", headers=HTML).text
    assert "Tuned: Arr, the capital of Ukraine be Kyiv, matey!" in head
    assert 'og:image" content="http://testserver/compare.png?"' in head
    assert visitor.get("/compare.png?").headers["content-type"] == "image/png"
    assert visitor.get("/compare.png?q=Something+else").status_code == 404
    (tmp_path / "README.md").write_text("Somebody else's words.")
    assert "og:image" not in visitor.get("/", headers=HTML).text


def test_a_link_shows_what_was_answered_to_it_with_its_settings(app: Any) -> None:  # noqa: F811
    run = stage.finished(app.launching.store)
    page = page_of(compare_page, app)
    talk = ask(page, run.id, settings=DEFAULTS, question="<script>1</script>?")[-1]["talk"]
    ask(page, run.id, settings=DEFAULTS, question="And later?", talk=talk)
    ask(page, run.id, settings=DEFAULTS, question="Hidden?", blind=True)
    visitor = client(app)
    named = f"adapter={run.id}&q=%3Cscript%3E1%3C/script%3E?"
    head = visitor.get(f"/compare?{named}", headers=HTML).text
    assert "&lt;script&gt;1&lt;/script&gt;? · phi3lora" in head
    assert "Tuned: Arr, the end!" in head
    assert "<script>1" not in head
    for other in (
        f"{named}&seed=3",
        f"adapter={run.id}&q=And+later?",
        f"adapter={run.id}&q=Hidden?",
    ):
        assert visitor.get(f"/compare.png?{other}").status_code == 404


def test_a_space_shows_what_anybody_was_answered_and_nothing_of_a_person(
    app: Any,  # noqa: F811
    settings: Settings,
) -> None:
    app.comparing.settings = Settings(home=settings.home, space_id="ann/space")
    link = asked_of(BUNDLED, "", "Who?")
    app.comparing.share(link, SHARED, Caller("ann", "hf_ann"))
    assert app.comparing.shared(link, Caller("")) is None
    app.comparing.share(link, SHARED, Caller(""))
    assert app.comparing.shared(link, Caller("")) == SHARED
    run = stage.finished(app.launching.store)
    assert app.comparing.shared(asked_of(run.id, "", ""), Caller("eve")) is None
    assert app.comparing.shared(asked_of(BUNDLED, "", ""), Caller("")) is not None


def test_few_answers_are_remembered_and_no_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3lora.app.shared.KEPT", 3)
    recent = Recent()
    for number in range(5):
        recent.put(asked_of("a", "", str(number)), SHARED)
    assert [recent.get(asked_of("a", "", str(n))) is not None for n in range(5)] == [0, 0, 1, 1, 1]
    recent.put(asked_of("long"), replace(SHARED, question="x" * (LONGEST + 1)))
    assert recent.get(asked_of("long")) is None


@pytest.mark.parametrize(
    "text",
    ["", "x" * LONGEST, "word " * 400, "\0\n\u202e\ud800".replace("\ud800", ""), "日本語" * 99],
)
def test_any_text_becomes_a_picture(text: str) -> None:
    drawn = picture(Shared(text, (text[:90], "Tuned"), (text, text)))
    assert Image.open(io.BytesIO(drawn)).size == (1200, 630)
    assert len(drawn) < 200_000


def test_a_strangers_words_end_no_attribute() -> None:
    tags = link_tags(Shared('"><b>', ('"', "T"), ("'><i>", "&")), 'http://x/?q="><u>')
    assert "<b>" not in tags
    assert "<i>" not in tags
    assert "<u>" not in tags
    assert tags.count("<meta") == 8
