"""Curves for `chart.js`: a component, and the JSON that it draws.

chart = chart_component("loss-chart", tools=True)
loss_curves(run.id, view)            what goes into it; empty where there is nothing to draw
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.several import Several
from phi3lora.app.views import RunView

POINTS = 400  # of a curve on the page
GB = 1e9
NATS = "loss (nats a token)"  # what answers are learnt by; preferences have losses of their own
Points = list[tuple[int, float]]
DRAW = "window.phi3lora.chart(element, props, watch)"
VIEW = (
    '<div class="chart-view"></div><p class="chart-said" aria-live="polite"></p>'
    '<details class="chart-table"><summary>Values as a table</summary></details>'
)
TOOLS = """
<div class="chart-tools">
  <label><input type="checkbox" name="log"> Log scale</label>
  <label><input type="checkbox" name="late"> Last 90 %</label>
  <label>Smoothing
    <input type="range" name="smooth" min="0" max="0.98" step="0.02" value="0"></label>
  <label>Over <select name="axis" data-say><option value="step">steps</option>
    <option value="time">time</option></select></label>
  <span class="chart-buttons">
    <button type="button" class="chip whole" name="whole">Whole curve</button>
    <button type="button" class="chip" name="png">PNG</button>
    <button type="button" class="chip" name="csv">CSV</button>
  </span>
</div>
"""


def chart_component(elem_id: str, *, tools: bool = False, small: bool = False) -> gr.HTML:
    """A chart that `chart.js` draws from the JSON that is its value."""
    legend = '<p class="chart-legend"></p>'
    return gr.HTML(
        value="",
        html_template=(TOOLS if tools else "") + legend + VIEW,
        js_on_load=DRAW,
        elem_id=elem_id,
        elem_classes=["chart", *(["small"] if small else [])],
        apply_default_css=False,
    )


def loss_curves(of: str, view: RunView) -> str:
    """Training and held-out loss; the held-out curve is there from the start, without points."""
    if len(view.losses) < 2:
        return ""
    curves = [
        _curve("training", 0, view.losses, view.clock),
        _curve(words.HELD_OUT, 1, view.held_out, view.clock, kind="dots"),
    ]
    return _chart(of, "Loss", "loss" if view.rewards else NATS, curves)


def no_curves(of: str, active: bool) -> str:
    """Words in a curve's place."""
    said = "The curve begins with the second update." if active else "No second update: no curve."
    return json.dumps({"of": of, "curves": [], "said": said})


def reward_curves(of: str, view: RunView) -> str:
    """The reward of the model's own answers, or the margin of better over worse ones."""
    if len(view.rewards) < 2:
        return ""
    own = view.step is not None and view.step.reward is not None
    title = "Reward" if own else "Reward margin"
    curves = [
        _curve("training", 0, view.rewards, view.clock),
        _curve(words.HELD_OUT, 1, view.held_out_rewards, view.clock, kind="dots"),
    ]
    return _chart(of, title, "reward" if own else "better less worse answers", curves, log=False)


def rate_curves(of: str, view: RunView) -> str:
    """How far each update went, by the schedule."""
    return _one(of, "Learning rate", "learning rate", view.rates, view.clock)


def speed_curves(of: str, view: RunView) -> str:
    """How fast it trains, between two steps that were told."""
    return _one(of, "Speed, tokens a second", "tokens a second", view.speeds, view.clock)


def memory_curves(of: str, view: RunView) -> str:
    """What it holds: of the GPU where there is one, else of the process."""
    held = [(step, size / GB) for step, size in view.memory]
    return _one(of, "Memory held, GB", "GB", held, view.clock)


def _one(of: str, title: str, y: str, points: Points, clock: Points) -> str:
    """A chart of a single curve; nothing where it would be a dot."""
    if len(points) < 2:
        return ""
    return _chart(of, title, y, [_curve(title.lower(), 0, points, clock)])


def several_curves(several: Several) -> str:
    """The losses of several runs in one chart, a colour for each run."""
    curves = []
    for place, (run, view) in enumerate(zip(several.runs, several.views, strict=True)):
        curves.append(_curve(f"{run.title}, training", place, view.losses, view.clock))
        if view.held_out:
            title = f"{run.title}, {words.HELD_OUT}"
            curves.append(_curve(title, place, view.held_out, view.clock, kind="dots"))
    names = " ".join(run.id for run in several.runs)
    alike = not any(view.rewards for view in several.views)
    return _chart(names, "Losses", NATS if alike else "loss", curves)


def _chart(of: str, title: str, y: str, curves: list[dict[str, Any]], **how: Any) -> str:
    """With `log: False` the axis is linear, whatever its range."""
    return json.dumps({"of": of, "title": title, "y": y, "curves": curves, **how})


def _curve(
    name: str, colour: int, points: Points, clock: Points, kind: str = "line"
) -> dict[str, Any]:
    """Points as (step, seconds since the first step, value)."""
    steps = [step for step, _ in clock]
    start = clock[0][1] if clock else 0.0

    def seconds(step: int) -> float:
        place = bisect_right(steps, step) - 1
        return round(clock[place][1] - start, 2) if place >= 0 else 0.0

    drawn = [(step, seconds(step), value) for step, value in thin(points)]
    return {"name": name, "colour": colour, "kind": kind, "points": drawn}


def thin(points: Points, most: int = POINTS) -> Points:
    """At most that many points, evenly taken, the last one among them."""
    if len(points) <= most:
        return points
    step = len(points) / most
    return [*(points[int(number * step)] for number in range(most - 1)), points[-1]]


def last(points: Sequence[tuple[int, float]]) -> float | None:
    """The value of a curve's last point."""
    return points[-1][1] if points else None
