"""The first page in a browser: how soon it shows its frame, and what will be trained.

    python -m benchmarks.frames [--rounds 5] [--small]

`python app.py` starts in a process and a home of its own, in each round. Cold is the time from the
start of the process until a browser that was waiting shows the preview of the data, and until the
form can be launched: its checks are there. Warm is a visit after that, in a new profile: until the
first thing is painted, and until the preview. Meant for two quiet cores: other work on the machine
counts with it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Goal, Report, Table, Taken, medians, parser, publish
from benchmarks.startup import APPS, starting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

FRAME, PREVIEW = 1.5, 3.0  # seconds that are wanted: warm frame, cold preview
SHOWN, CHECKED = ".conversation", "#checks :is(li, .passed)"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
PATIENCE = 120_000  # ms
SIZE: ViewportSize = {"width": 1280, "height": 900}


def main(argv: list[str] | None = None) -> None:
    """Measure, print, keep."""
    arguments = parser(__doc__, rounds=5).parse_args(argv)
    publish(measure(1 if arguments.small else arguments.rounds), arguments.out)


def measure(rounds: int) -> Report:
    """Starts one after the other, each with a first visit and a second one."""
    from playwright.sync_api import sync_playwright

    names = ("cold preview", "cold checks", "warm frame", "warm preview")
    taken: Taken = {name: [] for name in names}
    with sync_playwright() as playwright:
        found = shutil.which("chromium")  # else the one that playwright brings along
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as home:
                for name, seconds in _round(browser, Path(home)).items():
                    taken[name].append(seconds)
        browser.close()
    return _report(taken)


def _round(browser: Browser, home: Path) -> dict[str, float]:
    cold = browser.new_context(viewport=SIZE).new_page()
    with starting(APPS["phi3lora"], home) as (_, address):
        began = time.perf_counter()
        _wait_for_anything(cold, address)
        cold.wait_for_selector(SHOWN, timeout=PATIENCE)
        preview = time.perf_counter() - began
        cold.wait_for_selector(CHECKED, state="attached", timeout=PATIENCE)
        checks = time.perf_counter() - began
        cold.context.close()
        return {"cold preview": preview, "cold checks": checks, **_warm(browser, address)}


def _wait_for_anything(page: Page, address: str) -> None:
    """Ask for the page until somebody answers, as whoever opens it too soon does."""
    from playwright.sync_api import Error

    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        try:
            page.goto(address, wait_until="commit")
            return
        except Error:  # nobody listens yet
            time.sleep(0.02)
    raise RuntimeError(f"Nobody answers at {address}.")


def _warm(browser: Browser, address: str) -> dict[str, float]:
    """Seconds until the first thing is painted, and until the data is shown."""
    context = browser.new_context(viewport=SIZE)
    page = context.new_page()
    began = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector(SHOWN, timeout=PATIENCE)
    seconds = time.perf_counter() - began
    painted = float(page.evaluate(PAINTED))
    context.close()
    return {"warm frame": painted, "warm preview": seconds}


def _report(taken: Taken) -> Report:
    middle = medians(taken)
    rows = [
        [name, f"{middle[name]:.2f} s", f"{min(all_of):.2f} to {max(all_of):.2f} s"]
        for name, all_of in taken.items()
    ]
    return Report(
        name="frames",
        title="The first page in a browser",
        about="`python app.py` in a process of its own, Chromium, the bundled example.",
        command="python -m benchmarks.frames",
        tables=[Table("What is shown when", ["", "median", "all rounds"], rows)],
        goals=[
            Goal("Frame of a warm visit", middle["warm frame"], FRAME, "most", " s"),
            Goal("Preview from a cold start", middle["cold preview"], PREVIEW, "most", " s"),
        ],
        figures=dict(taken),
    )


if __name__ == "__main__":
    main()
