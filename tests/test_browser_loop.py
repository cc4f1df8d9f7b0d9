"""Rows edited, left out and taken back in the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.test_browser import (
    browser,  # noqa: F401
    open_page,
    serving,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = "Arr </textarea><script>window.hurt = 1</script>"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def page(home: Path, browser: Browser) -> Iterator[Page]:  # noqa: F811
    with serving(home) as address:
        page, wrong = open_page(browser, address)
        yield page
        assert wrong == []


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
