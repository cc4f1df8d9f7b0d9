"""Before there is a run: inspect, search, models, recipes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3lora.cli.root import app
from phi3lora.cli.shared import AsJson, Changes, given, here, pairs, tell, with_changes
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, Problem
from phi3lora.recipes import describe, recipes

if TYPE_CHECKING:
    from phi3lora.data.opened import OpenRow


@app.command()
def inspect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A file, a dataset's id on the Hub, or `example:NAME`."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="The configuration of a Hub dataset that has several.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split of a Hub dataset, such as train.")
    ] = None,
    test_split: Annotated[
        str | None,
        typer.Option(
            help="The split of a Hub dataset that is held out; --findings looks for its rows "
            "among those to train on."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The branch, tag or commit of a Hub dataset.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="The format of the rows, where detection is wrong.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=COLUMN",
            help="Say which column holds what, such as `prompt=Question`; may be repeated.",
        ),
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ROLE",
            help="Say what the name of a role means, such as `Bot=assistant`; may be repeated.",
        ),
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="Put this before conversations that have no system prompt.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="What would be learnt: sft for answers; dpo, orpo or kto to compare them; grpo "
            "for prompts that the model answers itself."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base whose tokens are counted; no weights are read.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Conversations are cut at this many tokens.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Stop reading after this many rows.")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE[=WEIGHT]",
            help="Mix in another source, its rows as often as the weight says, such as "
            "`example:pirate=0.5` for a random half; may be repeated.",
        ),
    ] = None,
    findings: Annotated[
        bool,
        typer.Option(
            "--findings",
            help="Also list rows that one may want to leave out: duplicates, refusals, cut "
            "answers, personal data and others, some of each kind.",
        ),
    ] = False,
    likelihood: Annotated[
        bool,
        typer.Option(
            "--likelihood",
            help="Also read the rows with the base, and list the five that it finds most and "
            "least likely.",
        ),
    ] = False,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Leave out the rows that an inspection finds of this kind, such as `duplicates`; "
            "may be repeated. A config keeps it as `data.leave_out`.",
        ),
    ] = None,
    leave_out_row: Annotated[
        list[int] | None,
        typer.Option(
            metavar="NUMBER",
            help="Leave out the row of this number, counted from 0; may be repeated. A config "
            "keeps it as `data.leave_out_rows`.",
        ),
    ] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER:COLUMN=TEXT",
            help="Read another text in one cell, by the row's number from 0 and the column, or the "
            "place in it, such as `messages.1.content`; may be repeated. The source stays as it "
            "is. A config keeps it as `data.edits`.",
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Keep the edits and the rows left out in a small file, beside what was kept "
            "before; the page finds them there, and `train --edits` takes the file.",
        ),
    ] = False,
    row: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="NUMBER",
            help="Show each text of the row of this number, counted from 0, with the place that "
            "--edit takes, and nothing else.",
        ),
    ] = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Show what a dataset holds and what of it would be trained."""
    from phi3lora.cli.terminal import (
        print_conversation,
        print_figures,
        print_findings,
        print_json,
        print_line,
    )

    values = {
        "data.path": source,
        "data.name": name,
        "data.split": split,
        "data.test_split": test_split,
        "data.revision": revision,
        "data.format": format,
        "data.columns": pairs("--column", column),
        "data.roles": pairs("--role", role),
        "data.system_prompt": system_prompt,
        "method": method,
        "model.path": model,
        "training_config.max_length": max_length,
        "data.more": [_mixed(one) for one in more or ()] or None,
        "data.leave_out": leave_out,
        "data.leave_out_rows": leave_out_row,
        "data.edits": _edits(edit) or None,
    }
    config = with_changes(RunConfig().with_values(given(values)), changes)
    application, caller = here()
    if keep:
        tell(f"Kept in {application.editing.keep(config, caller)}.")
    if row is not None:
        _show_row(application.editing.open(config, caller, row), as_json)
        return
    found = application.datasets.inspect(config, caller, limit, findings=findings)
    figures, listed = found.to_json(), list(found.findings)
    if likelihood:
        listed += application.datasets.likelihood(config, caller, limit)
        figures["findings"] = [asdict(one) for one in listed]
    if as_json:
        print_json(figures)
        return
    preview, rejected = figures.pop("preview"), figures.pop("rejected_preview", [])
    figures.pop("findings", None)
    figures["sources"] = [
        f"{one.label}: {one.used:,} rows an epoch ({one.share:.0%} of the tokens)"
        for one in found.shares
    ]
    figures |= {"format": f"{found.format}: {found.reason}"}
    figures["columns_not_read"] = found.unread_in_words
    print_figures({name: value for name, value in figures.items() if name != "unread"})
    for place, pieces in enumerate(preview):
        print_line()
        print_conversation(pieces)
        if rejected and rejected[place]:
            print_line("instead of")
            print_conversation(rejected[place])
    if findings or likelihood:
        print_findings(listed)


def _show_row(row: OpenRow, as_json: bool) -> None:
    from phi3lora.cli.terminal import print_json, print_line

    if as_json:
        print_json(asdict(row))
        return
    for text in row.texts:
        print_line(f"{text.row}:{text.place} ({text.label})\n{text.said}\n")
    if row.unused:
        print_line(f"It is not trained on as it is: {row.unused}.")


def _mixed(given: str) -> dict[str, Any]:
    """A source and its weight, as they are typed: `example:pirate=0.5`."""
    path, sign, weight = given.rpartition("=")
    return {"path": path, "weight": weight} if sign else {"path": given}


def _edits(given: list[str] | None) -> dict[int, dict[str, str]]:
    """Edits as they are typed: `3:answer=Better words.` Raises ConfigError."""
    found: dict[int, dict[str, str]] = {}
    for one in given or ():
        place, sign, text = one.partition("=")
        row, colon, column = place.partition(":")
        if not (sign and colon and row.isdecimal()):
            raise ConfigError([Problem("--edit", f"expected NUMBER:COLUMN=TEXT, got {one!r}.")])
        found.setdefault(int(row), {})[column] = text
    return found


@app.command()
def search(
    query: Annotated[
        str, typer.Argument(help="Words of its name; suggestions are listed without any.")
    ] = "",
    models: Annotated[
        bool, typer.Option("--models", help="Search for bases instead of datasets.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=100, help="List at most this many results.")
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Search the Hub for datasets, or for bases of type phi3."""
    from phi3lora.cli.terminal import print_found, print_json

    application, caller = here()
    found = application.datasets.find(query, caller, limit, models=models)
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        print_found(found)
    else:
        tell(f"Nothing on the Hub is called {query!r}; try fewer words.")


@app.command(name="models")
def list_models(as_json: AsJson = False) -> None:
    """List the bases of the family: size, context, licence, and whether each fits here."""
    from phi3lora.cli.terminal import print_bases, print_json

    application, _ = here()
    found = application.models.bases()
    if as_json:
        print_json([asdict(base) for base in found])
    else:
        print_bases(found)


@app.command(name="recipes")
def list_recipes(as_json: AsJson = False) -> None:
    """Name the recipes that `train` takes."""
    from phi3lora.cli.terminal import print_json, print_line

    found = {name: describe(name) for name in recipes()}
    if as_json:
        print_json(found)
        return
    for name, text in found.items():
        print_line(f"{name}\n    {text}")
