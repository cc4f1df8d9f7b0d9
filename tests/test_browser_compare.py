"""Compare in a real Chromium over a base whose answers never end: Stop, leaving, another answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from phi3lora.data.rendering import stop_tokens
from phi3lora.models import pocket
from tests.test_browser import browser, open_page, walked  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ANSWERING, RESTING = "#message .stop-button", "#now [data-do=again]"
LENGTHS = "() => [...document.querySelectorAll('#now .said')].map(said => said.dataset.raw.length)"
GROWN = f"least => ({LENGTHS})().every(length => length > least)"
CHOSEN = "name => document.querySelector('#adapter input').value.includes(name)"


class Place(NamedTuple):
    """An app, an adapter without an end, and a page that serves all tests."""

    address: str
    adapter: Path
    page: Page

    def open(self, page: Page | None = None, **settings: object) -> Page:
        """The page of the adapter, with nothing said."""
        page = page or self.page
        query = urlencode({"adapter": self.adapter, "max_new_tokens": 2048, **settings})
        page.goto("about:blank")
        page.goto(f"{self.address}/compare?{query}")
        page.wait_for_selector("#about p")
        if page.locator("#now .turn").count():
            page.click("#clear")
            page.wait_for_selector("#now .turn", state="detached")
        return page


@pytest.fixture(scope="module")
def place(
    browser: Browser,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("home")
    adapter = without_end(home)
    with walked(browser, home, "compare") as (address, page):
        yield Place(address, adapter, page)


def without_end(home: Path) -> Path:
    """The pocket pirate on a base that never likes a stop token best."""
    base, adapter = home / "endless", home / "endless-pirate"
    shutil.copytree(pocket.CHECKPOINT, base)
    weights = load_file(base / "model.safetensors")
    stops = stop_tokens(AutoTokenizer.from_pretrained(base))
    weights["lm_head.weight"][torch.tensor(stops)] = 0
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    shutil.copytree(pocket.PIRATE, adapter, ignore=shutil.ignore_patterns("*.yaml", "report.json"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter


def begin(page: Page, question: str) -> None:
    """Ask something that has no end, and return once the page offers Stop."""
    page.fill("#message textarea", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#now h2:text-is('{question}')")
    page.wait_for_selector(ANSWERING)


def ask(page: Page, question: str) -> None:
    """Ask, and wait for both answers."""
    page.fill("#message textarea", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#now h2:text-is('{question}')")
    page.wait_for_selector(RESTING)


def facts(page: Page) -> list[str]:
    return page.locator("#now .answer-facts span:first-child").all_inner_texts()


def test_stop_cuts_both_answers_of_this_tab_alone(place: Place, browser: Browser) -> None:  # noqa: F811
    page = place.open()
    other, wrong = open_page(browser, f"{place.address}/compare", beside=True)
    place.open(other, max_new_tokens=200)
    begin(other, "Who are you?")
    begin(page, "Tell me a story.")
    page.wait_for_function(GROWN, arg=20)
    page.dblclick(ANSWERING)
    page.wait_for_selector(RESTING)
    assert all("tokens, cut" in said for said in facts(page))
    assert all(int(said.split()[0].replace(",", "")) < 1900 for said in facts(page))
    other.wait_for_selector(RESTING)
    assert all("200 tokens, cut" in said for said in facts(other))  # to its own limit
    begin(other, "And now?")
    other.close()  # in the middle of its answer

    begin(page, "And another?")
    page.click(ANSWERING)  # most likely before the first token
    page.wait_for_selector(RESTING)
    assert all("cut" in said or "Stopped before" in said for said in facts(page))
    page.click("#settings > button")
    page.fill("#max-new-tokens input[type=number]", "16")
    page.keyboard.press("Tab")
    ask(page, "And a short one?")
    assert all("16 tokens, cut" in said for said in facts(page))
    assert page.locator("#past .turn").count() == 2
    assert wrong == []


def test_a_new_conversation_ends_the_answer_and_what_was_said_comes_back(place: Place) -> None:
    page = place.open()
    begin(page, "First?")
    page.click(ANSWERING)
    page.wait_for_selector(RESTING)
    begin(page, "Second?")
    page.wait_for_function(GROWN, arg=20)
    page.click("#clear")
    page.wait_for_selector(".turn", state="detached")
    page.wait_for_selector("#message .submit-button")  # and nothing of the answer comes later
    page.click("#undo-talk button")
    page.wait_for_selector("#now h2:text-is('First?')")
    assert page.locator(".turn").count() == 1


def test_another_adapter_takes_no_conversation_away(place: Place) -> None:
    page = place.open(max_new_tokens=16)
    ask(page, "Is this kept?")
    page.click("#adapter input")
    page.click("[role=option]:has-text('Pocket pirate')")
    page.wait_for_function(CHOSEN, arg="Pocket pirate")
    page.wait_for_selector("#undo-talk >> text=A new conversation, about what you chose.")
    page.wait_for_selector("#now .turn.demo")  # what was kept with the other adapter
    assert not page.is_visible("#votes")
    page.click("#undo-talk button")
    page.wait_for_selector("#now h2:text-is('Is this kept?')")
    page.wait_for_function(CHOSEN, arg="endless")
    page.focus("#adapter input")
    page.keyboard.press("Tab")  # a list that is left tells of a choice, and none was made
    ask(page, "And it goes on?")
    assert page.locator("#past .turn").count() == 1


def test_another_answer_at_a_temperature_is_another_one(place: Place) -> None:
    page = place.open(max_new_tokens=24, temperature=1.5)
    ask(page, "Say something.")
    said = "() => document.querySelector('#now .said.right').dataset.raw"
    answers = [page.evaluate(said)]
    for number in (2, 3):
        page.click("#now .right [data-do=again]")
        page.wait_for_selector(f"#now .right .tools >> text={number}/{number}")
        answers.append(page.evaluate(said))
    assert len(set(answers)) == 3
    assert "seed 2" in facts(page)[1]
    page.click("#now .right [data-do=before]")
    page.wait_for_selector("#now .right .tools >> text=2/3")
    assert page.evaluate(said) == answers[1]


def test_a_set_of_prompts_is_stopped_in_the_middle(place: Place) -> None:
    page = place.open()
    page.click("#prompt-set > button")
    page.fill("#set-prompts textarea", "One?\nTwo?")
    page.click("#set-ask")
    page.click("#set-stop:not([disabled])")
    page.wait_for_selector("#set-progress >> text=/Stopped after [01] of 2/")
    page.click("#prompt-set > button")


def test_an_address_sets_no_field_beyond_its_range(place: Place) -> None:
    page = place.open(repetition_penalty=100, max_new_tokens=16)
    ask(page, "Is this answered?")
    assert page.locator("#now .said").count() == 2
