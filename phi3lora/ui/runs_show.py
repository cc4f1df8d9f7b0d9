"""What the Runs page shows of a run, made by plain functions from a Run and its RunView."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.several import run_before
from phi3lora.app.trackers import Tracker, tracker_of
from phi3lora.app.views import RunView
from phi3lora.errors import ConfigError, Phi3LoraError
from phi3lora.events import Evaluated, Step
from phi3lora.runs.store import ACTIVE, RESUMABLE, Run
from phi3lora.ui import show
from phi3lora.ui.curves import (
    last,
    loss_curves,
    memory_curves,
    no_curves,
    rate_curves,
    reward_curves,
    speed_curves,
)
from phi3lora.ui.downloads import menu
from phi3lora.ui.runs_report import evidence, verdict_line, verdict_words
from phi3lora.ui.samples import samples

LOG_LINES = 2000
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
# Parts of the one bar: before the first step, the training, and the proof after it.
BEFORE, TRAINED = 0.05, 0.85
NOTIFY = ' <button type="button" class="chip" name="notify">Tell me when it ends</button>'
STARTING = "Starting Python, 10 to 20 s"

_TAB = '<button type="button" role="tab" id="tab-{0}" aria-controls="panel-{0}">{1}</button>'
_TABS = ("curves", "evidence", "settings", "log")
TAB_LIST = (
    '<div role="tablist" aria-label="About this run" class="tabs">'
    f"{''.join(_TAB.format(name, name.capitalize()) for name in _TABS)}</div>"
)
LOG_TOOLS = """
<div class="log-tools">
<input type="search" placeholder="Search the log" aria-label="Search the log">
<span></span><button type="button" class="chip" name="copy">Copy</button></div>
"""


@dataclass(frozen=True)
class Progress:
    """How far a run is: the whole of it as one fraction, and in words."""

    fraction: float | None
    doing: str
    beside: str = ""
    kind: str = ""

    def html(self) -> str:
        """The bar with its line."""
        return show.progress(self.fraction, self.doing, self.beside, self.kind)


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


def show_run(run: Run, view: RunView, position: int | None, on_space: bool) -> dict[str, Any]:
    """Values for every part of the page that depends on the run."""
    status, report = run.status, run.report or None
    usable = run.has_result and status not in ACTIVE
    resumable = status in RESUMABLE
    log = run.log_tail(LOG_LINES) or "The log is empty so far."
    return {
        "actions": gr.update(visible=True),
        # It stays where it was, so that a late second click on it does nothing.
        "stop": gr.update(
            visible=status in ("running", "stopping", "stopped"),
            interactive=status == "running",
            value="Stopping …" if status == "stopping" else "Stop",
        ),
        "resume": gr.update(
            visible=resumable,
            value="Resume with the changes" if run.state.changes else "Resume",
            # What failed by itself would fail again as it is: another start comes first.
            variant="secondary" if status == "failed" else "primary",
        ),
        "cancel": gr.update(visible=status == "queued"),
        "compare": gr.update(visible=usable),
        "publish": gr.update(visible=usable),
        "again": again_links(run, usable),
        "menu": menu(run, usable, on_space),
        "more": more_menu(run, status),
        "head": run_head(run, status, view, position, report),
        "live": announcement(run, status, view, position, report),
        "loss": loss_curves(run.id, view) or no_curves(run.id, status in ACTIVE),
        "reward": reward_curves(run.id, view),
        "rate": rate_curves(run.id, view),
        "speed": speed_curves(run.id, view),
        "memory": memory_curves(run.id, view),
        "samples": samples(view.answers),
        "tracker": tracker_line(tracker_of(run), on_space),
        "report": evidence(report, status in ACTIVE),
        "log": f'<pre tabindex="0" role="region" aria-label="Log">{show.text(log)}</pre>',
        "config": config_text(run),
    }


def tracker_line(tracker: Tracker | None, on_space: bool) -> str:
    """Where else the curves are; a Space's visitor cannot type commands there."""
    if tracker is None or (on_space and not tracker.address):
        return ""
    if tracker.address:
        return (
            f'<p class="tracker"><a href="{show.text(tracker.address)}" target="_blank" '
            f'rel="noopener">Open in {show.text(tracker.title)}</a></p>'
        )
    return (
        f'<p class="tracker"><span>Also in {show.text(tracker.title)}:</span> '
        f"<code>{show.text(tracker.command)}</code></p>"
    )


def again_links(run: Run, usable: bool) -> str:
    """The form with this run's settings, from the start or from what it has learnt."""
    address = f"./?from={show.text(run.id)}"
    further = (
        f'<a class="plain-button" id="further" href="{address}&amp;further=1" title="Start a new '
        "run from this one's adapter\">Train further</a>"
    )
    return (
        f'<span><a class="plain-button" id="again" href="{address}" title="Open the form with the '
        f'settings of this run">Train again</a>{further if usable else ""}'
        f"{three_link(run) if usable else ''}</span>"
    )


def three_link(run: Run) -> str:
    """Base, the run that this one went on from, and this one; nothing where it began anew."""
    before = run_before(run)
    if not before:
        return ""
    return (
        f'<a class="plain-button" id="three" href="compare?adapter={show.text(run.id)}'
        f'&amp;third={show.text(before)}&amp;blind=1" title="Base, the run that this one went on '
        'from, and this one, in blind rounds of two">Compare all three</a>'
    )


def more_menu(run: Run, status: str) -> str:
    """What is seldom done to a run: a menu of two."""
    over = status not in ACTIVE
    disabled = "" if over else ' disabled title="Once the run is over"'
    name = show.text(run.id)
    return (
        f'<summary aria-label="More">⋯</summary><div>{_smaller(run, status, name)}'
        f'<button type="button" data-do="rename" data-of="{name}"{disabled}>Rename</button>'
        f'<button type="button" id="delete" data-do="discard" data-of="{name}"{disabled}>'
        "Move to the bin</button></div>"
    )


def _smaller(run: Run, status: str, name: str) -> str:
    """The way on for a run that ran out of memory; nothing where there is none."""
    try:
        rows = run.config.smaller_batch if status in RESUMABLE else None
    except ConfigError:
        return ""
    if rows is None:
        return ""
    return (
        f'<button type="button" data-do="resume {rows}" data-of="{name}" title="Needs less memory, '
        f'and every update is made of the same rows">Resume with a batch of {rows}</button>'
    )


def run_head(
    run: Run, status: str, view: RunView, position: int | None, report: dict[str, Any] | None
) -> str:
    """Title and status; the verdict or the progress; the figures; what there is to know."""
    message = "" if status == "running" else run.message
    notices = [
        show.notice(notice.message, "amber" if notice.level == "warning" else "grey")
        for notice in view.notices
        if notice.message != message
    ]
    if message and not (report and status == "finished"):  # the verdict says it already
        colour = "grey" if status == "finished" else COLOURS[status]
        notices.insert(0, show.notice(message, colour.replace("accent", "grey")))
    bar = "" if status == "finished" else progress(run, status, view, position).html()
    verdict = verdict_line(report) if report and status not in ACTIVE else ""
    return (
        f'<div class="run-title" data-run="{show.text(run.id)}" data-status="{status}" '
        f'data-title="{show.text(page_title(run, status, view, position))}">'
        f"<h1>{show.text(run.title)}</h1>{show.badge(status, COLOURS[status])}</div>"
        f'<p class="sub">{show.text(subtitle(run, view))}{NOTIFY if status in ACTIVE else ""}</p>'
        f"{verdict}{bar}{show.facts(figures(view, status in ACTIVE))}"
        f'<div class="notices">{"".join(notices)}</div>'
    )


def page_title(run: Run, status: str, view: RunView, position: int | None) -> str:
    """What the browser's tab says: `62 % · Pirate`."""
    if status in ("running", "stopping"):
        share = progress(run, status, view, position).fraction or 0.0
        return f"{100 * share:.0f} % · {run.title}"
    return f"{status.capitalize()} · {run.title}"


def announcement(
    run: Run, status: str, view: RunView, position: int | None, report: dict[str, Any] | None
) -> str:
    """What is read aloud when it changes: each tenth of the way, the end, the verdict."""
    name = f'<span class="run-name">{show.text(run.title)}</span>'
    if status == "running":
        at = progress(run, status, view, position)
        tenth = f", {int(10 * at.fraction) * 10} %" if at.fraction else ""
        return f"{name}: <span>{at.doing.partition(',')[0].lower()}</span>{tenth}"
    known = f" <span>{verdict_words(report)}</span>." if report and status == "finished" else ""
    return f"{name}: <span>{status}</span>.{known}"


def subtitle(run: Run, view: RunView) -> str:
    """What is trained on what, when it began, and how long it took."""
    began = time.strftime("%d %b %Y, %H:%M", time.localtime(run.state.created))
    parts = [began, took(run, view)]
    try:
        config = run.config
        parts.insert(0, f"{config.model.path} on {Path(config.data.path).name}")
    except Phi3LoraError:
        pass  # its message says that the config cannot be read
    return " · ".join(part for part in parts if part)


def took(run: Run, view: RunView) -> str:
    """`1 min 37 s (47 s training)`; empty while it goes on."""
    if view.ended is None or run.status in ACTIVE:
        return ""
    trained = words.duration(view.ended.seconds)
    if run.state.started and run.state.ended and run.state.ended > run.state.started:
        return f"{words.duration(run.state.ended - run.state.started)} ({trained} training)"
    return f"{trained} training"


def progress(run: Run, status: str, view: RunView, position: int | None) -> Progress:
    """How far it is and how long it will take, from the first second to the end of the proof."""
    step = view.step
    share = step.step / max(1, step.total_steps) if step else 0.0
    done = f"step {step.step:,} of {step.total_steps:,}" if step else ""
    whole = BEFORE + (TRAINED - BEFORE) * share
    if status == "queued":
        waits = f"number {position} in the queue" if position else "waiting for its turn"
        return Progress(0.0, f"Queued, {waits}", "", "idle")
    if status == "stopping":
        return Progress(whole, "Saving, then stopping", done)
    if status != "running":
        return Progress(share, status.capitalize(), done, "idle")
    if view.stage is not None:
        return _staged(view)
    if step is None:
        return Progress(None, STARTING)
    return Progress(whole, f"Training, {done}", _left(view))


def _staged(view: RunView) -> Progress:
    """Before the first step, or after the last one."""
    assert view.stage is not None
    name, part = view.stage.name, view.stage.fraction
    beside = f"{100 * part:.0f} %" if part is not None else ""
    if view.ended is None or view.ended.outcome != "finished":
        return Progress(BEFORE * (part or 0.0), name.capitalize(), beside)
    rest, sides = 1 - TRAINED, ("the base answers", "the tuned model answers")
    at = sides.index(name) / 2 + (part or 0.0) / 2 if name in sides else 0.0
    return Progress(TRAINED + rest * at, f"Evaluating: {name}", beside)


def _left(view: RunView) -> str:
    left = view.step.seconds_left if view.step is not None else None
    return f"{words.duration(left)} of training left" if left else ""


def figures(view: RunView, active: bool) -> list[tuple[str, str]]:
    """The numbers of the last step, with units; each keeps its place from the first step on."""
    pairs = []
    if step := view.step:
        pairs.append(("Loss", words.figure(last(view.losses))))
        if view.evaluated:
            pairs.append((words.HELD_OUT_LOSS, words.figure(view.evaluated.loss)))
        pairs += _learnt(step, view.evaluated)
        speed = step.tokens_per_second
        pairs.append(("Speed", _known(speed, lambda rate: f"{rate:,.0f} tokens/s")))
        pairs.append(("Epoch", f"{step.epoch:.2f}"))
        if active:
            pairs.append(("Learning rate", _known(step.learning_rate, lambda rate: f"{rate:.1e}")))
            pairs.append(("Gradient norm", words.figure(step.grad_norm, 2)))
    if view.ended and view.ended.peak_memory:
        pairs.append(("Peak memory", words.size(view.ended.peak_memory)))
    return pairs


def _learnt(step: Step, held_out: Evaluated | None) -> list[tuple[str, str]]:
    """What the method is after, beside its loss: rewards, or else the next tokens."""
    pairs = [
        (f"{when}{name}", text(value))
        for field, name, text in _REWARDS
        for when, event in (("", step), ("Held-out ", held_out))
        if (value := getattr(event, field, None)) is not None
    ]
    found = [(name[0].upper() + name[1:], value) for name, value in pairs]
    if step.token_accuracy is not None or not found:
        found.append(("Correct next tokens", _known(step.token_accuracy, _percent)))
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


_REWARDS = (
    ("reward", "reward", words.figure),
    ("reward_margin", "reward margin", words.figure),
    ("reward_accuracy", "pairs ranked right", _percent),
)


def _known(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)


def config_text(run: Run) -> str:
    """The config as it is in the run folder."""
    try:
        return (run.folder / "config.yaml").read_text(encoding="utf-8")
    except OSError as error:
        return f"config.yaml cannot be read: {error.strerror}."
