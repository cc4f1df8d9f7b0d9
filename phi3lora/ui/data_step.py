"""The data of the Train page: an example, a file of one's own, or the Hub; and its preview.

    step = DataStep(app, fields)
    step.wire()

Each tab owns its choice: who comes back to a tab trains what that tab shows, and a tab without a
choice has no data. `data.path`, a hidden field, is the choice of the tab that is open.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.datasets import NO_PARTS
from phi3lora.data.folders import SUFFIXES
from phi3lora.data.opening import PACKED
from phi3lora.data.sources import TAUGHT
from phi3lora.errors import AccessError, Phi3LoraError
from phi3lora.ui import show
from phi3lora.ui.columns_step import ColumnChoice
from phi3lora.ui.draft import TAB
from phi3lora.ui.findings import FindingsPanel
from phi3lora.ui.launch_show import READING
from phi3lora.ui.row_editor import RowEditor
from phi3lora.ui.row_show import OPEN, source_of
from phi3lora.ui.sessions import session_of
from phi3lora.ui.steps import step
from phi3lora.ui.train_show import dataset_line, named_dataset
from phi3lora.ui.widgets import SPECS, Fields, shown

EXAMPLE, FILE, HUB = "Example", "Your file", "Hub"
TABS = (EXAMPLE, FILE, HUB)
REST = 0.3  # seconds without a key after which the Hub is asked
EXAMPLE_PREFIX = "example:"
NOTHING_TYPED = "Type a few words, or a dataset's id, then press Enter."
Choices = dict[str, str]  # the path that each tab has chosen


class DataStep:
    """The components that choose data, and their handlers."""

    def __init__(
        self, app: Application, fields: Fields, opening: tuple[str, str] | None = None
    ) -> None:
        """`opening` is a preview that is known from the start, and the line of the step."""
        self.app, self.fields = app, fields
        self._typed: dict[str, object] = {}  # the latest typing of each page that is served
        names = list(TAUGHT)
        with step("step-data", 1, "Data", names[0], then="step-model") as self.line:
            if opening:
                self.line.value = opening[1]
            self.source = gr.Radio(
                list(TABS),
                value=EXAMPLE,
                label="Where the data is",
                show_label=False,
                elem_classes="segmented",
                elem_id="source",
            )
            with gr.Column(elem_id="panel-example") as self.example_panel:
                self.example = gr.Radio(
                    [("\n".join(TAUGHT[name]), name) for name in names],
                    value=names[0],
                    label="Bundled examples",
                    show_label=False,
                    elem_classes="cards three",
                    elem_id="example",
                )
            with gr.Column(visible=False, elem_id="panel-file") as self.file_panel:
                self.file = gr.File(
                    label="JSON, JSONL, CSV, Parquet, Excel or text",
                    height=140,
                    file_types=[*SUFFIXES, *PACKED],
                    elem_id="file",
                )
                gr.HTML(file_kinds(), apply_default_css=False, js_on_load=None)
            with gr.Column(visible=False, elem_id="panel-hub") as self.hub_panel:
                self._hub()
            self.path = fields.add("data.path", visible="hidden")
            self.choices = gr.State({EXAMPLE: EXAMPLE_PREFIX + names[0]})
            self.columns = ColumnChoice(app, fields)
            self._reading()
            gr.HTML(
                '<p class="reading data-reading"><b></b>Reading the data …</p>',
                apply_default_css=False,
                js_on_load=None,
            )
            self.summary = gr.HTML(
                opening[0]
                if opening
                else show.empty(
                    "What will be trained shows up here",
                    "Pick an example, drop a file, or search the Hub: conversations as the model "
                    "will read them, with the tokens that it learns tinted.",
                ),
                elem_id="data-summary",
                js_on_load=OPEN,
            )
            self.rows = RowEditor(app, fields)
            self.findings = FindingsPanel(app, fields)

    def _hub(self) -> None:
        self.search = gr.Textbox(
            label="Dataset on the Hub",
            placeholder="Search, or paste an id such as HuggingFaceH4/ultrachat_200k",
            elem_id="search",
        )
        self.results = gr.Radio(
            [],
            visible=False,
            label="Datasets that were found",
            show_label=False,
            elem_classes="results",
            elem_id="results",
        )
        self.search_note = gr.HTML(elem_id="search-note", apply_default_css=False)
        with gr.Row():
            self.name = self.fields.add("data.name", choices=[], min_width=160)
            self.split = self.fields.add("data.split", choices=["train"], min_width=160)

    def _reading(self) -> None:
        """Every other option about the data."""
        with gr.Accordion(
            "How rows are read and held out", open=False, elem_classes="fold", elem_id="reading"
        ):
            names = [name for name in SPECS if name.startswith("data.")]
            self.fields.add("data.system_prompt")
            left = [name for name in names if name not in self.fields.by_name]
            for start in range(0, len(left), 3):
                with gr.Row():
                    for name in left[start : start + 3]:
                        self.fields.add(name, min_width=180)

    # ------------------------------------------------------------------ what happens

    @shown
    def on_source(self, source: str, choices: Choices | None) -> list[Any]:
        """Show the tab's panel, and make its own choice the data; none empties it."""
        panels = [gr.update(visible=source == tab) for tab in TABS]
        return [*panels, (choices or {}).get(source, "")]

    @shown
    def on_example(self, name: str, choices: Choices | None) -> tuple[str, Choices]:
        """Choose another bundled example."""
        return chosen(EXAMPLE, EXAMPLE_PREFIX + name, choices)

    @shown
    def on_file(
        self, file: str | None, choices: Choices | None, request: gr.Request
    ) -> tuple[str, Choices]:
        """Keep the dropped file and make it the data; a file that was taken away is no more."""
        if not file:
            return chosen(FILE, "", choices)
        caller = self.app.callers.caller(session_of(request))
        return chosen(FILE, str(self.app.datasets.keep_upload(Path(file), caller)), choices)

    def on_result(
        self, dataset: str | None, choices: Choices | None, request: gr.Request
    ) -> list[Any]:
        """A dataset of the list, which is over with that; so is a search that is still asking."""
        self._typed.pop(str(request.session_hash), None)
        closed = gr.update(visible=False, choices=[], value=None)
        return [closed, dataset or gr.skip(), *self._anew(dataset or "", choices)]

    def _anew(self, dataset: str, choices: Choices | None) -> list[Any]:
        """The dataset as the data, without configuration and split of the one before."""
        return [*chosen(HUB, dataset, choices), None, "train"]

    @shown
    def on_type(self, query: str, choices: Choices | None, request: gr.Request) -> tuple[Any, Any]:
        """What matches the words so far, once the typing rests; errors wait for Enter.

        The words of a dataset that is chosen already ask for no other.
        """
        session, typed = str(request.session_hash), object()
        if query and named_dataset(query) == (choices or {}).get(HUB):
            self._typed.pop(session, None)
            return gr.update(visible=False), ""
        self._typed[session] = typed
        time.sleep(REST if query else 0)
        if self._typed.get(session) is not typed:
            return gr.skip(), gr.skip()
        try:
            found = self._search(named_dataset(query), request)
        except AccessError as error:  # it does not get better by typing on
            return gr.update(visible=False), show.notice(str(error), "grey")
        except Phi3LoraError:
            return gr.skip(), gr.skip()
        if self._typed.get(session) is not typed:  # overtaken while the Hub was asked
            return gr.skip(), gr.skip()
        del self._typed[session]
        note = "" if found or not query else nothing_found(query)
        return gr.update(choices=found, value=None, visible=bool(found)), note

    @shown
    def on_search(self, query: str, choices: Choices | None, request: gr.Request) -> list[Any]:
        """A list of datasets that match; an id that exists is taken at once."""
        query, kept = named_dataset(query), [gr.skip()] * 4
        self._typed.pop(str(request.session_hash), None)
        if not query:
            return [gr.skip(), show.notice(NOTHING_TYPED, "grey"), *kept]
        found = self._search(query, request)
        if query in [dataset for _, dataset in found] or (not found and "/" in query):
            return [gr.update(visible=False, choices=[]), "", *self._anew(query, choices)]
        note = "" if found else nothing_found(query)
        return [gr.update(choices=found, value=None, visible=bool(found)), note, *kept]

    def _search(self, query: str, request: gr.Request) -> list[tuple[str, str]]:
        """Suggested datasets as (what to show, id)."""
        caller = self.app.callers.caller(session_of(request))
        found = self.app.datasets.search(query, caller)
        return [(dataset_line(one), one.found.id) for one in found]

    @shown
    def on_parts(
        self, path: str, name: str | None, split: str | None, request: gr.Request
    ) -> Iterator[list[Any]]:
        """The configurations and splits that a Hub dataset has; first, that it is being read.

        What exists stays, and is not said again: by now another may be chosen, since Gradio's lists
        tell of a choice once more when they are left. Why nothing can be read is said by the
        preflight that follows.
        """
        yield [gr.skip(), gr.skip(), READING]  # what was found is about other data
        try:
            caller = self.app.callers.caller(session_of(request))
            parts = self.app.datasets.parts(path, name, caller) if path else NO_PARTS
        except Phi3LoraError:
            parts = NO_PARTS
        named: dict[str, Any] = {} if name == parts.name else {"value": parts.name}
        stays = str(split or "").partition("[")[0] in parts.splits
        begun: dict[str, Any] = {} if stays else {"value": parts.split}
        yield [
            gr.update(choices=parts.names, **named),
            gr.update(choices=parts.splits, **begun),
            gr.skip(),
        ]

    def show_data(self, values: Mapping[str, Any]) -> list[Any]:
        """The tab that the fields' data belongs to, with it as its choice; the order of `tabs`.

        Without data it is the tab that was left so. The edits that the fields hold are those of
        this data.
        """
        path, left = str(values.get("data.path") or ""), values.get(TAB)
        tab = tab_of(path) if path or left not in TABS else left
        example = path.removeprefix(EXAMPLE_PREFIX) if tab == EXAMPLE else None
        first = {EXAMPLE: EXAMPLE_PREFIX + next(iter(TAUGHT))}
        return [
            tab,
            *(gr.update(visible=tab == each) for each in TABS),
            {**first, tab: path},
            example if example in TAUGHT else None,
            path if tab == HUB else "",
            source_of(values),
        ]

    @property
    def tabs(self) -> list[Any]:
        """What `show_data` fills."""
        panels = [self.example_panel, self.file_panel, self.hub_panel]
        return [self.source, *panels, self.choices, self.example, self.search, self.rows.of]

    def wire(self) -> None:
        """Connect components and handlers; what follows from another path is the page's."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        own, taken = self.choices, [self.path, self.choices]
        anew = [*taken, self.name, self.split]
        panels = [self.example_panel, self.file_panel, self.hub_panel]
        self.source.input(self.on_source, [self.source, own], [*panels, self.path], **quiet)
        self.example.input(self.on_example, [self.example, own], taken, **quiet)
        self.file.change(self.on_file, [self.file, own], taken, **quiet)
        self.results.input(
            self.on_result, [self.results, own], [self.results, self.search, *anew], **quiet
        )
        self.search.submit(
            self.on_search,
            [self.search, own],
            [self.results, self.search_note, *anew],
            show_progress="minimal",
            api_visibility="private",
            trigger_mode="multiple",
        )
        # Gradio's `input` of a text is a key with a letter: nothing that is deleted or pasted.
        gr.on(
            [self.search.change, self.search.focus],
            self.on_type,
            [self.search, own],
            [self.results, self.search_note],
            **quiet,
            concurrency_limit=None,
        )


def file_kinds() -> str:
    """For the browser: which files are taken, and where it says that one is not (files.js)."""
    kinds = " ".join((*SUFFIXES, *PACKED))
    return (
        f'<div id="file-kinds" data-kinds="{kinds}"></div>'
        '<p id="file-refused" class="field-wrong" role="alert"></p>'
    )


def first_step(source: str) -> str:
    """What to do in a tab that has no data yet."""
    steps = {
        FILE: "Drop a JSON, JSONL, CSV, Parquet or Excel file under Data.",
        HUB: "Search the Hub under Data, or paste a dataset's id there.",
    }
    return steps.get(source, "Pick an example under Data.")


def nothing_found(query: str) -> str:
    """What to do where no dataset matches the words so far."""
    return show.notice(
        f"No dataset on the Hub matches {query!r}. Try fewer or other words, or type a whole id, "
        "USER/NAME, and press Enter.",
        "grey",
    )


def chosen(tab: str, path: str, choices: Choices | None) -> tuple[str, Choices]:
    """The path that is the data now, and every tab's choice with it."""
    return path, {**(choices or {}), tab: path}


def tab_of(path: str) -> str:
    """Where a path is chosen."""
    if path.startswith(EXAMPLE_PREFIX):
        return EXAMPLE
    return FILE if Path(path).suffix or path.startswith(("/", "~", ".")) else HUB
