"""How the Compare page comes up: what its address names, what a browser kept, what is offered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from phi3lora.app.callers import Caller
from phi3lora.app.comparing import about, named_for_votes
from phi3lora.chat.options import Options
from phi3lora.errors import Phi3LoraError
from phi3lora.ui import show
from phi3lora.ui.asking import LONGEST_IN_ADDRESS, from_address
from phi3lora.ui.compare_parts import CompareParts
from phi3lora.ui.compare_show import (
    about_line,
    adapter_choices,
    against_choices,
    first_choice,
    prompt_chips,
    status_line,
    third_choices,
)
from phi3lora.ui.sessions import session_of
from phi3lora.ui.talk import Said, Talk, Turn, read_talk
from phi3lora.ui.turns import game_line, turn_html, turns_html
from phi3lora.ui.widgets import shown

OTHERS = "against_strength"  # the last of the settings: shown where there is another adapter


class CompareOpening(CompareParts):
    """The page before anything is asked, and when something else is chosen."""

    @shown
    def on_open(self, browser: str, request: gr.Request) -> list[Any]:
        """What the address says: subjects, a question, settings; or what this browser kept."""
        caller = self.app.callers.caller(session_of(request))
        query = request.query_params
        choices = self.choices(caller)
        settled = self.app.comparing.settled
        chosen = settled or first_choice(query.get("adapter"), choices)
        against, third = ("" if settled else query.get(name, "") for name in ("against", "third"))
        question = query.get("q", "")[:LONGEST_IN_ADDRESS].strip()
        kept = read_talk(browser)
        talk = Talk(chosen, against=against, third=third)
        if kept and kept.names == talk.names and not question:
            talk = kept
        elif not question:
            talk = self._first(talk, caller)
        named = from_address(query)
        names = [name for name in ("system", *self.sampling) if name != OTHERS]
        fields = [named.get(name, gr.skip()) for name in names]
        other = gr.update(
            **{"value": named[OTHERS]} if OTHERS in named else {}, visible=bool(against)
        )
        return [
            *self._offered(choices, [chosen, against, third]),
            *self._about(talk, caller),
            *drawn(talk),
            question or gr.skip(),
            *fields,
            other,
        ]

    def _offered(self, choices: list[tuple[str, str]], chosen: list[str] | None) -> list[Any]:
        """The fields of the subjects, with what they offer; what is settled stays."""
        settled = self.app.comparing.settled
        if settled:
            return [settled, "", ""] if chosen else [gr.skip()] * 3
        lists = (choices, against_choices(choices), third_choices(choices))
        values: list[dict[str, Any]] = [{"value": v} for v in chosen] if chosen else [{}] * 3
        return [gr.update(choices=one, **two) for one, two in zip(lists, values, strict=True)]

    def _first(self, talk: Talk, caller: Caller) -> Talk:
        """What both said to a held-out prompt, as the report has it: nobody needs to wait."""
        if talk.against or talk.third:
            return talk
        sample = self.app.comparing.kept_answers(talk.adapter, caller)
        if sample is None:
            return talk
        base, tuned = (Said(sample.base),), (Said(sample.tuned),)
        return Talk(talk.adapter, (Turn(sample.prompt, base=base, tuned=tuned, kept=True),))

    @shown
    def on_load(self, chosen: str, against: str, request: gr.Request) -> Iterator[list[Any]]:
        """Load what was chosen, saying so."""
        yield from self._loading(chosen, against, request)

    def _about(self, talk: Talk, caller: Caller) -> list[Any]:
        """Suggested prompts and the votes on what is compared."""
        prompts = self.app.comparing.suggestions(talk.adapter or talk.against, caller)
        return [prompt_chips(prompts), self.standing_line(talk, caller)]

    def standing_line(self, talk: Talk, caller: Caller) -> str:
        """What was voted here, and what all visitors voted on these two, or three."""
        if len(talk.names) > 2:
            places = self.app.comparing.tournament(talk.names)
            called = [(self._called(talk, one.name, caller), one) for one in places]
            return game_line(talk, places=called)
        options = Options(**talk.last.settings) if talk.last else Options()
        names = named_for_votes(talk.adapter, talk.against, options)
        return game_line(talk, self.app.comparing.tally(*names))

    def _called(self, talk: Talk, name: str, caller: Caller) -> str:
        """What the conversation calls a subject; a run's title where it has not spoken yet."""
        for turn in talk.turns:
            if turn.vote and turn.adapter == name:
                return turn.title("tuned")
            if turn.vote and turn.against == name:
                return turn.title("base")
        return self.app.comparing.called(name, caller)

    def _loading(
        self, chosen: str | None, against: str, request: gr.Request
    ) -> Iterator[list[Any]]:
        """What is being loaded, as it goes; a mistake is said in its place."""
        nothing = [gr.skip()] * (len(self.answering) - 2)
        try:
            caller = self.app.callers.caller(session_of(request))
            name, other, _ = self._chosen(chosen, against, "", request)
            subject = self.app.comparing.opposed(name, other, caller)
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
        room = self.app.comparing.room_message()
        return [*self._offered(self.choices(caller), None), show.notice(room) if room else ""]

    def choices(self, caller: Caller) -> list[tuple[str, str]]:
        """What the list of adapters offers to this caller."""
        settled = self.app.comparing.settled
        return [(settled, settled)] if settled else adapter_choices(self.app.comparing.runs(caller))

    def _chosen(
        self, chosen: str | None, against: str, third: str, request: gr.Request
    ) -> tuple[str, str, str]:
        """What is chosen; of a page that has not finished loading, what it will choose."""
        if chosen is not None:
            return chosen, against, third
        query = request.query_params
        choices = self.choices(self.app.callers.caller(session_of(request)))
        wanted = first_choice(query.get("adapter"), choices)
        return wanted, query.get("against", ""), query.get("third", "")


def drawn(talk: Talk) -> list[Any]:
    """A conversation at rest, in the order of `conversation`."""
    last = turn_html(talk.last, len(talk.turns) - 1, last=True) if talk.last else ""
    return [turns_html(talk.turns[:-1]), last, talk, talk.to_json()]
