"""The Runs page: the list, and the chosen run as it goes.

The address names the run (`/runs?run=ID`), so a refresh, a second browser and a shared link all
see the same. The page asks `/pulse` what changed and calls back only then; what it shows is made
by plain functions from a Run and its RunView.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.errors import HubError, RunError
from phi3lora.runs.store import Run
from phi3lora.ui import show
from phi3lora.ui.code import PlainCode
from phi3lora.ui.publish import PublishCard
from phi3lora.ui.runs_show import delete_question, kept_list, nothing_chosen, run_list, show_run
from phi3lora.ui.sessions import session_of
from phi3lora.ui.theme import HELD_OUT, TRAIN
from phi3lora.ui.widgets import shown, text_of, told

EVERY = 2.0  # seconds between two pulses
MADE = 32  # runs whose rendered state is kept for the next visitor
PULSE = "(seen, run) => window.phi3lora.pulse(seen, run)"
REMEMBER = "(run) => { window.phi3lora.remember('run', run); return run; }"
PICK = """
element.addEventListener('click', (event) => {
  const link = event.target.closest('a[data-run]');
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  trigger('click', {run: link.dataset.run});
});
window.addEventListener('popstate', () => {
  trigger('click', {run: new URL(window.location.href).searchParams.get('run') || ''});
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
LEGEND = (
    f'<p class="curves"><b>Loss</b><i style="background:{TRAIN}"></i>training'
    f'<i style="background:{HELD_OUT}"></i>held out</p>'
)


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
                self.list = gr.HTML(elem_id="run-list", js_on_load=PICK, apply_default_css=False)
                self.kept = gr.HTML(elem_id="kept-runs", js_on_load=BRING, apply_default_css=False)
            with gr.Column(scale=20, min_width=340, elem_classes="main"):
                self._detail()

    def _detail(self) -> None:
        with gr.Column(elem_classes="card") as self.card:
            self.head = gr.HTML(elem_id="run-head", apply_default_css=False)
            self._buttons()
            self.legend = gr.HTML(LEGEND, visible=False, apply_default_css=False)
            self.loss = gr.LinePlot(
                visible=False,
                x="step",
                y="loss",
                color="rows",
                height=240,
                show_label=False,
                color_map={"training": TRAIN, "held out": HELD_OUT},
                elem_id="loss-plot",
                x_title="step",
                y_title="loss (nats a token)",
                colors_in_legend=[],
            )
            self.rate = gr.LinePlot(
                visible=False,
                x="step",
                y="learning rate",
                height=140,
                label="Learning rate",
                elem_id="rate-plot",
                x_title="step",
                y_title="learning rate",
                y_axis_format=".1e",
                color_map={"all": TRAIN},
            )
        self.publish_card = PublishCard(self.app, self.run_id)
        with gr.Column(elem_classes="card", visible=False) as self.report_card:
            self.report = gr.HTML(elem_id="report", apply_default_css=False)
        with gr.Column(elem_classes="card", visible=False) as self.more_card:
            self.download = gr.DownloadButton(
                "Download", size="md", visible=False, elem_id="download"
            )
            with gr.Accordion("Log", open=False, elem_classes="fold", elem_id="log-fold"):
                self.log = gr.HTML(elem_id="log", autoscroll=True, max_height=420)
            with gr.Accordion("Configuration", open=False, elem_classes="fold"):
                self.config = gr.Textbox(
                    show_label=False,
                    lines=8,
                    max_lines=30,
                    buttons=["copy"],
                    interactive=False,
                    elem_classes="mono",
                    elem_id="run-config",
                )
                self.code = PlainCode(self.app)

    def _buttons(self) -> None:
        with gr.Row(elem_classes="actions", visible=False) as self.actions:
            self.stop = gr.Button("Stop", size="md", elem_id="stop")
            self.resume = gr.Button("Resume", variant="primary", size="md", elem_id="resume")
            self.cancel = gr.Button("Cancel", size="md", elem_id="cancel")
            self.compare = gr.Button(
                "Compare with its base", variant="primary", size="md", elem_id="to-compare"
            )
            self.prepare = gr.Button("Prepare download", size="md", elem_id="prepare")
            self.publish = gr.Button("Publish", size="md", elem_id="publish")
            self.delete = gr.Button("Delete", size="md", elem_classes="quiet", elem_id="delete")
        with gr.Row(elem_classes="confirm", visible=False, elem_id="confirm") as self.confirm:
            self.question = gr.HTML(elem_id="delete-question", apply_default_css=False)
            self.doomed = gr.State("")  # the run that the question is about
            self.sure = gr.Button("Delete for good", variant="stop", size="md", elem_id="sure")
            self.keep = gr.Button("Keep it", size="md", elem_id="keep")

    @property
    def parts(self) -> dict[str, Any]:
        """What depends on the chosen run, by the names that `show_run` uses."""
        names = (
            "head",
            "actions",
            "stop",
            "resume",
            "cancel",
            "compare",
            "prepare",
            "publish",
            "delete",
            "legend",
            "loss",
            "rate",
            "report_card",
            "report",
            "more_card",
            "log",
            "config",
        )
        return {name: getattr(self, name) for name in names}

    @property
    def seen(self) -> list[Any]:
        """What `on_show` fills, in order."""
        return [self.list, *self.parts.values()]

    # ------------------------------------------------------------------ what happens

    @shown
    def on_open(self, request: gr.Request) -> list[Any]:
        """What the address says: a run, or the newest one."""
        run_id = request.query_params.get("run", "")
        if not run_id:
            caller = self.app.callers.caller(session_of(request))
            runs = self.app.launching.runs(caller)
            run_id = runs[0].id if runs else ""
        return [run_id, *self.on_show(run_id, request)]

    @shown
    def on_show(self, run_id: str, request: gr.Request) -> list[Any]:
        """Everything about the chosen run as it is now."""
        caller = self.app.callers.caller(session_of(request))
        runs = self.app.launching.runs(caller)
        try:
            values = self._values(self.app.launching.run(run_id, caller))
        except RunError as error:
            reason = "" if caller.anonymous else str(error)
            values = {"head": gr.update(value=nothing_chosen(runs, run_id, reason))}
        hidden = gr.update(visible=False)
        return [run_list(runs, run_id), *(values.get(name, hidden) for name in self.parts)]

    def _values(self, run: Run) -> dict[str, Any]:
        """What to show of a run; made once for all who watch it."""
        position = self.app.launching.position(run)
        pulse = f"{run.status} {run.message} {position} {self.app.views.run_pulse(run)}"
        known = self._made.get(run.id)
        if known is None or known[0] != pulse:
            known = (pulse, show_run(run, self.app.views.view(run), position))
            self._made.pop(run.id, None)
            self._made[run.id] = known
            while len(self._made) > MADE:
                self._made.pop(next(iter(self._made)))
        # Gradio empties the updates that it is given, so everybody gets copies.
        return {name: copy(value) for name, value in known[1].items()}

    def on_kept(self, request: gr.Request) -> str:
        """Runs that are on the Hub and no more here; why they cannot be listed, on a Space."""
        try:
            caller = self.app.callers.caller(session_of(request))
            return kept_list(self.app.launching.missing(caller))
        except HubError as error:
            on_space = self.app.settings.on_space
            return show.notice(f"Backed-up runs: {error}", "grey") if on_space else ""

    @shown
    def on_bring(self, request: gr.Request, event: gr.EventData) -> str:
        """Fetch a backed-up run; its id, by which it is shown."""
        caller = self.app.callers.caller(session_of(request))
        return self.app.launching.restore(told(event, "repo"), caller).id

    @shown
    def on_pick(self, event: gr.EventData) -> str:
        """A run was clicked in the list."""
        return told(event, "run")

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
        caller = self.app.callers.caller(session_of(request))
        run = self.app.launching.run(run_id, caller)
        self.app.launching.resume(run, caller, accept_changes=bool(run.state.changes))

    @shown
    def on_compute(self, run_id: str, request: gr.Request) -> Iterator[None]:
        """Slice after slice on a lent GPU, for as long as this page is open."""
        if not run_id:
            return
        caller = self.app.callers.caller(session_of(request))
        for _ in self.app.launching.compute(self.app.launching.run(run_id, caller), caller):
            yield

    @shown
    def on_question(self, run_id: str, request: gr.Request) -> tuple[Any, str, str]:
        """Ask whether this very run shall be deleted."""
        run = self._own(run_id, request)
        return gr.update(visible=True), delete_question(run), run.id

    @shown
    def on_delete(self, doomed: str | None, request: gr.Request) -> tuple[str, Any]:
        """Remove the run that was asked about, and choose the newest of those that are left."""
        caller = self.app.callers.caller(session_of(request))
        self.app.launching.delete(self.app.launching.run(doomed or "", caller))
        left = self.app.launching.runs(caller)
        return left[0].id if left else "", gr.update(visible=False)

    @shown
    def on_download(self, run_id: str, request: gr.Request) -> Any:
        """The adapter, or the whole model, as one zip file."""
        run = self._own(run_id, request)
        return gr.update(value=str(self.app.publishing.download(run)), visible=True)

    def _own(self, run_id: str, request: gr.Request) -> Run:
        caller = self.app.callers.caller(session_of(request))
        return self.app.launching.run(run_id, caller)

    def wire(self, demo: gr.Blocks) -> None:
        """Connect components and handlers."""
        quiet: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        opened = demo.load(self.on_open, None, [self.run_id, *self.seen], **quiet)
        self._compute_after(opened, quiet)
        self.timer.tick(
            None, [self.pulse, self.run_id], self.pulse, js=PULSE, show_progress="hidden"
        )
        self.pulse.change(self.on_show, self.run_id, self.seen, trigger_mode="always_last", **quiet)
        picked = self.list.click(self.on_pick, None, self.run_id, **quiet)
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
        asked = [self.confirm, self.question, self.doomed]
        self.delete.click(self.on_question, self.run_id, asked, **quiet)
        for event in (self.keep.click, self.run_id.change):
            event(lambda: (gr.update(visible=False), "", ""), None, asked, **quiet)
        deleted = self.sure.click(self.on_delete, self.doomed, [self.run_id, self.confirm], **quiet)
        self._show_after(deleted, quiet)
        self.publish_card.wire(self.publish)
        demo.load(self.on_kept, None, self.kept, **quiet)
        brought = self.kept.click(self.on_bring, None, self.run_id, **quiet)
        self._show_after(brought, quiet)
        brought.then(self.on_kept, None, self.kept, **quiet)
        self.compare.click(None, self.run_id, None, js=OPEN_COMPARE)
        self.code.wire(lambda request, run: self._own(text_of(run), request).config, [self.run_id])
        self.prepare.click(
            self.on_download,
            self.run_id,
            self.download,
            api_visibility="private",
            show_progress="minimal",
        )

    def _show_after(self, event: Any, quiet: dict[str, Any]) -> None:
        remembered = event.success(None, self.run_id, self.run_id, js=REMEMBER)
        remembered.then(self.on_show, self.run_id, self.seen, **quiet)
        self._compute_after(remembered, quiet)

    def _compute_after(self, event: Any, quiet: dict[str, Any]) -> None:
        """On a lent GPU the page itself drives the run; then what it came to is shown."""
        driven = event.success(self.on_compute, self.run_id, None, **quiet)
        driven.then(self.on_show, self.run_id, self.seen, **quiet)


OPEN_COMPARE = "(run) => { window.location.href = 'compare?adapter=' + encodeURIComponent(run); }"


def build(app: Application, demo: gr.Blocks) -> RunsPage:
    """Put the page into the Blocks that are open, wired."""
    page = RunsPage(app)
    page.wire(demo)
    return page
