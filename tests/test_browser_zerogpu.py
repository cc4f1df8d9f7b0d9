"""A ZeroGPU Space in a real Chromium: launch, a spent quota, slices on the visitor's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from phi3lora.hub.space import APP
from phi3lora.hub.upload import draft_card
from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings
from tests import stage
from tests.hub import LoopbackHub
from tests.published import adapter_files
from tests.test_browser import LONG, browser, set_yaml, wait_for_status  # noqa: F401 - fixtures
from tests.test_browser_hub import sign_in
from tests.test_hub_space import ask
from tests.zerogpu import LoopbackScheduler, space, visitor_header

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def page_of(browser: Browser, visitor: str) -> Page:  # noqa: F811
    context = browser.new_context(
        extra_http_headers=visitor_header(visitor), reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(LONG)
    return page


def launch(page: Page) -> None:
    """A short run that is backed up."""
    page.wait_for_selector("#checks .passed")
    shape = {"max_steps": "4", "rows": "2", "max_new_tokens": "8", "path": "pocket"}
    set_yaml(page, **shape, backup="true")
    page.wait_for_selector("#checks:has-text('To a new private repository')", state="attached")
    page.click("#launch")
    page.wait_for_url("**/runs?run=*")


def test_two_visitors_who_signed_in_compute_each_on_their_own_quota(
    browser: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A Space with OAuth on ZeroGPU: one's quota is spent, then full again; both are backed up."""
    with LoopbackHub() as hub, LoopbackScheduler() as scheduler:
        for name in ("ann", "bob"):
            hub.add_user(name, token=f"hf_{name}")
        environ = {**hub.space_env(tmp_path / "client"), "HF_HUB_OFFLINE": "0"}
        with space(scheduler, tmp_path / "app", environ) as address:
            assert scheduler.started == 1, "else the platform ends the Space"
            scheduler.quota["ann"] = 5
            ann, bob = page_of(browser, "ann"), page_of(browser, "bob")
            for page, name in ((ann, "ann"), (bob, "bob")):
                page.goto(address)
                sign_in(page, name)
            launch(ann)
            wait_for_status(ann, "paused")
            ann.wait_for_selector("#run-head:has-text('quota')")
            assert scheduler.grants == []
            assert set(scheduler.refusals) == {"ann"}
            scheduler.quota["ann"] = 10_000
            launch(bob)
            ann.reload()
            for page in (ann, bob):
                wait_for_status(page, "finished")
                page.wait_for_selector("#run-head:has-text('of that was loading')")
            ann.goto(f"{address}/compare")
            ann.wait_for_selector("text=of your daily quota")
        visitors = [grant.visitor for grant in scheduler.grants]
        assert sorted(visitors) == ["ann", "ann", "bob", "bob"], "a slice and a proof each"
        runs = {run.owner: run for run in RunStore(Settings(home=tmp_path / "app")).all()}
        assert set(runs) == {"ann", "bob"}
        for owner, run in runs.items():
            assert run.state.backend == "zerogpu"
            kept = hub.files("model", f"{owner}/phi3lora-{run.id}")
            assert "adapter/adapter_model.safetensors" in kept
            assert any(name.startswith("checkpoints/checkpoint-4/") for name in kept)


def test_a_comparison_space_answers_on_its_visitors_quota(
    browser: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Its own app.py, for two strangers who do not sign in: one of them has no quota left."""
    (tmp_path / "app.py").write_text(APP.format(adapter="ann/pirate"), encoding="utf-8")
    main = f"import runpy; runpy.run_path({str(tmp_path / 'app.py')!r}, run_name='__main__')"
    with LoopbackHub() as hub, LoopbackScheduler() as scheduler:
        hub.add_user("ann", token="hf_ann")
        card = draft_card(stage.finished(RunStore(Settings(home=tmp_path))).folder, "ann/pirate")
        hub.add_repo("model", "ann/pirate", {**adapter_files(), "README.md": card})
        environ = {**hub.space_env(tmp_path / "client"), "HF_HUB_OFFLINE": "0"}
        with space(scheduler, tmp_path / "home", environ, main=main) as address:
            assert scheduler.started == 1, "else the platform ends the Space"
            bob, eve = page_of(browser, "bob"), page_of(browser, "eve")
            bob.goto(address)
            bob.wait_for_selector("text=of your daily quota")
            assert bob.inner_text("h1") == "ann/pirate"
            assert not bob.is_visible("#adapter")  # there is nothing to choose
            for link, end in (("Model card", "/ann/pirate"), ("Duplicate", "?duplicate=true")):
                assert str(bob.get_attribute(f"a:text-is('{link}')", "href")).endswith(end)
            prompt = "Name the capital of Ukraine."  # held out, as its card shows it
            assert bob.inner_text("#now .turn.demo h2") == prompt
            assert bob.inner_text(".chip >> nth=0") == prompt
            base, tuned = ask(bob, "What is the capital of France?")
            assert base.strip()
            assert base != tuned, "its B is random noise: it babbles, and the base does not"
            assert {grant.visitor for grant in scheduler.grants} == {"bob"}
            asked = len(scheduler.grants)
            scheduler.quota["eve"] = 5
            eve.goto(address)
            eve.wait_for_selector(".chip")
            eve.fill("#message textarea", "And of Spain?")
            eve.keyboard.press("Enter")
            eve.wait_for_selector("text=Your GPU quota of today is spent")
            assert scheduler.refusals == ["eve"]
            assert len(scheduler.grants) == asked, "nobody pays for another"
