"""The launch panel: checks, what the run needs, its title, and the button; always on the screen.

    panel = LaunchPanel(app, fields)
    panel.seen                    what a preflight fills, as `launch_show.Panel`
    panel.on_visitor(request)     who may launch, and what the others see instead

On a wide screen it stands beside the form; on a small one it is a bar at the bottom that opens.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.config import TITLE_CHARACTERS
from phi3lora.errors import HubError
from phi3lora.ui import show
from phi3lora.ui.launch_show import bar_line
from phi3lora.ui.place import PlaceStep
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import Fields

FIX = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-fix]');
  if (button) trigger('click', {values: JSON.parse(button.dataset.fix)});
});
"""
OPEN_RUN = (
    "(run) => { if (run) { window.phi3lora.train.launched(); "
    "window.location.href = 'runs?run=' + encodeURIComponent(run); } }"
)
SIGN_IN = "() => document.querySelector('#sign-in')?.click()"


class LaunchPanel:
    """The components of the panel; what its button does is the page's."""

    def __init__(self, app: Application, fields: Fields) -> None:
        self.app = app
        with (
            gr.Column(scale=9, min_width=300, elem_classes="aside launch", elem_id="launch-panel"),
            gr.Column(elem_classes="card"),
        ):
            gr.HTML("<h2>Launch</h2>", apply_default_css=False, js_on_load=None)
            self.bar = gr.HTML(
                bar_line("grey", "Checking …"), elem_id="launch-bar", apply_default_css=False
            )
            with gr.Column(elem_id="launch-sheet"):
                self.checks = gr.HTML(
                    '<div class="reading"><b></b>Checking …</div>',
                    elem_id="checks",
                    js_on_load=FIX,
                    apply_default_css=False,
                )
                self.estimate = gr.HTML(elem_id="estimate", apply_default_css=False)
                fields.add(
                    "title",
                    placeholder="Pirate, rank 16",
                    max_lines=1,
                    max_length=TITLE_CHARACTERS,
                )
                self.place = PlaceStep(app, fields)
            self.why_not = gr.HTML(elem_id="why-not", visible=False, apply_default_css=False)
            self.launch = gr.Button("Launch", variant="primary", size="lg", elem_id="launch")
            self.sign_in = gr.Button(
                "Sign in to launch",
                variant="primary",
                size="lg",
                visible=False,
                elem_id="sign-in-to-launch",
            )
            self.spoken = gr.HTML(
                html_template='<p role="status">${value}</p>',
                elem_id="launch-spoken",
                elem_classes="spoken",
            )
        self.launched = gr.Textbox(visible="hidden", elem_id="launched")

    @property
    def seen(self) -> list[Any]:
        """What a preflight fills, in the order of `launch_show.Panel`."""
        return [self.bar, self.checks, self.estimate, self.launch, self.spoken]

    def on_visitor(self, request: gr.Request) -> list[Any]:
        """The button for who may launch here; a way to sign in, or the reason, for the others."""
        try:
            caller = self.app.callers.caller(session_of(request))
            reason = self.app.launching.why_not(caller)
        except HubError:  # said by the preflight
            return [gr.skip(), gr.skip(), gr.skip()]
        anonymous = bool(reason) and caller.anonymous
        told = bool(reason) and not anonymous
        return [
            gr.update(visible=not reason),
            gr.update(visible=anonymous),
            gr.update(value=show.notice(reason, "amber") if told else "", visible=told),
        ]

    @property
    def visitor(self) -> list[Any]:
        """What `on_visitor` fills."""
        return [self.launch, self.sign_in, self.why_not]
