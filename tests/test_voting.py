"""Votes become rows, a dataset, and the configuration of a run that learns from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import BUNDLED, Sides
from phi3lora.app.voting import ENOUGH, _judged, dataset_card
from phi3lora.chat.options import Options
from phi3lora.chat.votes import Tally, Vote
from phi3lora.errors import AccessError, HubError, RunError
from phi3lora.hub import access, sending
from phi3lora.settings import Settings
from phi3lora.ui.votes_panel import VotesPanel
from tests import stage
from tests.hub import LoopbackHub

ME = Caller("local", None)
SHORT = Options(max_new_tokens=24)


@pytest.fixture
def app(tmp_path: Path) -> Application:
    return Application.open(Settings(home=tmp_path / "home"), helper=False)


def said(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]


def cast(app: Application, choice: Any, number: int, caller: Caller = ME, **more: Any) -> None:
    left, right = said(f"Q{number}", "plain"), said(f"Q{number}", "Arr!")
    sides = Sides("base", f"pair-{number}")
    app.voting.cast(BUNDLED, sides, choice, left, right, SHORT, caller, **more)


def test_votes_are_rows_of_who_said_what(app: Application, tmp_path: Path) -> None:
    for number, choice in enumerate(("right", "left", "tie", "both bad")):
        cast(app, choice, number)
    file = tmp_path / "out" / "votes.jsonl"
    assert app.voting.export(BUNDLED, file, ME) == 4
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["winner"] for row in rows] == ["b", "a", "tie", "both bad"]
    assert rows[0]["conversation_b"] == said("Q0", "Arr!")
    assert (rows[0]["model_a"], rows[0]["model_b"]) == ("pocket", BUNDLED)
    assert rows[0]["settings"]["max_new_tokens"] == 24
    standing = app.voting.standing(BUNDLED, ME)
    assert (standing.pairs, standing.bad, standing.untold) == (2, 1, 0)


def test_a_space_keeps_what_was_said_with_consent_alone(tmp_path: Path) -> None:
    space = Application.open(replace(Settings(home=tmp_path), space_id="ann/app"), helper=False)
    ann = Caller("ann", None)
    cast(space, "left", 1, ann)
    cast(space, "left", 2, ann, consent=True)
    standing = space.voting.standing(BUNDLED, ann)
    assert (standing.tally.votes, standing.pairs, standing.untold) == (2, 1, 1)
    assert "Q1" not in (tmp_path / "votes.jsonl").read_text("utf-8")
    with pytest.raises(AccessError, match="for the owner of the run"):
        space.voting.rows(BUNDLED, ann)


def test_too_few_votes_say_how_many_are_missing(app: Application) -> None:
    cast(app, "left", 1)
    with pytest.raises(RunError, match=f"1 pairs with a winner.*{ENOUGH} pairs are enough"):
        app.voting.config(BUNDLED, ME)
    with pytest.raises(RunError, match="no votes"):
        app.voting.rows("", ME)


def test_a_later_turn_has_two_prompts_and_is_no_pair(app: Application) -> None:
    left = said("Q", "plain", "And?", "plain")
    right = said("Q", "Arr!", "And?", "Arr!")
    app.voting.cast(BUNDLED, Sides("base", "1"), "left", left, right, SHORT, ME)
    assert app.voting.standing(BUNDLED, ME).pairs == 0
    assert len(app.voting.rows(BUNDLED, ME)) == 1


def test_many_bad_answers_are_for_kto(app: Application) -> None:
    for number in range(ENOUGH // 2):
        cast(app, "both bad", number)
    assert app.voting.standing(BUNDLED, ME).method == "kto"


@pytest.mark.parametrize(
    ("tally", "verdict"),
    [
        (Tally(tuned=3, base=1), "cannot tell"),
        (Tally(tuned=18, base=4), "better"),
        (Tally(tuned=4, base=18, ties=5), "worse"),
        (Tally(ties=9), "cannot tell"),
    ],
)
def test_the_tally_says_when_it_cannot_tell(tally: Tally, verdict: str) -> None:
    assert tally.verdict == verdict


def test_wilsons_interval_is_the_published_one() -> None:
    low, high = Tally(tuned=8, base=2).interval
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_the_card_is_metadata_and_a_table(app: Application) -> None:
    from huggingface_hub import DatasetCard

    cast(app, "left", 1)
    card = DatasetCard(dataset_card("ann/votes", app.voting.rows(BUNDLED, ME), Tally(tuned=1)))
    assert "preference" in card.data.tags
    assert "1 blind votes" in card.text


@pytest.fixture
def ann(hub: LoopbackHub, app: Application, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """A Hub that knows ann and bob, and three votes to publish there."""
    monkeypatch.setattr(access, "_IDENTITIES", {})
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)
    hub.add_user("ann", token="hf_ann")
    hub.add_user("bob", token="hf_bob")
    for number, choice in enumerate(("right", "left", "both bad")):
        cast(app, choice, number)
    return hub


ANN = Caller("local", "hf_ann")


def test_votes_are_pushed_as_a_dataset_that_trains(ann: LoopbackHub, app: Application) -> None:
    from datasets import load_dataset
    from huggingface_hub import DatasetCard

    url = app.voting.push(BUNDLED, "ann/votes", ANN)
    assert url.endswith("/datasets/ann/votes")
    rows = load_dataset("ann/votes", split="train", token="hf_ann")
    assert rows["winner"] == ["b", "a", "both bad"]
    card = DatasetCard(ann.files("dataset", "ann/votes")["README.md"].decode())
    assert "3 blind votes" in card.text
    assert "path: ann/votes" in card.text
    cast(app, "right", 9)
    assert app.voting.push(BUNDLED, "ann/votes", ANN) == url, "brought up to date"
    assert ann.files("dataset", "ann/votes")["votes.jsonl"].count(b"\n") == 4


def test_votes_stand_in_nobody_elses_place(ann: LoopbackHub, app: Application) -> None:
    ann.add_repo("dataset", "ann/talk", {"rows.jsonl": b"{}\n"})
    for repo, reason in {
        "bob/votes": "you are ann",
        "ann/talk": "something else than votes",
        "votes": "USER/NAME",
        "ann/../bob": "USER/NAME",
    }.items():
        with pytest.raises(HubError, match=reason):
            app.voting.push(BUNDLED, repo, ANN)
    with pytest.raises(AccessError, match="ign in"):
        app.voting.push(BUNDLED, "ann/votes", ME)
    assert list(ann.files("dataset", "ann/talk")) == [".gitattributes", "rows.jsonl"]


def test_a_push_that_breaks_off_is_made_again(ann: LoopbackHub, app: Application) -> None:
    rule = ann.fail("/api/datasets/ann/votes/commit", status=500)
    with pytest.raises(HubError, match="down"):
        app.voting.push(BUNDLED, "ann/votes", ANN)
    assert "votes.jsonl" not in ann.files("dataset", "ann/votes")
    ann.faults.rules.remove(rule)
    app.voting.push(BUNDLED, "ann/votes", ANN)
    assert ann.files("dataset", "ann/votes")["votes.jsonl"].count(b"\n") == 3


def test_the_terminal_counts_exports_and_configures(
    app: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from phi3lora import cli

    monkeypatch.setenv("PHI3LORA_HOME", str(app.settings.home))
    for number in range(3):
        cast(app, "right", number)

    def typed(*arguments: str) -> str:
        result = CliRunner().invoke(cli.app, ["votes", *arguments])
        return f"{result.exit_code} {result.output}"

    shown = typed("show", BUNDLED)
    assert shown.startswith("0 3 blind votes: 3 tuned, 0 base")
    assert "which cannot tell them apart" in shown
    file = tmp_path / "votes.jsonl"
    assert typed("export", BUNDLED, "--output", str(file)).startswith("0")
    assert len(file.read_text("utf-8").splitlines()) == 3
    assert typed("train", BUNDLED).startswith("2 Error: Not enough votes yet")


def test_two_and_three_stand_with_a_rate_and_an_interval(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page says of a tournament, and of each two of the three, at the terminal."""
    from typer.testing import CliRunner

    from phi3lora import cli

    monkeypatch.setenv("PHI3LORA_HOME", str(app.settings.home))
    pirate, poet = (stage.finished(app.launching.store, name).id for name in ("Pirate", "Poet"))

    def won(name: str, against: str, times: int, choice: Any = "left") -> None:
        for number in range(times):
            pair = f"{name} {against} {choice} {number}"
            app.comparing.vote(Vote(name, pair, choice, "tuned", against=against))

    won(pirate, poet, 12)
    won(poet, "", 3)
    won(poet, "", 3, "right")
    won(poet, pirate, 1, "tie")
    won(f"{pirate} × 0.5", "", 2)

    def typed(*arguments: str) -> str:
        result = CliRunner().invoke(cli.app, ["votes", *arguments])
        return f"{result.exit_code} {result.output}"

    shown = typed("standings", pirate, "base", poet)
    assert shown.splitlines() == [
        f"0 {pirate}: 12 of 12 rounds; wins 100% (95 % interval 76% to 100%), better",
        "base: 3 of 6 rounds; wins 50% (95 % interval 19% to 81%), which cannot tell them apart",
        f"{poet}: 3 of 18 rounds; wins 17% (95 % interval 6% to 39%), worse",
        "",
        f"{pirate} against {poet}: 12 to 0, 1 tie, 0 both bad; "
        "wins 100% (95 % interval 76% to 100%), better",
        f"{pirate} against base: 0 to 0, 0 ties, 0 both bad; "
        "cannot be told apart yet: no vote had a winner",
        f"{poet} against base: 3 to 3, 0 ties, 0 both bad; "
        "wins 50% (95 % interval 19% to 81%), which cannot tell them apart",
    ]
    told = json.loads(typed("standings", poet, pirate, "--json").removeprefix("0 "))
    assert [place["name"] for place in told["places"]] == [pirate, poet]
    (met,) = told["meetings"]
    assert (met["name"], met["base"], met["ties"], met["verdict"]) == (poet, 12, 1, "worse")
    assert typed("show", pirate).startswith("0 0 blind votes")
    assert typed("show", pirate, "--strength", "0.5").startswith("0 2 blind votes: 2 tuned")
    half = typed("standings", f"{pirate} × 0.5", "base").splitlines()
    assert half[0].startswith(f"0 {pirate} × 0.5: 2 of 2 rounds; wins 100%")
    assert "expected two or more" in typed("standings", pirate, pirate)
    assert typed("standings", pirate, "nobody").startswith("2 Error: There is no run 'nobody'")


@pytest.mark.parametrize(
    ("left", "right", "choice"),
    [(2.0, 1.0, "left"), (0.0, 1.0, "right"), (1.0, 1.0, "tie"), (0.0, 0.0, "both bad")],
)
def test_a_rule_that_gives_numbers_chooses(left: float, right: float, choice: str) -> None:
    assert _judged(left, right) == choice


def test_a_rule_that_cannot_be_is_named(app: Application, tmp_path: Path, monkeypatch: Any) -> None:
    from typer.testing import CliRunner

    from phi3lora import cli

    monkeypatch.setenv("PHI3LORA_HOME", str(app.settings.home))
    (tmp_path / "asked.txt").write_text("Who are you?\n", encoding="utf-8")
    for typed, said in {
        ("asked.txt",): "expected a pattern, a length, JSON or a function",
        ("asked.txt", "--pattern", "("): "grpo_config.pattern",
        ("asked.txt", "--function", "none.py:score"): "there is no file",
        ("none.txt", "--length", "9"): "cannot be read",
    }.items():
        file, *options = typed
        done = CliRunner().invoke(
            cli.app, ["votes", "judge", BUNDLED, str(tmp_path / file), *options]
        )
        assert done.exit_code == 2, done.output
        assert said in done.output
    assert app.comparing.tally(BUNDLED).votes == 0


def test_the_page_pushes_and_says_where_they_are(ann: LoopbackHub, app: Application) -> None:
    """Private by choice, again in the same place, and no longer once the rights are gone."""
    with gr.Blocks():
        panel = VotesPanel(app)
    app.callers.caller = lambda session: ANN  # type: ignore[method-assign]
    request = SimpleNamespace(session_hash="tab")

    def push(repo: str, private: bool) -> str:
        *_, said = panel.on_push(BUNDLED, "", f" {repo} ", private, request)
        return said

    assert 'class="notice green"' in push("ann/votes", True)
    assert ann.repo("dataset", "ann/votes").private
    said = push("ann/votes", True)
    assert f'href="{ann.url}/datasets/ann/votes"' in said
    assert 'rel="noopener">ann/votes</a>' in said
    assert b"3 blind votes" in ann.files("dataset", "ann/votes")["README.md"]
    assert 'class="notice green"' in push("ann/open", False)
    assert not ann.repo("dataset", "ann/open").private
    cast(app, "right", 9)
    assert "open to everybody" in push("ann/open", True), "nothing more is published by mistake"
    assert ann.files("dataset", "ann/open")["votes.jsonl"].count(b"\n") == 3
    for repo in ("<b>", "bob/votes", ""):
        assert 'class="notice red"' in push(repo, True)
        assert "<b>" not in push(repo, True)
    ann.revoke("hf_ann")
    access._IDENTITIES.clear()
    assert 'class="notice red"' in push("ann/votes", True)
    assert ann.files("dataset", "ann/votes")["votes.jsonl"].count(b"\n") == 3
