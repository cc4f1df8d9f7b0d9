"""The Runs page in a real Chromium, over runs of every kind that nobody computes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from phi3lora.chat.votes import Choice, Vote, VoteBook
from phi3lora.events import Answered, Ended, Evaluated, EventLog, SampleAnswer, Stage, Step
from phi3lora.runs.store import Run, RunStore, changed
from phi3lora.settings import Settings
from phi3lora.ui import show
from tests import stage
from tests.test_browser import browser, wait_for_status, walked  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HELD_OUT = "held out, mean of batches"
# Whether what is said while a download is written would be seen; a first script takes seconds.
SEEN = """said => {
  const place = document.querySelector('#download-status .html-container');
  place.insertAdjacentHTML('beforeend', said);
  const bar = place.lastElementChild, seen = bar.checkVisibility() && bar.clientHeight > 0;
  bar.remove();
  return seen;
}"""
RIGHTS = "cells => cells.map(cell => cell.getBoundingClientRect().right)"
NAME_AND_COPY = ("[data-testid=block-info]", "[aria-label=Copy]")
HIDE = "Object.defineProperty(document, 'hidden', {get: () => window.away})"


class Place(NamedTuple):
    """An app over a home with runs, and those."""

    address: str
    store: RunStore
    page: Page

    def open(self, run: Run, tab: str = "") -> Page:
        """The page of a run, once it is there."""
        self.page.goto("about:blank")  # an address that differs in its tab alone loads nothing
        self.page.goto(f"{self.address}/runs?run={run.id}{tab}")
        self.page.wait_for_selector(f"#run-head .run-title[data-run='{run.id}']")
        return self.page


@pytest.fixture(scope="module")
def place(
    browser: Browser,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("home")
    store = RunStore(Settings(home=home))
    with walked(browser, home, "runs") as (address, page):
        yield Place(address, store, page)


def test_the_bin_takes_the_run_of_the_menu_and_gives_it_back(place: Place) -> None:
    kept, doomed = stage.failed(place.store, "Kept"), stage.failed(place.store, "Asked about")
    page = place.open(doomed)
    page.click("#more-menu summary")
    page.click("#run-list >> text=Kept")  # the menu of the other run is gone with it
    page.wait_for_selector(f"#run-head .run-title[data-run='{kept.id}']")
    page.wait_for_selector("#delete", state="hidden")
    page.click("#more-menu summary")
    page.click("#delete")
    page.wait_for_selector("#undo-line >> text=Kept is in the bin for 30 days.")
    assert [run.title for run in place.store.list("local")] == ["Asked about"]
    page.click("#undo")
    page.wait_for_selector("#undo", state="detached")
    page.wait_for_selector(f"#run-head .run-title[data-run='{kept.id}']")
    assert len(place.store.list("local")) == 2


def test_renaming_from_the_menu(place: Place) -> None:
    run = stage.failed(place.store, "Before")
    page = place.open(run)
    page.click("#more-menu summary")
    page.click("#more-menu >> text=Rename")
    page.wait_for_function("document.activeElement.closest('#new-title')")
    page.keyboard.press("Control+A")
    page.keyboard.type("After")
    page.keyboard.press("Enter")
    page.wait_for_selector("#run-head h1 >> text=After")
    page.wait_for_selector("#run-list >> text=After")


def test_tabs_have_addresses_and_arrow_keys(place: Place) -> None:
    run = stage.finished(place.store)
    page = place.open(run, "#evidence")
    page.wait_for_selector("#report >> text=Gained most")
    assert "No held-out row got worse." in page.inner_text("#report")
    assert "Lost most" not in page.inner_text("#report")  # what it names gained, too
    assert page.get_attribute("#tab-evidence", "aria-selected") == "true"
    page.focus("#tab-evidence")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("#log")
    log = page.wait_for_selector("#log pre")
    at_end = "(log) => log.scrollTop + log.clientHeight >= log.scrollHeight - 2"
    page.wait_for_function(at_end, arg=log)  # the newest lines are in view
    page.fill("#log input", "step 7 of")
    assert page.inner_text("#log pre").startswith("step 7 of 135")
    assert page.inner_text("#log .log-tools span") == "1 of 135 lines"
    page.click("#tab-settings")
    name, copy = (page.locator(f"#run-config {part}").bounding_box() for part in NAME_AND_COPY)
    assert name is not None
    assert copy is not None
    assert name["x"] < copy["x"] - 100  # neither lies over the other


def points_of(page: Page, name: str) -> int:
    return len(page.query_selector_all(f"#loss-chart .curve[data-name='{name}'] circle"))


def test_a_run_that_goes_on_is_followed_without_a_reload(place: Place) -> None:
    run = stage.running(place.store)
    page = place.open(run)
    page.wait_for_function("document.title.startsWith('52 % · Pirate, rank 32')")
    for chart in ("loss", "rate", "speed", "memory"):
        page.wait_for_selector(f"#{chart}-chart svg .curve")
    assert points_of(page, "held out, mean of batches") == 1
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Step(step=81, total_steps=135, loss=0.29))
        log.emit(Evaluated(step=81, loss=0.4))
    page.wait_for_selector("#run-head >> text=step 81 of 135")
    page.wait_for_function(
        "name => document.querySelectorAll(`[data-name='${name}'] circle`).length == 2",
        arg=HELD_OUT,
    )
    figures = page.locator("#run-head .facts dt").all_inner_texts()
    assert "Correct next tokens" in figures
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Step(step=82, total_steps=135))  # between two logs
    page.wait_for_selector("#run-head >> text=step 82 of 135")
    assert page.locator("#run-head .facts dt").all_inner_texts() == figures
    page.add_script_tag(content=f"window.away = true; {HIDE}")
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Ended(outcome="finished", step=135, seconds=60))
    stage.empty_result(run)
    changed(run, status="finished", outcome="finished")
    page.wait_for_function("document.title.startsWith('Finished')")
    assert not page.query_selector(".while-away")
    page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector(".while-away >> text=It finished while you were away.")
    page.wait_for_selector("#run-live [role=status]:has-text('finished')", state="attached")


def test_a_stage_is_named_from_the_first_second(place: Place) -> None:
    run = place.store.create(stage.config("Just begun"))
    stage.hold(run)
    changed(run, status="running")
    page = place.open(run)
    page.wait_for_selector("#run-head .progress-text >> text=Starting Python, 10 to 20 s")
    page.wait_for_selector("#loss-chart >> text=The curve begins with the second update.")
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Stage(name="preparing the data", fraction=0.64))
        page.wait_for_selector("#run-head .progress-text >> text=Preparing the data")
        assert "64 %" in page.inner_text("#run-head .progress-text")
        log.emit(Step(step=1, total_steps=135, loss=2.0))
        page.wait_for_selector("#run-head .progress-text >> text=step 1 of 135")
    assert "left" not in page.inner_text("#run-head .progress-text")  # nobody knows after one step
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Step(step=2, total_steps=135, loss=1.9))
        page.wait_for_selector("#loss-chart .curve[data-name=training]")
        log.emit(Evaluated(step=2, loss=2.1))  # a curve that the first frame had not
        page.wait_for_selector(f"#loss-chart .curve[data-name='{HELD_OUT}'] circle")
    changed(run, status="stopped")


def test_stop_keeps_its_place_when_the_run_has_stopped(place: Place) -> None:
    run = stage.running(place.store)
    page = place.open(run)
    page.wait_for_selector("#stop")
    box = page.locator("#stop").bounding_box()
    page.click("#stop")
    page.wait_for_selector("#stop:disabled >> text=Stopping")
    wait_for_status(page, "stopping")
    assert "left" not in page.inner_text("#run-head .progress-text")
    changed(run, status="stopped", outcome="stopped")
    (run.folder / "stop").unlink()
    wait_for_status(page, "stopped")
    page.wait_for_selector("#resume:enabled")
    page.wait_for_selector("#stop:disabled")  # a late second click hits it, and nothing happens
    after = page.locator("#stop").bounding_box()
    assert box is not None
    assert after is not None
    assert (box["x"], box["y"]) == (after["x"], pytest.approx(after["y"], abs=200))


def test_the_chart_zooms_scales_tells_and_is_taken_away(place: Place, tmp_path: Path) -> None:
    page = place.open(stage.finished(place.store))
    chart = page.locator("#loss-chart svg")
    chart.hover(position={"x": 300, "y": 100})
    said = page.inner_text("#loss-chart .chart-said")
    assert said.startswith("step ")
    assert "training 0." in said
    assert f"{HELD_OUT} 0." in said
    labels = "#loss-chart svg text"
    whole = page.locator(labels).all_text_contents()
    page.check("#loss-chart [name=late]")
    assert page.locator(labels).all_text_contents() != whole
    page.uncheck("#loss-chart [name=late]")
    page.check("#loss-chart [name=log]")
    assert page.locator(labels).all_text_contents() != whole
    page.uncheck("#loss-chart [name=log]")
    assert page.locator(labels).all_text_contents() == whole
    page.select_option("#loss-chart [name=axis]", "time")
    assert page.locator(labels).all_text_contents() != whole
    page.select_option("#loss-chart [name=axis]", "step")
    drawn = page.inner_html("#loss-chart .curve[data-name=training]")
    page.fill("#loss-chart [name=smooth]", "0.9")
    assert page.inner_html("#loss-chart .curve[data-name=training]") != drawn
    page.fill("#loss-chart [name=smooth]", "0")
    assert page.inner_html("#loss-chart .curve[data-name=training]") == drawn
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 80)
    page.mouse.up()
    page.click("#loss-chart [name=whole]")
    assert page.locator(labels).all_text_contents() == whole
    with page.expect_download() as made:
        page.click("#loss-chart [name=csv]")
    rows = list(csv.DictReader(Path(made.value.path()).read_text().splitlines()))
    assert len(rows) == stage.STEPS + 3
    assert set(rows[0]) == {"curve", "step", "seconds", "value"}
    with page.expect_download() as made:
        page.click("#loss-chart [name=png]")
    assert Path(made.value.path()).read_bytes().startswith(b"\x89PNG")
    page.focus("#loss-chart svg")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#loss-chart .chart-said").startswith("step ")


def test_ticked_runs_share_a_chart(place: Place) -> None:
    runs = [
        stage.finished(place.store, f"Rank {rank}", **{"peft_config.r": rank}) for rank in (4, 8)
    ]
    page = place.open(runs[0])
    for run in runs:
        page.check(f"input[data-tick='{run.id}']")
    page.click("[name=several]")
    page.wait_for_selector("#several-table >> text=peft_config.r")
    page.wait_for_selector("#several-chart svg .curve >> nth=3", state="attached")
    assert page.locator("#several-chart svg .curve").count() == 4
    titles = "rows => rows.map(row => row.cells[0].innerText)"
    rank = page.locator("#several-table th", has_text="peft_config.r")
    for key, order, said in (("Enter", [4, 8], "ascending"), (" ", [8, 4], "descending")):
        rank.locator("button").press(key)  # the keyboard's way; focus stays for the next press
        rows = page.eval_on_selector_all("#several-table tbody tr", titles)
        assert rows == [f"Rank {number}" for number in order]
        assert rank.get_attribute("aria-sort") == said
    assert page.locator("#several-table [aria-sort=none]").count() > 3
    page.fill("#run-search", "rank 4")
    assert page.locator(".run-item:visible").count() == 1
    page.fill("#run-search", "nothing of the kind")
    assert page.inner_text("#run-tools .no-match") == "No run matches."
    page.fill("#run-search", "")
    page.click("[name=untick]")
    page.wait_for_selector("#several", state="hidden")


def test_runs_are_ordered_and_the_way_back_leads_through_them(place: Place) -> None:
    runs = {stage.finished(place.store, "Zebra").id, stage.failed(place.store, "Aardvark").id}
    page = place.page
    page.goto(f"{place.address}/runs")  # of no run: the newest
    newest = page.wait_for_selector("#run-head .run-title").get_attribute("data-run")
    low = (runs - {newest}).pop()
    page.set_viewport_size({"width": 1280, "height": 220})  # more runs than a screen has room for
    tools, items = (page.locator(part).bounding_box() for part in ("#run-tools", "#run-list"))
    page.set_viewport_size({"width": 1280, "height": 900})
    assert tools is not None
    assert items is not None
    assert (items["x"], items["y"] > tools["y"]) == (tools["x"], True)  # no second column
    first = "document.querySelector('.run-item b').textContent"
    page.select_option("#run-order", "title")
    assert page.evaluate(first) != "Zebra"
    page.select_option("#run-order", "loss")
    losses: list[float] = page.eval_on_selector_all(
        ".run-item", "items => items.map(item => Number(item.dataset.loss || 'Infinity'))"
    )
    assert losses == sorted(losses)
    page.select_option("#run-order", "size")
    sizes = page.eval_on_selector_all(".run-item", "items => items.map(item => item.dataset.size)")
    assert sizes == sorted(sizes, key=lambda size: int(size or 10**12))
    page.select_option("#run-order", "loss")
    page.click(f"#run-list a[data-run='{low}']")
    page.wait_for_selector(f"#run-head .run-title[data-run='{low}']")
    assert page.eval_on_selector("#run-order", "field => field.value") == "loss"
    page.go_back()
    page.wait_for_selector(f"#run-head .run-title[data-run='{newest}']")
    page.go_forward()
    page.wait_for_selector(f"#run-head .run-title[data-run='{low}']")


def test_a_download_comes_at_once_and_is_of_this_run(place: Place) -> None:
    other, run = stage.failed(place.store, "Nothing to take"), stage.finished(place.store)
    page = place.open(run)
    assert page.evaluate(SEEN, show.progress(None, "Writing the script", ""))
    page.click("#download-menu summary")
    with page.expect_download() as made:
        page.click("#download-menu [data-take=adapter]")
    assert made.value.suggested_filename == f"adapter-{run.id}.zip"
    page.wait_for_selector("#download-status >> text=is ready")
    page.click(f"#run-list a[data-run='{other.id}']")
    page.wait_for_selector(f"#run-head .run-title[data-run='{other.id}']")
    page.wait_for_selector("#download", state="hidden")
    page.wait_for_selector("#download-menu [data-take=adapter]", state="detached")
    page.click("#download-menu summary")
    assert page.is_visible("#download-menu [data-take=log]")


def test_a_phone_sees_the_verdict_of_every_figure(place: Place) -> None:
    run = stage.finished(place.store)
    code = "def add(a, b):\n    return a + b\n" + "long" * 80 + " and more words" * 20
    said = SampleAnswer(prompt="Add.", expected="a + b", answer=code)
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Answered(step=stage.STEPS, rows=[said]))
    page = place.open(run)
    page.set_viewport_size({"width": 390, "height": 844})
    try:
        page.wait_for_selector("#samples td >> nth=0")
        assert page.inner_text("#samples td >> nth=1").startswith("def add(a, b):\n    return")
        assert max(page.eval_on_selector_all("#samples td", RIGHTS)) <= 390
        page.click("#tab-evidence")
        page.wait_for_selector("#report td >> nth=0")
        assert max(page.eval_on_selector_all("#report td", RIGHTS)) <= 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})


def test_train_again_and_further_open_the_form_with_the_run(place: Place) -> None:
    run = stage.finished(place.store, "Rank of three", **{"peft_config.r": 3})
    page = place.open(run)
    page.click("#further")
    page.wait_for_url(f"**/?from={run.id}*")
    page.wait_for_selector("text=These are the settings of Rank of three")
    page.wait_for_selector("text=has learnt")
    title = "document.querySelector('#field-title :is(input, textarea)').value"
    page.wait_for_function(f"{title} === 'Rank of three, further'")


def test_votes_are_shown_and_trained_on(place: Place) -> None:
    run = stage.finished(place.store, "Voted on")
    book = VoteBook(place.store.settings.home / "votes.jsonl")
    for number in range(24):
        said = [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": "A"}]
        choice: Choice = "left" if number % 4 else "right"
        sides = {"left_said": said, "right_said": said}
        book.record(Vote(run.id, str(number), choice, "tuned", f"Q{number}", **sides))
    page = place.page
    page.goto(f"{place.address}/compare?adapter={run.id}&against=example:pirate&strength=0.5")
    page.wait_for_selector("#other-strength")
    page.wait_for_function("document.querySelector('#adapter-strength input').value === '0.5'")
    gone = "20260101-000000-abcdef"
    page.goto(f"{place.address}/compare?adapter={gone}")
    page.wait_for_selector(f"#chat-status >> text=There is no run '{gone}'")
    page.wait_for_selector("#suggestions .chip")
    waits = "document.querySelector('.compare-top').getAnimations().length"
    assert page.evaluate(waits) == 0  # another adapter can be chosen at once
    with page.expect_response("**/pulse*"):
        pass
    with page.expect_response("**/pulse*"):  # what a pulse brings leaves the message alone
        pass
    assert page.is_visible(f"#chat-status >> text=There is no run '{gone}'")
    page.goto(f"{place.address}/compare?adapter={run.id}")
    page.wait_for_selector("#now .turn")
    page.wait_for_selector("#other-strength", state="hidden")
    page.click("#votes-panel > button")
    page.wait_for_selector("#votes-standing >> text=Tuned wins 75 %")
    with page.expect_download() as made:
        page.click("#votes-export")
    assert len(Path(made.value.path()).read_text().splitlines()) == 24
    page.click("#votes-train:has-text('DPO, 24 pairs')")
    page.wait_for_url(f"**/?votes={run.id}")
    page.wait_for_selector("text=learns from blind votes by DPO")
