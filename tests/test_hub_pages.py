"""The pages beside a Hub on loopback: who asks, publishing, and runs that come back."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import ANONYMOUS, Caller
from phi3lora.app.card_head import CardHead, head_of, with_head
from phi3lora.config import RunConfig
from phi3lora.errors import AccessError, HubError
from phi3lora.hub import access, sending
from phi3lora.hub.backup import Backup, RunNote
from phi3lora.runs.store import Run, RunState, open_run, write_state
from phi3lora.settings import Settings
from phi3lora.ui import account, publish, runs_page
from phi3lora.ui.app import pulse
from phi3lora.ui.sessions import BROWSER, session_of
from tests.hub import LoopbackHub
from tests.published import make_run

RUN = "20261121-093000-4f1a2b"


@pytest.fixture
def ann(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    for name in ("ann", "bob"):
        hub.add_user(name, token=f"hf_{name}")
    monkeypatch.setattr(sending, "RETRY_SECONDS", ())
    monkeypatch.setattr("phi3lora.hub.client._RETRY_5XX", ())
    access._IDENTITIES.clear()
    return hub


@pytest.fixture
def space(settings: Settings) -> Application:
    return Application.open(Settings(home=settings.home, space_id="ann/space"))


def visit(token: str | None = None, seconds: float = 600, browser: str = "") -> Any:
    """A request of whoever signed in with this token."""
    info = {"access_token": token, "expires_at": time.time() + seconds} if token else None
    connection = SimpleNamespace(
        scope={"session": True}, session={"oauth_info": info}, cookies={BROWSER: browser}
    )
    return SimpleNamespace(request=connection, query_params={}, session_hash="tab")


def put(app: Application, owner: str) -> Run:
    """A finished run of somebody's, with a real adapter."""
    folder = make_run(app.settings.runs_folder / RUN)
    write_state(folder, RunState(id=RUN, owner=owner, title="Pirate, 2", status="finished"))
    return open_run(folder)


# ---------------------------------------------------------------------------------------- Who


def test_on_a_space_the_hub_says_who_it_is(ann: LoopbackHub, space: Application) -> None:
    assert space.callers.caller(session_of(visit("hf_ann"))) == Caller("ann", "hf_ann")
    assert space.callers.caller(session_of(visit("hf_nobody"))) == Caller(ANONYMOUS)
    assert space.callers.caller(session_of(visit("hf_ann", seconds=-1))) == Caller(ANONYMOUS)
    assert space.callers.caller(session_of(visit(browser="b"))) == Caller(ANONYMOUS)
    with pytest.raises(AccessError):
        space.callers.sign_in("hf_ann", session_of(visit(browser="b")))


def test_while_the_hub_is_down_those_it_knew_are_known(
    ann: LoopbackHub, space: Application
) -> None:
    space.callers.caller(session_of(visit("hf_ann")))
    access._IDENTITIES.clear()
    ann.fail("/api/whoami", 503)
    assert space.callers.caller(session_of(visit("hf_ann"))).name == "ann"
    with pytest.raises(HubError, match="down"):
        space.callers.caller(session_of(visit("hf_bob")))
    assert pulse(space, SimpleNamespace(**vars(visit("hf_bob").request))) == "waiting for the Hub"  # type: ignore[arg-type]


def test_a_token_of_a_browser_stays_in_memory_and_with_it(
    ann: LoopbackHub, settings: Settings
) -> None:
    app = Application.open(settings)
    mine, other = visit(browser="mine"), visit(browser="other")
    assert app.callers.sign_in("hf_ann", session_of(mine)) == "ann"
    assert app.callers.caller(session_of(mine)) == Caller("local", "hf_ann")
    assert app.callers.caller(session_of(other)).token is None
    assert "hf_ann" not in repr(app.callers.caller(session_of(mine)))
    with pytest.raises(HubError, match="wrong or expired"):
        app.callers.sign_in("hf_wrong", session_of(other))
    app.callers.sign_out(session_of(mine))
    assert app.callers.caller(session_of(mine)).token is None
    files = [path for path in settings.home.rglob("*") if path.is_file()]
    assert not any(b"hf_ann" in path.read_bytes() for path in files)


def test_the_drawer_says_who_is_signed_in(ann: LoopbackHub, settings: Settings) -> None:
    with gr.Blocks():
        drawer = account.Drawer(Application.open(settings))
    here = visit(browser="here")
    assert "Nobody is signed in" in drawer.on_open(here)[1]
    emptied, who = drawer.on_use(" hf_ann ", here)
    assert emptied == ""
    assert "ann is signed in" in who
    assert "Nobody" in drawer.on_forget(here)[1]
    with pytest.raises(gr.Error, match="wrong or expired"):
        drawer.on_use("hf_wrong", here)


# --------------------------------------------------------------------------------- Publishing


def card_of(app: Application) -> publish.PublishCard:
    with gr.Blocks():
        return publish.PublishCard(app, gr.Textbox())


def test_publishing_says_how_far_it_is_and_what_came_of_it(
    ann: LoopbackHub, space: Application
) -> None:
    card, run = card_of(space), put(space, "ann")
    _, repo, text, draft, *_ = card.on_open(run.id, visit("hf_ann"))
    assert repo == "ann/pirate-2"
    assert text == draft
    assert "Loss" in text
    renamed, *_ = card.on_repo(run.id, "ann/parrot", False, text, draft, visit("hf_ann"))
    assert "ann/parrot" in renamed
    edited = renamed + "\nMine.\n"
    assert card.on_repo(run.id, "ann/x", False, edited, renamed, visit("hf_ann"))[0] == gr.skip()
    assert "Pirate" in publish.preview(text)
    assert "<table>" in publish.preview(text)
    *progress, last = card.on_send(
        run.id, "ann/parrot", True, False, edited, renamed, visit("hf_ann")
    )
    assert all("progressbar" in shown[0] for shown in progress)
    assert "Published as" in last[0]
    assert 'href="compare?adapter=ann/parrot"' in last[0]
    assert last[2] == "ann/parrot-compare"
    assert last[-1] == "ann/parrot"
    assert b"Mine." in ann.files("model", "ann/parrot")["README.md"]
    assert ann.repo("model", "ann/parrot").private


def test_title_licence_and_languages_are_fields_of_the_card(
    ann: LoopbackHub, space: Application
) -> None:
    card, run = card_of(space), put(space, "ann")
    opened = card.on_open(run.id, visit("hf_ann"))
    draft, (title, licence, languages, adapter, merged) = opened[2], opened[11:]
    assert (title, licence, languages) == (head_of(draft).title, head_of(draft).licence or None, "")
    assert adapter["interactive"] is True
    assert "about" in adapter["label"]
    assert merged["interactive"] is False
    assert "not on a Space" in merged["info"]
    me = visit("hf_ann")
    text, preview, nothing = card.on_head("Cap'n: Ahoy", "apache-2.0", "en, uk", draft, me)
    assert nothing == ""
    assert "Apache" in preview or "apache-2.0" in preview
    assert head_of(text) == CardHead("Cap'n: Ahoy", "apache-2.0", "en, uk")
    assert text.split("\n## ", 1)[1] == draft.split("\n## ", 1)[1]
    for wrong, said in (
        (("", "MIT License", ""), "identifier"),
        (("", "", "English"), "code"),
        (("x" * 300, "", ""), "200"),
    ):
        assert said in card.on_head(*wrong, draft, me)[2]
    fields = ("Cap'n: Ahoy", "apache-2.0", "en, uk")
    renamed = card.on_repo(run.id, "ann/parrot", False, text, draft, me, *fields)[0]
    assert "ann/parrot" in renamed
    assert head_of(renamed).title == "Cap'n: Ahoy"
    edited = renamed.replace("apache-2.0", "cc-by-4.0")
    assert card.on_text(edited, me)[1] == "cc-by-4.0"
    # The button before the fields have reached the text: they are in it all the same.
    frames = card.on_send(run.id, "ann/x", False, False, draft, draft, me, *fields, True, False)
    assert "Published as" in list(frames)[-1][0]
    files = ann.files("model", "ann/x")
    assert head_of(files["README.md"].decode()) == CardHead(*fields)
    assert files["x-adapter.gguf"].startswith(b"GGUF")
    frames = card.on_send(run.id, "ann/y", False, False, edited, draft, me, *fields, False, True)
    assert "not on a Space" in list(frames)[-1][0]
    sent = card.on_send(run.id, "ann/y", False, False, edited, draft, me, *fields, False, False)
    assert "Published as" in list(sent)[-1][0]
    assert head_of(ann.files("model", "ann/y")["README.md"].decode()).licence == "cc-by-4.0"


def test_a_card_whose_head_stays_is_as_it_was_to_the_letter() -> None:
    card = "---\nlicense: mit  # kept\nlanguage:\n- en\n---\n\n# One\n\nText\n"
    assert with_head(card, CardHead()) == with_head(card, head_of(card)) == card
    assert with_head("Text", CardHead("T")) == "\n# T\n\nText"
    with pytest.raises(HubError, match="identifier"):
        with_head(card, CardHead(licence="../x"))


@pytest.mark.parametrize("front", ["\n---\nlicense: mit\n---\n", "---\r\nlicense: mit\r\n---\r\n"])
def test_a_head_as_the_hub_finds_it_is_written_once(front: str) -> None:
    card = with_head(f"{front}# Mine\n", CardHead(licence="apache-2.0"))
    assert card.count("license:") == 1
    assert head_of(card) == CardHead("Mine", "apache-2.0", "")


def test_publishing_is_for_owners_who_signed_in(ann: LoopbackHub, space: Application) -> None:
    card, run = card_of(space), put(space, "ann")
    for who in (visit("hf_bob"), visit()):
        with pytest.raises(gr.Error, match="There is no run"):
            card.on_open(run.id, who)
        with pytest.raises(gr.Error, match="There is no run"):
            list(card.on_send(run.id, "bob/x", False, False, "", "", who))
    assert "Sign in" in list(card.on_deploy("ann/pirate", "ann/space-2", False, visit()))[-1]
    *_, refused = card.on_send(run.id, "bob/x", False, False, "", "", visit("hf_ann"))
    assert "would belong to bob" in refused[0]
    assert "progressbar" not in refused[0]  # nothing goes on moving after a refusal
    *_, why, button = card.on_repo(run.id, "bob/x", False, "", "", visit("hf_ann"))
    assert "would belong to bob" in why
    assert button["interactive"] is False
    assert card.on_repo(run.id, "bob/x", True, "", "", visit("hf_ann"))[-1]["interactive"]
    assert not [repo for repo in ann.store.repos.values() if repo.kind == "model"]


def test_without_an_account_the_card_says_what_to_do(ann: LoopbackHub, settings: Settings) -> None:
    app = Application.open(settings)
    run = put(app, "local")
    opened = card_of(app).on_open(run.id, visit())
    assert "Sign in" in opened[8]  # beside the field that it is about
    assert opened[4] == ""


# -------------------------------------------------------------------------------- Coming back


def test_after_a_wipe_ones_backed_up_runs_are_listed_and_come_back(
    ann: LoopbackHub, space: Application, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", {"hub.backup": True})
    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    Backup(folder, RunNote(RUN, "Galleon", time.time()), config, "hf_ann", print).finish()
    shutil.rmtree(folder)
    with gr.Blocks() as demo:
        page = runs_page.build(space, demo)
    listed = page.on_kept(visit("hf_ann"))
    assert "Galleon" in listed
    assert "finished" in listed
    assert page.on_kept(visit("hf_bob")) == page.on_kept(visit()) == ""
    pick: Any = SimpleNamespace(_data={"repo": f"ann/phi3lora-{RUN}"})
    for who in (visit("hf_bob"), visit()):
        with pytest.raises(gr.Error):
            page.on_bring(who, pick)
    assert page.on_bring(visit("hf_ann"), pick) == RUN
    assert space.launching.store.get(RUN, "ann").title == "Galleon"
    assert page.on_kept(visit("hf_ann")) == ""


def test_why_the_hub_does_not_list_them_is_said_beside_the_list(
    ann: LoopbackHub, space: Application
) -> None:
    with gr.Blocks() as demo:
        page = runs_page.build(space, demo)
    space.callers.caller(session_of(visit("hf_ann")))
    ann.fail("/api/models", 403)
    assert "The token may not list" in page.on_kept(visit("hf_ann"))
