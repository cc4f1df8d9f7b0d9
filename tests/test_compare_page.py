"""The Compare page without a browser: turns, blind rounds, other answers, what a browser kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from phi3lora.app.callers import Caller
from phi3lora.app.comparing import BUNDLED, ComparingOne, Sides, Subject, about
from phi3lora.chat.options import Options, Pair
from phi3lora.chat.votes import Tally
from phi3lora.config import ModelConfig
from phi3lora.errors import ModelError
from phi3lora.hub.card import samples_of
from phi3lora.hub.upload import draft_card
from phi3lora.settings import Settings
from phi3lora.ui import compare_page
from phi3lora.ui.asking import WARM, another, from_address
from phi3lora.ui.markdown import rendered
from phi3lora.ui.talk import Said, Talk, Turn, answer_of, read_talk
from phi3lora.ui.turns import game_line, turn_html
from tests import stage
from tests.test_ui import app, page_of, request, visible  # noqa: F401

NAMES = ("message", "past", "now", "talk", "kept", "votes", "round", "about", "status")
SETTINGS = ("", "", "Be brief.", 0.5, 0.9, 64, 7, 50, 0.1, 1.2, 1.0, 1.0)  # no other subjects
DEFAULTS = ("", "", "", 0.0, 1.0, 256, 0, 0, 0.0, 1.0, 1.0, 1.0)


def ask(
    page: Any,
    adapter: str | None,
    blind: bool = False,
    talk: Talk | None = None,
    session: str = "tab",
    settings: Any = SETTINGS,
    question: str = "Who?",
) -> list[dict[str, Any]]:
    """Every frame of an answer, by the names of what it changes."""
    values = (question, talk or Talk(), adapter, blind, *settings)
    return [
        dict(zip(NAMES, frame, strict=True)) for frame in page.on_ask(request(session), *values)
    ]


def do(page: Any, what: str, talk: Talk, turn: int, of: str = "left") -> list[dict[str, Any]]:
    """What a button of a turn comes to."""
    event = SimpleNamespace(_data={"do": what, "turn": turn, "of": of})
    values = ("", talk, talk.adapter, False, *DEFAULTS)
    frames = page.on_turn(request(), event, *values)
    return [dict(zip(NAMES, frame, strict=True)) for frame in frames]


def asked(app: Any, question: str = "Who?", **turn: Any) -> Talk:  # noqa: F811
    """A conversation of one turn that is over."""
    base, tuned = (Said("Hello", 2),), (Said("Ahoy", 3),)
    return Talk("", (Turn(question, Sides("base", "one"), base, tuned, **turn),))


# ---------------------------------------------------------------------------------- Asking


def test_both_answers_stand_under_one_question_and_end(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    frames = ask(page, run.id)
    assert [frame["now"].count("Who?") for frame in frames] == [1] * len(frames)
    last = frames[-1]
    turn = last["talk"].last
    assert (turn.shown("base").text, turn.shown("tuned").text) == ("The end.", "Arr, the end!")
    assert "3 tokens" in last["now"]
    assert "5 tokens, cut" in last["now"]
    assert frames[0]["message"]["stop_btn"] == "Stop"
    frames[0]["message"].clear()  # as Gradio does with what it is given
    assert ask(page, run.id)[0]["message"]["value"] == ""
    assert last["message"]["submit_btn"] == "Ask"
    assert not last["message"]["stop_btn"]
    subject, base, tuned, options = app.comparing.asked
    assert subject.result == run.result.folder
    assert options == Options("Be brief.", 0.5, 0.9, 64, 7, 50, 0.1, 1.2)
    assert base == tuned == [{"role": "user", "content": "Who?"}]
    assert json.loads(last["kept"])["turns"][0]["settings"]["seed"] == 7


def test_who_asks_before_the_page_has_loaded_gets_the_adapter_of_the_address(
    app: Any,  # noqa: F811
) -> None:
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    stage.finished(app.launching.store, "Newer")
    values = ("Who?", Talk(), None, False, *DEFAULTS)
    list(page.on_ask(request(adapter=run.id), *values))
    assert app.comparing.asked[0].name == "Pirate"
    list(page.on_ask(request(), *values))
    assert app.comparing.asked[0].name == "Newer"


def test_each_side_goes_on_from_its_own_answer(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    ask(page, run.id, talk=asked(app, "Hi"))
    _, base, tuned, _ = app.comparing.asked
    assert [turn["content"] for turn in base] == ["Hi", "Hello", "Who?"]
    assert [turn["content"] for turn in tuned] == ["Hi", "Ahoy", "Who?"]


def test_without_an_adapter_the_base_answers_alone(app: Any) -> None:  # noqa: F811
    last = ask(page_of(compare_page, app), "")[-1]
    assert last["talk"].last.shown("tuned") is None
    assert last["now"].count('role="group"') == 1
    assert app.comparing.asked[2] == []


def test_stop_reaches_this_session_alone(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    mine, theirs = page.stops.begin("mine"), page.stops.begin("theirs")
    page.on_stop(request("mine"))
    assert mine.is_set()
    assert not theirs.is_set()


def frames(page: Any, adapter: str, session: str = "tab") -> Any:
    """An answer that is read frame by frame."""
    return page.on_ask(request(session), "Who?", Talk(), adapter, False, *SETTINGS)


def test_a_stop_before_the_first_token_is_not_lost(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    answer = frames(page, stage.finished(app.launching.store).id)
    next(answer)  # the page offers Stop from here on
    page.on_stop(request())
    page.on_stop(request())  # a second click
    last = dict(zip(NAMES, list(answer)[-1], strict=True))
    assert last["talk"].last.base[0].ended is False
    assert "Stopped before the first token" in last["now"]
    page.on_stop(request())  # too late: it stops nothing of what is asked next
    assert ask(page, "")[-1]["talk"].last.base[0].ended


def test_an_answer_whose_page_is_gone_or_begins_anew_shows_nothing_more(
    app: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("phi3lora.ui.asking.LAST_FRAME", 0)  # one thread: nobody to wait for
    page, run = page_of(compare_page, app), stage.finished(app.launching.store)
    leaves = (
        lambda: page.on_clear(Talk(run.id), request()),
        lambda: page.on_adapter("", "", "", Talk(run.id), request()),
        lambda: page.on_undo(Talk(run.id), request()),
        lambda: next(frames(page, run.id)),  # a newer question
    )
    theirs = frames(page, run.id, "other tab")
    next(theirs)
    for leave in leaves:
        answer = frames(page, run.id)
        next(answer)
        leave()
        assert list(answer) == [[gr.skip()] * len(NAMES)]  # Gradio shows it once more
    assert list(theirs)[-1][3].last.tuned[0].text == "Arr, the end!"  # another tab's goes on
    gone = frames(page, run.id)
    next(gone)
    gone.close()
    page.stops.leave("tab")  # nothing of it is left to wait for


def test_somebody_elses_adapter_cannot_be_asked(app: Any, settings: Settings) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    app.callers.name = "eve"
    app.comparing.settings = Settings(home=settings.home, space_id="ann/space")
    for name in (run.id, str(run.result.folder)):
        assert "one of your finished runs" in ask(page, name)[-1]["status"]


def test_a_mistake_gives_the_question_back_and_wipes_nothing(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    before = asked(app)
    (failed,) = ask(page, "/nowhere", talk=before, question="And now?")
    assert failed["message"]["value"] == "And now?"
    assert failed["message"]["submit_btn"] == "Ask"
    assert failed["talk"] == before
    assert "no folder of that name" in failed["status"]


def test_a_base_that_fails_while_it_answers_says_so_in_its_place(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)

    def broken(*_: Any, **__: Any) -> Any:
        raise ModelError("The base <b>broke</b>.")
        yield

    app.comparing.reply = broken
    last = ask(page, "")[-1]
    assert "The base &lt;b&gt;broke" in last["status"]
    assert last["message"]["value"] == "Who?"


def test_an_empty_question_is_not_asked(app: Any) -> None:  # noqa: F811
    with pytest.raises(gr.Error, match="Type a question"):
        ask(page_of(compare_page, app), "", question="  ")


# ----------------------------------------------------------------------------- Other answers


def test_an_answer_that_came_at_once_has_no_speed() -> None:
    whole = Pair("Hi", "Ahoy", True, True, tokens_base=6, tokens_tuned=2)
    assert answer_of(whole, "base", "", whole, 1e-6).rate == 0
    later = Pair("Hi there", "Ahoy", True, True, tokens_base=26, tokens_tuned=2)
    assert answer_of(later, "base", "", whole, 2.0).rate == 10
    assert answer_of(later, "tuned", "", whole, 2.0).rate == 0


def test_another_answer_has_a_new_seed_and_the_first_is_kept(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    talk = asked(app)
    last = do(page, "again", talk, 0, "right")[-1]
    options = app.comparing.asked[3]
    assert (options.seed, options.temperature) == (1, WARM)  # at 0 it would be the same again
    assert app.comparing.asked[1] == []  # the other side is not asked
    turn = last["talk"].last
    assert [said.text for said in turn.tuned] == ["Ahoy", "Arr, the end!"]
    assert turn.shown("tuned").text == "Arr, the end!"
    assert turn.shown("base").text == "Hello"
    assert "2/2" in last["now"]
    assert "seed 1" in last["now"]
    back = do(page, "before", last["talk"], 0, "right")[-1]
    assert back["talk"].last.shown("tuned").text == "Ahoy"
    assert do(page, "next", back["talk"], 0, "right")[-1]["talk"] == last["talk"]


def test_another_answer_at_a_temperature_keeps_it() -> None:
    warm = Options(temperature=1.5, seed=4)
    assert another(warm, 2) == (replace(warm, seed=6), "seed 6")


def test_the_last_question_is_edited_and_no_other(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    two = asked(app, "One").plus(asked(app, "Two").turns[0])
    edited = do(page, "edit", two, 1)[-1]
    assert edited["message"] == "Two"
    assert [turn.question for turn in edited["talk"].turns] == ["One"]
    assert do(page, "edit", two, 0) == []
    for nonsense in (-1, 7, "0", None):
        assert do(page, "again", two, nonsense) == []  # type: ignore[arg-type]


def test_a_cleared_conversation_comes_back(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    talk = asked(app)
    _, now, fresh, kept, *_, before, undo, _ = page.on_clear(talk, request())
    assert (now, fresh.turns, kept) == ("", (), "")
    assert "Undo" in undo
    assert talk in page.on_undo(before, request())


SAME = [gr.skip()] * 10


def test_another_adapter_begins_a_conversation_and_the_one_before_comes_back(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    talk = replace(asked(app), against=BUNDLED)
    *_, hidden, before, undo, _ = page.on_adapter("", "", "", talk, request())
    assert not visible(hidden)
    assert "Undo" in undo
    back = page.on_undo(before, request())
    assert back[:3] == [talk.adapter, BUNDLED, ""]
    assert talk in back
    assert page.on_adapter(talk.adapter, BUNDLED, "", talk, request()) == SAME  # said twice
    kept = Talk(turns=(replace(talk.turns[0], kept=True),))  # of the report: nobody said it here
    assert page.on_adapter(BUNDLED, "", "", kept, request())[-2] == ""


# --------------------------------------------------------------------------------- Blind


def test_blind_hides_the_names_until_the_vote(app: Any, monkeypatch: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    monkeypatch.setattr("secrets.choice", lambda sides: "tuned")
    last = ask(page, run.id, blind=True)[-1]
    assert "base" not in last["now"].lower()
    assert "tuned" not in last["now"].lower()
    assert last["now"].index("Arr, the end!") < last["now"].index("The end.")
    assert visible(last["votes"])
    assert "Round 1 of 5" in last["round"]
    _, now, talk, _, row, tally = page.on_vote(
        "A is better", last["talk"], run.id, False, request()
    )
    assert now.index("Tuned") < now.index("Base")
    assert not visible(row)
    assert "You preferred <b>tuned</b> 1 of 1" in tally
    assert "of 1 blind vote." in tally
    with pytest.raises(gr.Error, match="voted on already"):
        page.on_vote("Tie", last["talk"], run.id, False, request())
    assert talk.votes == ["tuned"]


def test_a_vote_ends_the_conversation_so_that_the_next_pair_has_one_history(
    app: Any,  # noqa: F811
) -> None:
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    talk = ask(page, run.id, blind=True)[-1]["talk"]
    talk = page.on_vote("Both bad", talk, run.id, False, request())[2]
    ask(page, run.id, blind=True, talk=talk, question="And now?")
    _, base, tuned, _ = app.comparing.asked
    assert base == tuned == [{"role": "user", "content": "And now?"}]
    assert app.voting.standing(run.id, Caller()).bad == 1


@pytest.mark.parametrize(("ticked", "kept"), [(False, 0), ("yes", 0), (True, 1)])
def test_a_space_keeps_what_was_said_of_who_ticked_the_box(
    app: Any,  # noqa: F811
    settings: Settings,
    ticked: Any,
    kept: int,
) -> None:
    space = Settings(home=settings.home, space_id="ann/space")
    app = replace(app, settings=space)
    app.comparing.settings = space
    page = page_of(compare_page, app)
    assert page.consent.visible
    assert page.consent.value is False
    run = stage.finished(app.launching.store)
    talk = ask(page, run.id, blind=True)[-1]["talk"]
    page.on_vote("A is better", talk, run.id, ticked, request())
    standing = app.voting.standing(run.id, Caller())
    assert (standing.tally.votes, standing.pairs, standing.untold) == (1, kept, 1 - kept)


def test_what_votes_are_good_for_is_said_with_the_number(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    panel = page.votes

    def panelled() -> dict[str, Any]:
        names = ("text", "actions", "train", "why_not", "told", "file")
        return dict(zip(names, panel.on_show(run.id, "", request()), strict=True))

    assert "No votes yet" in panelled()["text"]
    assert not visible(panelled()["actions"])
    vote(app, run.id, 3)
    early = panelled()
    assert "Cannot tell yet" in early["text"]
    assert "Tuned wins 100 % (95 % interval 44 to 100 %)" in early["text"]
    assert visible(early["actions"])
    assert early["train"]["interactive"] is False
    assert "3 pairs with a winner" in early["text"]
    assert early["why_not"] == ""  # once is enough
    vote(app, run.id, 20, 3)
    enough = panelled()
    assert "Tuned is preferred" in enough["text"]
    assert enough["train"]["value"] == "Train on these votes (DPO, 23 pairs)"
    assert enough["train"]["interactive"] is True
    told, file = panel.on_export(run.id, "", request())
    assert "23 votes" in told
    assert len(Path(file["value"]).read_text().splitlines()) == 23
    assert "Sign in" in list(panel.on_push(run.id, "", "ann/votes", True, request()))[-1]


def vote(app: Any, adapter: str, number: int, first: int = 0) -> None:  # noqa: F811
    """Votes for the tuned side."""
    for place in range(first, first + number):
        said = [{"role": "user", "content": f"Q{place}"}, {"role": "assistant", "content": "A"}]
        sides = Sides("tuned", f"pair-{place}")
        app.voting.cast(adapter, sides, "left", said, said, Options(), Caller())


def test_somebody_elses_votes_are_counted_and_not_shown(
    app: Any,  # noqa: F811
    settings: Settings,
) -> None:
    page = page_of(compare_page, app)
    vote(app, BUNDLED, 2)
    space = Settings(home=settings.home, space_id="ann/space")
    app.comparing.settings = space
    panel = page_of(compare_page, replace(app, settings=space)).votes
    text, actions, *_ = panel.on_show(BUNDLED, "", request())
    assert "for the owner" in text
    assert not visible(actions)
    assert "for the owner" in panel.on_export(BUNDLED, "", request())[0]
    text, actions, *_ = page.votes.on_show("/nowhere", "", request())
    assert "folders cannot be named here" in text
    assert "Choose an adapter" in page.votes.on_show("", "", request())[0]


# ---------------------------------------------------------------- Two adapters, three, strengths


def of_two(page: Any, one: Any, two: Any, third: str = "", **named: Any) -> list[dict[str, Any]]:
    settings = named.pop("settings", DEFAULTS[2:])
    return ask(page, one.id, settings=(two.id, third, *settings), **named)


def test_two_runs_stand_beside_each_other_by_their_names(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    one, two = (stage.finished(app.launching.store, title) for title in ("Pirate", "<Poet>"))
    weak = (*DEFAULTS[2:-2], 0.5, 1.0)
    last = of_two(page, one, two, settings=weak)[-1]
    assert app.comparing.asked[0].against.result == two.result.folder
    assert "<h3>&lt;Poet&gt;</h3>" in last["now"]
    assert "<h3>Pirate × 0.5</h3>" in last["now"]
    assert "adapter off" not in last["now"]
    kept = read_talk(last["kept"])
    assert kept is not None
    assert kept.names == [one.id, two.id]
    shown = opened(page, last["kept"], adapter=one.id, against=two.id)
    assert shown["against"]["value"] == two.id
    assert shown["talk"].turns
    assert opened(page, last["kept"], adapter=one.id)["talk"].against == ""
    same = of_two(page, one, stage.finished(app.launching.store, "Pirate"))[-1]
    assert "Pirate (1)" in same["now"]
    assert "Pirate (2)" in same["now"]


def test_a_vote_on_two_runs_counts_for_both_whatever_their_places(
    app: Any,  # noqa: F811
    monkeypatch: Any,
) -> None:
    page = page_of(compare_page, app)
    one, two = (stage.finished(app.launching.store, title) for title in ("Pirate", "Poet"))
    monkeypatch.setattr("secrets.choice", lambda sides: "tuned")
    last = of_two(page, one, two, blind=True)[-1]
    assert "Pirate" not in last["now"]
    *_, tally = page.on_vote("A is better", last["talk"], one.id, False, request())
    assert "You preferred <b>Pirate</b> 1 of 1" in tally
    assert app.comparing.tally(one.id, two.id) == Tally(tuned=1)
    assert app.comparing.tally(two.id, one.id) == Tally(base=1)
    assert app.comparing.tally(one.id) == Tally()
    rows = app.voting.rows(two.id, Caller())
    assert (rows[0]["model_a"], rows[0]["model_b"], rows[0]["winner"]) == (one.id, two.id, "a")


def test_another_strength_is_another_thing_to_vote_on(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    weak = (*DEFAULTS[:-2], 0.5, 1.0)
    last = ask(page, run.id, blind=True, settings=weak)[-1]
    *_, tally = page.on_vote("Tie", last["talk"], run.id, False, request())
    assert "All visitors: 1 blind vote" in tally
    assert app.comparing.tally(run.id) == Tally()
    assert app.comparing.tally(f"{run.id} × 0.5") == Tally(ties=1)


def test_three_meet_two_at_a_time(app: Any, monkeypatch: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    one, two = (stage.finished(app.launching.store, title) for title in ("Pirate", "Poet"))
    talk, met = Talk(), set()
    for _ in range(12):
        talk = of_two(page, one, two, "base", blind=True, talk=talk)[-1]["talk"]
        turn = talk.last
        assert turn is not None
        met.add(frozenset((turn.adapter, turn.against)))
        again = of_two(page, one, two, "base", blind=True, talk=talk)[-1]["talk"].last
        assert (again.adapter, again.against) == (turn.adapter, turn.against)  # not voted on yet
        label = "A is better" if turn.sides.order[0] == "tuned" else "B is better"
        _, _, talk, _, _, tally = page.on_vote(label, talk, one.id, False, request())
    assert len(met) == 3
    assert "All visitors, rounds won: <b>" in tally
    places = app.comparing.tournament([one.id, two.id, ""])
    assert sum(place.decided for place in places) == 24
    assert sum(place.won for place in places) == 12
    assert places[-1].name == ""  # the base stood against tuned alone, which won


def test_the_ring_has_a_fifth_for_each_round() -> None:
    votes = ["tuned", "base", "tie", "both bad", "tuned", "base"]
    turns = tuple(Turn("?", vote=vote) for vote in votes)
    full = game_line(Talk("", turns[:5]))
    assert 'class="ring done"' in full
    assert full.count('class="tuned"') == 2
    assert 'class="both-bad"' in full
    assert "5/5" in full
    assert "1/5" in game_line(Talk("", turns))
    assert "You preferred <b>tuned</b> 2 of 6" in game_line(Talk("", turns))


def test_sides_are_drawn_for_each_question(app: Any, monkeypatch: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    coin = iter(("tuned", "base", "tuned"))
    monkeypatch.setattr("secrets.choice", lambda sides: next(coin))
    talk, lefts = Talk(), []
    for _ in range(3):
        talk = ask(page, run.id, blind=True, talk=talk)[-1]["talk"]
        lefts.append(talk.last.sides.left)  # type: ignore[union-attr]
    assert lefts == ["tuned", "base", "tuned"]
    assert len({turn.sides.pair for turn in talk.turns}) == 3


def test_blind_keeps_the_conversation_and_means_the_next_question(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    talk = ask(page, run.id)[-1]["talk"]
    after = ask(page, run.id, blind=True, talk=talk)[-1]["talk"]
    assert [turn.hidden for turn in after.turns] == [False, True]


def test_all_visitors_are_counted_with_their_interval() -> None:
    line = game_line(Talk(), Tally(tuned=33, base=13))
    assert "72 % (57 to 83 %) of 46 blind votes" in line
    assert "none for one side" in game_line(Talk(), Tally(ties=1))
    assert game_line(Talk(), Tally()) == ""


# ------------------------------------------------------------------------------ Opening


def opened(page: Any, browser: str = "", **query: str) -> dict[str, Any]:
    values = page.on_open(browser, request(**query))
    subjects = ("adapter", "against", "third")
    names = (*subjects, "chips", "tally", "past", "now", "talk", "kept", "message", "system")
    return {**dict(zip(names, values, strict=False)), "settings": values[len(names) :]}


def test_a_fresh_page_shows_what_the_report_kept_and_asks_nobody(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    shown = opened(page, adapter=run.id)
    assert "Name the capital of Ukraine." in shown["now"]
    assert "Kept with the run" in shown["now"]
    assert 'class="differs"' in shown["now"]
    assert 'data-prompt="Say &quot;hi&quot; &lt;now&gt;"' in shown["chips"]
    assert not hasattr(app.comparing, "asked")
    talk = ask(page, run.id, talk=shown["talk"])[-1]["talk"]
    assert [turn.question for turn in talk.turns] == ["Who?"]  # it is no part of the conversation


def test_the_adapter_that_comes_along_is_there_for_who_has_no_run(app: Any) -> None:  # noqa: F811
    shown = opened(page_of(compare_page, app))
    assert shown["adapter"]["value"] == BUNDLED
    assert "Kept with the run" in shown["now"]
    run = stage.finished(app.launching.store)
    assert opened(page_of(compare_page, app))["adapter"]["value"] == run.id


def test_the_address_asks_its_question_with_its_settings(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run = stage.finished(app.launching.store)
    shown = opened(page, adapter=run.id, q=" Who? ", seed="7", temperature="0.5", top_p="nonsense")
    assert shown["message"] == "Who?"
    assert shown["now"] == ""
    assert shown["settings"][0] == 0.5
    assert shown["settings"][1] == gr.skip()
    assert from_address({"seed": "-1", "top_k": "1e99", "temperature": "nan"}) == {}
    values = ("Who?", Talk(run.id), run.id, False, *DEFAULTS)
    assert list(page.on_first(request(), *values))[-1][3].last.question == "Who?"
    nothing = ("", Talk(run.id), run.id, False, *DEFAULTS)
    frames = list(page.on_first(request(), *nothing))
    assert "LoRA 10 B on pocket" in frames[0][-2]
    assert "Loading the model" in frames[1][-1]


def test_a_conversation_comes_back_to_its_adapter_and_to_no_other(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    run, other = stage.finished(app.launching.store), stage.finished(app.launching.store)
    talk = replace(asked(app), adapter=run.id)
    assert opened(page, talk.to_json(), adapter=run.id)["talk"] == talk
    assert opened(page, talk.to_json(), adapter=other.id)["talk"] != talk


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "[" * 100_000,
        "7" * 1_100_000,
        '{"turns": []}',
        '{"turns": [{"question": "?", "at_base": 9, "base": []}]}',
        '{"turns": [{"question": "?", "sides": {"left": "me"}}]}',
    ],
)
def test_what_a_browser_did_not_write_is_not_read(text: str) -> None:
    assert read_talk(text) is None


def test_a_variant_that_is_not_there_shows_one_that_is() -> None:
    talk = read_talk('{"turns": [{"question": "?", "at_base": 99, "base": [{"text": "a"}]}]}')
    assert talk is not None
    assert talk.turns[0].shown("base") == Said("a")


def test_finished_runs_are_offered_without_a_restart(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    assert [value for _, value in page.on_pulse("", request())[0]["choices"]] == [BUNDLED, ""]
    run = stage.finished(app.launching.store)
    choices = page.on_pulse("", request())[0]["choices"]
    assert [value for _, value in choices] == [run.id, BUNDLED, ""]


def test_a_folder_can_be_named_on_ones_own_machine(app: Any) -> None:  # noqa: F811
    folder = stage.finished(app.launching.store).folder / "adapter"
    subject = app.comparing.subject(str(folder), Caller())
    assert subject.base.path == "pocket"
    assert about(subject)[1] == "better than its base on 40 held-out rows"


def test_a_link_to_a_deleted_run_says_that_there_is_none(app: Any) -> None:  # noqa: F811
    page = page_of(compare_page, app)
    gone = "20260101-000000-abcdef"
    frames = list(page.on_first(request(), "", Talk(gone), gone, False, *DEFAULTS))
    assert f"There is no run &#x27;{gone}&#x27;" in frames[-1][-1]


def test_a_space_of_one_adapter_has_nothing_to_choose(app: Any) -> None:  # noqa: F811
    one = replace(app, comparing=ComparingOne(app.comparing, "ann/pirate"))
    with gr.Blocks() as demo:
        page = compare_page.build(one, demo)
    assert not [one for one in demo.blocks.values() if isinstance(one, gr.Dropdown)]
    heads = [str(one.value) for one in demo.blocks.values() if isinstance(one, gr.HTML)]
    head = next(value for value in heads if "<h1>" in value)
    assert "ann/pirate" in head
    assert 'href="https://huggingface.co/ann/pirate"' in head
    assert page.on_open("", request(adapter="eve/other"))[0] == "ann/pirate"


def test_the_samples_of_a_published_card_are_found_again(app: Any, tmp_path: Path) -> None:  # noqa: F811
    run = stage.finished(app.launching.store)
    card = draft_card(run.folder, "ann/pirate")
    kept = {name: stage.report()["gained"][0][name] for name in ("prompt", "reference", "base")}
    assert samples_of(card) == [{**kept, "tuned": kept["reference"]}]
    example = f"{kept['prompt']}\n\nBase:  {kept['base']}\nTuned: {kept['reference']}\n```"
    assert card.index(example) < card.index("## Base against tuned")  # at a glance
    report = {**stage.report(), "verdict": "cannot tell"}
    (run.folder / "report.json").write_text(json.dumps(report))
    assert "Tuned: " not in draft_card(run.folder, "ann/pirate")
    report = {**stage.report(), "gained": [{**stage.report()["gained"][0], "base": "a\n```\nb"}]}
    (run.folder / "report.json").write_text(json.dumps(report))
    assert "Tuned: " not in draft_card(run.folder, "ann/pirate")  # of several lines
    assert samples_of("**Prompt**\n\n```text\nno end") == []
    assert samples_of("**Base**\n\n```text\nof no prompt\n```") == []
    (tmp_path / "README.md").write_text(card)
    one = ComparingOne(app.comparing, "ann/pirate")
    one._subject = Subject(ModelConfig(path="pocket"), tmp_path, "adapter", "ann/pirate")
    assert one.suggestions("", Caller()) == ["Name the capital of Ukraine."]
    sample = one.kept_answers("", Caller())
    assert sample is not None
    assert (sample.base, sample.tuned) == (kept["base"], kept["reference"])


# ------------------------------------------------------------------------------ Markdown


def test_answers_are_read_as_markdown_and_never_as_html() -> None:
    text = rendered("- **Arr**\n\n```py\nx = '<b>'\n```\n\n<script>1</script> ![x](http://a/b.png)")
    assert "<li><strong>Arr</strong></li>" in text or "<strong>Arr</strong>" in text
    assert "<code" in text
    assert "<script" not in text
    assert "<img" not in text
    for link in ("[x](https://example.com)", "<https://example.com>", "[x]\n\n[x]: https://a.b"):
        assert "<a" not in rendered(link)
    assert 'rel="noopener noreferrer nofollow"' in rendered("[x](https://a.b)", links=True)
    assert "<a" not in rendered("[x](javascript:alert(1))", links=True)


def test_words_that_differ_are_marked_across_emphasis_and_code_is_left_alone() -> None:
    marked = rendered("Arr, the capital be **Kyiv**, `matey`!", "The capital is Kyiv.")
    assert marked.count("<mark") == marked.count("</mark>") > 0
    assert '<mark class="differs">Arr' in marked
    assert "<strong>Kyiv</strong>" in marked
    assert "<code>matey</code>" in marked
    assert "<mark" not in rendered("Entirely other words", "Nothing alike here at all")
    assert "<mark" not in rendered("The same.", "The same.")


def test_an_empty_head_of_a_table_is_no_heading() -> None:
    table = rendered("| | base |\n| --- | ---: |\n| Loss | 3 |")
    assert table.count("<th") - table.count("<thead") == 1
    assert "<td></td>" in table


def test_thoughts_are_folded_and_the_conversation_keeps_them(app: Any) -> None:  # noqa: F811
    said = Said("<think>\nTwo and two.\n</think>\n\nFour.", 9)
    turn = Turn("2+2?", base=(said,), tuned=(Said("<think>\nStill"),))
    drawn = turn_html(turn, 0)
    assert "<summary>Thoughts</summary>" in drawn
    assert drawn.index("Two and two.") < drawn.index("Four.")
    assert "<summary>Thinking …</summary>" in drawn
    talk = Talk("", (turn,)).plus(Turn("And?"))
    assert talk.messages("base")[1]["content"].startswith("<think>")


def test_questions_and_answers_are_escaped_in_every_place() -> None:
    turn = Turn('<img src=x> "q"', base=(Said('"><script>1</script>'),), tuned=(Said("x"),))
    drawn = turn_html(turn, 0, last=True)
    assert "<img" not in drawn
    assert "<script" not in drawn
    assert 'data-raw="&quot;&gt;&lt;script&gt;' in drawn
