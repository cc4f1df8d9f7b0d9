"""Pictures of every page, light and dark, wide, tablet and phone, into screenshots/.

    python -m tests.screenshots [--fast]

Trains the pocket pirate first, so that Compare shows real answers; `--fast` leaves that out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from phi3lora.recipes import load_recipe
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import ACTIVE, Run, RunStore
from phi3lora.settings import Settings
from tests import stage
from tests.test_browser import REPOSITORY, ask_both, find_chromium, serving

FOLDER = REPOSITORY / "screenshots"
SIZES = {"wide": (1400, 900), "tablet": (820, 1180), "phone": (390, 844)}
LONG = 300_000


def main() -> None:
    """Make a home with runs, serve it, and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="without training a real adapter")
    fast = parser.parse_args().fast
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        store = RunStore(Settings(home=Path(home)))
        trained = None if fast else train_pirate(store)
        runs = stage.fill(store)
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        with serving(Path(home)) as address:
            for scheme in ("light", "dark"):
                for size, (width, height) in SIZES.items():
                    context = browser.new_context(
                        viewport={"width": width, "height": height}, color_scheme=scheme
                    )
                    context.set_default_timeout(LONG)
                    pictures(context, address, runs, trained, f"{scheme}-{size}")
                    context.close()
        browser.close()
        for run in store.all():  # this process poses as their worker
            if run.status in ACTIVE:
                stage.changed(run, status="stopped")


def train_pirate(store: RunStore) -> Run:
    """The pocket recipe, to its end."""
    run = Queue(store.settings, store).submit(store.create(load_recipe("pocket")[0]))
    while run.status in ACTIVE:
        time.sleep(1)
        run = run.refresh()
    return run


def pictures(
    context: Any, address: str, runs: dict[str, Run], trained: Run | None, name: str
) -> None:
    """Every page once, in this scheme and size."""
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector(".conversation")
    page.wait_for_selector("#estimate dl", state="attached")
    take(page, f"train-{name}")
    for kind in ("running", "finished"):
        page.goto(f"{address}/runs?run={runs[kind].id}")
        page.wait_for_selector("#loss-chart svg .curve")
        take(page, f"run-{kind}-{name}")
    page.click("#tab-evidence")
    page.wait_for_selector("#report >> text=Gained most")
    take(page, f"run-evidence-{name}")
    for place in range(2):
        page.locator(".run-item input").nth(place).check()
    page.click("[name=several]")
    page.wait_for_selector("#several-table td")
    take(page, f"runs-several-{name}")
    page.goto(f"{address}/compare?adapter={trained.id if trained else ''}")
    page.wait_for_selector(".chip")
    if trained:
        for prompt in ("Name the capital of France.", "What is the opposite of hot?"):
            ask_both(page, prompt)
    take(page, f"compare-{name}", whole=False)  # the bar at its foot would lie over a whole page
    page.close()


def take(page: Any, name: str, whole: bool = True) -> None:
    """One picture of the page, or of the part that is in view, once it has come to rest."""
    page.wait_for_timeout(1200)
    page.screenshot(path=FOLDER / f"{name}.png", full_page=whole)


if __name__ == "__main__":
    main()
