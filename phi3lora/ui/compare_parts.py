"""The components of the Compare page: subject, conversation, votes, input, settings."""

from __future__ import annotations

from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.chat.options import SETTINGS
from phi3lora.chat.votes import Choice
from phi3lora.ui.compare_show import BASE_ONLY, SHARE, sampling_field, settled_head
from phi3lora.ui.runs_page import EVERY
from phi3lora.ui.talk import Talk

VOTES: dict[str, Choice] = {
    "A is better": "left",
    "B is better": "right",
    "Tie": "tie",
    "Both bad": "both bad",
}
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
        self._settings()

    def _subject(self) -> None:
        if settled := self.app.comparing.settled:
            gr.HTML(settled_head(settled, self.app.settings.space_id), apply_default_css=False)
            self.adapter = gr.Textbox(settled, visible="hidden", elem_id="adapter")
            return
        gr.HTML("<h1>Base and tuned, side by side</h1>", apply_default_css=False)
        self.adapter = gr.Dropdown(
            [("No adapter: the base alone", BASE_ONLY)],
            value=None,
            label="Adapter",
            elem_id="adapter",
            filterable=True,
            allow_custom_value=True,
            info="A finished run, or an adapter on the Hub: USER/NAME"
            + ("" if self.app.settings.on_space else ", or a folder's path"),
        )

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
        self.tally = gr.HTML(elem_id="tally", apply_default_css=False)

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

    @property
    def conversation(self) -> list[Any]:
        """What `drawn` fills, in order."""
        return [self.past, self.now, self.talk, self.kept]

    @property
    def answering(self) -> list[Any]:
        """What an answer changes."""
        conversation = [self.message, *self.conversation]
        return [*conversation, self.vote_row, self.round, self.about, self.status]
