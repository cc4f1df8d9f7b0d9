"""What a terminal shows: progress as it comes, tables, conversations with tinted tokens.

with show_progress(as_json=False) as show:
    for event in run.follow():
        show(event)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from phi3lora import words
from phi3lora.app.models import Base
from phi3lora.app.several import Several
from phi3lora.chat.options import BASE, Pair, Side
from phi3lora.config import FindingName
from phi3lora.data.findings import Finding
from phi3lora.events import Event, Stage, Step
from phi3lora.hub.access import Found
from phi3lora.hub.backup import RunRepo
from phi3lora.runs.store import Run
from phi3lora.thoughts import split_thoughts
from phi3lora.training.offers import Offer
from phi3lora.wording import describe

if TYPE_CHECKING:
    from phi3lora.app.voting import Standings
    from phi3lora.chat.votes import Tally

Show = Callable[[Event], None]
SUPERVISED = "bold green"
LEFT_OUT = get_args(FindingName)
FOUND_ROWS = 5  # of a finding, as a terminal lists them


def print_json(value: Any) -> None:
    """One line of JSON, at once: somebody may be reading."""
    print(json.dumps(value, ensure_ascii=False), flush=True)  # noqa: T201 - the command's output


def print_line(text: str = "") -> None:
    """One line, with nothing added to it."""
    print(text, flush=True)  # noqa: T201 - the command's output


@contextmanager
def show_progress(as_json: bool) -> Iterator[Show]:
    """How events are shown: as JSON, under a progress bar, or line by line in a file."""
    console = Console()
    if as_json:
        yield lambda event: print_json({"kind": event.kind, **asdict(event)})
    elif console.is_terminal:
        with _bar(console) as show:
            yield show
    else:
        yield lambda event: print_line(describe(event))


@contextmanager
def _bar(console: Console) -> Iterator[Show]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None, figures="")
        loss = ""

        def show(event: Event) -> None:
            nonlocal loss
            if isinstance(event, Step):
                loss = f"loss {event.loss:.4f} · " if event.loss is not None else loss
                left = event.seconds_left
                figures = loss + (f"{words.duration(left)} left" if left is not None else "")
                progress.update(
                    task,
                    description="training",
                    completed=event.step,
                    total=event.total_steps,
                    figures=figures,
                )
            elif isinstance(event, Stage):
                progress.update(task, description=event.name, figures="")
            else:
                progress.console.print(Text(describe(event)))

        yield show


def print_runs(runs: Iterable[Run]) -> None:
    """A table of runs, newest first."""
    table = Table("run", "status", "title", "created", box=None, pad_edge=False)
    for run in runs:
        table.add_row(run.id, run.status, Text(run.title), words.clock(run.state.created))
    _print_table(table)


def print_several(several: Several) -> None:
    """A table with a column for each run: losses, then the options that differ."""
    table = Table("", box=None, pad_edge=False)
    for run in several.runs:
        table.add_column(Text(f"{run.title}\n{run.id}"))
    for name, values in several.rows():
        table.add_row(name, *map(Text, values))
    _print_table(table)


def print_answers(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A line for each prompt with the answer of each of `titles`; none is cut."""
    table = Table("prompt", *titles, box=None, pad_edge=False, show_lines=True)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*map(Text, row[: len(titles) + 1]))
    _print_table(table)


def _print_table(table: Table) -> None:
    """In a file, lines are as long as they need be."""
    wide = Console()
    Console(width=None if wide.is_terminal else 160).print(table)


def print_found(found: Iterable[Found]) -> None:
    """A table of search results."""
    table = Table("id", "downloads", "likes", "size", "licence", "", box=None, pad_edge=False)
    for one in found:
        locks = " ".join(word for word in ("gated", "private") if getattr(one, word))
        counts = ["" if n is None else f"{n:,}" for n in (one.downloads, one.likes)]
        length = "" if one.size is None else words.size(one.size)
        table.add_row(one.id, *counts, one.rows or length, one.licence, locks)
    _print_table(table)


def print_bases(bases: Iterable[Base]) -> None:
    """A table of bases to train."""
    table = Table("base", "weights", "context", "licence", "here", "for", box=None, pad_edge=False)
    for base in bases:
        facts = (base.size, f"{base.context:,}", base.licence, base.here, base.note)
        table.add_row(base.path, *facts)
    _print_table(table)


def print_offers(offers: Iterable[Offer]) -> None:
    """A table of machines of the Hub, with what a run would cost on each."""
    columns = ("flavor", "GPU", "memory", "per hour", "takes", "this run costs", "fits")
    table = Table(*columns, box=None, pad_edge=False)
    for one in offers:
        flavor = one.flavor
        several = f"{flavor.cards} × " if flavor.cards > 1 else ""
        takes = "" if one.seconds is None else f"about {words.duration(one.seconds)}"
        costs = "" if one.dollars is None else f"about ${one.dollars:.2f}"
        table.add_row(
            flavor.name,
            f"{several}{flavor.card or 'none'}",
            words.size(flavor.memory),
            f"${flavor.dollars(3600):.2f}",
            takes,
            costs,
            {True: "yes", False: "no", None: ""}[one.fits],
        )
    _print_table(table)


def print_copies(copies: Iterable[RunRepo]) -> None:
    """A table of runs that are on the Hub."""
    table = Table("repository", "title", "step", "created", box=None, pad_edge=False)
    for copy in copies:
        step = "finished" if copy.finished else "" if copy.step is None else str(copy.step)
        table.add_row(copy.repo, Text(copy.title), step, words.clock(copy.created))
    _print_table(table)


@contextmanager
def show_share(what: str) -> Iterator[Callable[[float], None]]:
    """A bar of a share from 0 to 1, where somebody looks; nothing is printed into a file."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def print_figures(figures: dict[str, Any]) -> None:
    """Names and values in two columns; what is empty is left out."""
    table = Table.grid(padding=(0, 2))
    for name, value in figures.items():
        if value not in (None, "", {}, []):
            table.add_row(name.replace("_", " "), Text(plain(value)))
    Console().print(table)


def plain(value: Any) -> str:
    """A value as people write it: `1,000`, `0.25`, `p50 24, p95 33`, `empty answer 3`."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_conversation(pieces: Iterable[dict[str, Any]]) -> None:
    """A rendered conversation, its supervised parts tinted."""
    text = Text()
    for piece in pieces:
        text.append(piece["text"], style=SUPERVISED if piece["supervised"] else "")
    Console().print(text)


def print_findings(findings: Sequence[Finding]) -> None:
    """Each kind of rows with its count, some of its rows, and how to leave them out."""
    console = Console()
    console.print()
    if not findings:
        console.print("Nothing was found that one may want to leave out.")
    for finding in findings:
        title = f"{finding.title}: {words.counted(finding.count, 'row')}"
        how = f"  (--leave-out {finding.name})" if finding.name in LEFT_OUT else ""
        console.print(Text.assemble((title, "bold"), how))
        console.print(Text(finding.meaning, style="dim"))
        for one in finding.rows[:FOUND_ROWS]:
            asked = f"{one.asked} → " if one.asked else ""
            console.print(Text(f"  {one.place}: {one.why}. {asked}{one.answer}"))
        if finding.count > FOUND_ROWS:
            console.print(f"  and {finding.count - FOUND_ROWS:,} more; --json lists all")
        console.print()


def print_standings(standings: Standings) -> None:
    """Who leads, each with its win rate and interval, and then every two of them."""
    for place in standings.places:
        rounds = f"{place.won} of {place.decided} rounds"
        print_line(f"{place.name or BASE}: {rounds}; {place.tally.in_words()}")
    if len(standings.meetings) > 1:
        print_line()
        for met in standings.meetings:
            print_line(f"{met.name} against {met.against or BASE}: {_counts(met.tally)}")


def _counts(tally: Tally) -> str:
    """`5 to 2, 1 tie, 0 both bad; wins 71% …`."""
    drawn = f"{words.counted(tally.ties, 'tie')}, {tally.both_bad} both bad"
    return f"{tally.tuned} to {tally.base}, {drawn}; {tally.in_words()}"


def print_pair(
    pairs: Iterable[Pair],
    order: Sequence[Side] = ("base", "tuned"),
    titles: Sequence[str] = ("base", "tuned"),
) -> Pair:
    """Answers side by side as they grow, or one after the other in a file; the last pair.

    Args:
        order: whose answer stands where; one of them alone, if there is no other.
        titles: what they are called, which may hide whose they are.
    """
    console = Console()
    pair = Pair()
    if not console.is_terminal:
        *_, pair = pairs
        width = max(map(len, titles)) + 1
        said = [
            f"{title + ':':<{width}} {getattr(pair, side)}\n"
            for title, side in zip(titles, order, strict=True)
        ]
        print_line("\n".join(said))
        return pair
    with Live(console=console, refresh_per_second=12) as live:
        for pair in pairs:
            table = Table.grid(padding=(0, 3), expand=True)
            for _ in order:
                table.add_column(ratio=1)
            table.add_row(*(Text(title, style="bold") for title in titles))
            answers = [getattr(pair, side) for side in order]
            table.add_row(_answer(answers[0] or pair.note), *map(_answer, answers[1:]))
            live.update(table)
    return pair


def _answer(text: str) -> Text:
    """An answer, what was thought before it paler than the rest."""
    found = split_thoughts(text)
    thoughts = f"{found.thoughts}\n\n" if found.thoughts else ""
    return Text.assemble((thoughts, "dim italic"), found.said)


def with_units(figures: dict[str, Any]) -> dict[str, Any]:
    """The same with bytes, seconds and dollars in words, and the unit out of the name."""
    said: dict[str, Any] = {}
    for name, value in figures.items():
        if name.endswith("_bytes") and value is not None:
            said[name.removesuffix("_bytes")] = words.size(value)
        elif name == "seconds" and value is not None:
            said["time"] = words.duration(value)
        elif name.startswith("dollars"):  # nothing is paid on one's own machine
            said |= {} if value is None else {name.replace("dollars", "cost"): words.dollars(value)}
        else:
            said[name] = value
    return said
