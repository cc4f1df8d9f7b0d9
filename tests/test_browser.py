"""The whole way in a real Chromium: data, launch, watch, reload, stop, resume, compare."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from phi3lora.events import Step, read_events
from phi3lora.runs.store import Run, RunStore, open_run
from phi3lora.settings import Settings
from tests.fake_training import kill_all, pid_of
from tests.serving import PATIENCE, free_port, program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

REPOSITORY = Path(__file__).parent.parent
LONG = PATIENCE * 1000  # ms
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the app keeps its runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def app(home: Path) -> Iterator[str]:
    """`python app.py` with a home of its own; its address."""
    with serving(home) as address:
        yield address


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """An app for the length of a `with` block; its address."""
    port = free_port()
    address, environment = f"http://127.0.0.1:{port}", {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment["PHI3LORA_HOME"] = str(home)
    command = [sys.executable, "app.py", "--port", str(port)]
    try:
        with program(command, address, home / "app.log", cwd=REPOSITORY, env=environment):
            yield address
    finally:
        kill_all(RunStore(Settings(home=home)))  # runs outlive the app


@contextmanager
def walked(browser: Browser, home: Path, path: str = "") -> Iterator[tuple[str, Page]]:
    """An app for a whole file, and a page of it, on which nothing goes wrong."""
    with serving(home) as address:
        page, wrong = open_page(browser, f"{address}/{path}")
        yield address, page
        assert wrong == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; skips where there is none."""
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


def find_chromium() -> str | None:
    """The browser's program, wherever a system puts it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def open_page(
    browser: Browser, address: str, width: int = 1280, *, beside: bool = False
) -> tuple[Page, list[str]]:
    """A page in a profile that remembers nothing, and a list of what goes wrong on it.

    Args:
        beside: in another profile, for somebody else; without it the pages before are closed.
    """
    context = browser.new_context() if beside else anew(browser)
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.set_default_timeout(LONG)
    wrong: list[str] = []

    def check(url: str) -> None:
        if not re.match(r"https?://127\.0\.0\.1|data:|blob:", url):
            wrong.append(f"asked the outside: {url}")

    page.on("request", lambda request: check(request.url))
    page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    page.goto(address)
    return page, wrong


def anew(browser: Browser) -> BrowserContext:
    """The browser's first profile, with nothing in it but the scripts that it has fetched.

    A page costs half as much in it as in a new one.
    """
    if not browser.contexts:
        return browser.new_context()
    context, *others = browser.contexts
    for other in others:
        other.close()
    pages = context.pages
    origins = {"/".join(page.url.split("/")[:3]) for page in pages if page.url.startswith("http")}
    for page in pages:
        page.close()  # it may remember something to its end
    session = context.new_cdp_session(context.new_page())
    for origin in origins:
        session.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
    context.clear_cookies()
    context.clear_permissions()
    return context


@pytest.fixture
def dropped(tmp_path: Path) -> Path:
    """A small file of the pirate's conversations."""
    rows = (REPOSITORY / "examples" / "pirate.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "arr.jsonl"
    file.write_text("\n".join(rows[:96]), encoding="utf-8")
    return file


SIDES = ("left", "right")
STEP = """least => {
  const head = document.querySelector('#run-head');
  const found = head && head.innerText.match(/step ([0-9,]+) of/);
  const step = found && Number(found[1].replace(',', ''));
  return step >= least ? step : null;
}"""


def wait_for_step(page: Page, least: int) -> int:
    """The step that the progress bar says, once it is at least that."""
    return int(page.wait_for_function(STEP, arg=least).json_value())


def wait_for_status(page: Page, status: str) -> None:
    page.wait_for_selector(f"#run-head .run-title .badge:text-is('{status}')")


def set_yaml(page: Page, **values: str) -> None:
    """Change lines of the configuration that the page shows, and use it."""
    if not page.is_visible("#yaml textarea"):
        page.click("#as-yaml > button")
    text = page.input_value("#yaml textarea")
    for name, value in values.items():
        # The first that has a value: `rows` of the evaluation, not those of the data.
        text, count = re.subn(rf"(?m)^(\s+{name}: )(?!null$).*$", rf"\g<1>{value}", text, count=1)
        assert count == 1, f"{name} is not in the configuration"
    page.fill("#yaml textarea", text)
    page.click("text=Use this configuration")


def drop_and_launch(page: Page, file: Path) -> None:
    """The Train page: drop a file, see it tinted, shape the run, launch."""
    page.click("#source >> text=Your file")
    page.set_input_files("#file input[type=file]", file)
    page.wait_for_selector("#data-summary >> text=96 of 96")
    assert "Arr" in page.inner_text(".conversation mark >> nth=0")
    assert "<|user|>" in page.inner_text(".conversation >> nth=0")
    # The data is shown before its checks, and until then the form may still be filled.
    page.wait_for_selector(f"#checks:has(.passed):has-text('Trains on {file.stem}')")
    page.click("#as-yaml > button")
    named = "name => document.querySelector('#yaml textarea').value.includes(name)"
    page.wait_for_selector("#yaml textarea")
    page.wait_for_function(named, arg=file.name)
    set_yaml(
        page,
        max_steps="60",
        per_device_train_batch_size="2",
        logging_steps="1",
        rows="8",
        max_new_tokens="24",
    )
    page.wait_for_selector("#step-amount-line >> text=60 updates")
    page.fill("#field-title input", "By browser")
    page.click("#launch")
    page.wait_for_url("**/runs?run=*")


class held:
    """A run's worker stands still, but for the steps that it is let do."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> held:
        return self

    def __exit__(self, *_: Any) -> None:
        os.kill(pid_of(self._run), signal.SIGCONT)

    def go_on_to(self, least: int) -> None:
        """Let it work until it has told of this step."""
        if self._step():
            os.kill(pid_of(self._run), signal.SIGCONT)
        deadline = time.monotonic() + PATIENCE
        while self._step() < least:
            assert time.monotonic() < deadline, "the run does not go on"
            time.sleep(0.01)
        os.kill(pid_of(self._run), signal.SIGSTOP)

    def _step(self) -> int:
        events, _ = read_events(self._run.folder / "events.jsonl")
        return max((event.step for event in events if isinstance(event, Step)), default=0)


def stop(page: Page) -> None:
    """Stop the run that the page shows, or take it out of the queue; the app has heard of it."""
    page.click("#stop, #cancel")
    goes_on = ("queued", "running")
    page.wait_for_selector(".run-title" + "".join(f":not([data-status={s}])" for s in goes_on))


def open_every_fold(page: Page) -> None:
    """Folds within folds appear when theirs opens."""
    for _ in range(3):
        for fold in page.query_selector_all("button.label-wrap:not(.open)"):
            if fold.is_visible():
                fold.click()


def test_open_every_fold_then_launch(app: str, browser: Browser) -> None:
    page, wrong = open_page(browser, app)
    page.wait_for_selector("#checks .passed")
    open_every_fold(page)
    page.wait_for_selector("#field-training_config-neftune_noise_alpha input")
    rows = "#field-data-max_rows"
    page.wait_for_selector(f"{rows} textarea, {rows} input")
    assert page.input_value(f"{rows} textarea, {rows} input") == ""
    page.fill("#field-training_config-num_train_epochs input", "0.1")
    page.fill("#field-title input", "Folds open")
    page.click("#launch")
    page.wait_for_url("**/runs?run=*")
    page.wait_for_selector("#run-head >> text=Folds open")
    stop(page)
    assert wrong == []


def test_switch_tabs_then_launch(app: str, browser: Browser, dropped: Path) -> None:
    page, wrong = open_page(browser, app)
    page.click("#source >> text=Your file")
    page.wait_for_selector("#data-summary >> text=No data is chosen")
    page.set_input_files("#file input[type=file]", dropped)
    page.wait_for_selector("#data-summary .data-name >> text=arr.jsonl")
    page.click("#source >> text=Example")
    page.wait_for_selector("#data-summary .data-name >> text=pirate")
    page.click("#source >> text=Your file")
    page.wait_for_selector("#checks .trains-on >> text=arr.jsonl")
    page.wait_for_selector("#checks .passed")
    page.fill("#field-title input", "Tabs switched")
    page.click("#launch")
    page.wait_for_url("**/runs?run=*")
    page.wait_for_selector("#run-head .sub >> text=arr.jsonl")
    stop(page)
    assert wrong == []


def test_of_quick_choices_the_last_one_counts(app: str, browser: Browser) -> None:
    """Each is chosen while the one before is still on its way."""
    page, wrong = open_page(browser, app)
    page.wait_for_selector("#data-summary .conversation")
    page.evaluate(QUICK, ["Your file", "Hub", "Your file", "Hub"])
    page.wait_for_selector("#panel-hub", state="visible")
    page.wait_for_selector("#data-summary >> text=No data is chosen")
    page.wait_for_selector("#panel-file", state="hidden")
    page.evaluate(QUICK, ["Your file", "Example"])
    page.wait_for_selector("#data-summary .conversation")
    page.wait_for_selector("#panel-example", state="visible")
    page.wait_for_selector("#panel-file", state="hidden")
    assert wrong == []


QUICK = """names => {
  const labels = [...document.querySelectorAll('#source label')];
  for (const name of names) labels.find((one) => one.innerText.trim() === name).click();
}"""


def test_the_whole_way(app: str, home: Path, browser: Browser, dropped: Path) -> None:
    page, wrong = open_page(browser, app)
    drop_and_launch(page, dropped)

    run = open_run(home / "runs" / page.url.partition("run=")[2])
    with held(run) as worker:  # a run of a second would be over before a page is looked at
        worker.go_on_to(3)
        first = wait_for_step(page, 3)
        page.wait_for_selector("#loss-chart svg .curve")
        worker.go_on_to(first + 2)
        assert wait_for_step(page, first + 2) > first

        page.reload()
        assert wait_for_step(page, first) >= first
        other, other_wrong = open_page(browser, page.url, beside=True)
        other.wait_for_selector("#run-head >> text=By browser")

        page.click("#stop")
        wait_for_status(page, "stopping")
    wait_for_status(page, "stopped")
    wait_for_status(other, "stopped")
    assert wait_for_step(other, first) >= first

    other.click("#resume")
    wait_for_status(page, "finished")
    page.click("#tab-evidence")
    page.wait_for_selector("#report >> text=held-out rows")
    wait_for_status(other, "finished")

    page.click("#to-compare")
    compare(page)
    assert wrong == other_wrong == []


def ask_both(page: Page, question: str) -> tuple[str, str]:
    """Ask on the Compare page; what stands left and right once both have ended."""
    place = page.locator("#past .turn, #now .turn:not(.demo)").count()  # asked twice, the same too
    page.fill("#message textarea", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#now .turn:not(.demo)[data-place='{place}'] h2:text-is('{question}')")
    page.wait_for_selector("#now [data-do=again]")
    left, right = (page.inner_text(f"#now .said.{side} .prose") for side in SIDES)
    return left.strip(), right.strip()


def compare(page: Page) -> None:
    """The Compare page: it shows an answer at once; ask; then blind, and vote; share; come back."""
    page.wait_for_url("**/compare?adapter=*")
    page.wait_for_selector("#now .turn.demo >> text=Kept with the run")
    base, tuned = ask_both(page, "Name the capital of France.")
    assert base
    assert tuned
    assert base != tuned
    box = page.locator("#message textarea").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 900  # the question's field is in view

    page.click("#blind label")
    ask_both(page, "Name the color of a cherry.")
    assert page.inner_text("#now .said.left h3").strip().lower() == "answer a"
    assert page.locator("#past .turn").count() == 1  # nothing was wiped
    page.click("#vote-left")
    page.wait_for_selector("#tally >> text=1 blind vote")
    page.wait_for_selector("#now .turn.revealed")
    names = {page.inner_text(f"#now .said.{side} h3").split()[0].lower() for side in SIDES}
    assert names == {"base", "tuned"}

    ask_both(page, "Name the color of a cherry.")  # another round: hidden, and by itself
    assert page.inner_text("#now .said.left h3").strip().lower() == "answer a"
    page.click("#vote-right")
    page.wait_for_selector("#tally >> text=2 blind votes")

    page.click("#now [data-do=again] >> nth=0")
    page.wait_for_selector("#now .tools >> text=2/2")
    page.reload()  # and all of it is still there
    page.wait_for_selector("#now .tools >> text=2/2")
    page.click("#clear")
    page.wait_for_selector("#now .turn", state="detached")
    page.click("#undo-talk button")
    page.wait_for_selector("#now h2 >> text=cherry")
    with page.expect_download() as made:
        page.click(".share summary")
        page.click("[data-share=jsonl]")
    rows = [json.loads(line) for line in Path(made.value.path()).read_text().splitlines()]
    assert [row["prompt"] for row in rows][-1] == "Name the color of a cherry."
    assert set(rows[0]) == {"prompt", "base", "tuned"}
    with page.expect_download() as made:
        page.click(".share summary")
        page.click("[data-share=image]")
    assert Path(made.value.path()).read_bytes().startswith(b"\x89PNG")


def test_a_link_asks_its_question(app: str, browser: Browser) -> None:
    asked = "adapter=example%3Apirate&q=Who+is+%24%7B1%2B1%7D+%7B%7Bvalue%7D%7D%3F&seed=3"
    page, wrong = open_page(browser, f"{app}/compare?{asked}")
    page.wait_for_selector("#now .turn:not(.demo) h2:text-is('Who is ${1+1} {{value}}?')")
    page.wait_for_selector("#now [data-do=again]")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(".share summary")
    page.click("[data-share=link]")
    page.wait_for_selector(".shared >> text=copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == f"{app}/compare?{asked}"
    assert wrong == []


KEPT = """() => {
  const said = (text) => [{text, tokens: 3}];
  const turn = {question: "Where?", base: said("**Kyiv**"), tuned: said("```\\n<b>1</b>\\n```")};
  const talk = {id: "own", adapter: "example:pirate", turns: [turn, turn]};
  const kept = JSON.parse(localStorage.getItem("phi3lora-talks") || "[]");
  localStorage.setItem("phi3lora-talks", JSON.stringify([JSON.stringify(talk), ...kept]));
}"""


def test_a_conversation_is_edited_and_found_again(app: str, browser: Browser) -> None:
    page, wrong = open_page(browser, f"{app}/compare?adapter=example%3Apirate&q=Who+are+you%3F")
    page.set_viewport_size({"width": 1366, "height": 720})
    page.wait_for_selector("#now h2:text-is('Who are you?')")
    page.wait_for_selector("#now [data-do=edit]")
    page.click("#now [data-do=edit]")
    page.wait_for_function("document.querySelector('#message textarea').value === 'Who are you?'")
    page.wait_for_selector("#now .turn", state="detached")
    ask_both(page, "Who is she?")
    assert page.locator(".turn").count() == 1
    ask_both(page, "Name the color of a cherry.")
    page.wait_for_function("!location.search.includes('q=')")  # a reload asks nothing again
    page.reload()
    page.wait_for_selector("#past h2:text-is('Who is she?')")
    box = page.locator("#message textarea").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 720
    page.evaluate(KEPT)
    page.reload()  # what was said is read as Markdown, and never as HTML
    page.wait_for_selector("#now .said.left .prose strong:text-is('Kyiv')")
    assert page.inner_text("#now .said.right .prose pre code").strip() == "<b>1</b>"
    page.click("#clear")
    page.wait_for_selector("#now .turn", state="detached")
    page.click(".earlier summary")
    page.click(".earlier [data-talk]:text-is('Who is she?')")
    page.wait_for_selector("#now h2:text-is('Name the color of a cherry.')")
    assert wrong == []


def test_a_set_of_prompts_becomes_a_table(app: str, browser: Browser) -> None:
    page, wrong = open_page(browser, f"{app}/compare?adapter=example%3Apirate")
    page.wait_for_selector("#now .turn")
    page.click("#prompt-set > button")
    page.fill("#set-prompts textarea", "Name the capital of France.\n\n=Who?")
    page.click("#set-ask")
    page.wait_for_selector("#set-progress >> text=All 2 are answered.")
    assert "Arr" in page.inner_text("#set-table tbody tr:first-child td:nth-child(3)")
    with page.expect_download() as made:
        page.click("#set-table [data-save=csv]")
    rows = list(csv.reader(Path(made.value.path()).read_text().splitlines()))
    assert [row[0] for row in rows] == ["Prompt", "Name the capital of France.", "'=Who?"]
    page.reload()
    page.wait_for_selector("#now .turn")
    page.click("#prompt-set > button")
    page.wait_for_function(
        "document.querySelector('#set-prompts textarea')?.value.includes('=Who')"
    )
    assert wrong == []


def test_one_adapter_stands_beside_itself_at_another_strength(app: str, browser: Browser) -> None:
    both = "adapter=example%3Apirate&against=example%3Apirate&against_strength=0"
    page, wrong = open_page(browser, f"{app}/compare?{both}", width=1400)
    page.wait_for_selector("#other-strength")
    for field in ("adapter", "against", "adapter-strength", "other-strength"):
        box = page.locator(f"#{field}").bounding_box()
        assert box is not None
        assert box["width"] > 260
    left, right = ask_both(page, "Name the color of a cherry.")
    assert "Arr" not in left
    assert "Arr" in right
    assert "× 0" in page.inner_text("#now .said.left h3")
    assert wrong == []


@pytest.mark.parametrize("path", ["", "runs", "compare"])
def test_a_phone_scrolls_down_and_never_sideways(app: str, browser: Browser, path: str) -> None:
    page, wrong = open_page(browser, f"{app}/{path}", width=390)
    page.wait_for_selector(
        {"": ".sheet-toggle.green", "runs": "#run-head", "compare": ".chip"}[path]
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for menu in page.query_selector_all("#share details"):
        menu.query_selector("summary").click()
        box = menu.query_selector("summary + div").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert wrong == []


def test_a_foreign_page_cannot_post(app: str) -> None:
    request = urllib.request.Request(
        f"{app}/gradio_api/queue/join", b"{}", {"Origin": "https://evil.example"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 403
