"""The Compare page: one question across, the answers of base and tuned beside each other under it.

In the open the base is left; in blind mode a coin decides for each question, and the names come
with the vote. Every visitor's conversation lives in the page and in their browser; one engine
answers all. `/compare?adapter=…&q=…&seed=…` asks what it names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import Subject, about, draw_sides
from phi3lora.chat.options import BOTH, Options, Pair, Side
from phi3lora.errors import DataError, Phi3LoraError
from phi3lora.ui import show
from phi3lora.ui.asking import LONGEST_IN_ADDRESS, Ask, Stops, another, from_address, unusual
from phi3lora.ui.compare_parts import ASKING, RESTING, VOTES, CompareParts
from phi3lora.ui.compare_show import (
    about_line,
    adapter_choices,
    first_choice,
    prompt_chips,
    status_line,
    undo_line,
)
from phi3lora.ui.runs_page import PULSE
from phi3lora.ui.sessions import session_of
from phi3lora.ui.talk import Said, Talk, Turn, answer_of, read_talk
from phi3lora.ui.turns import game_line, round_line, turn_html, turns_html
from phi3lora.ui.widgets import message_of, shown, told

REMEMBER = "(adapter) => { window.phi3lora.remember('adapter', adapter); return adapter; }"
READ = "() => [window.phi3lora.talks.newest()]"


class ComparePage(CompareParts):
    """The page: its components, and what happens to them."""

    def __init__(self, app: Application) -> None:
        super().__init__(app)
        self.stops = Stops()

    # ------------------------------------------------------------------ what happens

    @shown
    def on_open(self, browser: str, request: gr.Request) -> list[Any]:
        """What the address says: an adapter, a question, settings; or what this browser kept."""
        caller = self.app.callers.caller(session_of(request))
        choices = self.choices(caller)
        chosen = self.app.comparing.settled or first_choice(
            request.query_params.get("adapter"), choices
        )
        question = request.query_params.get("q", "")[:LONGEST_IN_ADDRESS].strip()
        kept = read_talk(browser)
        talk = Talk(chosen)
        if kept and kept.adapter == chosen and not question:
            talk = kept
        elif not question:
            talk = self._first(chosen, caller)
        named = from_address(request.query_params)
        fields = [named.get(name, gr.skip()) for name in ("system", *self.sampling)]
        facts = self._about(chosen, talk, caller)
        return [
            self._offered(choices, chosen),
            *facts,
            *drawn(talk),
            question or gr.skip(),
            *fields,
        ]

    def _offered(self, choices: list[tuple[str, str]], chosen: str) -> Any:
        """The field of the adapter, with what it offers; the one that is settled stays."""
        settled = self.app.comparing.settled
        return settled or gr.update(choices=choices, value=chosen)

    def _first(self, chosen: str, caller: Caller) -> Talk:
        """What both said to a held-out prompt, as the report has it: nobody needs to wait."""
        sample = self.app.comparing.kept_answers(chosen, caller)
        if sample is None:
            return Talk(chosen)
        base, tuned = (Said(sample.base),), (Said(sample.tuned),)
        return Talk(chosen, (Turn(sample.prompt, base=base, tuned=tuned, kept=True),))

    @shown
    def on_first(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Once the page is there: ask what its address asks, or load what will be asked."""
        ask = Ask.sent(values, self.sampling)
        if ask.message.strip():
            yield from self.on_ask(request, *values)
        else:
            yield from self._loading(ask.adapter, request)

    @shown
    def on_adapter(self, chosen: str, request: gr.Request) -> list[Any]:
        """Another adapter: a conversation of its own; the one before stays among the earlier."""
        caller = self.app.callers.caller(session_of(request))
        talk = self._first(chosen, caller)
        return [*self._about(chosen, talk, caller), *drawn(talk)]

    @shown
    def on_load(self, chosen: str, request: gr.Request) -> Iterator[list[Any]]:
        """Load what was chosen, saying so."""
        yield from self._loading(chosen, request)

    def _about(self, chosen: str, talk: Talk, caller: Caller) -> list[Any]:
        """Suggested prompts and the votes on an adapter."""
        comparing = self.app.comparing
        prompts = comparing.suggestions(chosen, caller)
        return [prompt_chips(prompts), game_line(talk, comparing.tally(chosen))]

    def _loading(self, chosen: str | None, request: gr.Request) -> Iterator[list[Any]]:
        """What is being loaded, as it goes; a mistake is said in its place."""
        nothing = [gr.skip()] * (len(self.answering) - 2)
        try:
            caller = self.app.callers.caller(session_of(request))
            subject = self.app.comparing.subject(self._chosen(chosen, request), caller)
            yield [*nothing, about_line(about(subject)), gr.skip()]
            for note in self.app.comparing.load(subject, caller):
                yield [*nothing, gr.skip(), status_line(note)]
            quota = self.app.comparing.quota_message()
            yield [*nothing, gr.skip(), show.notice(quota, "grey") if quota else ""]
        except Phi3LoraError as error:
            yield [*nothing, "", show.notice(str(error))]

    @shown
    def on_pulse(self, chosen: str | None, request: gr.Request) -> list[Any]:
        """Runs that have finished since are in the list; memory may be short or free again."""
        caller = self.app.callers.caller(session_of(request))
        choices = self.choices(caller)
        room = self.app.comparing.room_message()
        offered = gr.skip() if self.app.comparing.settled else gr.update(choices=choices)
        return [offered, show.notice(room) if room else ""]

    def choices(self, caller: Caller) -> list[tuple[str, str]]:
        """What the list of adapters offers to this caller."""
        settled = self.app.comparing.settled
        return [(settled, settled)] if settled else adapter_choices(self.app.comparing.runs(caller))

    @shown
    def on_ask(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Both answers as they grow, beside each other."""
        ask = Ask.sent(values, self.sampling)
        if not ask.message.strip():
            raise DataError("Type a question first.")
        try:
            caller = self.app.callers.caller(session_of(request))
            chosen = self._chosen(ask.adapter, request)
            subject = self.app.comparing.subject(chosen, caller)
            blind = bool(ask.blind) and subject.result is not None
            turn = Turn(ask.message, draw_sides(blind=blind), hidden=blind)
            turn = replace(turn, settings=unusual(ask.options()))
            talk = replace(ask.talk, adapter=chosen).plus(turn)
            sides = BOTH if subject.result else BOTH[:1]
            yield from self._answered(talk, sides, subject, ask.options(), "", request)
        except Phi3LoraError as error:
            yield self._failed(ask.talk, ask.message, error)

    def _chosen(self, chosen: str | None, request: gr.Request) -> str:
        """The chosen adapter; of a page that has not finished loading, what it will choose."""
        if chosen is not None:
            return chosen
        choices = self.choices(self.app.callers.caller(session_of(request)))
        return first_choice(request.query_params.get("adapter"), choices)

    def _answered(
        self,
        talk: Talk,
        sides: tuple[Side, ...],
        subject: Subject,
        options: Options,
        how: str,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Frames of the last turn while these sides answer it."""
        turn, began = talk.turns[-1], 0.0
        places = {side: len(turn.variants(side)) for side in sides}
        for side in sides:
            turn = turn.heard(side, Said(how=how), places[side])
        yield self._frame(talk, turn, Pair(), "asking")
        for pair in self._pairs(talk, sides, subject, options, request):
            began = began or (time.monotonic() if pair.tokens_base + pair.tokens_tuned else 0.0)
            for side in sides:
                said = answer_of(pair, side, time.monotonic() - began if began else 0.0, how)
                turn = turn.heard(side, said, places[side])
            yield self._frame(talk, turn, pair, "answering")
        yield self._frame(talk.with_last(turn), turn, Pair(), "done")

    def _pairs(
        self,
        talk: Talk,
        sides: tuple[Side, ...],
        subject: Subject,
        options: Options,
        request: gr.Request,
    ) -> Iterator[Pair]:
        """Answers from the engine, until they are complete or somebody presses Stop."""
        base, tuned = (talk.messages(side) if side in sides else [] for side in BOTH)
        session = str(request.session_hash)
        flag = self.stops.begin(session)
        caller = self.app.callers.caller(session_of(request))
        try:
            yield from self.app.comparing.reply(
                subject, base, tuned, options, flag.is_set, caller=caller
            )
        finally:
            self.stops.end(session, flag)

    def _frame(self, talk: Talk, turn: Turn, pair: Pair, phase: str) -> list[Any]:
        """Values for what an answer changes, in the order of `answering`."""
        if phase != "done":
            past = turns_html(talk.turns[:-1]) if phase == "asking" else gr.skip()
            message = gr.update(**ASKING) if phase == "asking" else gr.skip()
            now = turn_html(turn, len(talk.turns) - 1, busy=True)
            note = status_line(pair.note) if pair.note else ""
            hide = gr.update(visible=False)
            return [message, past, now, gr.skip(), gr.skip(), hide, gr.skip(), gr.skip(), note]
        vote = gr.update(visible=turn.hidden)
        return [gr.update(**RESTING), *drawn(talk), vote, round_line(talk), gr.skip(), ""]

    def _failed(self, talk: Talk, question: str, error: Phi3LoraError) -> list[Any]:
        """As it was before, with the question back in its field and what went wrong over it."""
        message = gr.update(value=question, **RESTING)
        vote = gr.update(visible=bool(talk.last and talk.last.hidden))
        told = f'<div class="notice red" role="alert"><i>×</i><div>{message_of(error)}</div></div>'
        return [message, *drawn(talk), vote, gr.skip(), gr.skip(), told]

    def on_stop(self, request: gr.Request) -> None:
        """Both answers end where they are."""
        self.stops.stop(str(request.session_hash))

    @shown
    def on_turn(
        self, request: gr.Request, event: gr.EventData, *values: Any
    ) -> Iterator[list[Any]]:
        """Something about a turn: another answer, one there was, or its question to be edited."""
        ask, do = Ask.sent(values, self.sampling), told(event, "do")
        place = event._data.get("turn") if isinstance(event._data, dict) else None
        if not isinstance(place, int) or not 0 <= place < len(ask.talk.turns):
            return
        turn = ask.talk.turns[place]
        side = turn.sides.order[0 if told(event, "of") == "left" else 1]
        if do == "again" and turn is ask.talk.last:
            yield from self._again(ask, side, request)
        elif do == "edit" and turn is ask.talk.last:
            talk = replace(ask.talk, turns=ask.talk.turns[:-1])
            hide = gr.update(visible=False)
            yield [turn.question, *drawn(talk), hide, gr.skip(), gr.skip(), gr.skip()]
        elif do in ("before", "next"):
            turned = turn.turned(side, 1 if do == "next" else -1)
            turns = (*ask.talk.turns[:place], turned, *ask.talk.turns[place + 1 :])
            yield [gr.skip(), *drawn(replace(ask.talk, turns=turns)), *[gr.skip()] * 4]

    def _again(self, ask: Ask, side: Side, request: gr.Request) -> Iterator[list[Any]]:
        """One more answer of a side to the last question, with a seed that it had not."""
        try:
            caller = self.app.callers.caller(session_of(request))
            chosen = self._chosen(ask.adapter, request)
            subject = self.app.comparing.subject(chosen, caller)
            options, how = another(ask.options(), len(ask.talk.turns[-1].variants(side)))
            yield from self._answered(ask.talk, (side,), subject, options, how, request)
        except Phi3LoraError as error:
            yield self._failed(ask.talk, "", error)

    def on_clear(self, talk: Talk) -> list[Any]:
        """A fresh conversation; the one before comes back with Undo."""
        fresh = Talk(talk.adapter)
        votes = game_line(fresh, self.app.comparing.tally(talk.adapter))
        hide = gr.update(visible=False)
        return [*drawn(fresh), hide, votes, talk, undo_line("A new conversation.")]

    def on_undo(self, before: Talk) -> list[Any]:
        """The conversation that was cleared."""
        hidden = bool(before.last and before.last.hidden)
        votes = game_line(before, self.app.comparing.tally(before.adapter))
        return [*drawn(before), gr.update(visible=hidden), votes, ""]

    @shown
    def on_vote(self, label: str, talk: Talk, chosen: str, request: gr.Request) -> list[Any]:
        """Count a vote and show which was which."""
        turn = talk.last
        if turn is None or not turn.sides.pair or label not in VOTES:
            raise DataError("Ask both something first.")
        caller = self.app.callers.caller(session_of(request))
        left, right = (_talked(talk, side) for side in turn.sides.order)
        options = Options(**turn.settings)
        vote = self.app.voting.cast(chosen, turn.sides, VOTES[label], left, right, options, caller)
        said = vote.winner or ("tie" if vote.choice == "tie" else "both bad")
        talk = talk.with_last(replace(turn, hidden=False, vote=said))
        tally = game_line(talk, self.app.comparing.tally(chosen))
        return [*drawn(talk), gr.update(visible=False), tally]

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        settings = [self.system, *self.sampling.values()]
        inputs = [self.message, self.talk, self.adapter, self.blind, *settings]
        facts = [self.suggestions, self.tally]
        opened = demo.load(
            self.on_open,
            self.browser,
            [self.adapter, *facts, *self.conversation, self.message, *settings],
            js=READ,
            **quiet,
        )
        opened.success(self.on_first, inputs, self.answering, **quiet)
        changed = self.adapter.input(
            self.on_adapter, self.adapter, [*facts, *self.conversation], **quiet
        )
        changed.then(None, self.adapter, self.adapter, js=REMEMBER)
        changed.success(lambda: gr.update(visible=False), None, self.vote_row, **quiet)
        changed.success(self.on_load, self.adapter, self.answering, **quiet)
        self.timer.tick(
            None, [self.pulse, self.nothing], self.pulse, js=PULSE, show_progress="hidden"
        )
        self.pulse.change(self.on_pulse, self.adapter, [self.adapter, self.status], **quiet)
        self.message.submit(self.on_ask, inputs, self.answering, **quiet)
        self.message.stop(self.on_stop, None, None, queue=False, **quiet)
        self.suggestions.click(on_suggestion, None, self.message, **quiet).then(
            self.on_ask, inputs, self.answering, **quiet
        )
        for place in (self.past, self.now):
            place.click(self.on_turn, inputs, self.answering, **quiet)
        cleared = [*self.conversation, self.vote_row, self.tally]
        self.clear.click(self.on_clear, self.talk, [*cleared, self.before, self.undo], **quiet)
        self.undo.click(self.on_undo, self.before, [*cleared, self.undo], **quiet)
        for button in self.vote_buttons:
            button.click(self.on_vote, [button, self.talk, self.adapter], cleared, **quiet)


def _talked(talk: Talk, side: Side) -> list[dict[str, Any]]:
    """The conversation as one side had it, with its last answer."""
    answer = talk.last.shown(side) if talk.last else None
    said = [{"role": "assistant", "content": answer.text}] if answer else []
    return [*talk.messages(side), *said]


def drawn(talk: Talk) -> list[Any]:
    """A conversation at rest, in the order of `conversation`."""
    last = turn_html(talk.last, len(talk.turns) - 1, last=True) if talk.last else ""
    return [turns_html(talk.turns[:-1]), last, talk, talk.to_json()]


def build(app: Application, demo: gr.Blocks) -> ComparePage:
    """Put the page into the Blocks that are open, wired."""
    page = ComparePage(app)
    page.wire(demo)
    return page


@shown
def on_suggestion(event: gr.EventData) -> str:
    """A suggested prompt was clicked."""
    return told(event, "prompt")
