"""A configuration as plain code to download: a Python file or a notebook, zipped with its rows.

code = PlainCode(app)                         two buttons, and the download that follows
code.wire(config_of, inputs)                  `config_of(request, *values)` → RunConfig
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.config import RunConfig
from phi3lora.runs.export import ARCHIVE
from phi3lora.runs.forms import Kind
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown

ConfigOf = Callable[..., RunConfig]


class PlainCode:
    """Before training for what the form says, after it for what a run did."""

    def __init__(self, app: Application) -> None:
        self.app = app
        with gr.Row(elem_classes="actions"):
            self.buttons: dict[Kind, gr.Button] = {
                "script": gr.Button("As a Python script", size="md", elem_id="to-script"),
                "notebook": gr.Button("As a notebook", size="md", elem_id="to-notebook"),
            }
            self.download = gr.DownloadButton(
                "Download", variant="primary", size="md", visible=False, elem_id="code"
            )

    def wire(self, config_of: ConfigOf, inputs: list[Any]) -> None:
        """Make the code of `config_of(request, *inputs)` when a button is pressed."""
        for kind, button in self.buttons.items():
            button.click(
                self._maker(kind, config_of),
                inputs,
                self.download,
                api_visibility="private",
                show_progress="minimal",
            )

    def _maker(self, kind: Kind, config_of: ConfigOf) -> Callable[..., Any]:
        @shown
        def make(request: gr.Request, *values: Any) -> Any:
            caller = self.app.callers.caller(session_of(request))
            config, folder = config_of(request, *values), self.app.publishing.folder()
            file = self.app.publishing.code(config, kind, folder / ARCHIVE[kind], caller)
            return gr.update(value=str(file), label=f"Download {file.name}", visible=True)

        return make
