"""What the Runs page shows, made by plain functions from a Run and its RunView."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.views import RunView
from phi3lora.errors import Phi3LoraError
from phi3lora.hub.backup import RunRepo
from phi3lora.runs.store import ACTIVE, RESUMABLE, Run
from phi3lora.ui import show

LOG_LINES = 40
POINTS = 400  # of a curve on the page
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
        if step.reward_margin is not None:
            pairs.append(("Reward margin", words.figure(step.reward_margin)))
        if view.evaluated and view.evaluated.reward_margin is not None:
            held_out = words.figure(view.evaluated.reward_margin)
            pairs.append(("Held-out reward margin", held_out))
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
