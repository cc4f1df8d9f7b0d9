"""A ZeroGPU Space in a real Chromium: launch, a spent quota, slices on the visitor's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings
from tests.test_browser import LONG, browser, set_yaml, wait_for_status  # noqa: F401 - fixtures
from tests.zerogpu import LoopbackScheduler, space, visitor_header

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


def page_of(browser: Browser, visitor: str) -> Page:  # noqa: F811
    context = browser.new_context(extra_http_headers=visitor_header(visitor))
    page = context.new_page()
    page.set_default_timeout(LONG)
    return page


def test_a_run_computes_on_its_visitors_quota_and_goes_on_when_there_is_some(
    browser: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    with LoopbackScheduler() as scheduler, space(scheduler, tmp_path) as address:
        assert scheduler.started == 1, "else the platform ends the Space"
        scheduler.quota["ann"] = 5
        page = page_of(browser, "ann")
        page.goto(address)
        page.wait_for_selector("#checks .passed")
        set_yaml(page, max_steps="4", rows="2", max_new_tokens="8", path="pocket")
        page.wait_for_selector("#checks .passed")
        page.click("#launch")
        page.wait_for_url("**/runs?run=*")
        wait_for_status(page, "paused")
        page.wait_for_selector("#run-head:has-text('quota')")
        assert scheduler.grants == []
        assert scheduler.refusals == ["ann"]
        scheduler.quota["ann"] = 10_000
        page.reload()
        wait_for_status(page, "finished")
        assert {grant.visitor for grant in scheduler.grants} == {"ann"}
        assert len(scheduler.grants) == 2, "one slice, and the proof"
        run = RunStore(Settings(home=tmp_path)).all()[0]
        assert run.state.backend == "zerogpu"
        assert run.result.whole
