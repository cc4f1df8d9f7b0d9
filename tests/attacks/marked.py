"""Texts of strangers where the pages show them, in a real Chromium: no element, script, request."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from phi3lora.app.datasets import Suggestion
from phi3lora.chat.options import Pair
from phi3lora.hub.access import Found
from phi3lora.ui.markdown import rendered
from phi3lora.ui.publish import preview
from tests import stage
from tests.attacks.ground import Ground, Try

if TYPE_CHECKING:
    from playwright.sync_api import Page

MARKUP = [
    '<script>window.evil = "made"</script>',
    '<img src="https://outside.example/x.png" onerror="window.evil = 1">',
    '<form id="evil" action="https://outside.example"><input name="hf"></form>',
    '<style>body { display: none }</style><b id="evil">bold</b>',
    "![](https://outside.example/y.png) [x](javascript:window.evil=2)",
    '<iframe src="https://outside.example"></iframe><svg onload="window.evil=3">',
    "<a href='//outside.example' id=evil>x</a>&lt;b id=evil&gt;",
    '"><b id=evil autofocus onfocus=window.evil=4>',
]
EVIL = "\n".join(MARKUP)
LINE = " ".join(MARKUP)  # where a name has no line breaks
NAME = "<img src=x id=evil onerror=window.evil=5>"  # of a file, without a slash
MADE = "[document.querySelectorAll('#evil').length, window.evil ?? 0]"


def markup(ground: Ground) -> Iterator[Try]:
    """Texts of strangers as a page shows them: nothing of them becomes an element or a request."""
    for text in MARKUP:
        tags = set(re.findall(r"<\s*/?\s*([^\s/>]+)", rendered(text)))
        yield Try(f"chat {text} {tags}", tags <= {"p", "code", "em", "strong"})
    if ground.full:
        yield from _in_chromium(ground)


def _in_chromium(ground: Ground) -> Iterator[Try]:
    from tests.test_browser import find_chromium

    found = find_chromium()
    if found is None:
        yield Try("a real Chromium: not tried, none is here", True)
        return
    from playwright.sync_api import sync_playwright

    sent: list[str] = []
    with sync_playwright() as playwright, pytest.MonkeyPatch.context() as patch:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_context(extra_http_headers={"x-visitor": "eve"}).new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: sent.append(request.url))
        yield from _runs_and_answers(ground, page, patch)
        yield from _data(ground, page, patch)
        own = (ground.address, f"http://127.0.0.1:{ground.here}", "data:", "blob:", "about:")
        outside = [url for url in sent if not url.startswith(own)]
        yield Try(f"no request leaves the page {outside[:1]}", bool(sent) and not outside)
        browser.close()


def _plain(page: Page, what: str) -> Try:
    """Whether the page shows it as text; an image that is made has asked for itself by then."""
    page.wait_for_timeout(1_000)
    made = page.evaluate(MADE)
    return Try(f"{what}: no element, no script {made}", made == [0, 0])


def _runs_and_answers(ground: Ground, page: Page, patch: pytest.MonkeyPatch) -> Iterator[Try]:
    """Titles, errors, logs, questions, answers and a model card, on a Space."""
    store = ground.app.launching.store
    runs = {"a title": stage.finished(store), "an error and a log": stage.failed(store)}
    for what, run in runs.items():
        told = {"owner": "eve", "title": EVIL, "message": EVIL}
        (run.folder / "state.json").write_text(run.state.model_copy(update=told).model_dump_json())
        (run.folder / "log.txt").write_text(EVIL)
        page.goto(f"{ground.address}/runs?run={run.id}")
        page.locator("#run-head").get_by_text("window.evil").first.wait_for(state="attached")
        yield _plain(page, what)
    page.goto(f"{ground.address}/runs")
    page.get_by_text("window.evil").first.wait_for(state="attached")
    yield _plain(page, "a list of runs")
    answered = Pair(EVIL, EVIL, True, True, True, True, 3, 3)
    patch.setattr("tests.test_ownership.Silent.reply", lambda *_, **__: iter([answered]))
    page.goto(f"{ground.address}/compare")
    page.fill("#message textarea", EVIL)
    page.press("#message textarea", "Enter")
    page.get_by_text("window.evil").first.wait_for(state="attached")
    yield _plain(page, "questions and answers")
    page.set_content(preview(f"---\ntitle: {json.dumps(LINE)}\n---\n# {LINE}\n\n{EVIL}"))
    yield _plain(page, "a model card")


def _data(ground: Ground, page: Page, patch: pytest.MonkeyPatch) -> Iterator[Try]:
    """Rows, columns, names of files and what a search finds, where helpers really read them."""
    address = f"http://127.0.0.1:{ground.here}"
    for what, file in _files(ground.folder / "markup").items():
        page.goto(address)
        page.click("#source >> text=Your file")
        page.set_input_files("#file input[type=file]", file)
        page.locator("#data-summary, #checks, #columns").get_by_text("evil").first.wait_for(
            state="attached"
        )
        yield _plain(page, what)
    hits = [Suggestion(Found(f"eve/{LINE}", licence=LINE, rows=LINE))]
    patch.setattr("phi3lora.app.datasets.Datasets.search", lambda *_: hits)
    page.goto(address)
    page.click("#source >> text=Hub")
    page.focus("#search textarea")
    page.locator("#results").get_by_text("window.evil").first.wait_for(state="attached")
    yield _plain(page, "what a search finds")
    hits.clear()
    page.fill("#search textarea", LINE)
    page.press("#search textarea", "Enter")
    page.locator("#search-note").get_by_text("window.evil").first.wait_for(state="attached")
    yield _plain(page, "words that match nothing")


def _files(folder: Path) -> dict[str, Path]:
    """A conversation, a table whose columns need a choice, and a file that cannot be read."""
    folder.mkdir(exist_ok=True)
    talk: list[Any] = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]
    rows = folder / "rows.jsonl"
    rows.write_text((json.dumps({"messages": talk}) + "\n") * 20)
    columns = folder / "columns.csv"
    with columns.open("w", newline="") as file:
        csv.writer(file).writerows([[f"{LINE} a", f"{LINE} b"], *[[EVIL, EVIL]] * 20])
    broken = folder / f"{NAME}.jsonl"
    broken.write_text(EVIL)
    return {"rows": rows, "columns": columns, "a file's name and an error": broken}
