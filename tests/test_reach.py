"""Everybody can use the pages: axe-core, the keyboard alone, small screens, other languages."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings
from phi3lora.ui.frame import head_of, missing_at
from phi3lora.ui.languages import LANGUAGES, language_of, words_of
from tests import stage
from tests.said import lacking, unsaid
from tests.said import said as collected
from tests.test_browser import (
    KEPT,
    LONG,
    anew,
    browser,  # noqa: F401 - a fixture
    open_every_fold,
    serving,
    stop,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

in_browser = [pytest.mark.browser, pytest.mark.slow]
# Where a page is there to be looked at.
THERE = {"": "#data-summary .conversation", "runs": "#run-head h1", "compare": ".chip"}
OTHERS = sorted(set(LANGUAGES) - {"en"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with a finished run; its address."""
    home = tmp_path_factory.mktemp("home")
    store = RunStore(Settings(home=home))
    for title in ("Pirate, rank 4", "Pirate"):
        stage.finished(store, title)
    with serving(home) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:  # noqa: F811
    with page_in(browser) as page:
        yield page


@contextmanager
def page_in(browser: Browser, **options: Any) -> Iterator[Page]:  # noqa: F811
    """A page that counts how much its layout shifts; with options in a profile of its own."""
    context = browser.new_context(**options) if options else anew(browser)
    page = context.new_page()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.set_default_timeout(LONG)
    page.add_init_script(SHIFTS)
    yield page
    if options:
        context.close()


SHIFTS = """
window.shifted = 0;
window.whatShifted = [];
new PerformanceObserver((list) => list.getEntries().forEach((entry) => {
  if (entry.hadRecentInput) return;
  window.shifted += entry.value;
  for (const { node, previousRect: was, currentRect: now } of entry.sources) {
    const name = node && (node.id || node.parentElement?.id || node.className);
    window.whatShifted.push([name, entry.value, [was.y, was.height], [now.y, now.height]]);
  }
})).observe({ type: "layout-shift", buffered: true });
"""


# Fields to type in, by the letters that they show.
SMALL = """() => [...document.querySelectorAll("input, textarea, select")]
  .filter((one) => one.offsetParent && !["radio", "checkbox", "range", "file"].includes(one.type))
  .filter((one) => parseFloat(getComputedStyle(one).fontSize) < 16)
  .map((one) => one.id || one.closest("[id]").id)"""
# Sentences of ours that are in English: four words of small letters in a row.
ENGLISH = """() => [...document.querySelectorAll("body *:not(script, style)")]
  .flatMap((one) => [...one.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE))
  .filter((node) => node.parentElement.checkVisibility())
  .filter((node) => !node.parentElement.closest(".said .prose, .turn h2, .chip, pre, code, td"))
  .filter((node) => !node.parentElement.closest("option"))
  .map((node) => node.data.trim()).filter((text) => /([a-z]+ ){3}[a-z]+/.test(text))"""
# English texts that have a translation and stand within what is shown.
WITHIN = """() => {
  const known = Object.entries(window.phi3loraWords)
    .filter(([from, to]) => from !== to && !from.includes("{") && from.split(" ").length > 2);
  return [...document.querySelectorAll("body *:not(script, style)")]
    .flatMap((one) => [...one.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE))
    .filter((node) => node.parentElement.checkVisibility())
    .filter((node) => node.parentElement.matches("pre span") || !node.parentElement.closest("pre"))
    .map((node) => node.data.trim())
    .filter((text) => known.some(([from]) => text.includes(from)));
}"""
# Words of ours that stand there as the code says them, though the language has its own.
UNSAID = """() => [...document.querySelectorAll("body *:not(script, style)")]
  .flatMap((one) => [...one.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE))
  .filter((node) => !node.parentElement.closest("#language, .said .prose, .turn h2, .chip, pre"))
  .map((node) => node.data.trim().replace(/\\s+/g, " "))
  .filter((text) => (window.phi3loraWords[text] || text) !== text)"""
# Folds that do not say whether they are open.
FOLDS = """() => [...document.querySelectorAll("button.label-wrap, .step-toggle")]
  .filter((one) => one.checkVisibility())
  .filter((one) => !["true", "false"].includes(one.getAttribute("aria-expanded")))
  .map((one) => one.textContent)"""
# What a finger has to hit, and is smaller than WCAG 2.2 asks for (2.5.8).
FINE = """() => [...document.querySelectorAll(
    "input:is([type=checkbox], [type=range], [type=number]), button, summary, header a")]
  .filter((one) => one.checkVisibility())
  .map((one) => [one.getBoundingClientRect(), one.outerHTML.slice(0, 120)])
  .filter(([box]) => box.width > 1 && (box.width < 24 || box.height < 24))
  .map(([box, what]) => `${box.width} x ${box.height}: ${what}`)"""
ROWS = b'{"prompt": "Hi", "completion": "Arr"}\n' * 8
ODD = "Kundenfrage,Antwort vom Support\n" + "Wie geht das?,So geht das.\n" * 8
MANY = [f'{{"prompt": "Hi {n}", "completion": "Arr {n}"}}\n' for n in range(5600)]
LENGTHY = ('{"prompt": "Hi", "completion": "' + "Arr, matey! " * 200 + '"}\n') * 8
DROP = """([name, text]) => {
  const files = new DataTransfer();
  files.items.add(new File([text], name));
  document.querySelector("#file .file-preview").dispatchEvent(new DragEvent(
    "drop", { bubbles: true, cancelable: true, dataTransfer: files }));
}"""


def go(page: Page, address: str, path: str) -> None:
    page.goto(f"{address}/{path}")
    page.wait_for_selector(THERE[path])
    if path == "":
        page.wait_for_selector("#checks :is(li, .passed)", state="attached")


# ------------------------------------------------------------------------------------- by axe


class TestInABrowser:
    pytestmark = in_browser

    @pytest.mark.parametrize("path", list(THERE))
    def test_axe_finds_nothing(self, place: str, page: Page, path: str) -> None:
        """Wide and narrow, light and dark, with every fold open."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        go(page, place, path)
        open_every_fold(page)
        found = []
        for scheme in ("light", "dark"):
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(300)  # colours fade into each other
                for violation in axe.run(page).response["violations"]:
                    nodes = [node["target"] for node in violation["nodes"]]
                    found.append((scheme, width, violation["id"], violation["impact"], nodes[:4]))
            page.set_viewport_size({"width": 1280, "height": 900})
            page.click("#scheme")
        assert found == []

    def test_axe_finds_nothing_in_what_a_click_opens(self, place: str, page: Page) -> None:
        """Tabs, menus, the dialog and ticked runs; a conversation of two turns."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        found = []

        def look(what: str) -> None:
            for violation in axe.run(page).response["violations"]:
                nodes = [node["target"] for node in violation["nodes"]]
                found.append((what, violation["id"], nodes[:4]))

        go(page, place, "runs")
        for what in ("#tab-evidence", "#tab-settings", "#tab-log", "#download-menu summary"):
            page.click(what)
            look(what)
        for box in page.query_selector_all("[data-tick]")[:2]:
            box.check()
        page.click("[name=several]")
        page.wait_for_selector("#several-table td")
        look("several")
        page.click("#publish")
        page.wait_for_selector("#publish-card[role=dialog]")
        look("publish")
        page.evaluate(KEPT)
        page.goto(f"{place}/compare?adapter=example:pirate")
        page.wait_for_selector("#past .turn")
        page.click(".share summary")
        look("share")
        page.click(".earlier summary")
        look("earlier")
        assert found == []

    @pytest.mark.parametrize("width", [1280, 390])
    def test_nothing_jumps_while_a_page_comes_up(
        self,
        place: str,
        browser: Browser,  # noqa: F811
        width: int,
    ) -> None:
        """For somebody who has fetched nothing yet."""
        shifted = {}
        with page_in(browser, viewport={"width": width, "height": 844}) as page:
            page.set_viewport_size({"width": width, "height": 844})
            for path in THERE:
                go(page, place, path)
                page.wait_for_timeout(500)
                shifted[path or "train"] = page.evaluate("window.shifted")
        assert max(shifted.values()) <= 0.1, shifted

    # ------------------------------------------------------------------------ the keyboard

    def test_from_the_address_bar_to_a_run_by_keyboard(self, place: str, page: Page) -> None:
        go(page, place, "")
        page.wait_for_selector("#launch:not([disabled])")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # skip to launch
        tabs = 1 + tab_to(page, "#launch", 19)
        page.keyboard.press("Enter")
        page.wait_for_url("**/runs?run=*")
        assert tabs <= 20
        stop(page)

    def test_to_an_answer_by_keyboard(self, place: str, page: Page) -> None:
        page.goto(f"{place}/compare?adapter=example:pirate")
        page.wait_for_selector("#about p")  # which comes last
        tab_to(page, "#message", 8)
        page.keyboard.type("Name the capital of France.")
        assert page.input_value("#message textarea") == "Name the capital of France."

    def test_radios_are_one_stop_and_arrows_choose(self, place: str, page: Page) -> None:
        go(page, place, "")
        page.focus("#example input:checked")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#data-summary .data-name >> text=orders")
        page.focus("#source input:checked")
        assert tab_to(page, "#example", 3) == 1

    def test_tokens_and_the_rule_of_thumb_are_there_for_who_asks(
        self, place: str, page: Page
    ) -> None:
        go(page, place, "")
        page.click("button.as >> text=as tokens")
        page.wait_for_selector(".tokens i.learnt >> text=Arr")
        page.click("[data-turn='1']")
        page.wait_for_selector(".tokens i >> text=Delhi")
        page.click("button.as >> text=as chat")
        page.wait_for_selector(".conversation pre:visible >> text=New Delhi")
        page.click("#numbers > button")
        page.click("#field-peft_config-r .rule summary")
        page.wait_for_selector("#field-peft_config-r .rule p >> text=16 for most")

    def test_a_file_that_cannot_be_read_leaves_the_good_one(self, place: str, page: Page) -> None:
        go(page, place, "")
        page.click("#source >> text=Your file")
        good = {"name": "good.jsonl", "mimeType": "", "buffer": ROWS}
        page.set_input_files("#file input[type=file]", [good])
        page.wait_for_selector("#data-summary .data-name >> text=good.jsonl")
        page.evaluate(DROP, ["notes.docx", "Ho"])
        page.wait_for_selector("#file-refused >> text=notes.docx is no kind of file")
        assert page.inner_text("#file .filename").split() == ["good", ".jsonl"]
        assert page.locator(".toast-wrap .toast-close").count() == 0
        page.evaluate(DROP, ["other.jsonl", "".join(MANY[:8])])
        page.wait_for_selector("#data-summary .data-name >> text=other.jsonl")
        page.wait_for_selector("#file-refused", state="hidden")

    def test_odd_files_are_mapped_counted_and_cut_in_words(self, place: str, page: Page) -> None:
        """Columns by lists with rows beside them; more rows than are read; one that is too long."""
        go(page, place, "")
        page.click("#source >> text=Your file")
        odd = {"name": "odd.csv", "mimeType": "", "buffer": ODD.encode()}
        page.set_input_files("#file input[type=file]", [odd])
        page.wait_for_selector("#data-summary .data-name >> text=odd.csv")
        page.wait_for_selector("#first-rows >> text=Wie geht das?")
        chosen = "([column, name]) => document.querySelector(column + ' input').value === name"
        page.wait_for_function(chosen, arg=["#question-column", "Kundenfrage"])
        page.wait_for_function(chosen, arg=["#answer-column", "Antwort vom Support"])
        page.wait_for_selector("#data-summary mark >> text=So geht das.")

        page.evaluate(DROP, ["many.jsonl", "".join(MANY)])
        page.wait_for_selector("#data-summary >> text=Counted in the first 5,000 of 5,600 rows")
        page.wait_for_selector(
            "#step-data-line:has-text('≥ 5,000 conversations')", state="attached"
        )

        page.evaluate(DROP, ["long.jsonl", LENGTHY])
        page.wait_for_selector("#data-summary .cut >> text=tokens are read")
        page.wait_for_selector("#data-summary >> text=8 conversations are cut at 256 tokens")
        width = "getComputedStyle(document.querySelector('.data-reading b')).borderTopWidth"
        assert page.evaluate(width) == "2px", "what turns while data is read is there to be seen"
        told = page.get_attribute(".bars [role=img]", "aria-label") or ""
        assert "8 are longer than the limit of 256 tokens." in told
        stripes = "getComputedStyle(document.querySelector('.bars i.over')).backgroundImage"
        assert "repeating-linear-gradient" in page.evaluate(stripes), "not by its colour alone"

    def test_a_base_that_cannot_be_read_leaves_the_data_calm(self, place: str, page: Page) -> None:
        go(page, place, "")
        page.fill("#field-model-path input", "/nowhere/phi")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.wait_for_selector("#data-summary >> text=once the base can be read")
        assert page.locator("#data-summary .notice.red").count() == 0
        page.wait_for_selector("#launch[disabled]")

    def test_a_recipe_of_the_guide_leaves_the_form_in_its_place(
        self, place: str, page: Page
    ) -> None:
        """What it translates is there for who asks; that it was changed is said."""
        go(page, place, "")
        page.click("#more > button")
        card = page.locator("#more-recipes label:has-text('finetune-qlora-python')")
        card.click()
        page.wait_for_selector("#step-model-line >> text=recipe sample-qlora-python")
        page.wait_for_selector("#recipe-notes summary >> text=8 older names translated")
        assert page.is_hidden("#recipe-notes >> text=is now quantization")
        box = page.locator("#recipe-notes").bounding_box()
        assert box is not None
        assert box["height"] < 120, "a line or two"
        page.click("#recipe-notes summary")
        page.wait_for_selector("#recipe-notes >> text=is now quantization")
        page.click("#numbers > button")
        page.fill("#field-peft_config-r input", "5")
        page.keyboard.press("Tab")
        page.wait_for_selector("#step-model-line >> text=recipe sample-qlora-python, changed")

    def test_a_message_is_over_with_the_next_action(self, place: str, page: Page) -> None:
        """It says what went wrong, stands once, and is gone after what follows."""
        go(page, place, "compare")
        page.focus("#message textarea")
        for _ in range(2):
            page.keyboard.press("Enter")
            page.wait_for_selector(".toast-body >> text=Type a question first.")
        assert page.locator(".toast-body").count() == 1
        assert page.inner_text(".toast-body strong") == "Not possible"
        assert page.is_hidden(".toast-title"), "which says Error of everything"
        page.click("#scheme")
        page.wait_for_selector(".toast-body", state="detached")

    def test_what_opens_has_the_focus_and_checks_are_spoken(self, place: str, page: Page) -> None:
        go(page, place, "")
        page.wait_for_selector("[role=status] >> text=pirate is ready to launch.", state="attached")
        place_of_data = page.locator("#step-data").bounding_box()
        page.click("#account")
        page.wait_for_function("document.activeElement.closest('#token')")
        page.wait_for_selector("#whoami .notice")
        assert page.locator("#step-data").bounding_box() == place_of_data, "it lies over the page"
        assert "Nobody is signed in" in page.inner_text("#whoami")

    def test_curves_and_verdict_are_told_without_colours(self, place: str, page: Page) -> None:
        go(page, place, "runs")
        page.click("#run-list >> text=finished >> nth=0")
        page.wait_for_selector("#loss-chart svg .curve >> nth=1")
        lines = "all => all.map((one) => one.getAttribute('stroke-dasharray'))"
        dashes = page.eval_on_selector_all("#loss-chart svg .curve path", lines)
        assert len(set(dashes)) == len(dashes) >= 2
        told = page.get_attribute("#loss-chart svg[role=img]", "aria-label") or ""
        assert "training: " in told
        assert "held out, mean of batches: " in told
        better = "[role=status] >> text=Better than its base on 40 held-out rows"
        page.wait_for_selector(better, state="attached")

    def test_a_list_closes_when_its_field_is_left(self, place: str, page: Page) -> None:
        go(page, place, "")
        page.focus("#field-model-path input")
        page.wait_for_selector("#step-model [role=option]")
        page.keyboard.press("Tab")
        page.wait_for_selector("[role=option] >> text=Phi-3-mini", state="detached")

    # ------------------------------------------------------------------------ what is wrong

    def test_a_wrong_number_is_marked_and_its_fold_leads_to_it(
        self, place: str, page: Page
    ) -> None:
        go(page, place, "")
        page.click("#numbers > button")
        page.fill("#field-peft_config-r input", "0,5")
        page.keyboard.press("Tab")
        page.wait_for_selector("#field-peft_config-r input[aria-invalid=true]")
        assert "decimal point" in page.inner_text("#field-peft_config-r .field-wrong")
        page.wait_for_selector("#launch[disabled]")
        page.click("#numbers > button")
        page.click("#step-amount .step-toggle")
        page.wait_for_selector("#step-amount.holds-wrong")
        page.click("#checks button:has-text('Go to Rank')")
        page.wait_for_function("document.activeElement.closest('#field-peft_config-r')")
        page.keyboard.press("Control+a")
        page.keyboard.type("8")
        page.keyboard.press("Tab")
        page.wait_for_selector("#launch:not([disabled])")
        page.wait_for_selector("#field-peft_config-r:not(.wrong)")

    def test_a_button_of_a_check_mends_it(self, place: str, page: Page) -> None:
        go(page, place, "")
        page.click("#numbers > button")
        page.fill("#field-training_config-max_length input", "20")
        page.keyboard.press("Tab")
        page.click("#checks button.fix:has-text('Raise to')")
        page.wait_for_function(
            "Number(document.querySelector('#field-training_config-max_length input').value) > 40"
        )
        page.wait_for_selector("#checks .fix", state="detached")

    def test_the_slider_writes_the_numbers_and_options_are_found(
        self, place: str, page: Page
    ) -> None:
        go(page, place, "")
        page.focus("#strength input[type=range]")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#step-amount-line >> text=firm · 8 epochs, rank 32")
        page.click("#options > button")
        page.fill("#option-search", "neftune")
        page.wait_for_selector("#field-training_config-neftune_noise_alpha:visible")
        page.wait_for_selector("#field-training_config-optim", state="hidden")
        page.fill("#option-search", "epochs")
        page.click("#option-elsewhere button:text-is('Epochs')")
        page.wait_for_function(
            "document.activeElement.closest('#field-training_config-num_train_epochs')"
        )

    def test_what_was_typed_is_there_after_another_page(self, place: str, page: Page) -> None:
        go(page, place, "")
        page.click("#numbers > button")
        page.fill("#field-training_config-num_train_epochs input", "7")
        page.keyboard.press("Tab")
        page.wait_for_selector("#step-amount-line >> text=7 epochs")
        go(page, place, "runs")
        go(page, place, "")
        page.wait_for_selector("#step-amount-line >> text=7 epochs")
        page.click("#source >> text=Your file")
        page.wait_for_selector("#data-summary >> text=No data is chosen")
        page.wait_for_function('phi3lora.kept().includes(\'"tab":"Your file"\')')
        page.reload()
        page.wait_for_selector("#panel-file", state="visible")

    # ------------------------------------------------------------------------ small screens

    def test_launch_never_leaves_a_phone(
        self,
        place: str,
        browser: Browser,  # noqa: F811
    ) -> None:
        with page_in(browser, has_touch=True, is_mobile=True) as page:
            self.on_a_phone(place, page)

    def on_a_phone(self, place: str, page: Page) -> None:
        page.set_viewport_size({"width": 390, "height": 844})
        go(page, place, "")
        assert page.evaluate(SMALL) == [], "a phone zooms in on letters under 16 px"
        for place_on_page in (0, 400, 100_000):
            page.evaluate("y => window.scrollTo(0, y)", place_on_page)
            box = page.locator("#launch").bounding_box()
            assert box is not None
            assert 0 <= box["y"] <= 844 - box["height"]
        page.wait_for_selector(".sheet-toggle .data-name >> text=pirate")
        page.click(".sheet-toggle")
        page.wait_for_selector("#field-title input:visible")
        page.keyboard.press("Escape")
        page.wait_for_selector("#field-title input", state="hidden")

    @pytest.mark.parametrize("path", list(THERE))
    def test_folds_say_whether_they_are_open_and_a_finger_hits_what_is_in_them(
        self,
        place: str,
        page: Page,
        path: str,
    ) -> None:
        page.set_viewport_size({"width": 390, "height": 844})
        go(page, place, path)
        open_every_fold(page)
        page.wait_for_function(f"({FOLDS})().length === 0")
        assert page.evaluate(FINE) == []

    # ------------------------------------------------------------------------ languages

    def test_the_browsers_language_and_another_that_is_chosen(
        self,
        place: str,
        browser: Browser,  # noqa: F811
    ) -> None:
        with page_in(browser, locale="fr-FR") as page:
            go(page, place, "")
            page.wait_for_selector(f"#step-data h2 >> text={words_of('fr')['Data']}")
            page.wait_for_selector(f"#launch >> text={words_of('fr')['Launch']}")
            page.wait_for_selector(f"#field-model-path >> text={words_of('fr')['Base model']}")
            assert page.evaluate("document.documentElement.lang") == "fr"
            assert "Name the capital of Ukraine." in page.inner_text(".conversation pre")
            assert "Choisissez des exemples" in page.inner_text(".intro")
            ready = words_of("fr")["{name} is ready to launch."].format(name="pirate")
            page.wait_for_selector(f"[role=status] >> text={ready}", state="attached")
            page.wait_for_function(f"({UNSAID})().length === 0")
            open_every_fold(page)
            page.fill("#field-peft_config-r input", "0")
            page.keyboard.press("Tab")
            page.wait_for_selector(".field-wrong >> text=de 1 à 1024 attendu, reçu 0.")
            assert page.evaluate(WITHIN) == []
            page.fill("#field-peft_config-r input", "16")
            page.keyboard.press("Tab")
            page.wait_for_selector("#launch:not([disabled])")
            page.select_option("#language", "ja")
            page.wait_for_selector(f"#step-data h2 >> text={words_of('ja')['Data']}")
            said = words_of("ja")
            page.wait_for_selector(f"#checks .passed >> text={said['Adapter']}", state="attached")
            go(page, place, "runs")
            assert page.evaluate("document.documentElement.lang") == "ja"
            # Another of this name was launched here; it may have finished, too, and is newer.
            page.click("#run-list a:has(b:text-is('Pirate')) >> nth=-1")
            page.wait_for_selector(f"#run-head >> text={said['finished']}")
            page.wait_for_selector(f".verdict >> text={said['Better than its base']}")
            assert page.inner_text("#run-head h1") == "Pirate"
            page.click("#tab-evidence")
            page.wait_for_selector(f"#report td >> text={said['better']}")
            page.wait_for_function(f"({UNSAID})().length === 0")
            go(page, place, "compare")
            assert page.evaluate(ENGLISH) == []
            page.wait_for_function(f"({UNSAID})().length === 0")


def tab_to(page: Page, selector: str, most: int) -> int:
    """Press Tab until the focus is within `selector`; how often that was."""
    within = "selector => !!document.activeElement.closest(selector)"
    for count in range(most + 1):
        if page.evaluate(within, selector):
            return count
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is further than {most} Tabs")


# --------------------------------------------------------------------------- without a browser


@pytest.mark.parametrize("language", OTHERS)
def test_every_language_has_every_word(language: str) -> None:
    """What that is, `python -m tests.said` says with the place: fill it in there."""
    words = words_of(language)
    assert list(words) == list(words_of(OTHERS[0]))
    assert (lacking(language), unsaid(language)) == ([], [])
    for text, said in words.items():
        assert said.strip(), text
        for kept in (r"\{\w+\}", r"`[^`]+`"):  # names in braces, and code
            assert set(re.findall(kept, text)) == set(re.findall(kept, said)), text


def test_texts_are_collected_from_the_code() -> None:
    found = collected()
    for text, place in (
        ("Tell me when it ends", "ui/runs_show.py"),  # a button in HTML
        ("Put {} beside others", "ui/runs_list.py"),  # spoken alone, with something filled in
        ("{} blind votes", "ui/turns.py"),  # of a number
        ("The link is copied.", "ui/compare.js"),
        ("Raise the length limit to {}, if memory allows.", "training/preflight.py"),
        ("Run {} is not over; stop it first, then delete it.", "runs/bin.py"),
        ("no assistant answer", "data/conversation.py"),
        ("expected at least {}, got {}.", "problems.py"),
        ("The notebook Phi-3-finetune-lora-python.", "recipes/sample-lora-python.yaml"),
    ):
        assert found[text].startswith(place), text
    code = ("Handler", "text/html", "window.", "elem", "=>")
    assert [text for text in found if text.startswith(code)] == []


@pytest.mark.parametrize(
    ("cookie", "accept", "language"),
    [
        ("", "", "en"),
        ("", "fr-CH, fr;q=0.9, en;q=0.8", "fr"),
        ("", "de, hu;q=0.7, en;q=0.9", "en"),
        ("", "zh-Hant-MO", "zh-MO"),
        ("", "zh-CN,zh;q=0.9", "en"),
        ("", "it;q=x", "en"),
        ("a=b; phi3lora-language=ja", "fr", "ja"),
        ("phi3lora-language=../../etc", "fr", "fr"),
        ('phi3lora-language="', "hu", "hu"),
    ],
)
def test_a_language_is_chosen_or_the_browsers(cookie: str, accept: str, language: str) -> None:
    assert language_of(cookie, accept) == language


THEIRS = b"""<html><head><meta property="og:title" content="Gradio" />
<meta
  property="og:image"
  content="https://raw.githubusercontent.com/gradio-app/gradio/main/x.png" />
<meta name="twitter:description" content="Click to try out the app!" /></head>
<script>gradio_config = {"version":"6","title":"phi3lora","space_id":null};</script></html>"""


def test_a_page_has_its_own_name_and_nothing_of_gradios() -> None:
    runs = head_of(THEIRS, "/runs/").decode()
    assert runs.count("<title>") == 1
    assert "<title>Runs · phi3lora</title>" in runs
    assert "Gradio" not in runs
    assert "Click to try" not in runs
    own = head_of(THEIRS.replace(b'"phi3lora"', b'"ann/pirate"'), "/").decode()
    assert "<title>ann/pirate</title>" in own
    assert "phi3loraWords" in head_of(THEIRS, "/", "hu").decode()
    assert b'href="./../../runs"' in missing_at("/a/b/c")
    french = missing_at("/nothing", "fr").decode()
    assert '<html lang="fr">' in french
    assert words_of("fr")["There is no such page"] in french
    assert (
        f"<title>{words_of('fr')['Runs']} · phi3lora</title>"
        in head_of(THEIRS, "/runs", "fr").decode()
    )


@pytest.mark.browser
@pytest.mark.slow
def test_an_address_that_leads_nowhere_says_so(place: str) -> None:
    request = urllib.request.Request(f"{place}/nothing/here", headers={"accept": "text/html"})
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(request, timeout=30)
    assert missing.value.code == 404
    assert "There is no such page" in missing.value.read().decode()
