"""The whole way beside a Hub on loopback, in a real Chromium: sign in, pick, train, publish, show.

The app runs as on a Space and signs people in through OAuth; a stranger without an account then
compares what was published.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from phi3lora.runs.store import RunState, RunStore, write_state
from phi3lora.settings import Settings
from tests.fake_training import kill_all
from tests.hub import LoopbackHub
from tests.published import make_run
from tests.serving import free_port, program
from tests.test_browser import (
    ask_both,
    browser,  # noqa: F401
    open_page,
    set_yaml,
    wait_for_status,
)
from tests.test_hub_space import ask, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REPOSITORY = Path(__file__).parent.parent
COMPARISON = "ann/by-ann-compare"
PARTS = """---
configs:
- config_name: plain
  data_files: a.jsonl
- config_name: more
  data_files:
  - split: train
    path: b.jsonl
  - split: test
    path: c.jsonl
---
# Two configurations, and one of them has a test split
"""
pytestmark = [pytest.mark.browser, pytest.mark.slow]


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
        parts = {"a.jsonl": rows[:32], "b.jsonl": rows[32:56], "c.jsonl": rows[56:72]}
        files: dict[str, bytes | str] = {name: b"".join(part) for name, part in parts.items()}
        hub.add_repo("dataset", "bob/parts", {"README.md": PARTS, **files}, downloads=5)
        hub.add_repo("dataset", "bob/secret", data, private=True)
        hub.add_repo("dataset", "bob/gate", data, gated=True)
        hub.add_repo("dataset", "ann/asked", data, gated=True)
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
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {**hub.space_env(home / "client"), "PHI3LORA_HOME": str(home / "app")}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port)]
    try:
        with program(command, address, home / "app.log", cwd=REPOSITORY, env=environment):
            yield address
    finally:
        kill_all(RunStore(Settings(home=home / "app")))


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
    page.wait_for_selector("#checks :is(li, .passed)")  # until then a click finds nobody listening
    page.click("#sign-in:has-text('Sign in')")
    page.wait_for_url("**/oauth/authorize*")
    page.click(f"button[name=user][value={name}]")
    page.wait_for_selector(f"#sign-in:has-text('Sign out, {name}')")


def test_the_whole_way(place: Place, browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    """As ann, whose account is free: sign in, train, publish, get a comparison Space, open it."""
    page, wrong = open_page(browser, place.address)
    page.wait_for_selector("#sign-in-to-launch")
    sign_in(page, "ann")
    pick_and_launch(page)
    wait_for_status(page, "finished")
    publish(page, place.hub)
    files = place.hub.files("model", "ann/by-ann")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "config.yaml"} <= set(
        files
    )
    assert b"Edited by ann." in files["README.md"]
    assert place.hub.repo("space", COMPARISON).space["hardware"] == "zero-a10g"
    assert b'launch("ann/by-ann")' in place.hub.files("space", COMPARISON)["app.py"]
    with running(place.hub, COMPARISON, tmp_path) as address:
        visitor, odd = open_page(browser, address, beside=True)
        base, tuned = ask(visitor, "Where is the treasure?")
    assert base.strip()
    assert tuned.strip()

    compare = f"{place.address}/compare?adapter=ann/by-ann"
    stranger, strange = open_page(browser, compare, beside=True)
    stranger.wait_for_selector("#sign-in:has-text('Sign in')")
    assert all(ask_both(stranger, "Where is the treasure?"))
    run_page = page.url
    stranger.goto(run_page)
    stranger.wait_for_selector("#run-head >> text=Sign in to see your runs")
    assert "By ann" not in stranger.inner_text("body")
    assert ours(wrong) == ours(strange) == ours(odd) == []


def test_a_search_without_a_match_and_a_dataset_that_has_to_be_asked_for(
    place: Place,
    browser: Browser,  # noqa: F811
) -> None:
    page, _ = open_page(browser, place.address)
    page.wait_for_selector("#checks .passed")
    page.click("#scheme")  # which the button that signs in may not cover
    page.click("#source >> text=Hub")
    page.focus("#search textarea")
    page.wait_for_selector("#search-note >> text=sign in with Hugging Face first")
    page.click("#source >> text=Example")
    sign_in(page, "bob")
    page.click("#source >> text=Hub")
    search_in_vain(page)
    ask_for_access(page, place.hub)
    take_another_configuration(page)


def pick_and_launch(page: Page) -> None:
    """Search, see it tinted, shape a short run, launch."""
    page.click("#source >> text=Hub")
    page.focus("#search textarea")  # nothing typed: suggestions
    page.wait_for_selector("#results >> text=HuggingFaceH4/ultrachat_200k")
    page.keyboard.type("pirat")  # and no Enter
    page.wait_for_selector("#results:not(:has-text('ultrachat'))")
    page.click("#results >> text=bob/pirate-talk · 7 downloads")
    page.wait_for_selector("#data-summary >> text=64 of 64")
    page.wait_for_selector("#results", state="hidden")
    search_after_a_pick(page)
    page.click("#field-model-path input")
    page.wait_for_selector("[role=option] >> text=Phi-3.5-mini-instruct")
    page.keyboard.press("Escape")
    assert "Arr" in page.inner_text(".conversation mark >> nth=0")
    set_yaml(
        page,
        max_steps="4",
        per_device_train_batch_size="2",
        logging_steps="1",
        rows="2",
        max_new_tokens="8",
    )
    page.wait_for_selector("#step-amount-line >> text=4 updates")
    page.fill("#field-title input", "By ann")
    page.wait_for_selector("#checks li.green >> text=ann", state="attached")
    page.click("#launch")
    page.wait_for_url("**/runs?run=*")


def search_after_a_pick(page: Page) -> None:
    """A search that is emptied or changed lists again, also for who comes back to it."""
    page.fill("#search textarea", "")
    page.wait_for_selector("#results >> text=HuggingFaceH4/ultrachat_200k")
    page.fill("#search textarea", "parts")
    page.wait_for_selector("#results:not(:has-text('ultrachat')) >> text=bob/parts")
    page.fill("#search textarea", "")
    page.wait_for_selector("#results >> text=HuggingFaceH4/ultrachat_200k")
    page.focus("#field-title input")
    page.focus("#search textarea")
    page.fill("#search textarea", "pirat")
    page.wait_for_selector("#results:not(:has-text('ultrachat')) >> text=bob/pirate-talk")
    assert page.inner_text("#data-summary .data-name") == "bob/pirate-talk", "none was picked"
    page.click("#results >> text=bob/pirate-talk · 7 downloads")
    page.wait_for_selector("#results", state="hidden")
    page.wait_for_function("document.querySelector('#search textarea').value.startsWith('bob/')")


def take_another_configuration(page: Page) -> None:
    """Its splits are offered, and the rows of the chosen one are shown."""
    page.fill("#search textarea", "bob/parts")
    page.keyboard.press("Enter")
    page.wait_for_selector("#data-summary >> text=32 of 32")
    choose(page, "#field-data-name", "more")
    page.wait_for_selector("#data-summary >> text=24 of 24")
    choose(page, "#field-data-split", "test")
    page.wait_for_selector("#data-summary >> text=16 of 16")


def choose(page: Page, field: str, name: str) -> None:
    """Open a list, and click what it offers under that name."""
    page.click(f"{field} input")
    page.click(f"{field} [role=option]:has-text('{name}')")


def search_in_vain(page: Page) -> None:
    """Words without a match say so at the field, while typing and after Enter; no toast."""
    page.focus("#search textarea")
    page.wait_for_selector("#results >> text=HuggingFaceH4/ultrachat_200k")
    page.keyboard.type("zzqqzz")
    page.wait_for_selector("#search-note >> text=No dataset on the Hub matches 'zzqqzz'")
    page.wait_for_selector("#results", state="hidden")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-note >> text=No dataset on the Hub matches 'zzqqzz'")
    assert page.locator(".toast-body").count() == 0


def ask_for_access(page: Page, hub: LoopbackHub) -> None:
    """A gated dataset leads to where access is asked for, and is read once that is given."""
    page.fill("#search textarea", "ann/asked")
    page.keyboard.press("Enter")
    page.wait_for_selector("#checks .red a[href$='/datasets/ann/asked']")
    page.wait_for_selector("#search-note .notice", state="hidden")
    hub.grant("dataset", "ann/asked", "bob")
    page.click("#checks .red button:text-is('Try again')")
    page.wait_for_selector("#data-summary >> text=64 of 64")


IN_VIEW = """of => {
  const box = document.querySelector(of).getBoundingClientRect();
  const frame = document.querySelector("#publish-card").getBoundingClientRect();
  return box.height > 0 && box.top < Math.min(frame.bottom, innerHeight) - 40;
}"""


def publish(page: Page, hub: LoopbackHub) -> None:
    """Name it, change the card, send it; then a Space that compares it."""
    page.click("#publish")
    page.wait_for_function("document.querySelector('#repo textarea, #repo input')?.value")
    assert page.input_value("#repo >> css=textarea, input") == "ann/by-ann"
    page.wait_for_function("document.activeElement.closest('#repo')")
    box = page.locator("#publish-card").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 900  # all of it is in view
    page.wait_for_selector("#card-preview >> text=Base against tuned")
    page.fill("#repo :is(textarea, input)", "bob/pocket-phi-3")
    page.keyboard.press("Tab")
    page.wait_for_selector("#may-not >> text=would belong to bob")
    page.wait_for_selector("#send:disabled")
    page.fill("#repo :is(textarea, input)", "ann/by-ann")
    page.keyboard.press("Tab")
    page.wait_for_selector("#send:not([disabled])")
    page.click("#edit-card label")
    page.wait_for_selector("#card textarea")
    card = page.input_value("#card textarea")
    assert "bob/pirate-talk" in card
    page.fill("#card textarea", card + "\nEdited by ann.\n")
    hub.fail("/api/repos/create", 402, message="Pay first.")
    page.click("#send")
    page.wait_for_selector("#published .notice.red >> text=Pay first.")
    assert page.inner_text("#published").count("Writing the card") == 0  # nothing goes on
    hub.heal()
    page.click("#send")
    page.wait_for_selector("#published >> text=Published as ann/by-ann")
    assert "PeftModel.from_pretrained" in page.inner_text("#published .snippet")
    page.wait_for_function(IN_VIEW, arg="#published")
    assert page.get_attribute("#published .quiet-button", "href") == "compare?adapter=ann/by-ann"
    page.wait_for_selector("#allowance >> text=ann has a free account: it may host 2 Gradio Spaces")
    page.fill("#repo :is(textarea, input)", "bob/pocket-phi-3")  # it is ann's that is deployed
    page.click("#deploy")
    page.wait_for_selector(f"#deployed >> text={COMPARISON}")
    page.keyboard.press("Escape")
    page.wait_for_selector("#publish-card", state="hidden")


RUN = "20261121-093000-4f1a2b"


def test_who_signs_out_while_publishing_finds_it_whole_and_may_publish_again(
    place: Place,
    browser: Browser,  # noqa: F811
) -> None:
    """What was asked for while signed in is done; afterwards nobody is asked twice."""
    folder = make_run(place.home / "app" / "runs" / RUN)
    write_state(folder, RunState(id=RUN, owner="ann", title="Left early", status="finished"))
    page, wrong = open_page(browser, place.address)
    sign_in(page, "ann")
    page.goto(f"{place.address}/runs?run={RUN}")
    open_publish(page)
    with place.hub.held("/commit/") as rule:
        page.click("#send")
        assert rule.waiting.wait(120)
        assert set(place.hub.files("model", REPO)) == {".gitattributes"}  # the Hub's own
        page.click("#sign-in:has-text('Sign out')")
        page.wait_for_selector("#sign-in:has-text('Sign in')")
        page.goto(f"{place.address}/runs?run={RUN}")
        page.wait_for_selector("#run-head >> text=Sign in to see your runs")
        assert not page.is_visible("#publish")
    while len(place.hub.commits("model", REPO)) < 2:
        page.wait_for_timeout(200)
    first = place.hub.files("model", REPO)
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(first)
    page.goto(place.address)
    sign_in(page, "ann")
    page.goto(f"{place.address}/runs?run={RUN}")
    open_publish(page)
    page.click("#send")
    page.wait_for_selector(f"#published >> text=Published as {REPO}")
    assert set(place.hub.files("model", REPO)) == set(first)
    assert ours(wrong) == []


REPO = "ann/left-early"


def open_publish(page: Page) -> None:
    """The dialog, once it offers to send."""
    page.wait_for_selector(f"#run-head .run-title[data-run='{RUN}']")
    page.click("#publish")
    page.wait_for_selector("#card-preview >> text=Base against tuned")
    page.wait_for_selector("#send:not([disabled])")


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
