"""The list of the Runs page: runs, the bin, backups on the Hub, and several runs in one chart."""

from __future__ import annotations

import time
from collections.abc import Sequence

from phi3lora import words
from phi3lora.app.several import Figure, Key, Several, base_of, size_of, time_of
from phi3lora.app.views import Follower
from phi3lora.hub.backup import RunRepo
from phi3lora.runs.store import ACTIVE, Run
from phi3lora.ui import show
from phi3lora.ui.curves import last
from phi3lora.ui.runs_show import COLOURS

KNOWN = 30  # runs at the list's head that say their loss: each one's events are read for it
SEARCH = """
<div class="list-head"><h2 class="list-title">Runs</h2>
<input type="search" id="run-search" placeholder="Search" aria-label="Search runs">
<select id="run-order" data-say aria-label="Order of the runs"><option value="">Newest</option>
<option value="loss">Lowest loss</option><option value="title">Title</option>
<option value="status">Status</option><option value="base">Base</option>
<option value="size">Smallest</option><option value="time">Shortest</option></select></div>
<div class="tick-bar" hidden><button type="button" class="chip" name="several"></button>
<button type="button" class="chip" name="untick">Clear</button></div>
<p class="no-match" role="status"></p>
"""


def run_list(runs: Sequence[Run], chosen: str, follower: Follower) -> str:
    """The runs, newest first, each a link with a box to tick."""
    if not runs:
        return ""
    items = [_item(run, chosen, follower if at < KNOWN else None) for at, run in enumerate(runs)]
    return f'<nav class="run-list" aria-label="Runs" tabindex="-1">{"".join(items)}</nav>'


def _item(run: Run, chosen: str, follower: Follower | None) -> str:
    current = ' aria-current="true"' if run.id == chosen else ""
    status, name = run.status, show.text(run.id)
    about = " · ".join(about_run(run, follower))
    thin = _thin(run, follower) if status in ACTIVE else ""
    loss = last(follower.view(run).losses) if follower else None
    keys = {"loss": loss, "status": status, "base": base_of(run).lower()}
    keys |= {"size": size_of(run), "time": time_of(run)}
    order = " ".join(f'data-{name}="{_key(value)}"' for name, value in keys.items())
    return (
        f'<div class="run-item" {order}><input type="checkbox" data-tick="{name}" '
        f'aria-label="Put {show.text(run.title)} beside others">'
        f'<a href="runs?run={name}" data-run="{name}"{current}><b>{show.text(run.title)}</b>'
        f"{show.badge(status, COLOURS[status])}<small>{show.text(about)}</small>{thin}</a></div>"
    )


def about_run(run: Run, follower: Follower | None) -> list[str]:
    """When, how low its loss came, on which base, and how large what it made is."""
    about = [words.ago(time.time() - run.state.created)]
    loss = last(follower.view(run).losses) if follower else None
    if loss is not None:
        about.append(f"loss {words.figure(loss, 2)}")
    about += [base.rpartition("/")[2]] if (base := base_of(run)) else []
    about += [words.size(size)] if (size := size_of(run)) else []
    return about


def _thin(run: Run, follower: Follower | None) -> str:
    """How far a run is, as a line."""
    step = follower.view(run).step if follower else None
    share = step.step / max(1, step.total_steps) if step else 0.0
    return f'<i class="thin"><i style="width:{100 * share:.0f}%"></i></i>'


def undo_line(run: Run) -> str:
    """What has just been done, and the way back."""
    return (
        f'<div class="notice grey" role="status"><i>i</i><div><b>{show.text(run.title)}</b> is in '
        f'the bin for 30 days. <button type="button" class="chip" id="undo" data-do="recover" '
        f'data-of="{show.text(run.id)}">Undo</button></div></div>'
    )


def bin_list(runs: Sequence[Run]) -> str:
    """Runs in the bin, each with a way back; nothing where there are none."""
    if not runs:
        return ""
    items = "".join(
        f"<li><div><b>{show.text(run.title)}</b><small>{show.text(run.id)}</small></div>"
        f'<button type="button" class="chip" data-do="recover" data-of="{show.text(run.id)}">'
        "Bring back</button></li>"
        for run in runs
    )
    sure = f"Delete {words.counted(len(runs), 'run')} for good"
    return (
        f'<details class="bin"><summary>Bin ({len(runs)})</summary><ul class="kept">{items}</ul>'
        f'<button type="button" class="chip danger" data-do="empty" data-sure="{sure}">'
        "Empty the bin</button></details>"
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


def several_table(several: Several) -> str:
    """A row for each run: losses, base, size, time, then the settings in which they differ.

    A click on a column's name sorts by it (runs.js).
    """
    figures = several.figures
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{show.text(figure.name)}</button>'
        "</th>"
        for figure in figures
    )
    rows = enumerate(several.runs)
    body = "".join(_several_row(run, figures, at) for at, run in rows)
    same = "" if several.settings else "<p>Their settings are the same.</p>"
    return (
        '<div class="table-frame" tabindex="0"><table class="plain several"><thead><tr>'
        f'<th scope="col">Run</th>{head}</tr></thead><tbody>{body}</tbody></table></div>{same}'
    )


def _several_row(run: Run, figures: Sequence[Figure], at: int) -> str:
    cells = "".join(
        f'<td data-key="{_key(figure.keys[at])}">{show.text(figure.texts[at])}</td>'
        for figure in figures
    )
    link = f'<a href="runs?run={show.text(run.id)}">{show.text(run.title)}</a>'
    return f'<tr><th scope="row">{link}</th>{cells}</tr>'


def _key(key: Key) -> str:
    """What is sorted by, as an attribute's value; empty for what comes last."""
    return "" if key is None else show.text(str(key))
