"""Rows of the data, edited turn by turn and left out by hand; the source stays as it is.

editor = RowEditor(app, fields)
editor.wire(everything, [summary, found])        after the components whose buttons open a row

A button with `data-open` opens the row that its `data-row` names, `SOURCE:ROW`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.patches import Patch
from phi3lora.config import DataConfig, RunConfig
from phi3lora.data.opened import OpenRow
from phi3lora.errors import DataError, Phi3LoraError
from phi3lora.ui import form, show
from phi3lora.ui.row_show import (
    OPEN,
    changes_html,
    head_html,
    is_edited,
    is_left_out,
    label_of,
    place_of,
    source_of,
    sources_of,
)
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import Fields, shown, told

AT_ONCE = 8  # texts of a row that stand on the page
CHANGED = ("data.edits", "data.leave_out_rows", "data.revision", "data.more")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
FOCUS = "() => window.phi3lora.train.toRow()"


@dataclass(frozen=True)
class Opened:
    """The row in the editor, and which of its texts is the first that stands there."""

    row: OpenRow
    first: int = 0


class RowEditor:
    """The line that says what was changed, the texts of one row, and what can be done to it."""

    def __init__(self, app: Application, fields: Fields) -> None:
        self.app, self.fields = app, fields
        self.of = gr.State("")  # the source whose edits the form holds
        self.opened = gr.State(None)
        self.chosen: dict[str, Any] = {}  # what follows from other data, once it is wired
        self.changes = gr.HTML(
            elem_id="row-changes", apply_default_css=False, js_on_load=OPEN, visible=False
        )
        with gr.Column(visible=False, elem_id="row-editor") as self.panel:
            self.head = gr.HTML(elem_id="row-head", apply_default_css=False, js_on_load=None)
            self.boxes = [
                gr.Textbox(visible=False, lines=2, max_lines=14, elem_id=f"row-text-{place}")
                for place in range(AT_ONCE)
            ]
            with gr.Row(visible=False) as self.turns:
                self.earlier = gr.Button("Earlier turns", size="sm", elem_id="row-earlier")
                self.later = gr.Button("Later turns", size="sm", elem_id="row-later")
            with gr.Row(elem_classes="row-actions"):
                self.save = gr.Button(
                    "Save this row", variant="primary", size="sm", elem_id="row-save"
                )
                self.out = gr.Button("Leave out", size="sm", elem_id="row-out")
                self.undo = gr.Button("Undo edits", size="sm", elem_id="row-undo")
                self.previous = gr.Button("‹ Row before", size="sm", elem_id="row-previous")
                self.next = gr.Button("Row after ›", size="sm", elem_id="row-next")
                self.close = gr.Button("Close", size="sm", elem_id="row-close")

    @property
    def seen(self) -> list[Any]:
        """What shows the opened row, in the order of `_shown`."""
        buttons = [self.turns, self.earlier, self.later, self.out, self.undo, self.previous]
        return [self.opened, self.panel, self.head, *self.boxes, *buttons]

    @property
    def form(self) -> list[Any]:
        """The fields that a change sets."""
        return [self.fields.by_name[name] for name in CHANGED]

    # ------------------------------------------------------------------ what happens

    @shown
    def on_click(self, event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        """A button beside a row: open it, leave it out, or take everything back."""
        do, place = told(event, "do"), told(event, "row")
        config, caller = self._asked(request, values)
        if do == "undo-all":
            wanted = self.app.editing.undo_all(config, caller)
            return [*self._nothing(), *self._filled(wanted)]
        source, row = place_of(place)
        if do in ("leave-out", "use-again"):
            out = do == "leave-out"
            wanted = self.app.editing.leave_out(config, caller, source, row, out=out)
            return [*[gr.skip()] * len(self.seen), *self._filled(wanted)]
        edited = do == "open-edited"
        opened = Opened(self.app.editing.open(config, caller, row, source, edited=edited))
        return [*self._shown(config, opened), *[gr.skip()] * len(CHANGED)]

    @shown
    def on_save(self, opened: Any, request: gr.Request, *values: Any) -> list[Any]:
        """Keep what stands in the boxes; first the boxes, then the form."""
        return self._saved(opened, request, values, 0)

    @shown
    def on_earlier(self, opened: Any, request: gr.Request, *values: Any) -> list[Any]:
        """The turns before; what stands in the boxes is kept."""
        return self._saved(opened, request, values, -AT_ONCE)

    @shown
    def on_later(self, opened: Any, request: gr.Request, *values: Any) -> list[Any]:
        """The turns behind, likewise."""
        return self._saved(opened, request, values, AT_ONCE)

    def _saved(
        self, opened: Any, request: gr.Request, values: tuple[Any, ...], by: int
    ) -> list[Any]:
        now = _is_open(opened)
        config, caller = self._asked(request, values[AT_ONCE:])
        wanted = self.app.editing.save(config, caller, now.row, _texts(now, values[:AT_ONCE]))
        first = min(max(now.first + by, 0), max(len(now.row.texts) - 1, 0))
        return [*self._again(wanted, caller, now.row, first), *self._filled(wanted)]

    @shown
    def on_undo(self, opened: Any, request: gr.Request, *values: Any) -> list[Any]:
        """The row as the source has it."""
        now = _is_open(opened)
        config, caller = self._asked(request, values)
        wanted = self.app.editing.undo(config, caller, now.row)
        return [*self._again(wanted, caller, now.row, now.first), *self._filled(wanted)]

    @shown
    def on_out(self, opened: Any, request: gr.Request, *values: Any) -> list[Any]:
        """Leave the row out, or use it again."""
        row = _is_open(opened).row
        config, caller = self._asked(request, values)
        out = not is_left_out(config, row)
        wanted = self.app.editing.leave_out(config, caller, row.source, row.row, out=out)
        return [*self._shown(wanted, opened, boxes=False), *self._filled(wanted)]

    @shown
    def on_previous(self, opened: Any, request: gr.Request, *values: Any) -> list[Any]:
        """The row before; what stands in the boxes is kept."""
        return self._turned(opened, request, values, -1)

    @shown
    def on_next(self, opened: Any, request: gr.Request, *values: Any) -> list[Any]:
        """The row behind, likewise."""
        return self._turned(opened, request, values, 1)

    def _turned(
        self, opened: Any, request: gr.Request, values: tuple[Any, ...], by: int
    ) -> list[Any]:
        now = _is_open(opened)
        config, caller = self._asked(request, values[AT_ONCE:])
        number = max(now.row.row + by, 0)
        other = self.app.editing.open(config, caller, number, now.row.source)
        texts = _texts(now, values[:AT_ONCE])
        if texts == [text.shown for text in now.row.texts]:
            return [*self._shown(config, Opened(other)), *[gr.skip()] * len(CHANGED)]
        wanted = self.app.editing.save(config, caller, now.row, texts)
        return [*self._shown(wanted, Opened(other)), *self._filled(wanted)]

    def _again(self, config: RunConfig, caller: Caller, row: OpenRow, first: int) -> list[Any]:
        """The row as it is read now; what keeps it from being read stands over it."""
        try:
            opened = self.app.editing.open(config, caller, row.row, row.source)
        except Phi3LoraError as error:
            skipped = [gr.skip()] * (len(self.seen) - 3)
            return [gr.skip(), gr.skip(), show.notice(str(error), "red"), *skipped]
        return self._shown(config, Opened(opened, first))

    # ------------------------------------------------------------------ what follows from the data

    def on_data(self, of: str, request: gr.Request, *values: Any) -> list[Any]:
        """The edits of the data that is chosen now; those that stand in the form are another's."""
        named = dict(zip(self.fields.by_name, values, strict=True))
        now = source_of(named)
        if now == of:
            return [gr.skip()] * (1 + len(CHANGED) + len(self.seen))
        data = DataConfig.model_construct(
            path=named["data.path"] or "",
            name=named["data.name"] or None,
            split=named["data.split"] or "",
        )
        kept: Patch | None = None
        try:
            caller = self.app.callers.caller(session_of(request))
            kept = self.app.editing.kept(data, caller) if data.path else None
        except Phi3LoraError:  # said by the preflight
            kept = None
        section = kept.data if kept else DataConfig()
        config = RunConfig(data=section)
        edits, rows, revision, _ = self._filled(config)
        fields = [edits, rows, revision if section.revision else gr.skip(), gr.skip()]
        return [now, *fields, *self._nothing()]

    @shown
    def on_changes(self, request: gr.Request, *values: Any) -> Any:
        """What was edited and left out by hand, row by row, and where it is kept."""
        try:
            config, caller = self._asked(request, values)
            changed = any(one.edits or one.leave_out_rows for one in sources_of(config))
            kept = self.app.editing.kept(config.data, caller) if changed else None
        except Phi3LoraError:  # said where it is
            return gr.skip()
        return gr.update(value=changes_html(config, kept), visible=changed)

    # ------------------------------------------------------------------ what is shown

    def _asked(self, request: gr.Request, values: tuple[Any, ...]) -> tuple[RunConfig, Caller]:
        config, _ = self.fields.config(values)
        return config, self.app.callers.caller(session_of(request))

    def _filled(self, config: RunConfig) -> list[Any]:
        values = form.to_widgets(config)
        return [values[name] for name in CHANGED]

    def _nothing(self) -> list[Any]:
        """No row is open."""
        return [None, gr.update(visible=False), *[gr.skip()] * (len(self.seen) - 2)]

    def _shown(self, config: RunConfig, opened: Opened, *, boxes: bool = True) -> list[Any]:
        """The row; with `boxes` what stands in them is put there anew."""
        row, first = opened.row, opened.first
        texts = row.texts[first : first + AT_ONCE]
        drawn: list[Any] = [
            gr.update(visible=True, value=text.shown, label=label_of(text.label, first + place))
            for place, text in enumerate(texts)
        ]
        drawn += [gr.update(visible=False, value="")] * (AT_ONCE - len(drawn))
        return [
            opened,
            gr.update(visible=True),
            head_html(config, row),
            *(drawn if boxes else [gr.skip()] * AT_ONCE),
            gr.update(visible=len(row.texts) > AT_ONCE),
            gr.update(interactive=first > 0),
            gr.update(interactive=first + AT_ONCE < len(row.texts)),
            "Use again" if is_left_out(config, row) else "Leave out",
            gr.update(interactive=is_edited(config, row)),
            gr.update(interactive=row.row > 0),
        ]

    # ------------------------------------------------------------------ wiring

    def wire(self, everything: list[Any], opening: list[Any]) -> list[Any]:
        """Connect; returns the events after which the form may have changed."""
        filled, row = [*self.seen, *self.form], [self.opened, *everything]
        texts = [self.opened, *self.boxes, *everything]
        clicked = [
            one.click(self.on_click, everything, filled, **QUIET)
            for one in (*opening, self.changes)
        ]
        turned = [
            button.click(handler, texts, filled, **QUIET)
            for button, handler in (
                (self.save, self.on_save),
                (self.earlier, self.on_earlier),
                (self.later, self.on_later),
                (self.previous, self.on_previous),
                (self.next, self.on_next),
            )
        ]
        done = [
            self.out.click(self.on_out, row, filled, **QUIET),
            self.undo.click(self.on_undo, row, filled, **QUIET),
        ]
        for event in (*clicked, *turned[1:]):
            event.success(None, None, None, js=FOCUS)
        self.chosen = {
            "fn": self.on_data,
            "inputs": [self.of, *everything],
            "outputs": [self.of, *self.form, *self.seen],
            **QUIET,
        }
        self.close.click(lambda: self._nothing(), None, self.seen, **QUIET)
        for field in self.form:
            field.change(
                self.on_changes, everything, self.changes, **QUIET, trigger_mode="always_last"
            )
        return [*clicked, *turned, *done]


def _is_open(opened: Any) -> Opened:
    if not isinstance(opened, Opened):
        raise DataError("No row is open here any more; open it again.")
    return opened


def _texts(opened: Opened, shown_texts: tuple[Any, ...]) -> list[str]:
    """Every text of the row, with what stands in the boxes in its place."""
    texts = [text.shown for text in opened.row.texts]
    for place, said in enumerate(shown_texts[: len(texts) - opened.first]):
        texts[opened.first + place] = str(said or "")
    return texts
