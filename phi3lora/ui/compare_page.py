"""The Compare page: base and tuned side by side, one input, both streaming.

In the open the base is left; in blind mode a coin decides for each conversation, and the names
come back with the vote. Every visitor's conversation lives in the page; one engine answers all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import Sides, Subject
from phi3lora.chat.options import SETTINGS, Options, Pair, Side
from phi3lora.errors import DataError, Phi3LoraError
from phi3lora.ui import show
from phi3lora.ui.asking import Ask, Stops
from phi3lora.ui.compare_show import (
    BASE_ONLY,
    TITLES,
    Message,
    adapter_choices,
    answer_facts,
    column_title,
    escaped,
    first_choice,
    plain,
    prompt_chips,
    sampling_field,
    status_line,
    with_answer,
)
from phi3lora.ui.runs_page import EVERY, PULSE
from phi3lora.ui.sessions import session_of
from phi3lora.ui.votes import VotePanel
from phi3lora.ui.widgets import shown, told

HIDDEN = ("Answer A", "Answer B")
REMEMBER = "(adapter) => { window.phi3lora.remember('adapter', adapter); return adapter; }"
ASK = """
element.addEventListener('click', (event) => {
  const chip = event.target.closest('button[data-prompt]');
  if (chip) trigger('click', {prompt: chip.dataset.prompt});
});
"""
Columns = tuple[list[Message], list[Message]]


class ComparePage:
    """The page's components and handlers."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.stops = Stops()
        self.sides = gr.State(Sides())
        self.pulse = gr.Textbox(visible="hidden")
        self.nothing = gr.Textbox(visible="hidden")
        self.timer = gr.Timer(EVERY)
        with gr.Column(elem_classes="page compare"):
            self._top()
            with gr.Row(elem_classes="columns", equal_height=True):
                self.left_title, self.left = self._column("left")
                self.right_title, self.right = self._column("right")
            self.status = gr.HTML(elem_id="chat-status")  # of loading, which may outlast an answer
            self.facts = gr.HTML(elem_id="answer-status")
            self.votes = VotePanel(self.app)
            self._input()
            self._settings()

    def _top(self) -> None:
        with gr.Row(elem_classes="compare-top"):
            gr.HTML(
                '<div class="section-head"><div><h1>Base and tuned, side by side</h1>'
                "<p>The same question, the same weights; the adapter makes the difference."
                "</p></div></div>"
            )
            self.adapter = gr.Dropdown(
                [("No adapter: the base alone", BASE_ONLY)],
                value=None,
                label="Adapter",
                elem_id="adapter",
                min_width=280,
                filterable=True,
                allow_custom_value=True,
                info="A finished run, or an adapter on the Hub: USER/NAME"
                + ("" if self.app.settings.on_space else ", or a folder's path"),
            )

    def _column(self, side: str) -> tuple[gr.HTML, gr.Chatbot]:
        """A column's title and its conversation."""
        who: Side = "base" if side == "left" else "tuned"
        tuned = "The tuned model answers here, once an adapter is chosen."
        hint = "The base answers here." if side == "left" else tuned
        with gr.Column(min_width=280, elem_classes="side"):
            title = gr.HTML(column_title(TITLES[who]), elem_id=f"title-{side}")
            chat = gr.Chatbot(
                show_label=False,
                elem_id=f"chat-{side}",
                elem_classes="chat",
                buttons=[],
                render_markdown=False,
                sanitize_html=True,
                allow_tags=False,
                layout="bubble",
                feedback_options=None,
                latex_delimiters=[],
                placeholder=hint,
                allow_file_downloads=False,
                group_consecutive_messages=False,
            )
        return title, chat

    def _input(self) -> None:
        self.suggestions = gr.HTML(elem_id="suggestions", js_on_load=ASK, apply_default_css=False)
        with gr.Row(elem_classes="ask"):
            self.message = gr.Textbox(
                placeholder="Ask both …",
                show_label=False,
                submit_btn="Ask",
                stop_btn=False,
                lines=1,
                max_lines=6,
                elem_id="message",
                scale=8,
                min_width=240,
                autofocus=True,
            )
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop", size="md", elem_id="stop-answer", visible=False)
            self.retry = gr.Button("Retry", size="md", elem_id="retry")
            self.clear = gr.Button("Clear", size="md", elem_id="clear")
            self.blind = gr.Checkbox(
                label="Blind: hide which is which", elem_id="blind", container=False, min_width=200
            )

    def _settings(self) -> None:
        with gr.Accordion("Settings", open=False, elem_classes="fold", elem_id="settings"):
            self.system = gr.Textbox(
                label="System prompt", lines=2, elem_id="system", placeholder="Empty for none"
            )
            names, self.sampling = list(SETTINGS), dict[str, Any]()
            for first in range(0, len(names), 2):
                with gr.Row():
                    for name in names[first : first + 2]:
                        self.sampling[name] = sampling_field(name)

    # ------------------------------------------------------------------ what happens

    @shown
    def on_open(self, request: gr.Request) -> Iterator[list[Any]]:
        """Take the adapter from the address, load the base once, and say how far it is."""
        caller = self.app.callers.caller(session_of(request))
        choices = self.choices(caller)
        chosen = first_choice(request.query_params.get("adapter"), choices)
        yield [gr.update(choices=choices, value=chosen), *self._about(chosen, caller), gr.skip()]
        for status in self._loading(chosen, caller):
            yield [gr.skip()] * 5 + [status]

    @shown
    def on_adapter(self, chosen: str | None, request: gr.Request) -> Iterator[list[Any]]:
        """Another adapter: a fresh conversation, its prompts, and loading with progress."""
        caller = self.app.callers.caller(session_of(request))
        yield [[], [], *self._about(chosen or "", caller), gr.skip()]
        for status in self._loading(chosen or "", caller):
            yield [gr.skip()] * 6 + [status]

    def _about(self, chosen: str, caller: Caller) -> list[Any]:
        """Suggested prompts and the tally of an adapter."""
        comparing = self.app.comparing
        prompts = comparing.suggestions(chosen, caller)
        return [prompt_chips(prompts), *self.votes.about(chosen, caller)]

    def _loading(self, chosen: str, caller: Caller) -> Iterator[str]:
        """What is being loaded, as it goes; a mistake is said in its place."""
        try:
            subject = self.app.comparing.subject(chosen, caller)
            for note in self.app.comparing.load(subject, caller):
                yield status_line(note)
            yield (
                show.notice(quota, "grey") if (quota := self.app.comparing.quota_message()) else ""
            )
        except Phi3LoraError as error:
            yield show.notice(str(error))

    @shown
    def on_pulse(self, chosen: str | None, request: gr.Request) -> list[Any]:
        """Runs that have finished since are in the list; memory may be short or free again."""
        caller = self.app.callers.caller(session_of(request))
        choices = self.choices(caller)
        room = self.app.comparing.room_message()
        return [gr.update(choices=choices), show.notice(room) if room else ""]

    def choices(self, caller: Caller) -> list[tuple[str, str]]:
        """What the list of adapters offers to this caller."""
        settled = self.app.comparing.settled
        return [(settled, settled)] if settled else adapter_choices(self.app.comparing.runs(caller))

    @shown
    def on_ask(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Both answers as they grow, in both columns."""
        ask = Ask.sent(values, self.sampling)
        if not ask.message.strip():
            raise DataError("Type a question first.")
        caller = self.app.callers.caller(session_of(request))
        subject = self.app.comparing.subject(self._chosen(ask.adapter, request), caller)
        sides = ask.sides()
        question = {"role": "user", "content": ask.message}
        columns = (
            [*plain(ask.left), question],
            [*plain(ask.right), question] if subject.result else [],
        )
        yield self._frame(columns, Pair(), sides, subject, ask.blind, "asking")
        pair = Pair()
        for pair in self._answers(subject, columns, sides, ask.options(), request):
            yield self._frame(columns, pair, sides, subject, ask.blind, "answering")
        yield self._frame(columns, pair, sides, subject, ask.blind, "done")

    def _chosen(self, chosen: str | None, request: gr.Request) -> str:
        """The chosen adapter; of a page that has not finished loading, what it will choose."""
        if chosen is not None:
            return chosen
        choices = self.choices(self.app.callers.caller(session_of(request)))
        return first_choice(request.query_params.get("adapter"), choices)

    def _answers(
        self, subject: Subject, columns: Columns, sides: Sides, options: Options, request: Any
    ) -> Iterator[Pair]:
        """Both answers from the engine, until they are complete or somebody presses Stop."""
        base, tuned = columns if sides.left == "base" else (columns[1], columns[0])
        session = str(request.session_hash)
        flag = self.stops.begin(session)
        caller = self.app.callers.caller(session_of(request))
        try:
            yield from self.app.comparing.reply(
                subject, base, tuned, options, flag.is_set, caller=caller
            )
        finally:
            self.stops.end(session, flag)

    def _frame(
        self, columns: Columns, pair: Pair, sides: Sides, subject: Subject, blind: bool, phase: str
    ) -> list[Any]:
        """Values for what an answer changes, in the order of `answering`."""
        busy, hidden = phase != "done", blind and subject.result is not None
        answers = [
            escaped(with_answer(column, getattr(pair, side), not getattr(pair, f"done_{side}")))
            if column
            else []
            for column, side in zip(columns, sides.order, strict=True)
        ]
        labels = HIDDEN if hidden else tuple(TITLES[side] for side in sides.order)
        note = status_line(pair.note) if busy and pair.note else ""
        return [
            "" if phase == "asking" else gr.skip(),
            *map(column_title, labels),
            *answers,
            sides,
            note or answer_facts(pair, sides.order, busy),
            gr.update(visible=busy),
            gr.update(visible=hidden and not busy),
        ]

    def on_stop(self, request: gr.Request) -> None:
        """Both answers end where they are."""
        self.stops.stop(str(request.session_hash))

    def on_retry(self, left: list[Message], right: list[Message]) -> list[Any]:
        """Take the last question back into the input, and both answers away."""
        left, right = plain(left), plain(right)
        if not left:
            return [gr.skip(), gr.skip(), gr.skip()]
        last = max(place for place, turn in enumerate(left) if turn["role"] == "user")
        return [left[last]["content"], escaped(left[:last]), escaped(right[:last])]

    def on_clear(self) -> list[Any]:
        """A fresh conversation with the names shown."""
        return [
            column_title(TITLES["base"]),
            column_title(TITLES["tuned"]),
            [],
            [],
            Sides(),
            "",
            gr.update(visible=False),
        ]

    @property
    def titles(self) -> list[Any]:
        """Components of the titles, left and right."""
        return [self.left_title, self.right_title]

    @property
    def answering(self) -> list[Any]:
        """What an answer changes."""
        return [
            self.message,
            *self.titles,
            self.left,
            self.right,
            self.sides,
            self.facts,
            self.stop,
            self.votes.row,
        ]

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        about = [self.suggestions, *self.votes.told, self.status]
        demo.load(self.on_open, None, [self.adapter, *about], **quiet)
        changed = self.adapter.input(
            self.on_adapter, self.adapter, [self.left, self.right, *about], **quiet
        )
        changed.then(None, self.adapter, self.adapter, js=REMEMBER)
        self.timer.tick(
            None, [self.pulse, self.nothing], self.pulse, js=PULSE, show_progress="hidden"
        )
        self.pulse.change(self.on_pulse, self.adapter, [self.adapter, self.status], **quiet)
        inputs = [
            self.message,
            self.left,
            self.right,
            self.adapter,
            self.blind,
            self.sides,
            self.system,
            *self.sampling.values(),
        ]
        self.message.submit(self.on_ask, inputs, self.answering, **quiet)
        self.stop.click(self.on_stop, None, None, queue=False, **quiet)
        self.retry.click(
            self.on_retry, [self.left, self.right], [self.message, self.left, self.right], **quiet
        ).then(self.on_ask, inputs, self.answering, **quiet)
        self.suggestions.click(on_suggestion, None, self.message, **quiet).then(
            self.on_ask, inputs, self.answering, **quiet
        )
        fresh = [*self.titles, self.left, self.right, self.sides, self.facts, self.votes.row]
        self.clear.click(self.on_clear, None, fresh, **quiet)
        self.blind.input(self.on_clear, None, fresh, **quiet)
        conversation = [self.left, self.right, self.sides]
        self.votes.wire(conversation, self.titles, self.adapter, self.system, self.sampling)


def build(app: Application, demo: gr.Blocks) -> ComparePage:
    """Put the page into the Blocks that are open, wired."""
    page = ComparePage(app)
    page.wire(demo)
    return page


@shown
def on_suggestion(event: gr.EventData) -> str:
    """A suggested prompt was clicked."""
    return told(event, "prompt")
