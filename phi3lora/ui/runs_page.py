"""The Runs page: the list, and the chosen run as it goes.

The address names the run (`/runs?run=ID#log`), so a refresh, a second browser and a shared link all
see the same. The page asks `/pulse` what changed and calls back only then; what it shows is made
by plain functions from a Run and its RunView.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.several import side_by_side
from phi3lora.errors import HubError, RunError
from phi3lora.runs.store import Run
from phi3lora.ui import show
from phi3lora.ui.curves import chart_component, several_curves
from phi3lora.ui.downloads import Downloads
from phi3lora.ui.publish import PublishCard
from phi3lora.ui.runs_list import SEARCH, bin_list, kept_list, run_list, several_table, undo_line
from phi3lora.ui.runs_show import LOG_TOOLS, TAB_LIST, nothing_chosen, show_run
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import shown, texts_told, told

EVERY = 2.0  # seconds between two pulses
MADE = 32  # runs whose rendered state is kept for the next visitor
PULSE = "(seen, run) => window.phi3lora.pulse(seen, run)"
REMEMBER = "(run) => { window.phi3lora.remember('run', run); return run; }"
NAME = "(run) => { window.phi3lora.remember('run', run, false); return run; }"
OPEN_COMPARE = "(run) => { window.location.href = 'compare?adapter=' + encodeURIComponent(run); }"
FOCUS_TITLE = "() => window.phi3lora.focus('#new-title :is(input, textarea)')"
EMPTY = (
    *("live", "again", "menu", "more", "loss", "reward", "rate", "speed", "memory", "tracker"),
    *("samples", "report", "log", "config"),
)
DO = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (!button || !window.phi3lora.sure(button)) return;
  trigger('click', {do: button.dataset.do, of: button.dataset.of || ''});
});
"""
BRING = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-repo]');
  if (!button || button.disabled) return;
  button.disabled = true;
  button.textContent = 'Fetching …';
  trigger('click', {repo: button.dataset.repo});
});
"""


class RunsPage:
    """The page's components and handlers."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self._made: dict[str, tuple[str, dict[str, Any]]] = {}
        self.run_id = gr.Textbox(visible="hidden", elem_id="run-id")
        self.pulse = gr.Textbox(visible="hidden", elem_id="pulse")
        self.timer = gr.Timer(EVERY)
        with gr.Row(elem_classes="page split runs", equal_height=False):
            with gr.Column(scale=7, min_width=270, elem_classes="aside list"):
                self._aside()
            with gr.Column(scale=20, min_width=340, elem_classes="main"):
                self._several()
                self._detail()

    def _aside(self) -> None:
        script = "window.phi3lora.runList(element, trigger, watch)"
        self.search = gr.HTML(SEARCH, js_on_load=None, apply_default_css=False, elem_id="run-tools")
        self.undo = gr.HTML(elem_id="undo-line", js_on_load=DO, apply_default_css=False)
        self.list = gr.HTML(elem_id="run-list", js_on_load=script, apply_default_css=False)
        self.bin = gr.HTML(elem_id="bin", js_on_load=DO, apply_default_css=False)
        self.kept = gr.HTML(elem_id="kept-runs", js_on_load=BRING, apply_default_css=False)

    def _several(self) -> None:
        with gr.Column(elem_classes="card", visible=False, elem_id="several") as self.several:
            gr.HTML(show.heading("Side by side", "The ticked runs in one chart, and what differs."))
            self.several_chart = chart_component("several-chart", tools=True)
            self.several_table = gr.HTML(
                elem_id="several-table",
                js_on_load="window.phi3lora.sortable(element)",
                apply_default_css=False,
            )

    def _detail(self) -> None:
        with gr.Column(elem_classes="card", elem_id="run-card") as self.card:
            head = "window.phi3lora.runHead(element, watch)"
            self.head = gr.HTML(elem_id="run-head", js_on_load=head, apply_default_css=False)
            self.live = gr.HTML(
                html_template='<p class="heard" role="status">${value}</p>',
                elem_id="run-live",
                apply_default_css=False,
            )
            self._buttons()
        with gr.Column(elem_classes="card", elem_id="run-tabs"):
            tabs = "window.phi3lora.tabs(element)"
            gr.HTML(TAB_LIST, js_on_load=tabs, apply_default_css=False)
            self._panels()
        self.publish_card = PublishCard(self.app, self.run_id)

    def _buttons(self) -> None:
        with gr.Row(elem_classes="actions", visible=False) as self.actions:
            self.stop = gr.Button("Stop", size="md", elem_id="stop")
            self.cancel = gr.Button("Cancel", size="md", elem_id="cancel")
            self.compare = gr.Button("Try it", variant="primary", size="md", elem_id="to-compare")
            self.publish = gr.Button("Publish", size="md", elem_id="publish")
            self.downloads = Downloads(self.app)
            self.menu = self.downloads.menu
            self.again = gr.HTML(elem_id="again-links", apply_default_css=False)
            self.resume = gr.Button("Resume", variant="primary", size="md", elem_id="resume")
            self.more = gr.HTML(
                elem_id="more-menu",
                html_template='<details class="menu more">${value}</details>',
                js_on_load="window.phi3lora.menu(element, trigger, 'do', 'of')",
                apply_default_css=False,
            )
        self.downloads.below()
        with gr.Row(elem_classes="confirm", visible=False, elem_id="rename") as self.renaming:
            self.title = gr.Textbox(
                label="New title", max_lines=1, max_length=100, elem_id="new-title"
            )
            self.renamed = gr.State("")  # the run that the title is for
            self.save = gr.Button("Rename", variant="primary", size="md", elem_id="save-title")
            self.keep = gr.Button("Cancel", size="md", elem_id="keep-title")

    def _panels(self) -> None:
        with gr.Column(elem_id="panel-curves", elem_classes="tab-panel"):
            self.loss = chart_component("loss-chart", tools=True)
            self.reward = chart_component("reward-chart")
            with gr.Row(elem_classes="small-charts"):
                self.rate = chart_component("rate-chart", small=True)
                self.speed = chart_component("speed-chart", small=True)
                self.memory = chart_component("memory-chart", small=True)
            self.samples = gr.HTML(elem_id="samples", apply_default_css=False)
            self.tracker = gr.HTML(elem_id="tracker", apply_default_css=False)
        with gr.Column(elem_id="panel-evidence", elem_classes="tab-panel"):
            self.report = gr.HTML(elem_id="report", apply_default_css=False)
        with gr.Column(elem_id="panel-settings", elem_classes="tab-panel"):
            self.config = gr.Textbox(
                label="config.yaml",
                lines=8,
                max_lines=40,
                buttons=["copy"],
                interactive=False,
                elem_classes="mono",
                elem_id="run-config",
            )
        with gr.Column(elem_id="panel-log", elem_classes="tab-panel"):
            self.log = gr.HTML(
                html_template=LOG_TOOLS + '<div class="log-text">${value}</div>',
                elem_id="log",
                js_on_load="window.phi3lora.log(element, watch)",
                apply_default_css=False,
            )

    @property
    def parts(self) -> dict[str, Any]:
        """What depends on the chosen run, by the names that `show_run` uses."""
        names = ("head", "actions", "stop", "resume", "cancel", "compare", "publish", *EMPTY)
        return {name: getattr(self, name) for name in names}

    @property
    def seen(self) -> list[Any]:
        """What `on_show` fills, in order."""
        return [self.list, self.bin, *self.parts.values()]

    # ------------------------------------------------------------------ what happens

    @shown
    def on_open(self, request: gr.Request) -> list[Any]:
        """What the address says: a run, or the newest one."""
        run_id = request.query_params.get("run", "") or self._newest(request)
        return [run_id, *self.on_show(run_id, request)]

    def _newest(self, request: gr.Request) -> str:
        """The run that an address without one shows."""
        runs = self.app.launching.runs(self._caller(request))
        return runs[0].id if runs else ""

    @shown
    def on_show(self, run_id: str, request: gr.Request) -> list[Any]:
        """Everything about the chosen run as it is now."""
        caller = self._caller(request)
        runs = self.app.launching.runs(caller)
        try:
            values = self._values(self.app.launching.run(run_id, caller))
        except RunError as error:
            reason = "" if caller.anonymous else str(error)
            values = {"head": nothing_chosen(runs, run_id, reason)}
        nothing = {"actions": gr.update(visible=False), **dict.fromkeys(EMPTY, "")}
        return [
            run_list(runs, run_id, self.app.views),
            bin_list(self.app.launching.discarded(caller)),
            *(values.get(name, nothing.get(name, gr.skip())) for name in self.parts),
        ]

    def _values(self, run: Run) -> dict[str, Any]:
        """What to show of a run; made once for all who watch it."""
        position = self.app.launching.position(run)
        beat = self.app.views.run_pulse(run)
        pulse = f"{run.status} {run.title} {run.message} {position} {beat}"
        cached = self._made.get(run.id)
        if cached is None or cached[0] != pulse:
            view, on_space = self.app.views.view(run), self.app.settings.on_space
            cached = (pulse, show_run(run, view, position, on_space))
            self._made.pop(run.id, None)
            self._made[run.id] = cached
            while len(self._made) > MADE:
                self._made.pop(next(iter(self._made)))
        # Gradio empties the updates that it is given, so everybody gets copies.
        return {name: copy(value) for name, value in cached[1].items()}

    def on_kept(self, request: gr.Request) -> str:
        """Runs that are on the Hub and no more here; why they cannot be listed, on a Space."""
        try:
            return kept_list(self.app.launching.missing(self._caller(request)))
        except HubError as error:
            on_space = self.app.settings.on_space
            return show.notice(f"Backed-up runs: {error}", "grey") if on_space else ""

    @shown
    def on_bring(self, request: gr.Request, event: gr.EventData) -> str:
        """Fetch a backed-up run; its id, by which it is shown."""
        return self.app.launching.restore(told(event, "repo"), self._caller(request)).id

    @shown
    def on_list(self, run_id: str, request: gr.Request, event: gr.EventData) -> list[Any]:
        """A run was clicked in the list, or several were ticked."""
        names = texts_told(event, "several")
        if names is None:
            run_id = told(event, "run") or self._newest(request)
            return [run_id, gr.update(visible=False), "", "", ""]
        caller = self._caller(request)
        runs = [self.app.launching.run(name, caller) for name in names]
        if not runs:
            return [run_id, gr.update(visible=False), "", "", gr.skip()]
        found = side_by_side(runs, self.app.views)
        shown = [gr.update(visible=True), several_curves(found), several_table(found)]
        return [run_id, *shown, gr.skip()]

    @shown
    def on_stop(self, run_id: str, request: gr.Request) -> None:
        """Ask it to save and stop."""
        self.app.launching.stop(self._own(run_id, request))

    @shown
    def on_cancel(self, run_id: str, request: gr.Request) -> None:
        """Take it out of the queue."""
        self.app.launching.cancel(self._own(run_id, request))

    @shown
    def on_resume(self, run_id: str, request: gr.Request) -> None:
        """Go on from the last whole checkpoint, with changed inputs once these were shown."""
        run, caller = self._own(run_id, request), self._caller(request)
        self.app.launching.resume(run, caller, accept_changes=bool(run.state.changes))

    @shown
    def on_compute(self, run_id: str, request: gr.Request) -> Iterator[None]:
        """Slice after slice on a lent GPU, for as long as this page is open."""
        if not run_id:
            return
        caller = self._caller(request)
        for _ in self.app.launching.compute(self.app.launching.run(run_id, caller), caller):
            yield

    @shown
    def on_more(self, run_id: str, request: gr.Request, event: gr.EventData) -> list[Any]:
        """Rename it, or put it into the bin: of the run that the menu was opened on."""
        caller = self._caller(request)
        run = self.app.launching.run(told(event, "of"), caller)
        do, _, rows = told(event, "do").partition(" ")
        if do == "resume" and rows.isdecimal():
            self.app.launching.resume(run, caller, bool(run.state.changes), batch_size=int(rows))
            return [run_id, gr.skip(), *not_renaming()]
        if do == "rename":
            return [run_id, gr.skip(), gr.update(visible=True), run.title, run.id]
        self.app.launching.discard(run)
        left = self.app.launching.runs(caller)
        return [left[0].id if left else "", undo_line(run), *not_renaming()]

    @shown
    def on_rename(self, run_id: str, title: str, request: gr.Request) -> list[Any]:
        """Give the run that was asked about its new title."""
        self.app.launching.rename(self._own(run_id, request), title)
        return not_renaming()

    @shown
    def on_bin(self, run_id: str, request: gr.Request, event: gr.EventData) -> tuple[str, str]:
        """Bring a run back from the bin and show it, or empty the bin."""
        caller = self._caller(request)
        if told(event, "do") == "empty":
            self.app.launching.empty_bin(caller)
            return run_id, ""
        return self.app.launching.recover(told(event, "of"), caller).id, ""

    def _caller(self, request: gr.Request) -> Caller:
        return self.app.callers.caller(session_of(request))

    def _own(self, run_id: str, request: gr.Request) -> Run:
        return self.app.launching.run(run_id, self._caller(request))

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        opened = demo.load(self.on_open, None, [self.run_id, *self.seen], **quiet)
        opened.success(None, self.run_id, self.run_id, js=NAME)
        self._compute_after(opened, quiet)
        self.timer.tick(
            None, [self.pulse, self.run_id], self.pulse, js=PULSE, show_progress="hidden"
        )
        self.pulse.change(self.on_show, self.run_id, self.seen, trigger_mode="always_last", **quiet)
        several = [self.several, self.several_chart, self.several_table]
        picked = self.list.click(
            self.on_list,
            self.run_id,
            [self.run_id, *several, self.undo],
            trigger_mode="multiple",  # a click here chooses
            **quiet,
        )
        self._show_after(picked, quiet)
        for button, handler in (
            (self.stop, self.on_stop),
            (self.cancel, self.on_cancel),
            (self.resume, self.on_resume),
        ):
            done = button.click(handler, self.run_id, None, **quiet)
            done.then(self.on_show, self.run_id, self.seen, **quiet)
            if button is self.resume:
                self._compute_after(done, quiet)
        self._wire_more(quiet)
        self.publish_card.wire(self.publish)
        demo.load(self.on_kept, None, self.kept, **quiet)
        brought = self.kept.click(self.on_bring, None, self.run_id, **quiet)
        self._show_after(brought, quiet)
        brought.then(self.on_kept, None, self.kept, **quiet)
        self.compare.click(None, self.run_id, None, js=OPEN_COMPARE)
        self.downloads.wire(self.run_id)

    def _wire_more(self, quiet: dict[str, Any]) -> None:
        """Renaming, the bin, and the way back."""
        renaming = [self.renaming, self.title, self.renamed]
        done = self.more.click(
            self.on_more, self.run_id, [self.run_id, self.undo, *renaming], **quiet
        )
        self._show_after(done, quiet)
        done.success(None, None, None, js=FOCUS_TITLE)
        for event in (self.keep.click, self.run_id.change):
            event(not_renaming, None, renaming, **quiet)
        for save in (self.save.click, self.title.submit):
            saved = save(self.on_rename, [self.renamed, self.title], renaming, **quiet)
            saved.then(self.on_show, self.run_id, self.seen, **quiet)
        for place in (self.undo, self.bin):
            back = place.click(self.on_bin, self.run_id, [self.run_id, self.undo], **quiet)
            self._show_after(back, quiet)

    def _show_after(self, event: Any, quiet: dict[str, Any]) -> None:
        remembered = event.success(None, self.run_id, self.run_id, js=REMEMBER)
        remembered.then(self.on_show, self.run_id, self.seen, **quiet)
        self._compute_after(remembered, quiet)

    def _compute_after(self, event: Any, quiet: dict[str, Any]) -> None:
        """On a lent GPU the page itself drives the run; then what it came to is shown."""
        driven = event.success(self.on_compute, self.run_id, None, **quiet)
        driven.then(self.on_show, self.run_id, self.seen, **quiet)


def not_renaming() -> list[Any]:
    """The row of a new title, closed."""
    return [gr.update(visible=False), "", ""]


def build(app: Application, demo: gr.Blocks) -> RunsPage:
    """Put the page into the Blocks that are open, wired."""
    page = RunsPage(app)
    page.wire(demo)
    return page
