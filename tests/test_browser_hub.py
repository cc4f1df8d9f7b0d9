"""Beside a Hub on loopback, in a real Chromium: sign in, and read why something cannot be had.

The app runs as on a Space and signs people in through OAuth.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from phi3lora.runs.store import ACTIVE, RunStore
from phi3lora.settings import Settings
from tests.hub import LoopbackHub
from tests.test_browser import browser, open_page  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REPOSITORY = Path(__file__).parent.parent
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]


class Place(NamedTuple):
    """An app on a Space of ann's, and the Hub that it talks to."""

    address: str
    hub: LoopbackHub
    home: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Ann and bob, a public dataset, and what cannot be had."""
    with LoopbackHub() as hub:
        for name in ("ann", "bob"):
            hub.add_user(name, token=f"hf_{name}")
        rows = (REPOSITORY / "examples" / "pirate.jsonl").read_bytes().splitlines(keepends=True)
        data: dict[str, bytes | str] = {"train.jsonl": b"".join(rows[:64])}
        hub.add_repo("dataset", "bob/pirate-talk", data, downloads=7)
        hub.add_repo("dataset", "bob/secret", data, private=True)
        hub.add_repo("dataset", "bob/gate", data, gated=True)
        hub.add_repo("model", "bob/secret", {"README.md": "# Mine"}, private=True)
        hub.add_repo("model", "bob/gate", {"README.md": "# Ask"}, gated=True)
        hub.add_repo("model", "bob/words", {"README.md": "# No adapter"})
        home = tmp_path_factory.mktemp("space")
        with serving(hub, home) as address:
            yield Place(address, hub, home)
        assert hub.unknown == []


@contextmanager
def serving(hub: LoopbackHub, home: Path) -> Iterator[str]:
    """`python app.py` as a Space runs it; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**hub.space_env(home / "client"), "PHI3LORA_HOME": str(home / "app")}
    environment.pop("HF_HUB_OFFLINE", None)
    log = home / "app.log"
    with log.open("w") as file:
        app = subprocess.Popen(
            [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port)],
            cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_up(address, app, log)
        yield address
    finally:
        app.terminate()
        app.wait(30)
        for run in RunStore(Settings(home=home / "app")).all():
            if run.status in ACTIVE and run.state.pid:
                os.kill(run.state.pid, signal.SIGKILL)


def wait_until_up(address: str, app: subprocess.Popen[bytes], log: Path) -> None:
    """Return once it answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert app.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError("the app did not come up")


def ours(wrong: list[str]) -> list[str]:
    """What went wrong but for the bar that Gradio puts over every page of a Space."""
    bar = ("https://fonts.googleapis.com/", "https://huggingface.co/api/spaces/")
    return [
        line
        for line in wrong
        if not line.startswith(tuple(f"asked the outside: {at}" for at in bar))
    ]


def sign_in(page: Page, name: str) -> None:
    """Through the button, the Hub's page, and back."""
    page.wait_for_selector("#checks li")  # until then a click finds nobody listening
    page.click("#sign-in:has-text('Sign in')")
    page.wait_for_url("**/oauth/authorize*")
    page.click(f"button[name=user][value={name}]")
    page.wait_for_selector(f"#sign-in:has-text('Sign out, {name}')")


REFUSED = {
    "bob/secret": "There is no public model bob/secret: check the name. If it is private, sign in.",
    "bob/nothing": "There is no public model bob/nothing",
    "bob/gate": "bob/gate is gated: ask for access",
    "bob/words": "bob/words is no adapter",
}


def test_refusals_are_read_in_compare(place: Place, browser: Browser) -> None:  # noqa: F811
    page, wrong = open_page(browser, f"{place.address}/compare?adapter=bob/secret")
    for repo, words in REFUSED.items():
        page.goto(f"{place.address}/compare?adapter={repo}")
        page.wait_for_selector(f"#chat-status >> text={words}")
    for status, words in ((503, "The Hub is down (503)"), (429, "The Hub limits requests")):
        place.hub.fail("/api/models", status, retry_after=900 if status == 429 else None)
        page.goto(f"{place.address}/compare?adapter=bob/words")
        page.wait_for_selector(f"#chat-status >> text={words}")
        place.hub.heal()
    assert ours(wrong) == []


def test_refusals_are_read_where_data_is_picked(
    place: Place,
    browser: Browser,  # noqa: F811
) -> None:
    page, wrong = open_page(browser, place.address)
    sign_in(page, "ann")
    page.click("#source >> text=Hub")
    refused = {
        "bob/secret": "There is no dataset bob/secret that your account may read",
        "bob/gate": "bob/gate is gated: ask for access",
    }
    for dataset, words in refused.items():
        page.fill("#search textarea", dataset)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#data-summary >> text={words}")
    assert ours(wrong) == []
