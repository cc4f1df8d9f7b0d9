"""The components of the Compare page: subject, conversation, votes, input, settings."""

from __future__ import annotations

from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.chat.options import SETTINGS
from phi3lora.chat.votes import Choice
from phi3lora.ui.compare_show import (
    BASE_ONLY,
    SHARE,
    against_choices,
    sampling_field,
    settled_head,
    subject_field,
    third_choices,
)
from phi3lora.ui.prompt_set import PromptSetPanel
from phi3lora.ui.runs_page import EVERY
from phi3lora.ui.talk import Talk
from phi3lora.ui.votes_panel import VotesPanel

VOTES: dict[str, Choice] = {
    "A is better": "left",
    "B is better": "right",
    "Tie": "tie",
    "Both bad": "both bad",
}
CONSENT = (
    "They may be trained on and published by whoever owns the run, without your name. Without this "
    "only your choice is counted."
)
STRENGTHS = ("strength", "against_strength")  # beside what they are the strengths of
ASK = """
element.addEventListener('click', (event) => {
  const chip = event.target.closest('button[data-prompt]');
  if (chip) trigger('click', {prompt: chip.dataset.prompt});
});
"""
ASKING: dict[str, Any] = {
    "value": "",
    "submit_btn": False,
    "stop_btn": "Stop",
    "placeholder": "Answering …",
}
RESTING: dict[str, Any] = {"submit_btn": "Ask", "stop_btn": False, "placeholder": "Ask both …"}


class CompareParts:
    """The components, in their places."""

    adapter: gr.Dropdown | gr.Textbox
    against: gr.Dropdown | gr.Textbox
    third: gr.Dropdown | gr.Textbox

    def __init__(self, app: Application) -> None:
        self.app = app
        self.talk, self.before = gr.State(Talk()), gr.State(Talk())
        self.pulse = gr.Textbox(visible="hidden")
        self.nothing = gr.Textbox(visible="hidden")
        self.browser = gr.Textbox(visible="hidden")  # the conversation that the browser kept
        self.timer = gr.Timer(EVERY)
        with gr.Column(elem_classes="page compare", elem_id="compare"):
            self._top()
            self._conversation()
            with gr.Column(elem_classes="ask-bar"):
                self._voting()
                self._input()

    def _top(self) -> None:
        with gr.Row(elem_classes="compare-top"):
            with gr.Column(elem_classes="compare-what", min_width=260):
                self._subject()
                self.about = gr.HTML(elem_id="about", apply_default_css=False)
            self.blind = gr.Checkbox(label="Blind", elem_id="blind", container=False)
            self.share = gr.HTML(
                SHARE,
                elem_id="share",
                js_on_load="window.phi3lora.share(element)",
                apply_default_css=False,
            )
            self.clear = gr.Button("New", size="md", elem_id="clear")
        with gr.Row(elem_classes="folds"):
            self._settings()
            self.votes = VotesPanel(self.app)
            self.prompt_set = PromptSetPanel(self.app)

    def _subject(self) -> None:
        if settled := self.app.comparing.settled:
            gr.HTML(settled_head(settled, self.app.settings.space_id), apply_default_css=False)
            self.adapter = gr.Textbox(settled, visible="hidden", elem_id="adapter")
            self.against = gr.Textbox("", visible="hidden")
            with gr.Row(elem_classes="subjects"):
                self._strengths()
            return
        gr.HTML("<h1>Base and tuned, side by side</h1>", apply_default_css=False)
        with gr.Row(elem_classes="subjects"):
            self.adapter = subject_field(
                "Adapter",
                "adapter",
                "A finished run, or an adapter on the Hub: USER/NAME"
                if self.app.settings.on_space
                else "A finished run, an adapter on the Hub: USER/NAME, or a folder's path",
                [("No adapter: the base alone", BASE_ONLY)],
                None,
            )
            self.against = subject_field(
                "Beside",
                "against",
                "Its untouched base, or another adapter",
                against_choices([]),
                BASE_ONLY,
            )
            self._strengths()

    def _strengths(self) -> None:
        self.strengths = {name: sampling_field(name, brief=True) for name in STRENGTHS}
        self.strengths["against_strength"].visible = False

    def _conversation(self) -> None:
        turns = "window.phi3lora.turns(element, trigger)"
        log = '<div role="log" aria-live="off">${value}</div>'
        self.past = gr.HTML(
            elem_id="past", html_template=log, js_on_load=turns, apply_default_css=False
        )
        live = '<div role="log" aria-live="polite">${value}</div>'
        self.now = gr.HTML(
            elem_id="now", html_template=live, js_on_load=turns, apply_default_css=False
        )
        self.undo = gr.HTML(elem_id="undo-talk", js_on_load=turns, apply_default_css=False)
        self.kept = gr.HTML(
            elem_id="kept-talk",
            html_template="<i hidden></i>",
            js_on_load="window.phi3lora.talks.watch(props, watch)",
            apply_default_css=False,
        )

    def _input(self) -> None:
        self.status = gr.HTML(elem_id="chat-status")  # of loading, which may outlast an answer
        self.room = gr.HTML(elem_id="chat-room", apply_default_css=False)  # why nobody may ask now
        self.suggestions = gr.HTML(elem_id="suggestions", js_on_load=ASK, apply_default_css=False)
        self.message = gr.Textbox(
            label="Question",
            show_label=False,
            lines=1,
            max_lines=6,
            elem_id="message",
            autofocus=True,
            **RESTING,
        )

    def _voting(self) -> None:
        with gr.Row(elem_classes="votes", visible=False, elem_id="votes") as self.vote_row:
            self.round = gr.HTML(apply_default_css=False)
            self.vote_buttons = [
                gr.Button(label, size="md", elem_id=f"vote-{vote.split()[0]}")
                for label, vote in VOTES.items()
            ]
            self.consent = gr.Checkbox(
                False,
                label="Keep my question and both answers",
                info=CONSENT,
                visible=self.app.settings.on_space,
                elem_id="consent",
                container=False,
            )
        self.tally = gr.HTML(elem_id="tally", apply_default_css=False)

    def _settings(self) -> None:
        with gr.Accordion("Settings", open=False, elem_classes="fold", elem_id="settings"):
            self.system = gr.Textbox(
                label="System prompt", lines=2, elem_id="system", placeholder="Empty for none"
            )
            self._third()
            names = [name for name in SETTINGS if name not in STRENGTHS]
            made = dict[str, Any]()
            for first in range(0, len(names), 2):
                with gr.Row():
                    for name in names[first : first + 2]:
                        made[name] = sampling_field(name)
        made |= self.strengths
        self.sampling = {name: made[name] for name in SETTINGS}

    def _third(self) -> None:
        if self.app.comparing.settled:
            self.third = gr.Textbox("", visible="hidden")
            return
        self.third = subject_field(
            "Third in a tournament",
            "third",
            "With one, each blind round draws two of the three",
            third_choices([]),
            "",
        )

    @property
    def conversation(self) -> list[Any]:
        """What `drawn` fills, in order."""
        return [self.past, self.now, self.talk, self.kept]

    @property
    def changing(self) -> list[Any]:
        """What another choice of what to compare changes."""
        facts = [self.suggestions, self.tally]
        return [*facts, *self.conversation, self.vote_row, self.before, self.undo, self.message]

    @property
    def answering(self) -> list[Any]:
        """What an answer changes."""
        conversation = [self.message, *self.conversation]
        return [*conversation, self.vote_row, self.round, self.about, self.status]
