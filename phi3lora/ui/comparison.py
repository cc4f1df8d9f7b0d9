"""One adapter against its base, and nothing else: what a comparison Space shows.

from phi3lora.ui.comparison import launch
launch("ann/pirate")
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import ComparingOne
from phi3lora.settings import Settings
from phi3lora.ui import show
from phi3lora.ui.app import TITLE, serve
from phi3lora.ui.compare_page import ComparePage


class OneAdapter(ComparePage):
    """The Compare page with its adapter settled."""

    def __init__(self, app: Application, repo: str) -> None:
        self._repo = repo
        super().__init__(app)

    def _subject(self) -> None:
        """Its name, where it and its card are, and what made it; there is nothing to choose."""
        page = f"https://huggingface.co/{self._repo}"
        links = [f'<a href="{show.text(page)}" target="_blank" rel="noopener">Model card</a>']
        if self.app.settings.space_id:
            again = f"https://huggingface.co/spaces/{self.app.settings.space_id}?duplicate=true"
            links.append(
                f'<a href="{show.text(again)}" target="_blank" rel="noopener">Duplicate</a>'
            )
        gr.HTML(
            f"<h1>{show.text(self._repo)}</h1>"
            f'<p class="about">{" · ".join(links)} · Trained with phi3lora</p>',
            elem_id="one-adapter",
            apply_default_css=False,
        )
        self.adapter = gr.Textbox(self._repo, visible="hidden", elem_id="adapter")

    def _offered(self, choices: list[tuple[str, str]], chosen: str) -> Any:
        """The one, whatever the address says."""
        return self._repo

    def on_pulse(self, chosen: str | None, request: gr.Request) -> list[Any]:
        """Nothing else can be chosen; memory may be short or free again."""
        return [gr.skip(), *super().on_pulse(chosen, request)[1:]]

    def choices(self, caller: Caller) -> list[tuple[str, str]]:
        """The one adapter."""
        return [(self._repo, self._repo)]


def build(app: Application, repo: str, revision: str | None = None) -> gr.Blocks:
    """The page of one adapter."""
    app = replace(app, comparing=ComparingOne(app.comparing, repo, revision))
    with gr.Blocks(title=f"{repo} · {TITLE}", analytics_enabled=False, fill_width=True) as demo:
        OneAdapter(app, repo).wire(demo)
    return demo


def launch(
    repo: str, revision: str | None = None, port: int | None = None, block: bool = True
) -> gr.Blocks:
    """Serve the page until interrupted; on a Space to everybody, else to this machine alone."""
    settings = Settings.from_environment()
    app = Application.open(settings)
    host = "0.0.0.0" if settings.on_space else "127.0.0.1"
    return serve(build(app, repo, revision), app, host, port, block)
