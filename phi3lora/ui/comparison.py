"""One adapter against its base, and nothing else: what a comparison Space shows.

from phi3lora.ui.comparison import launch
launch("ann/pirate")
"""

from __future__ import annotations

from dataclasses import replace

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.comparing import ComparingOne
from phi3lora.settings import Settings
from phi3lora.ui.app import let_choices_follow, serve
from phi3lora.ui.compare_page import ComparePage
from phi3lora.ui.frame import NAME


def settled(app: Application, repo: str, revision: str | None = None) -> Application:
    """An application in which there is one adapter to compare."""
    return replace(app, comparing=ComparingOne(app.comparing, repo, revision))


def build(app: Application) -> gr.Blocks:
    """The page of the one adapter of an application."""
    repo = app.comparing.settled
    with gr.Blocks(title=f"{repo} · {NAME}", analytics_enabled=False, fill_width=True) as demo:
        ComparePage(app).wire(demo)
        let_choices_follow(demo)
    return demo


def launch(
    repo: str, revision: str | None = None, port: int | None = None, block: bool = True
) -> gr.Blocks:
    """Serve the page until interrupted; on a Space to everybody, else to this machine alone."""
    settings = Settings.from_environment()
    app = settled(Application.open(settings), repo, revision)
    host = "0.0.0.0" if settings.on_space else "127.0.0.1"
    return serve(build(app), app, host, port, block)
