"""The fold of Compare that asks a set of prompts in one go and shows the answers as a table.

    panel = PromptSetPanel(app)
    panel.wire(inputs, sampling)         what a question is sent with, and the names of its settings

The set is kept in the browser (compare.js), which also saves the table as CSV and JSONL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.comparing import Subject, titles
from phi3lora.app.prompt_sets import MOST, Answered, ask_all, prompts_in
from phi3lora.chat.options import Options
from phi3lora.errors import Phi3LoraError
from phi3lora.ui import show
from phi3lora.ui.asking import Ask, Stops
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown, text_of

TABLE = "<div>${value}</div>"
SAVE = (
    '<p class="set-tools"><button type="button" class="chip" data-save="csv">CSV</button> '
    '<button type="button" class="chip" data-save="jsonl">JSONL</button></p>'
)


class PromptSetPanel:
    """The fold, and what its buttons do."""

    def __init__(self, app: Application) -> None:
        self.app, self.stops = app, Stops()
        with gr.Accordion(
            "A set of prompts", open=False, elem_classes="fold", elem_id="prompt-set"
        ):
            self.prompts = gr.Textbox(
                label="Prompts",
                info=f"One on each line, at most {MOST}; kept in this browser",
                lines=5,
                max_lines=14,
                elem_id="set-prompts",
            )
            with gr.Row(elem_classes="actions"):
                self.ask = gr.Button("Ask all", variant="primary", size="md", elem_id="set-ask")
                self.stop = gr.Button("Stop", size="md", elem_id="set-stop", interactive=False)
            self.progress = gr.HTML(elem_id="set-progress", apply_default_css=False)
            self.table = gr.HTML(
                html_template=TABLE,
                elem_id="set-table",
                js_on_load="window.phi3lora.promptSet(element)",
                apply_default_css=False,
            )

    @shown
    def on_ask_all(self, request: gr.Request, text: Any, *values: Any) -> Iterator[list[Any]]:
        """Ask them one after the other; what was answered stays where something goes wrong."""
        ask = Ask.sent(values, self.sampling)
        rows: list[Answered] = []
        names: Sequence[str] = ()
        session = str(request.session_hash)
        flag = self.stops.begin(session)
        try:
            prompts, options = prompts_in(text_of(text)), ask.options()
            caller = self.app.callers.caller(session_of(request))
            subject = self.app.comparing.opposed(ask.adapter or "", ask.against, caller)
            names = columns(subject, options)
            told = ask_all(
                self.app.comparing, subject, prompts, options, flag.is_set, caller=caller
            )
            yield [bar(0, len(prompts), ""), "", gr.update(interactive=True)]
            for said in told:
                if isinstance(said, Answered):
                    rows.append(said)
                note = said if isinstance(said, str) else ""
                table = answers_table(names, rows) if not note else gr.skip()
                yield [bar(len(rows), len(prompts), note), table, gr.skip()]
            yield [ended(len(rows), len(prompts)), gr.skip(), gr.update(interactive=False)]
        except Phi3LoraError as error:
            off = gr.update(interactive=False)
            yield [show.notice(str(error), "red"), answers_table(names, rows), off]
        finally:
            self.stops.end(session, flag)

    def on_stop(self, request: gr.Request) -> None:
        """What is answered stays; the rest is not asked."""
        self.stops.stop(str(request.session_hash))

    def wire(self, inputs: list[Any], sampling: Iterable[str]) -> None:
        """Connect the buttons; `inputs` are those of a question, `sampling` names its settings."""
        self.sampling = list(sampling)
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        outputs = [self.progress, self.table, self.stop]
        self.ask.click(self.on_ask_all, [self.prompts, *inputs], outputs, **quiet)
        self.stop.click(self.on_stop, None, None, **quiet)


def columns(subject: Subject, options: Options) -> list[str]:
    """What to call the answers of a subject: base and tuned, two names, or the base alone."""
    return list(titles(subject, options)) if subject.result else ["Base"]


def bar(done: int, total: int, note: str) -> str:
    """How many have been answered."""
    return show.progress(done / total, f"{done} of {total} answered", note)


def ended(done: int, total: int) -> str:
    """What came of it; the table says the rest."""
    words = f"All {total} are answered." if done == total else f"Stopped after {done} of {total}."
    return f'<p class="help" role="status">{words}</p>'


def answers_table(names: Sequence[str], rows: Sequence[Answered]) -> str:
    """A row for each prompt, and buttons that save them; nothing where nothing was answered."""
    if not rows:
        return ""
    cells = [(row.prompt, row.base, row.tuned)[: len(names) + 1] for row in rows]
    return SAVE + show.table(["Prompt", *names], cells)
