"""Rows that one may want to leave out: looked for when asked, shown by kind, left out by a click.

panel = FindingsPanel(app, fields)
panel.wire(components)              # what the form shows, as inputs
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.data.findings import KINDS, Finding, FoundRow
from phi3lora.ui import form, show
from phi3lora.ui.row_show import OPEN, row_button
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import SPECS, Fields, shown

FIELD = "data.leave_out"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class FindingsPanel:
    """The buttons, what was found, and a box for each kind."""

    def __init__(self, app: Application, fields: Fields) -> None:
        self.app, self.fields = app, fields
        self.field = fields.by_name.get(FIELD) or fields.add(FIELD, visible="hidden")
        with gr.Accordion(
            "Find rows to leave out", open=False, elem_classes="fold", elem_id="findings-fold"
        ):
            with gr.Row():
                self.look = gr.Button("Look through the rows", elem_id="find-rows", size="sm")
                self.ask = gr.Button("Ask the base which are odd", elem_id="ask-base", size="sm")
            self.found = gr.HTML(elem_id="findings", apply_default_css=False, js_on_load=OPEN)
            self.kinds = gr.CheckboxGroup(choices([]), label="Leave out", elem_id="leave-out")

    @shown
    def on_look(self, request: gr.Request, *shown_values: Any) -> Iterator[list[Any]]:
        """Look for rows by rule, and count them beside the boxes."""
        yield [waiting("Looking through the rows …"), gr.skip()]
        config, _ = self.fields.config(shown_values)
        caller = self.app.callers.caller(session_of(request))
        found = self.app.datasets.findings(config, caller, likelihood=False)
        boxes = gr.update(choices=choices(found), value=config.data.leave_out)
        yield [findings_html(found), boxes]

    @shown
    def on_ask(self, request: gr.Request, *shown_values: Any) -> Iterator[str]:
        """Read the rows with the base."""
        yield waiting("The base reads the rows …")
        config, _ = self.fields.config(shown_values)
        caller = self.app.callers.caller(session_of(request))
        yield findings_html(self.app.datasets.findings(config, caller, likelihood=True))

    def on_kinds(self, kinds: list[str] | None) -> Any:
        """What is ticked, as the option that keeps it."""
        return form.to_widget(SPECS[FIELD], [name for name in KINDS if name in (kinds or [])])

    @shown
    def on_field(self, written: str) -> Any:
        """The option was written elsewhere: by a recipe, a run or by hand."""
        try:
            kinds = form.from_widget(SPECS[FIELD], written)
        except ValueError:  # said at the field itself
            return gr.skip()
        given = kinds if isinstance(kinds, list) else []
        return [name for name in KINDS if name in given]

    def wire(self, everything: list[Any]) -> Any:
        """Connect; returns the event after which the form has changed."""
        self.look.click(self.on_look, everything, [self.found, self.kinds], **QUIET)
        self.ask.click(self.on_ask, everything, self.found, **QUIET)
        self.field.change(self.on_field, self.field, self.kinds, **QUIET)
        return self.kinds.input(self.on_kinds, self.kinds, self.field, **QUIET)


def choices(found: list[Finding]) -> list[tuple[str, str]]:
    """A box for each kind, with how many were found of it."""
    counts = {one.name: f" ({one.count:,})" for one in found}
    return [(f"{kind.title}{counts.get(name, '')}", name) for name, kind in KINDS.items()]


def waiting(words: str) -> str:
    """What is done just now."""
    return f'<div class="reading"><b></b>{show.text(words)}</div>'


def findings_html(found: list[Finding]) -> str:
    """Each kind with its meaning, and its rows behind a fold."""
    if not found:
        return show.notice("Nothing was found that one may want to leave out.", "green")
    return "".join(_kind(one) for one in found)


def _kind(one: Finding) -> str:
    rows = [(row.place, row.why, row.asked, row.answer, _buttons(row)) for row in one.rows]
    more = f"<p>and {one.count - len(rows):,} more</p>" if one.count > len(rows) else ""
    table = show.table(("Row", "Why", "Question", "Answer", ""), rows)
    return (
        f"<details class='finding'><summary><b>{show.text(one.title)}</b> · {one.count:,}"
        f"</summary><p>{show.with_code(one.meaning)}</p>{table}{more}</details>"
    )


def _buttons(row: FoundRow) -> show.Html:
    """What can be done with it; train.js says beside them what was."""
    place = (row.source, row.row)
    buttons = row_button(*place, "Edit"), row_button(*place, "Leave out", "leave-out")
    return show.Html(f'<span class="row-do">{"".join(buttons)}</span>')
