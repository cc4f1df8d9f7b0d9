"""The Download menu of a run: whatever can be taken away, made when it is asked for.

downloads = Downloads(app)               the menu, its progress, and the file
downloads.wire(run_id)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import gradio as gr

from phi3lora import words
from phi3lora.app.application import Application
from phi3lora.app.publishing import Take
from phi3lora.app.working import in_thread
from phi3lora.errors import Phi3LoraError
from phi3lora.runs.forms import FORMS, Kind
from phi3lora.runs.store import Run
from phi3lora.ui import show
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown, told

# What the menu offers: after training, on one's own machine, and of any run.
RESULTS: tuple[Take, ...] = ("adapter", "gguf-adapter")
HERE: tuple[Take, ...] = ("merged", "gguf", "onnx")
ALWAYS: tuple[Take, ...] = ("script", "notebook", "log")
OTHERS = {"adapter": "Adapter, for PEFT (.zip)", "log": "Log (.txt)"}  # no form of an export
SAVE = "() => window.phi3lora.save('#download')"


def menu(run: Run, usable: bool, on_space: bool) -> str:
    """What this run offers."""
    items = "".join(
        f'<button type="button" data-take="{kind}">{show.text(label_of(kind))}</button>'
        for kind in offered(run, usable, on_space)
    )
    return f"<summary>Download</summary><div>{items}</div>"


def offered(run: Run, usable: bool, on_space: bool) -> tuple[Take, ...]:
    """What there is. Merging takes the memory of a whole base: on one's own machine only."""
    if not usable:
        return ALWAYS
    if run.result.kind == "model":
        return ("adapter", *ALWAYS)
    return (*RESULTS, *(() if on_space else HERE), *ALWAYS)


def label_of(kind: Take) -> str:
    """What the menu calls it, with the kind of file."""
    return OTHERS.get(kind) or f"{FORMS[cast(Kind, kind)].title} (.zip)"


class Downloads:
    """The menu in the action row, and what it says under it."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.menu = gr.HTML(
            elem_id="download-menu",
            html_template='<details class="menu">${value}</details>',
            js_on_load="window.phi3lora.menu(element, trigger, 'take')",
            apply_default_css=False,
        )

    def below(self) -> None:
        """What is being written, and the file; put where the page has room for it."""
        self.told = gr.HTML(elem_id="download-status", apply_default_css=False)
        self.file = gr.DownloadButton("Save", size="md", visible=False, elem_id="download")

    @shown
    def on_take(
        self, run_id: str, request: gr.Request, event: gr.EventData
    ) -> Iterator[tuple[str, Any]]:
        """Write what was chosen, saying so meanwhile; then the file."""
        caller = self.app.callers.caller(session_of(request))
        run = self.app.launching.run(run_id, caller)
        kind = told(event, "take")
        yield show.progress(None, f"Writing the {kind}", ""), gr.update(visible=False)
        try:
            for made in in_thread(lambda put: self.app.publishing.take(run, kind, caller)):
                yield (
                    ready(made),
                    gr.update(value=str(made), label=f"Save {made.name}", visible=True),
                )
        except Phi3LoraError as error:
            yield show.notice(str(error), "red"), gr.update(visible=False)

    def wire(self, run_id: gr.Textbox) -> None:
        """Connect menu and file; another run takes both away."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        outputs = [self.told, self.file]
        self.menu.click(self.on_take, run_id, outputs, **quiet).success(None, None, None, js=SAVE)
        run_id.change(lambda: ("", gr.update(value=None, visible=False)), None, outputs, **quiet)


def ready(file: Path) -> str:
    """What lies ready, and how large it is."""
    return show.notice(f"{file.name}, {words.size(file.stat().st_size)}, is ready.", "green")
