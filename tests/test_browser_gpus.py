"""Spaces with GPUs in a real Chromium, from the checks to a finished run: a T4, and four L4.

The fake parts are the hardware and the training: the app, which is served by the test's own process
and checks there, is told which GPUs this machine has, and its workers, which take those cards and
start each other as ever, count steps instead of computing them. What is computed on such cards is
tried in `test_fake_cuda.py`, what several do together in `test_together.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from phi3lora.app.application import Application
from phi3lora.models.hardware import AMPERE, GIB, LENT, Hardware
from phi3lora.runs.store import Run, RunStore
from phi3lora.settings import Settings
from phi3lora.ui.app import build, serve
from tests import fake_training
from tests.test_browser import LONG, browser, set_yaml, wait_for_status  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@contextmanager
def machine_with(
    folder: Path, number: int, name: str, gib: int, capability: tuple[int, int]
) -> Iterator[str]:
    """The address of an app on a machine with so many cards."""
    bfloat16, memory = capability >= AMPERE, gib * GIB
    card = Hardware("cuda", name, memory, memory, bfloat16, 8, capability)
    told = {
        LENT: json.dumps(asdict(card)),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(number))),
    }
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in told.items():
            patch.setenv(variable, value)
        fake_training.install(folder / "fake", patch)
        app = Application.open(Settings(home=folder), helper=False)
        pages = serve(build(app), app, "127.0.0.1", None, block=False)
        try:
            yield pages.local_url
        finally:
            pages.close(verbose=False)
            app.close()
            fake_training.kill_all(app.launching.store)


def opened(browser: Browser, address: str) -> Page:  # noqa: F811
    page = browser.new_page()
    page.set_default_timeout(LONG)
    page.goto(address)
    page.wait_for_selector("#checks li >> nth=3", state="attached")
    return page


def launched(page: Page, folder: Path) -> Run:
    """The run that the page has launched, once it says that it is finished."""
    page.click("#launch:enabled")
    page.wait_for_url("**/runs?run=*")
    wait_for_status(page, "finished")
    (run,) = RunStore(Settings(home=folder)).all()
    return run


def test_a_t4_says_what_it_cannot_do(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    with machine_with(tmp_path, 1, "Tesla T4", 15, (7, 5)) as address:
        page = opened(browser, address)
        set_yaml(page, path="pocket", dtype="bfloat16")
        page.wait_for_selector("#checks li.amber:has-text('Tesla T4 has no bfloat16')")
        assert "loaded in float16" in page.inner_text("#checks")
        assert page.locator("#field-devices").count() == 0, "nothing to choose with one card"
        run = launched(page, tmp_path)
        assert run.state.device == "cuda"
        assert [lock.name for lock in tmp_path.glob("device-*.lock")] == ["device-0.lock"]


def test_four_l4_train_one_run(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    with machine_with(tmp_path, 4, "NVIDIA L4", 22, (8, 9)) as address:
        page = opened(browser, address)
        set_yaml(page, path="pocket", dtype="auto")
        page.wait_for_selector("#checks li.green:has-text('NVIDIA L4, bfloat16')", state="attached")
        page.fill("#field-devices input", "8")
        page.press("#field-devices input", "Tab")
        page.wait_for_selector("#checks li.red:has-text('the machine has 4')")
        page.wait_for_selector("#launch:disabled")
        page.fill("#field-devices input", "4")
        page.press("#field-devices input", "Tab")
        page.wait_for_selector("#checks li.red:has-text('the machine has 4')", state="detached")
        page.wait_for_selector("#checks li.green >> nth=3", state="attached")
        page.click("#numbers > button")
        page.wait_for_selector("#derived:has-text('× 4 devices)')")
        run = launched(page, tmp_path)
        assert run.config.devices == 4
        assert run.state.cards == ["0", "1", "2", "3"]
        taken = {lock.name for lock in tmp_path.glob("device-*.lock")}
        assert taken == {f"device-{card}.lock" for card in range(4)}
