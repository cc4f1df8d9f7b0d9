"""Which column is the question and which the answer: two lists of real columns, rows beside them.

columns = ColumnChoice(app, fields)
columns.on_look(*values)           what the data has; a guess where no format fits
columns.on_choose(...)             the choice, written into `data.columns`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.errors import ConfigError, Phi3LoraError
from phi3lora.strict_yaml import write_yaml
from phi3lora.ui import show
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import Fields

if TYPE_CHECKING:
    from phi3lora.data.columns import Columns

FIELD = "data.columns"
GUESSED = "No format fits these columns by itself, so this is a guess. Change it where it is wrong."


class ColumnChoice:
    """The two lists and the first rows; hidden where a row is a whole conversation."""

    def __init__(self, app: Application, fields: Fields) -> None:
        self.app, self.fields = app, fields
        with gr.Column(visible=False, elem_id="columns", elem_classes="columns-of") as self.panel:
            with gr.Row():
                self.question = _column("Question", "question-column")
                self.answer = _column("Answer", "answer-column")
            self.rows = gr.HTML(elem_id="first-rows", apply_default_css=False, js_on_load=None)
        self.found = gr.State(None)

    @property
    def seen(self) -> list[Any]:
        """What `on_look` fills; the field itself is filled by the page, which owns it."""
        return [self.panel, self.question, self.answer, self.rows, self.found]

    def on_look(self, request: gr.Request, *shown_values: Any) -> list[Any]:
        """The columns of the data that the form names; last, the value for `data.columns`.

        What cannot be read is said by the preflight that follows. A mapping that was made for
        other data is forgotten.
        """
        hidden = [gr.update(visible=False), gr.skip(), gr.skip(), gr.skip(), None, gr.skip()]
        try:
            config, _ = self.fields.config(shown_values)
            caller = self.app.callers.caller(session_of(request))
            found = self.app.datasets.columns(config, caller)
        except ConfigError:  # said at its field
            return hidden
        except Phi3LoraError:
            return hidden
        known = set(found.columns)
        mapping = config.data.columns
        if found.guessed:
            mapping = found.mapping(found.question, found.answer)
        elif not set(mapping.values()) <= known:
            mapping = {}
        field = written(mapping) if mapping != config.data.columns else gr.skip()
        if not found.asked:
            return [*hidden[:-1], field]
        return [*shown_columns(found), field]

    def on_choose(self, question: str | None, answer: str | None, found: Any) -> Any:
        """`data.columns` for the chosen columns; one that was emptied is found by itself again."""
        return written(found.mapping(question, answer)) if found else gr.skip()


def _column(title: str, elem_id: str) -> gr.Dropdown:
    return gr.Dropdown(
        [],
        value=None,
        label=title,
        info=f"The column that holds the {title.lower()}.",
        elem_id=elem_id,
        min_width=200,
        interactive=True,
    )


def shown_columns(found: Columns) -> list[Any]:
    """Values for the panel, the two lists, the rows, and what was found."""
    lists = [
        gr.update(choices=found.columns, value=name or None)
        for name in (found.question, found.answer)
    ]
    note = show.notice(GUESSED, "amber") if found.guessed else ""
    return [gr.update(visible=True), *lists, note + rows_table(found), found]


def rows_table(found: Columns) -> str:
    """The first rows, with the two columns that are read marked in the head."""
    names = {found.question: "question", found.answer: "answer"}
    heads = [f"{name} → {names[name]}" if name in names else name for name in found.columns]
    cells = ([row.get(name, "") for name in found.columns] for row in found.rows)
    return show.table(heads, cells)


def written(mapping: dict[str, str]) -> str:
    """`data.columns` as its field shows it: a line of YAML."""
    if not mapping:
        return ""
    return write_yaml(mapping, default_flow_style=True, width=10_000).strip()
