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
from phi3lora.app.comparing import Subject, draw_sides, draw_two, titles
from phi3lora.app.shared import Shared, asked_of
from phi3lora.chat.options import BOTH, Options, Pair, Side
from phi3lora.errors import Phi3LoraError
from phi3lora.ui.asking import Ask, Flag, Stops, another, unusual
from phi3lora.ui.compare_opening import CompareOpening, drawn
from phi3lora.ui.compare_parts import ASKING, RESTING, VOTES
from phi3lora.ui.compare_show import status_line, undo_line
from phi3lora.ui.runs_page import PULSE
from phi3lora.ui.sessions import session_of
from phi3lora.ui.talk import Said, Talk, Turn, answer_of
from phi3lora.ui.turns import round_line, turn_html, turns_html
from phi3lora.ui.widgets import message_of, shown, told

REMEMBER = """(...names) => {
  ['adapter', 'against', 'third'].forEach((name, at) => window.phi3lora.remember(name, names[at]));
  return names;
}"""
BLIND = "(now) => now || new URLSearchParams(window.location.search).get('blind') === '1'"
READ = "() => [window.phi3lora.talks.newest()]"


class ComparePage(CompareOpening):
    """The page: its components, and what happens to them."""

    def __init__(self, app: Application) -> None:
        super().__init__(app)
        self.stops = Stops()

    # ------------------------------------------------------------------ what happens

    @shown
    def on_first(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Once the page is there: ask what its address asks, or load what will be asked."""
        ask = Ask.sent(values, self.sampling)
        if ask.message.strip():
            yield from self.on_ask(request, *values)
        else:
            yield from self._loading(ask.adapter, ask.against, request)

    @shown
    def on_ask(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Both answers as they grow, beside each other."""
        ask = Ask.sent(values, self.sampling)
        if not ask.message.strip():
            raise Phi3LoraError("Type a question first.")
        try:
            caller = self.app.callers.caller(session_of(request))
            chosen, against, third = self._chosen(ask.adapter, ask.against, ask.third, request)
            talk = replace(ask.talk, adapter=chosen, against=against, third=third)
            name, other = self._meeting(talk, ask.blind)
            subject = self.app.comparing.opposed(name, other, caller)
            blind = ask.blind and subject.result is not None
            turn = Turn(
                ask.message,
                draw_sides(blind=blind),
                hidden=blind,
                settings=unusual(ask.options()),
                adapter=name,
                against=other,
                titles=titles(subject, ask.options(), among_three=len(talk.names) > 2),
            )
            talk = talk.plus(turn)
            sides = BOTH if subject.result else BOTH[:1]
            yield from self._answered(talk, sides, subject, ask.options(), "", request)
        except Phi3LoraError as error:
            yield self._failed(ask.talk, ask.message, error)

    def _meeting(self, talk: Talk, blind: bool) -> tuple[str, str]:
        """Who answers the next question: of three in a blind tournament two, till somebody voted.

        Without a tournament these are the two that were chosen.
        """
        names = talk.names
        if not blind or len(names) < 3:
            return talk.adapter, talk.against
        last = talk.last
        if last and last.hidden and last.adapter in names and last.against in names:
            return last.adapter, last.against
        return draw_two(names)

    def _answered(
        self,
        talk: Talk,
        sides: tuple[Side, ...],
        subject: Subject,
        options: Options,
        how: str,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Frames of the last turn while these sides answer it, unless the page leaves it."""
        session = str(request.session_hash)
        flag = self.stops.begin(session)
        try:
            for frame in self._frames(talk, sides, subject, options, how, request, flag):
                if flag.left:  # Gradio shows the last frame once more at the end
                    yield [gr.skip()] * len(self.answering)
                    return
                yield frame
        except Phi3LoraError:
            if not flag.left:
                raise
        finally:
            self.stops.end(session, flag)

    def _frames(
        self,
        talk: Talk,
        sides: tuple[Side, ...],
        subject: Subject,
        options: Options,
        how: str,
        request: gr.Request,
        flag: Flag,
    ) -> Iterator[list[Any]]:
        turn, began, first = talk.turns[-1], 0.0, Pair()
        places = {side: len(turn.variants(side)) for side in sides}
        for side in sides:
            turn = turn.heard(side, Said(how=how), places[side])
        yield self._frame(talk, turn, Pair(), "asking")
        for pair in self._pairs(talk, sides, subject, options, request, flag):
            if not began and pair.tokens_base + pair.tokens_tuned:
                began, first = time.monotonic(), pair
            for side in sides:
                lasted = time.monotonic() - began if began else 0.0
                said, before = answer_of(pair, side, how, first, lasted), turn.shown(side)
                if before and before.rate:  # it had ended; the other one goes on
                    said = replace(said, rate=before.rate)
                turn = turn.heard(side, said, places[side])
            yield self._frame(talk, turn, pair, "answering")
        self._remember(talk.with_last(turn), options, request)
        yield self._frame(talk.with_last(turn), turn, Pair(), "done")

    def _remember(self, talk: Talk, options: Options, request: gr.Request) -> None:
        """For the picture of a link that asks the same: a first question, in the open."""
        turn = talk.turns[-1]
        base, tuned = turn.shown("base"), turn.shown("tuned")
        first = len(talk.messages("base")) == 1 and not turn.hidden
        if not first or base is None or tuned is None or base.how or tuned.how:
            return
        asked = asked_of(turn.adapter, turn.against, turn.question, unusual(options))
        shared = Shared(turn.question, turn.titles, (base.text, tuned.text))
        caller = self.app.callers.caller(session_of(request))
        self.app.comparing.share(asked, shared, caller)

    def _pairs(
        self,
        talk: Talk,
        sides: tuple[Side, ...],
        subject: Subject,
        options: Options,
        request: gr.Request,
        flag: Flag,
    ) -> Iterator[Pair]:
        """Answers from the engine, until they are complete or somebody presses Stop."""
        base, tuned = (talk.messages(side) if side in sides else [] for side in BOTH)
        caller = self.app.callers.caller(session_of(request))
        return self.app.comparing.reply(subject, base, tuned, options, flag.is_set, caller=caller)

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
            last = ask.talk.turns[-1]
            chosen, against, _ = self._chosen(ask.adapter, ask.against, ask.third, request)
            name, other = (last.adapter, last.against) if last.adapter else (chosen, against)
            subject = self.app.comparing.opposed(name, other, caller)
            options, how = another(ask.options(), len(last.variants(side)))
            yield from self._answered(ask.talk, (side,), subject, options, how, request)
        except Phi3LoraError as error:
            yield self._failed(ask.talk, "", error)

    def on_clear(self, talk: Talk, request: gr.Request) -> list[Any]:
        """A fresh conversation; the one before comes back with Undo."""
        self.stops.leave(str(request.session_hash))
        fresh = Talk(talk.adapter, against=talk.against, third=talk.third)
        hide, rest = gr.update(visible=False), gr.update(**RESTING)
        line = undo_line("A new conversation.")
        standing = self.standing_line(fresh, self._caller(request))
        return [*drawn(fresh), hide, standing, talk, line, rest]

    @shown
    def on_adapter(
        self, chosen: str, against: str, third: str, before: Talk, request: gr.Request
    ) -> list[Any]:
        """Something else to compare: a conversation of its own; the one before comes back.

        Gradio's lists tell of a choice twice, and again whenever they are left: what is compared
        already changes nothing.
        """
        if (chosen, against, third) == (before.adapter, before.against, before.third):
            return [gr.skip()] * len(self.changing)
        self.stops.leave(str(request.session_hash))
        caller = self._caller(request)
        talk = self._first(Talk(chosen, against=against, third=third), caller)
        hide, rest = gr.update(visible=False), gr.update(**RESTING)
        said = any(not turn.kept for turn in before.turns)
        line = undo_line("A new conversation, about what you chose.") if said else ""
        back = before if said else gr.skip()
        return [*self._about(talk, caller), *drawn(talk), hide, back, line, rest]

    def on_undo(self, before: Talk, request: gr.Request) -> list[Any]:
        """The conversation that was left, with what it compares."""
        self.stops.leave(str(request.session_hash))
        hidden = gr.update(visible=bool(before.last and before.last.hidden))
        caller, rest = self._caller(request), gr.update(**RESTING)
        subjects = [before.adapter, before.against, before.third]
        return [*subjects, *self._about(before, caller), *drawn(before), hidden, "", rest]

    @shown
    def on_vote(
        self, label: str, talk: Talk, chosen: str, consent: Any, request: gr.Request
    ) -> list[Any]:
        """Count a vote and show which was which."""
        turn = talk.last
        if turn is None or not turn.sides.pair or label not in VOTES:
            raise Phi3LoraError("Ask both something first.")
        left, right = (_talked(talk, side) for side in turn.sides.order)
        vote = self.app.voting.cast(
            turn.adapter or chosen,
            turn.sides,
            VOTES[label],
            left,
            right,
            Options(**turn.settings),
            self.app.callers.caller(session_of(request)),
            consent=consent is True,
            against=turn.against,
        )
        said = vote.winner or ("tie" if vote.choice == "tie" else "both bad")
        talk = talk.with_last(replace(turn, hidden=False, vote=said))
        standing = self.standing_line(talk, self._caller(request))
        return [*drawn(talk), gr.update(visible=False), standing]

    def _caller(self, request: gr.Request) -> Caller:
        return self.app.callers.caller(session_of(request))

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        settings = [self.system, *self.sampling.values()]
        subjects = [self.adapter, self.against, self.third]
        inputs = [self.message, self.talk, self.adapter, self.blind, *subjects[1:], *settings]
        facts = [self.suggestions, self.tally]
        opened = demo.load(
            self.on_open,
            self.browser,
            [*subjects, *facts, *self.conversation, self.message, *settings],
            js=READ,
            **quiet,
        )
        demo.load(None, self.blind, self.blind, js=BLIND, **quiet)
        opened.success(self.on_first, inputs, self.answering, **quiet)
        self.votes.wire(subjects)
        self.prompt_set.wire(inputs, self.sampling)
        places = [*self.conversation, self.vote_row]
        changed = gr.on(
            [subject.input for subject in subjects],
            self.on_adapter,
            [*subjects, self.talk],
            self.changing,
            **quiet,
        )
        restored = self.undo.click(
            self.on_undo,
            self.before,
            [*subjects, *facts, *places, self.undo, self.message],
            **quiet,
        )
        for event in (changed, restored):
            self._wire_subjects(event, subjects, quiet)
        self.timer.tick(
            None, [self.pulse, self.nothing], self.pulse, js=PULSE, show_progress="hidden"
        )
        self.pulse.change(self.on_pulse, self.adapter, [*subjects, self.room], **quiet)
        self.message.submit(self.on_ask, inputs, self.answering, **quiet)
        self.message.stop(self.on_stop, None, None, **quiet)
        self.suggestions.click(on_suggestion, None, self.message, **quiet).then(
            self.on_ask, inputs, self.answering, **quiet
        )
        for place in (self.past, self.now):
            place.click(self.on_turn, inputs, self.answering, **quiet)
        voted_on = [*places, self.tally]
        cleared = [*voted_on, self.before, self.undo, self.message]
        self.clear.click(self.on_clear, self.talk, cleared, **quiet)
        for button in self.vote_buttons:
            voted = button.click(
                self.on_vote, [button, self.talk, self.adapter, self.consent], voted_on, **quiet
            )
            voted.success(**self.votes.again)

    def _wire_subjects(self, changed: Any, subjects: list[Any], quiet: dict[str, Any]) -> None:
        """Once something else is compared: it is in the address, loaded, and its votes shown."""
        changed.then(None, subjects, subjects, js=REMEMBER)
        other = self.sampling["against_strength"]
        changed.success(lambda name: gr.update(visible=bool(name)), self.against, other, **quiet)
        changed.success(self.on_load, subjects[:2], self.answering, **quiet)
        changed.success(**self.votes.again)


def _talked(talk: Talk, side: Side) -> list[dict[str, Any]]:
    """The conversation as one side had it, with its last answer."""
    answer = talk.last.shown(side) if talk.last else None
    said = [{"role": "assistant", "content": answer.text}] if answer else []
    return [*talk.messages(side), *said]


def build(app: Application, demo: gr.Blocks) -> ComparePage:
    """Put the page into the Blocks that are open, wired."""
    page = ComparePage(app)
    page.wire(demo)
    return page


@shown
def on_suggestion(event: gr.EventData) -> str:
    """A suggested prompt was clicked."""
    return told(event, "prompt")
