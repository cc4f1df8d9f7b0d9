"""One adapter against its base, and nothing else: what a comparison Space shows.

from phi3lora.ui.comparison import launch
launch("ann/pirate")
"""

from __future__ import annotations

import threading

import gradio as gr

from phi3lora.config import ModelConfig
from phi3lora.hub.access import stored_token
from phi3lora.hub.adapters import fetch_adapter
from phi3lora.settings import Settings
from phi3lora.ui.app import TITLE, serve
from phi3lora.ui.compare_page import ComparePage, Subject
from phi3lora.ui.core import Caller, Core


class OneAdapter(ComparePage):
    """The Compare page with its adapter settled."""

    def __init__(self, core: Core, repo: str, revision: str | None) -> None:
        self._repo, self._revision = repo, revision
        self._contest: Subject | None = None
        self._lock = threading.Lock()
        super().__init__(core)

    def choices(self, caller: Caller) -> list[tuple[str, str]]:
        """The one adapter."""
        return [(self._repo, self._repo)]

    def subject(self, chosen: str, caller: Caller) -> Subject:
        """The adapter and its base, whatever was chosen; fetched once.

        It is read with the token that its owner gave to the Space, if there is one: whoever may
        open the Space may ask the adapter.
        """
        with self._lock:
            if self._contest is None:
                cache = self.core.settings.cache_folder
                found = fetch_adapter(self._repo, stored_token(), cache, self._revision)
                base = ModelConfig(path=found.base, revision=found.revision)
                self._contest = Subject(base, found.folder, self._repo)
            return self._contest


def build(core: Core, repo: str, revision: str | None = None) -> gr.Blocks:
    """The page of one adapter."""
    with gr.Blocks(title=f"{repo} · {TITLE}", analytics_enabled=False, fill_width=True) as demo:
        OneAdapter(core, repo, revision).wire(demo)
    return demo


def launch(
    repo: str, revision: str | None = None, port: int | None = None, block: bool = True
) -> gr.Blocks:
    """Serve the page until interrupted; on a Space to everybody, else to this machine alone."""
    settings = Settings.from_environment()
    core = Core(settings)
    host = "0.0.0.0" if settings.on_space else "127.0.0.1"
    return serve(build(core, repo, revision), core, host, port, block)
