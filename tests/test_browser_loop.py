"""Rows edited in the page; and train, compare blind, vote, train on the votes, compare again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from phi3lora.chat.votes import Vote, VoteBook
from phi3lora.models.pocket import PIRATE
from phi3lora.runs.store import Run, RunStore
from phi3lora.settings import Settings
from tests import stage
from tests.test_browser import (
    ask_both,
    browser,  # noqa: F401
    set_yaml,
    wait_for_status,
    walked,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = "Arr </textarea><script>window.hurt = 1</script>"
VOTES = 19  # of others; the one by hand is the twentieth


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def page(home: Path, browser: Browser) -> Iterator[Page]:  # noqa: F811
    with walked(browser, home) as (_, page):
        yield page


def written(folder: Path) -> Path:
    """Twelve rows, of which one has no answer to speak of."""
    said = [*(f"Arr, number {n}!" for n in range(11)), "N/A"]
    rows = [
        [{"role": "user", "content": f"Q{n}?"}, {"role": "assistant", "content": text}]
        for n, text in enumerate(said)
    ]
    file = folder / "crew.jsonl"
    file.write_text("\n".join(json.dumps({"messages": row}) for row in rows), encoding="utf-8")
    return file


def test_rows_are_edited_left_out_and_taken_back(page: Page, tmp_path: Path) -> None:
    page.click("#source >> text=Your file")
    page.set_input_files("#file input[type=file]", written(tmp_path))
    page.wait_for_selector("#data-summary dd:text-is('12 of 12')")
    page.click("button[data-open=shown]")
    page.wait_for_function("document.activeElement.closest('#row-text-0')")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(HOSTILE)
    page.click("#row-save")
    page.wait_for_selector("#row-changes >> text=1 row edited")
    page.wait_for_selector(f".conversation mark:has-text('{HOSTILE}')")
    page.click("#row-next")
    page.wait_for_selector("#row-head >> text=Row 1")
    page.click("#row-close")
    page.wait_for_selector("#row-editor", state="hidden")

    page.click("#findings-fold > button")
    page.click("#find-rows")
    page.click("#findings summary:has-text('Empty answers')")
    page.click("#findings button[data-row='0:11'][data-open=leave-out]")
    page.wait_for_selector("#row-changes >> text=1 row left out by hand")
    page.wait_for_selector("#findings button[data-row='0:11']:text-is('Use again')")
    page.wait_for_selector("#data-summary dd:text-is('11 of 12')")
    assert "named in data.leave_out_rows" in page.inner_text("#data-summary")

    page.reload()
    page.wait_for_selector("#row-changes >> text=1 row edited · 1 row left out by hand")
    page.wait_for_selector("#data-summary dd:text-is('11 of 12')")
    page.click("#source >> text=Example")
    page.wait_for_selector("#data-summary .data-name >> text=pirate")
    page.wait_for_selector("#row-changes", state="hidden")
    page.click("#source >> text=Your file")
    page.wait_for_selector("#row-changes >> text=1 row edited")
    page.click("#row-changes >> text=Take all back")
    page.wait_for_selector("#row-changes", state="hidden")
    page.wait_for_selector("#data-summary dd:text-is('12 of 12')")
    assert page.evaluate("window.hurt") is None


def learnt(store: RunStore) -> Run:
    """A finished run with the adapter that comes along, and votes on it."""
    run = stage.finished(store, "First", **{"peft_config.r": 4, "peft_config.lora_alpha": 8})
    shutil.rmtree(run.result.folder)
    shutil.copytree(PIRATE, run.result.folder)
    book = VoteBook(store.settings.home / "votes.jsonl")
    for number in range(VOTES):
        asked = [{"role": "user", "content": f"Q{number}"}]
        left, right = ([*asked, {"role": "assistant", "content": said}] for said in ("Arr", "Yes"))
        book.record(
            Vote(
                run.id,
                f"pair-{number}",
                "left",
                "tuned",
                f"Q{number}",
                left_said=left,
                right_said=right,
            )
        )
    return run


def test_the_loop_by_hand(page: Page, home: Path) -> None:
    store = RunStore(Settings(home=home))
    first = learnt(store)
    address = page.url.partition("?")[0].rstrip("/")
    page.goto(f"{address}/compare?adapter={first.id}")
    page.wait_for_selector("#now .turn")
    page.click("#blind label")
    ask_both(page, "Name the color of a cherry.")
    page.click("#vote-left")
    page.wait_for_selector("#tally >> text=blind vote")
    page.click("#votes-panel > button")
    page.click("#votes-train:has-text('DPO, 20 pairs')")
    page.wait_for_url(f"**/?votes={first.id}")
    page.wait_for_selector("text=learns from blind votes by DPO")
    page.wait_for_selector("#data-summary >> text=Pairs")
    set_yaml(page, num_train_epochs="1", rows="2", max_new_tokens="8", logging_steps="1")
    page.wait_for_selector("#checks .passed")
    page.wait_for_selector("#launch:not([disabled])")
    page.click("#launch")
    page.wait_for_url("**/runs?run=*")
    wait_for_status(page, "finished")
    page.wait_for_selector("#run-head dt:text-is('Reward margin')")
    page.wait_for_selector("#reward-chart svg .curve")
    second = page.get_attribute("#run-head .run-title", "data-run")
    assert second is not None
    assert store.get(second, "local").config.model.adapter == first.id

    page.click("#three")
    page.wait_for_url(f"**/compare?adapter={second}&third={first.id}&blind=1")
    page.wait_for_selector("#blind input:checked")
    left, right = ask_both(page, "Where is the treasure?")
    assert left
    assert right
    page.click("#vote-left")
    page.wait_for_selector("#tally:has-text('Base'):has-text('First after votes')")
    page.wait_for_selector("#now .turn.revealed")
    named = {heading.strip() for heading in page.locator("#now .said h3").all_inner_texts()}
    assert len(named) == 2
    assert not any("TUNED" in heading.upper() for heading in named), "which of the two is said"
