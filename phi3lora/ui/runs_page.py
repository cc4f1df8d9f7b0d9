"""The Runs page: the list, and the chosen run as it goes.

The address names the run (`/runs?run=ID`), so a refresh, a second browser and a shared link all
see the same. The page asks `/pulse` what changed and calls back only then; what it shows is made
by plain functions from a Run and its RunView.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.application import Application
from phi3lora.app.views import RunView
from phi3lora.errors import HubError, Phi3LoraError, RunError
from phi3lora.hub.backup import RunRepo
from phi3lora.runs.store import ACTIVE, RESUMABLE, Run
from phi3lora.ui import show
from phi3lora.ui.code import PlainCode
from phi3lora.ui.publish import PublishCard
from phi3lora.ui.sessions import session_of
from phi3lora.ui.theme import HELD_OUT, TRAIN
from phi3lora.ui.widgets import shown

EVERY = 2.0  # seconds between two pulses
POINTS = 400  # of a curve on the page
LOG_LINES = 40
MADE = 32  # runs whose rendered state is kept for the next visitor
COLOURS = {
    "queued": "grey",
    "running": "accent",
    "stopping": "amber",
    "finished": "green",
    "stopped": "amber",
    "paused": "amber",
    "interrupted": "amber",
    "failed": "red",
    "damaged": "red",
}
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
        pulse = f"{run.status} {position} {self.app.views.run_pulse(run)}"
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
        repo = str(event._data.get("repo", ""))
        caller = self.app.callers.caller(session_of(request))
        return self.app.launching.restore(repo, caller).id

    def on_pick(self, event: gr.EventData) -> str:
        """A run was clicked in the list."""
        return str(event._data.get("run", ""))

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
        self.code.wire(lambda request, run: self._own(run, request).config, [self.run_id])
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


# ---------------------------------------------------------------------- values into what is shown


def run_list(runs: list[Run], chosen: str) -> str:
    """The runs, newest first, each a link."""
    if not runs:
        return ""
    now = time.time()
    items = []
    for run in runs:
        current = ' aria-current="true"' if run.id == chosen else ""
        status = run.status
        items.append(
            f'<a href="runs?run={show.text(run.id)}" data-run="{show.text(run.id)}"{current}>'
            f"<b>{show.text(run.title)}</b>{show.badge(status, COLOURS[status])}"
            f"<small>{words.ago(now - run.state.created)}</small></a>"
        )
    return f'<h2 class="list-title">Runs</h2><nav class="run-list">{"".join(items)}</nav>'


def delete_question(run: Run) -> str:
    """Names what would be gone."""
    return (
        f"<p>Delete <b>{show.text(run.title)}</b> ({show.text(run.id)}) with its checkpoints and "
        "its result? It cannot be brought back.</p>"
    )


def kept_list(kept: list[RunRepo]) -> str:
    """Backed-up runs, each with a button that fetches it; nothing where there are none."""
    now = time.time()
    items = "".join(
        f"<li><div><b>{show.text(run.title or run.id)}</b>"
        f"<small>{kept_state(run)} · {words.ago(now - run.created)}</small></div>"
        f'<button type="button" class="chip" data-repo="{show.text(run.repo)}">Bring back</button>'
        "</li>"
        for run in kept
    )
    return f'<h3 class="kept-title">On the Hub</h3><ul class="kept">{items}</ul>' if kept else ""


def kept_state(run: RunRepo) -> str:
    """How far a backed-up run came."""
    if run.finished:
        return "finished"
    return f"up to step {run.step:,}" if run.step is not None else "no checkpoint yet"


def nothing_chosen(runs: list[Run], run_id: str, reason: str) -> str:
    """What to do where there is no run to show; without a reason nobody is signed in."""
    if not reason:
        return show.empty(
            "Sign in to see your runs",
            "Use the button at the top of the page. Compare is open to everybody.",
            ("Compare", "./compare"),
        )
    if run_id:
        return show.empty("This run is not here", reason)
    if runs:
        return show.empty("Choose a run", "Pick one from the list to see how it goes.")
    return show.empty(
        "No runs yet",
        "Pick data and a recipe, and launch your first training: "
        "about a minute on a CPU with pocket Phi-3.",
        ("Train something", "./"),
    )


def show_run(run: Run, view: RunView, position: int | None) -> dict[str, Any]:
    """Values for every part of the page that depends on the run."""
    status, report = run.status, read_report(run)
    usable = run.has_result and status not in ACTIVE
    visible = {
        "stop": status == "running",
        "resume": status in RESUMABLE,
        "cancel": status == "queued",
        "compare": usable,
        "prepare": usable,
        "publish": usable,
        "delete": status not in ACTIVE,
        "legend": len(view.losses) > 1,
        "report_card": report is not None,
        "more_card": True,
    }
    log = run.log_tail(LOG_LINES) or "The log is empty so far."
    return {
        **{name: gr.update(visible=value) for name, value in visible.items()},
        "resume": gr.update(
            visible=visible["resume"],
            value="Resume with the changes" if run.state.changes else "Resume",
        ),
        "actions": gr.update(visible=True),
        "head": run_head(run, status, view, position),
        "loss": loss_plot(view),
        "rate": rate_plot(view),
        "report": gr.update(value=report_html(report) if report else "", visible=True),
        "log": gr.update(value=f"<pre>{show.text(log)}</pre>", visible=True),
        "config": gr.update(value=config_text(run), visible=True),
    }


def run_head(run: Run, status: str, view: RunView, position: int | None) -> str:
    """Title, status, progress, the figures, and what there is to know."""
    message = "" if status == "running" else run.message
    notices = [
        show.notice(notice.message, "amber" if notice.level == "warning" else "grey")
        for notice in view.notices
        if notice.message != message
    ]
    if message:
        colour = "grey" if status == "finished" else COLOURS[status]
        notices.insert(0, show.notice(message, colour.replace("accent", "grey")))
    return (
        f'<div class="run-title"><h1>{show.text(run.title)}</h1>'
        f"{show.badge(status, COLOURS[status])}</div>"
        f'<p class="sub">{show.text(subtitle(run))}</p>'
        f"{progress_bar(status, view, position)}{show.facts(figures(view, status in ACTIVE))}"
        f'<div class="notices">{"".join(notices)}</div>'
    )


def subtitle(run: Run) -> str:
    """What is trained on what, and when it began."""
    started = time.strftime("%d %b %Y, %H:%M", time.localtime(run.state.created))
    try:
        config = run.config
    except Phi3LoraError:
        return f"started {started}"
    return f"{config.model.path} on {Path(config.data.path).name} · {started}"


def progress_bar(status: str, view: RunView, position: int | None) -> str:
    """How far it is and how long it will take, in words and as a bar."""
    step, stage = view.step, view.stage
    fraction = step.step / max(1, step.total_steps) if step else 0.0
    done = f"step {step.step:,} of {step.total_steps:,}" if step else ""
    if status == "queued":
        waits = f"number {position} in the queue" if position else "waiting for its turn"
        return show.progress(0.0, f"Queued, {waits}", "", "idle")
    if status == "finished":
        took = words.duration(view.ended.seconds) if view.ended else ""
        return show.progress(1.0, "Finished", f"took {took}" if took else done, "done")
    if status in ACTIVE:
        if stage is not None:
            return show.progress(stage.fraction, stage.name.capitalize(), done)
        left = f"{words.duration(step.seconds_left)} left" if step and step.seconds_left else ""
        doing = {"stopping": "Saving, then stopping"}.get(
            status, f"Training, {done}" if step else "Starting"
        )
        return show.progress(fraction if step else None, doing, left)
    return show.progress(fraction, status.capitalize(), done, "idle")


def figures(view: RunView, active: bool) -> list[tuple[str, str]]:
    """The numbers of the last step, with units; only those that exist, and matter now."""
    pairs = []
    if step := view.step:
        loss = step.loss if step.loss is not None else _last(view.losses)
        pairs.append(("Loss", words.figure(loss)))
        if view.evaluated:
            pairs.append(("Held-out loss, mean of batches", words.figure(view.evaluated.loss)))
        if step.token_accuracy is not None:
            pairs.append(("Right tokens", f"{100 * step.token_accuracy:.0f} %"))
        if step.tokens_per_second:
            pairs.append(("Speed", f"{step.tokens_per_second:,.0f} tokens/s"))
        pairs.append(("Epoch", f"{step.epoch:.2f}"))
        if active and step.learning_rate is not None:
            pairs.append(("Learning rate", f"{step.learning_rate:.1e}"))
        if active and step.grad_norm is not None:
            pairs.append(("Gradient norm", words.figure(step.grad_norm, 2)))
    if view.ended and view.ended.peak_memory:
        pairs.append(("Peak memory", words.size(view.ended.peak_memory)))
    return pairs


def _last(points: list[tuple[int, float]]) -> float | None:
    return points[-1][1] if points else None


def thin(points: list[tuple[int, float]], most: int = POINTS) -> list[tuple[int, float]]:
    """At most that many points, evenly taken, the last one among them."""
    if len(points) <= most:
        return points
    step = len(points) / most
    return [*(points[int(number * step)] for number in range(most - 1)), points[-1]]


def loss_plot(view: RunView) -> Any:
    """Training and held-out loss over steps."""
    import pandas

    points = [(*point, "training") for point in thin(view.losses)]
    held_out = thin(view.held_out)
    if len(held_out) == 1:  # a line needs two points; a dash shows the one there is
        held_out = [(held_out[0][0] - 1, held_out[0][1]), *held_out]
    points += [(*point, "held out") for point in held_out]
    if len(view.losses) < 2:
        return gr.update(visible=False)
    frame = pandas.DataFrame(points, columns=["step", "loss", "rows"])
    return gr.update(value=frame, visible=True)


def rate_plot(view: RunView) -> Any:
    """Learning rate over steps."""
    import pandas

    if len(view.rates) < 2:
        return gr.update(visible=False)
    frame = pandas.DataFrame(thin(view.rates), columns=["step", "learning rate"])
    return gr.update(value=frame, visible=True)


def config_text(run: Run) -> str:
    """The config as it is in the run folder."""
    try:
        return (run.folder / "config.yaml").read_text(encoding="utf-8")
    except OSError as error:
        return f"config.yaml cannot be read: {error.strerror}."


def read_report(run: Run) -> dict[str, Any] | None:
    """`report.json` as plain values; None where there is none yet."""
    try:
        report = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


VERDICTS = {
    "better": ("green", "Better than its base"),
    "worse": ("red", "Worse than its base"),
    "cannot tell": ("grey", "These rows cannot tell it from its base"),
}


def report_html(report: dict[str, Any]) -> str:
    """Verdict, table of figures, and sample answers side by side."""
    colour, verdict = VERDICTS.get(str(report.get("verdict")), ("grey", "No verdict"))
    rows = report.get("rows", 0)
    body = [
        '<div class="section-head"><div><h2>Base against tuned</h2>'
        f"<p>On {words.count(rows)} held-out rows that were not trained on.</p></div></div>",
        f'<p class="verdict">{show.badge(verdict, colour)}</p>',
        comparison_table(report.get("comparisons", [])),
        *samples("Gained most", report.get("gained", [])),
        *samples("Lost most", report.get("lost", [])),
    ]
    return "".join(body)


def comparison_table(comparisons: list[dict[str, Any]]) -> str:
    """A row for each figure: base, tuned, difference with its interval."""
    rows = [
        (
            str(item["title"]),
            words.figure(item["base"]),
            words.figure(item["tuned"]),
            words.signed(item["difference"]),
            f"{words.signed(item['low'])} to {words.signed(item['high'])}",
            item["verdict"],
        )
        for item in comparisons
    ]
    columns = ("Figure", "Base", "Tuned", "Difference", "95 % interval", "Tuned is")
    return show.table(columns, rows, align="lrrrrl")


def samples(title: str, items: list[dict[str, Any]]) -> list[str]:
    """Held-out rows with the answers of both."""
    if not items:
        return []
    cards = "".join(
        '<article class="sample">'
        f'<p class="asked">{show.text(item["prompt"])}</p>'
        f"<div><h4>Base</h4><p>{show.text(item['base'])}</p></div>"
        f'<div class="tuned"><h4>Tuned</h4><p>{show.text(item["tuned"])}</p></div>'
        f"<div><h4>In the data</h4><p>{show.text(item['reference'])}</p></div></article>"
        for item in items
    )
    return [f'<h3 class="samples-title">{show.text(title)}</h3>{cards}']
