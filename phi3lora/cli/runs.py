"""`phi3lora runs …`: list, show, follow, stop, resume, compare, rename, bin, delete, restore."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3lora import words
from phi3lora.app.several import Order, ordered
from phi3lora.cli.places import AtMost, FlavorName, whole_request
from phi3lora.cli.root import app, runs_app
from phi3lora.cli.shared import AsJson, RunName, find_run, here, tell
from phi3lora.cli.training import end_as

if TYPE_CHECKING:
    from phi3lora.runs.store import Run

app.add_typer(runs_app, name="runs")


@runs_app.command("list")
def list_runs(
    sort: Annotated[
        Order,
        typer.Option(
            help="What the list is sorted by, the lowest first; without it the newest run comes "
            "first. A run without a loss, a size or a time comes last."
        ),
    ] = "newest",
    as_json: AsJson = False,
) -> None:
    """List the runs of this machine, newest first unless told otherwise."""
    from phi3lora.cli.terminal import print_json, print_runs

    application, caller = here()
    found = ordered(application.launching.runs(caller), sort, application.views)
    if as_json:
        print_json([_summary(run) for run in found])
    elif found:
        print_runs(found)
    else:
        tell("No runs yet; start one with `phi3lora train pocket`.")


@runs_app.command("show")
def show_run(
    run: RunName,
    lines: Annotated[int, typer.Option(help="Print this many lines of the log's end.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show how a run stands: status, last step, message, and the end of its log."""
    from phi3lora.cli.terminal import print_figures, print_json, print_line

    found = find_run(run)
    figures = {**_summary(found), **_progress(found)}
    if as_json:
        print_json({**figures, "log": found.log_tail(lines)})
        return
    names = ("created", "queued", "started", "ended")
    print_figures({**figures, **{name: words.clock(figures[name]) for name in names}})
    print_line(found.log_tail(lines))


def _summary(run: Run) -> dict[str, Any]:
    """What identifies a run, and how it stands."""
    state = run.state.model_dump(include={"created", "queued", "started", "ended"})
    return {
        "id": run.id,
        "title": run.title,
        "status": run.status,
        "message": run.message,
        "folder": str(run.folder.resolve()),
        **state,
    }


def _progress(run: Run) -> dict[str, Any]:
    """Where a run is: its place in the queue, its last step, its result.

    A run that is over has no time left, whatever its last step thought.
    """
    from phi3lora.app.trackers import tracker_of
    from phi3lora.runs.store import ACTIVE

    application, _ = here()
    view, tracker = application.views.view(run), tracker_of(run)
    last = asdict(view.step) if view.step else {}
    names = ("step", "total_steps", "epoch", "tokens_per_second", "seconds_left")
    active = run.status in ACTIVE
    return {
        "position": application.launching.position(run),
        "pid": application.launching.process(run),
        **{name: last.get(name) for name in names if active or name != "seconds_left"},
        "loss": view.losses[-1][1] if view.losses else None,
        "adapter": str(run.result.folder.resolve()) if run.has_result else None,
        "tracker": (tracker.address or tracker.command) if tracker else None,
    }


@runs_app.command("follow")
def follow_run(run: RunName, as_json: AsJson = False) -> None:
    """Watch a run until it ends. Ctrl-C leaves it running."""
    from phi3lora.cli.terminal import show_progress

    found = find_run(run)
    with show_progress(as_json) as show:
        for event in found.follow():
            show(event)
    end_as(found.refresh())


@runs_app.command("stop")
def stop_run(run: RunName) -> None:
    """Ask a run to save and stop."""
    application, caller = here()
    found = application.launching.stop(application.launching.find(run, caller))
    tell(f"Run {found.id} saves after its step and stops.")


@runs_app.command("cancel")
def cancel_run(run: RunName) -> None:
    """Take a run that has not begun out of the queue."""
    application, caller = here()
    found = application.launching.cancel(application.launching.find(run, caller))
    tell(f"Run {found.id} is cancelled.")


@runs_app.command("resume")
def resume_run(
    run: RunName,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="Go on even if the data, the base, the options or the libraries changed since the "
            "run was first started.",
        ),
    ] = False,
    flavor: FlavorName = None,
    at_most: AtMost = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="ROWS",
            help="Compute so many rows at once from now on, for a run that ran out of memory. The "
            "accumulation grows with it, so that an update is made of as many rows as before.",
        ),
    ] = None,
) -> None:
    """Queue a run again; it goes on from its last checkpoint.

    One that computes on machines of the Hub goes on in a new Job there, on the same machine and
    with the same cap unless others are named.
    """
    application, caller = here()
    found = application.launching.find(run, caller)
    state, job = found.state, None
    if flavor is not None or at_most is not None:
        job = whole_request(flavor or state.flavor, at_most or state.at_most)
    found = application.launching.resume(found, caller, accept_changes, job, batch_size)
    tell(f"Run {found.id} is queued; watch it with `phi3lora runs follow {found.id}`.")


@runs_app.command("delete")
def delete_run(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking first.")] = False,
) -> None:
    """Delete a run with its adapter and all its files."""
    application, caller = here()
    found = application.launching.find(run, caller)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {found.id} ({found.title}) for good?", abort=True)
    application.launching.delete(found)
    tell(f"Run {found.id} ({found.title}) is deleted.")


@runs_app.command("compare")
def compare_runs(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Two to five runs, by their ids or their folders."),
    ],
    as_json: AsJson = False,
) -> None:
    """Put two to five runs beside each other: their losses, and the options that differ."""
    from phi3lora.app.several import side_by_side
    from phi3lora.cli.terminal import print_json, print_several

    application, caller = here()
    found = [application.launching.find(run, caller) for run in runs]
    several = side_by_side(found, application.views)
    if as_json:
        print_json(several.to_json())
    else:
        print_several(several)


@runs_app.command("rename")
def rename_run(
    run: RunName,
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What to call the run.")],
) -> None:
    """Give a run that is over another title."""
    application, caller = here()
    found = application.launching.rename(application.launching.find(run, caller), title)
    tell(f"Run {found.id} is called {found.title} now.")


@runs_app.command("bin")
def bin_runs(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The id of a run to put into the bin; without it the bin's runs are listed.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put a run into the bin, from which it comes back within 30 days, or list the bin's runs."""
    from phi3lora.cli.terminal import print_json, print_runs

    application, caller = here()
    if run is not None:
        found = application.launching.find(run, caller)
        application.launching.discard(found)
        tell(f"Run {found.id} is in the bin; `phi3lora runs recover {found.id}` brings it back.")
        return
    runs = application.launching.discarded(caller)
    if as_json:
        print_json([_summary(found) for found in runs])
    elif runs:
        print_runs(runs)
    else:
        tell("The bin is empty.")


@runs_app.command("recover")
def recover_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id of a run in the bin.")],
) -> None:
    """Take a run out of the bin, and put it back into the list."""
    application, caller = here()
    found = application.launching.recover(run, caller)
    tell(f"Run {found.id} ({found.title}) is back in the list.")


@runs_app.command("empty-bin")
def empty_bin(
    yes: Annotated[bool, typer.Option("--yes", help="Delete them without asking first.")] = False,
) -> None:
    """Delete every run that is in the bin, for good."""
    application, caller = here()
    if not yes and sys.stdin.isatty():
        count = len(application.launching.discarded(caller))
        typer.confirm(f"Delete {words.counted(count, 'run')} for good?", abort=True)
    tell(f"{words.counted(application.launching.empty_bin(caller), 'run')} deleted.")


@runs_app.command("restore")
def restore_run(
    repo: Annotated[
        str | None,
        typer.Argument(
            metavar="REPO",
            help="The backup's repository, `USER/NAME`; backups are listed without it.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a run back that was backed up to the Hub, or list those there are."""
    from phi3lora.app.publishing import TERMINAL_SIGN_IN
    from phi3lora.cli.terminal import print_copies, print_json

    application, caller = here()
    caller.needed_token(TERMINAL_SIGN_IN)
    if repo is not None:
        found = application.launching.restore(repo, caller)
        if as_json:
            print_json(_summary(found))
            return
        hint = "" if found.status == "finished" else f"; `phi3lora runs resume {found.id}` goes on"
        tell(f"Run {found.id} is back in {found.folder}{hint}.")
        return
    copies = application.launching.backed_up(caller)
    if as_json:
        print_json([asdict(copy) for copy in copies])
    elif copies:
        print_copies(copies)
    else:
        tell("No run of yours is on the Hub; hub.backup: true keeps one there.")
