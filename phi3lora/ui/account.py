"""Whose Hub account is used: at the top of each page.

On a Space a button signs visitors in with Hugging Face. On one's own machine a small drawer says
whom the token of `hf auth login` belongs to, or takes another one. That one is kept in the app's
memory, for the browser it came from, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.errors import HubError
from phi3lora.ui import show
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown

NOBODY = (
    "Nobody is signed in. Training works without; publishing needs a token with write rights, "
    "from huggingface.co/settings/tokens."
)


def build(app: Application) -> None:
    """What the top of a page has for the account: nothing where there is no way to sign in."""
    if app.settings.sign_in:
        gr.LoginButton(
            "Sign in with Hugging Face",
            logout_value="Sign out, {}",
            size="sm",
            variant="secondary",
            elem_classes="account",
            elem_id="sign-in",
        )
    elif not app.settings.on_space:
        Drawer(app)


class Drawer:
    """The account on one's own machine."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.open = gr.Button("Hub account", size="sm", elem_classes="account", elem_id="account")
        with gr.Column(visible=False, elem_classes="card drawer", elem_id="drawer") as self.drawer:
            self.who = gr.HTML(elem_id="whoami")
            self.token = gr.Textbox(
                label="Hub token",
                type="password",
                elem_id="token",
                max_lines=1,
                placeholder="hf_…",
                info="Kept in memory for this browser, until the app ends.",
            )
            with gr.Row(elem_classes="actions"):
                self.use = gr.Button("Use this token", size="md", elem_id="use-token")
                self.forget = gr.Button("Forget it", size="md", elem_id="forget-token")
                self.close = gr.Button("Close", size="md", elem_id="close-drawer")
        self._wire()

    def on_open(self, request: gr.Request) -> tuple[Any, str]:
        """Show the drawer, and who is signed in."""
        return gr.update(visible=True), self._who(request)

    @shown
    def on_use(self, token: str, request: gr.Request) -> tuple[str, str]:
        """Take a token; the field is emptied whatever comes."""
        self.app.callers.sign_in(token.strip(), session_of(request))
        return "", self._who(request)

    def on_forget(self, request: gr.Request) -> tuple[str, str]:
        """Forget the token that was given here."""
        self.app.callers.sign_out(session_of(request))
        return "", self._who(request)

    def _who(self, request: gr.Request) -> str:
        try:
            who = self.app.callers.caller(session_of(request)).identity()
        except HubError as error:
            return show.notice(str(error), "amber")
        if who is None:
            return show.notice(NOBODY, "grey")
        rights = " Its token may only read." if who.can_write is False else ""
        return show.notice(f"{who.name} is signed in.{rights}", "amber" if rights else "green")

    def _wire(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        opened = self.open.click(self.on_open, None, [self.drawer, self.who], **quiet)
        opened.then(None, None, None, js="() => window.phi3lora.focus('#token input')")
        self.close.click(lambda: gr.update(visible=False), None, self.drawer, **quiet)
        for event in (self.use.click, self.token.submit):
            event(self.on_use, self.token, [self.token, self.who], **quiet)
        self.forget.click(self.on_forget, None, [self.token, self.who], **quiet)
