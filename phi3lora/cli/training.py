"""Training and its proof: estimate, train, evaluate."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3lora import words
from phi3lora.cli.places import AtMost, FlavorName, On, Place, job_request
from phi3lora.cli.root import app
from phi3lora.cli.shared import (
    AsJson,
    Changes,
    ConfigName,
    RunName,
    find_run,
    here,
    read_config,
    tell,
    with_changes,
)
from phi3lora.errors import ConfigError, Problem

if TYPE_CHECKING:
    from phi3lora.config import RunConfig
    from phi3lora.runs.store import Run
    from phi3lora.training.offers import Offer
    from phi3lora.training.preflight import Preflight


@app.command()
def estimate(
    config: ConfigName,
    changes: Changes = None,
    on: On = Place.here,
    flavor: FlavorName = None,
    at_most: AtMost = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration before it runs: data, model, hardware, memory, time, disk.

    With --on jobs and no --flavor it lists the machines of the Hub, with what the run would cost.
    """
    from phi3lora.app.launching import blocking
    from phi3lora.cli.terminal import print_json

    application, caller = here()
    wanted = read_config(config, changes)
    if on is Place.jobs and flavor is None:
        _list_offers(application.launching.offers(wanted, caller), as_json)
        return
    done = application.launching.preflight(wanted, caller, job_request(on, flavor, at_most))
    blocked = blocking(done)
    if as_json:
        checks = [asdict(check) for check in done.checks]
        figures = asdict(done.estimate) if done.estimate else None
        print_json({"ready": not blocked, "checks": checks, "estimate": figures})
    else:
        _show_checks(done)
    if blocked:
        raise typer.Exit(2)


def _list_offers(offers: list[Offer], as_json: bool) -> None:
    from phi3lora.app.machines import cheapest
    from phi3lora.cli.terminal import print_json, print_offers

    if as_json:
        print_json([{**asdict(one), "dollars": one.dollars} for one in offers])
        return
    print_offers(offers)
    best = cheapest(offers)
    if best is not None:
        tell(
            "Times are computed from data sheets until a run was measured there. Train with "
            f"`--on jobs --flavor {best.flavor.name} --at-most {best.cap:.2f}`."
        )


def _show_checks(done: Preflight) -> None:
    from phi3lora.cli.terminal import print_figures, print_line, with_units

    marks = {"green": "ok", "amber": "note", "red": "NO"}
    for check in done.checks:
        print_line(f"{marks[check.level]:>4}  {check.name}: {check.found} {check.remedy}".rstrip())
    if done.estimate:
        print_line()
        figures = with_units(asdict(done.estimate))
        if not figures.pop("exact"):
            figures["steps"] = f"about {figures['steps']:,}"
        print_figures(figures)


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="The path of a YAML file, or the name of a recipe; with --from RUN it may be left "
            "out, and the run's own options are taken.",
        ),
    ] = None,
    changes: Changes = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Use this folder, which must be new or empty, for the run."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ADAPTER",
            help="Go on from this adapter instead of a new one: a run, a folder, a Hub id, or a "
            "loralib checkpoint (`.pt`).",
        ),
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train on the rows as this file edits them and without those that it leaves out: "
            "what `inspect --keep` and the page write for the same data.",
        ),
    ] = None,
    on: On = Place.here,
    flavor: FlavorName = None,
    at_most: AtMost = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train even where a check before the launch is red.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train, and watch it.

    The checks of `estimate` come first; where one is red there is no run, and the exit status is 2.
    Ctrl-C saves and stops; the same command with the same FOLDER goes on from there. Under
    `torchrun` or `accelerate launch` all processes train one run together.
    """
    job = job_request(on, flavor, at_most)
    application, caller = here(helper=True)  # so that this process stays small while it waits
    wanted = _what_to_train(config, start, changes)
    if edits is not None:
        wanted = application.editing.with_file(wanted, edits)
    checked = application.launching.as_launched(wanted)
    if application.launching.takes_part():
        application.launching.take_part(checked, caller)
        return
    begin = _bytes_of(output / "events.jsonl") if output else 0
    try:
        if output is None:
            run = application.launching.launch(checked, caller, force=force, job=job)
        else:
            run = application.launching.launch_in(output, checked, caller, force=force, job=job)
    finally:
        application.close()
    if run.status == "finished" and run.events_end() == begin:
        tell(f"{run.folder} holds this very run, finished.")
        return
    tell(f"Run {run.id} in {run.folder.resolve()}")
    follow(run, begin, as_json)


def _what_to_train(name: str | None, start: str | None, changes: list[str] | None) -> RunConfig:
    """The config of a file or a recipe, begun from an adapter if one is named; or a run's own."""
    if name is None and start is None:
        raise ConfigError(
            [Problem("CONFIG", "name a YAML file or a recipe, or a run with --from.")]
        )
    if name is None:
        application, _ = here()
        return with_changes(application.launching.further(find_run(str(start))), changes)
    config = read_config(name, changes)
    return config if start is None else config.with_values({"model.adapter": start})


def _bytes_of(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def follow(run: Run, begin: int, as_json: bool) -> None:
    """Show a run to its end, and end as it does. Ctrl-C asks it to stop; twice leaves it."""
    from phi3lora.cli.terminal import show_progress

    with _stopping(run) as asked, show_progress(as_json) as show:
        for event in run.follow(begin):
            show(event)
    run = run.refresh()
    if asked and run.status == "stopped":
        tell("Stopped and saved; the same run can be resumed.")
        raise typer.Exit(130)
    end_as(run)


@contextmanager
def _stopping(run: Run) -> Iterator[list[int]]:
    """The first Ctrl-C asks the run to save and stop; the second one leaves it to itself."""
    asked: list[int] = []

    def stop(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        run.stop_file.touch()
        tell("Saving; Ctrl-C again leaves the run to stop by itself.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_as(run: Run) -> None:
    """Say how a run ended, with its exit status."""
    if run.status == "finished":
        tell(run.message or "Finished.")
        result = run.result
        tell(f"{result.noun.capitalize()}: {result.folder.resolve()}")
        return
    tell(f"Run {run.id} {run.status}. {run.message}".rstrip())
    raise typer.Exit(run.state.exit_status or 1)


@app.command()
def evaluate(
    run: RunName,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Have at most this many held-out rows answered.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score base and tuned on the rows that were held out of a run, and write its report."""
    from phi3lora.cli.terminal import print_json, print_line, show_progress

    application, caller = here()
    found = find_run(run)
    if as_json:
        print_json(application.launching.evaluate(found, rows, caller).to_json())
        return
    with show_progress(as_json=False) as show:
        report = application.launching.evaluate(found, rows, caller, show)
    for comparison in report.comparisons:
        print_line(
            f"{comparison.name:>16}  base {comparison.base:.4f}  tuned {comparison.tuned:.4f}  "
            f"difference {comparison.difference:+.4f} ({comparison.low:+.4f} to "
            f"{comparison.high:+.4f})  {comparison.verdict}"
        )
    print_line(report.summary())
    if chosen := words.chosen_rows(report.left_out, report.edited):
        print_line(chosen)
