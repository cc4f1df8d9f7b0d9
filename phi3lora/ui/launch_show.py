"""What the launch panel shows, made by plain functions: checks with their remedies, needs, faults.

show_preflight(config, done)        the panel's values, in the order of `LaunchPanel.seen`
problems_json(error)                which fields are wrong, for the browser to mark
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import gradio as gr

from phi3lora import words
from phi3lora.checks import Check
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError
from phi3lora.training.preflight import Preflight
from phi3lora.ui import form, show
from phi3lora.ui.folds import fold_of
from phi3lora.ui.train_show import data_name
from phi3lora.ui.widgets import element_id

UNKNOWN_TIME = "known after your first run here"
AGAIN = {"Data", "Model", "Sign-in", "Access"}  # what somebody else may have mended meanwhile
READING = '<div class="reading"><b></b>Checking …</div>'
CHECKING = READING.replace('"reading"', '"reading later"')  # the preview is of this data


class Panel(NamedTuple):
    """Values for the launch panel; `gr.skip()` leaves a part as it is.

    Attributes:
        bar: its one line on a small screen: checks, memory, time.
        checks: what was found, with remedies as buttons.
        estimate: what the run needs.
        launch: the button.
        spoken: one sentence for a screen reader.
    """

    bar: Any
    checks: Any
    estimate: Any
    launch: Any
    spoken: Any


def waiting() -> Panel:
    """While the helper reads; figures of before stay, dimmed."""
    return Panel(bar_line("grey", "Checking …"), READING, gr.skip(), gr.skip(), gr.skip())


def checking() -> Panel:
    """While the checks are made of data that is shown already."""
    return Panel(gr.skip(), CHECKING, gr.skip(), gr.skip(), gr.skip())


def nothing_yet(step: str) -> Panel:
    """While a tab has no data."""
    said = show.notice(f"No data yet. {step}", "grey")
    return Panel(bar_line("grey", "No data yet"), said, "", gr.update(interactive=False), step)


def broken_form(error: ConfigError) -> Panel:
    """What is wrong with the form; each line leads to its field. Figures of before stay."""
    lines = "".join(_problem_line(problem.field, problem.message) for problem in error.problems)
    number = len(error.problems)
    head = words.counted(number, "field has to be mended", "fields have to be mended")
    return Panel(
        bar_line("red", head),
        f'<p class="broken">{show.text(head)}:</p><ul class="checks">{lines}</ul>',
        gr.skip(),
        gr.update(interactive=False),
        f"{head}. {form.problem_lines(error)[0]}",
    )


def _problem_line(place: str, message: str) -> str:
    field = form.field_of(place)
    title = form.title_of(field)
    name = f"<b>{show.text(title)}</b>" if title else ""
    go = goto(field, f"Go to {title}") if title else ""
    return (
        f'<li class="red"><i role="img" aria-label="wrong">{show.SIGNS["red"]}</i><div>{name}'
        f"<span>{show.text(message)}</span>{go}</div></li>"
    )


def goto(field: str, label: str) -> str:
    """A button that leads to a field, through whatever fold holds it."""
    return (
        f'<button type="button" class="fix" data-goto="{element_id(field)}" '
        f'data-fold="{fold_of(field)}">{show.text(label)}</button>'
    )


def show_preflight(config: RunConfig, done: Preflight) -> Panel:
    """What a preflight found."""
    red, amber = (_of(done, level) for level in ("red", "amber"))
    state = passed(len(done.checks))
    level = "green"
    if amber:
        level, state = "amber", words.counted(len(amber), "warning")
    if red:
        level, state = "red", words.counted(len(red), "thing to mend", "things to mend")
    return Panel(
        bar_line(level, state, done.estimate, data_name(config.data.path)),
        trains_on(config) + check_list(done),
        estimate_facts(done.estimate),
        gr.update(interactive=not red),
        spoken(config, red, amber),
    )


def passed(number: int) -> str:
    """`1 check passed`, `5 checks passed`."""
    return words.counted(number, "check passed", "checks passed")


def _of(done: Preflight, level: str) -> list[Check]:
    return [check for check in done.checks if check.level == level]


def spoken(config: RunConfig, red: list[Check], amber: list[Check]) -> str:
    """The state in a sentence, for a live region."""
    name = data_name(config.data.path)
    if red:
        return f"{name} cannot be launched: {red[0].name}: {red[0].found}"
    if amber:
        return f"{name} can be launched, with a warning. {amber[0].name}: {amber[0].found}"
    return f"{name} is ready to launch."


def trains_on(config: RunConfig) -> str:
    """The name of the data beside the button that launches."""
    name = show.text(data_name(config.data.path))
    return f'<p class="trains-on">Trains on <b>{name}</b></p>'


def check_list(done: Preflight) -> str:
    """What is red or amber, with buttons that mend it; the rest behind a line."""
    open_ones = [check for check in done.checks if check.level != "green"]
    green = _of(done, "green")
    listed = f'<ul class="checks">{"".join(map(check_line, open_ones))}</ul>' if open_ones else ""
    if not green:
        return listed
    return (
        f'{listed}<details class="passed"><summary><i aria-hidden="true">✓</i>'
        f"{passed(len(green))}</summary>"
        f'<ul class="checks">{"".join(map(check_line, green))}</ul></details>'
    )


def check_line(check: Check) -> str:
    """One check: its colour, what was found, the remedy, and buttons for it."""
    fixes = [(fix.label, fix.values) for fix in check.fixes]
    if check.level == "red" and check.name in AGAIN and not fixes:
        fixes.append(("Try again", {}))
    buttons = "".join(
        f'<button type="button" class="fix" data-fix="{show.text(json.dumps(values))}">'
        f"{show.text(label)}</button>"
        for label, values in fixes
    )
    mend = f'<span class="remedy">{show.linked(check.remedy)}</span>' if check.remedy else ""
    return (
        f'<li class="{check.level}"><i role="img" aria-label="{check.level}">'
        f"{show.SIGNS[check.level]}</i><div><b>{show.text(check.name)}</b>"
        f"<span>{show.linked(check.found)}</span>{mend}"
        f"{f'<p class=fixes>{buttons}</p>' if buttons else ''}</div></li>"
    )


def bar_line(level: str, state: str, estimate: Any = None, data: str = "") -> str:
    """The panel in one line, with the data's name; on a small screen it opens the rest."""
    name = f'<b class="data-name">{show.text(data)}</b>' if data else ""
    needs = []
    if estimate is not None:
        needs.append(words.size(estimate.memory_bytes))
        needs.append(_time(estimate) if estimate.seconds is not None else "")
        needs.append(words.dollars(estimate.dollars) if estimate.dollars else "")
    rest = " · ".join(need for need in needs if need)
    return (
        f'<button type="button" class="sheet-toggle {level}" aria-expanded="false" '
        f'aria-controls="launch-sheet"><i aria-hidden="true">{show.SIGNS[level]}</i>'
        f"<span><span>{show.text(state)}</span>{name}</span><small>{show.text(rest)}</small></button>"
    )


def _time(estimate: Any) -> str:
    return f"~ {words.duration(estimate.seconds)}"


def estimate_facts(estimate: Any) -> str:
    """Memory, time, steps, the share that is trained, and the cost where one is paid."""
    if estimate is None:
        return ""
    share = 100 * estimate.trainable / max(1, estimate.total)
    pairs = [
        ("Memory", words.size(estimate.memory_bytes)),
        ("Trained", f"{words.short_count(estimate.trainable)} ({share:.2g} %)"),
    ]
    if estimate.steps:
        about = "" if estimate.exact else "about "
        pairs.append(("Updates", about + words.count(estimate.steps)))
    pairs.append(("Time", UNKNOWN_TIME if estimate.seconds is None else _time(estimate)))
    if estimate.dollars:
        pairs.append(("Cost", f"about {words.dollars(estimate.dollars)}"))
    elif estimate.dollars_an_hour:
        pairs.append(("Cost", f"{words.dollars(estimate.dollars_an_hour)} an hour"))
    return f'<div class="estimate">{show.facts(pairs)}</div>'


def problems_json(error: ConfigError) -> str:
    """Element → what is wrong with its field, and the fold that holds it."""
    found = {
        element_id(field): {"message": one.message, "fold": fold_of(field)}
        for one in reversed(error.problems)
        if (field := form.field_of(one.field))
    }
    return json.dumps(found)
