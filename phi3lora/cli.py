"""The same abilities from a terminal: `phi3lora`, or `python -m phi3lora`.

Each command reads its arguments, calls the core, and prints what it returns. What is heavy is
imported inside the commands. One place, `Commands`, turns our errors into a line and an exit
status: 2 for something the user can mend, 1 for anything else, 130 for Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from phi3lora.chat.options import SETTINGS, Options
from phi3lora.config import ModelConfig, RunConfig, parse_setting
from phi3lora.errors import AdapterError, ConfigError, HubError, Phi3LoraError, Problem, RunError
from phi3lora.legacy import translate_fields
from phi3lora.models.phi3 import QKV
from phi3lora.recipes import describe, load_recipe, recipes
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.chat.whole import Chat
    from phi3lora.data.conversation import Message
    from phi3lora.runs.queue import Queue
    from phi3lora.runs.store import Run, RunStore


class Commands(TyperGroup):
    """Where every error of ours ends up, and every interrupt."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except Phi3LoraError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(error.exit_status) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    help="Fine-tune Phi-3 with LoRA: see the data, train, prove it, publish it, compare it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
runs_app = typer.Typer(help="List, watch, stop, resume and delete runs.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its folder.")]
ConfigName = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a recipe.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change an option; may be repeated."),
]


def sampling(name: str) -> Any:
    """The flag of a sampling option, described where its slider is."""
    return typer.Option(help=SETTINGS[name].help)


@app.command()
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file, a Hub id, or `example:NAME`.")
    ],
    name: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hub dataset.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub dataset.")] = None,
    format: Annotated[str | None, typer.Option(help="Format, where detection is wrong.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT=COLUMN", help="What is in which column: `prompt=Question`."),
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ROLE", help="What a role's name means: `Bot=assistant`."),
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="Put before conversations that have none.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base whose tokens are counted.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a conversation.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read at most this many rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a dataset holds and what of it would be trained."""
    values = {
        "data.path": source,
        "data.name": name,
        "data.split": split,
        "data.revision": revision,
        "data.format": format,
        "data.columns": _pairs("--column", column),
        "data.roles": _pairs("--role", role),
        "data.system_prompt": system_prompt,
        "model.path": model,
        "training_config.max_length": max_length,
    }
    _show_inspection(RunConfig().with_values(_given(values)), limit, as_json)


@app.command()
def estimate(config: ConfigName, changes: Changes = None, as_json: AsJson = False) -> None:
    """Check a configuration before it runs: data, model, hardware, memory, time, disk."""
    from phi3lora.terminal import print_json
    from phi3lora.training.preflight import blocking, preflight

    look = preflight(_read_config(config, changes), Settings.from_environment(), _stored_token())
    blocked = blocking(look)
    if as_json:
        checks = [asdict(check) for check in look.checks]
        figures = asdict(look.estimate) if look.estimate else None
        print_json({"ready": not blocked, "checks": checks, "estimate": figures})
    else:
        _show_checks(look)
    if blocked:
        raise typer.Exit(2)


@app.command()
def train(
    config: ConfigName,
    changes: Changes = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Becomes the run folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, and watch it.

    Ctrl-C saves and stops; the same command with the same FOLDER goes on from there.
    """
    from phi3lora.runs.queue import Queue
    from phi3lora.runs.store import ACTIVE

    settings = Settings.from_environment()
    queue = Queue(settings)
    run = _run_for(queue.store, _read_config(config, changes), output)
    if run.status == "finished":
        typer.echo(f"{run.folder} holds this very run, finished.", err=True)
        return
    begin = run.events_end()
    if run.status not in ACTIVE:
        run = queue.submit(run, _stored_token())
    typer.echo(f"Run {run.id} in {run.folder.resolve()}", err=True)
    _follow(queue, run, begin, as_json)


@app.command(name="recipes")
def list_recipes(as_json: AsJson = False) -> None:
    """Name the recipes that `train` takes."""
    from phi3lora.terminal import print_json, print_line

    found = {name: describe(name) for name in recipes()}
    if as_json:
        print_json(found)
        return
    for name, text in found.items():
        print_line(f"{name}\n    {text}")


@runs_app.command("list")
def list_runs(as_json: AsJson = False) -> None:
    """List the runs of this machine, newest first."""
    from phi3lora.runs.store import LOCAL
    from phi3lora.terminal import print_json, print_runs

    found = _store().list(LOCAL)
    if as_json:
        print_json([_summary(run) for run in found])
    elif found:
        print_runs(found)
    else:
        typer.echo("No runs yet; start one with `phi3lora train pocket`.", err=True)


@runs_app.command("show")
def show_run(
    run: RunName,
    lines: Annotated[int, typer.Option(help="Lines of the log.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show how a run stands: status, last step, message, and the end of its log."""
    from phi3lora.terminal import clock, print_figures, print_json, print_line

    found = _find(run)
    figures = {**_summary(found), **_progress(found)}
    if as_json:
        print_json({**figures, "log": found.log_tail(lines)})
        return
    moments = {name: clock(figures[name]) for name in ("created", "queued", "started", "ended")}
    print_figures({**figures, **moments})
    print_line(found.log_tail(lines))


@runs_app.command("follow")
def follow_run(run: RunName, as_json: AsJson = False) -> None:
    """Watch a run until it ends. Ctrl-C leaves it running."""
    from phi3lora.terminal import show_progress

    found = _find(run)
    with show_progress(as_json) as show:
        for event in found.follow():
            show(event)
    _end_as(found.refresh())


@runs_app.command("stop")
def stop_run(run: RunName) -> None:
    """Ask a run to save and stop."""
    found = _queue().stop(_find(run))
    typer.echo(f"Run {found.id} saves after its step and stops.", err=True)


@runs_app.command("cancel")
def cancel_run(run: RunName) -> None:
    """Take a run that has not begun out of the line."""
    found = _queue().cancel(_find(run))
    typer.echo(f"Run {found.id} leaves the line.", err=True)


@runs_app.command("resume")
def resume_run(run: RunName) -> None:
    """Put a run in line again; it goes on from its last checkpoint."""
    found = _queue().resume(_find(run), _stored_token())
    typer.echo(
        f"Run {found.id} is in line; watch it with `phi3lora runs follow {found.id}`.", err=True
    )


@runs_app.command("delete")
def delete_run(
    run: RunName, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Delete a run with its adapter and all its files."""
    found = _find(run)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete {found.id} ({found.title}) for good?", abort=True)
    _store().delete(found)


@runs_app.command("restore")
def restore_run(
    repo: Annotated[
        str | None, typer.Argument(metavar="REPO", help="`USER/NAME`; none to list them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a run back that was backed up to the Hub, or list those there are."""
    from phi3lora.hub.backup import list_runs as backed_up
    from phi3lora.runs.copies import restore
    from phi3lora.terminal import print_copies, print_json

    if repo is not None:
        found = restore(_store(), repo, _token())
        if as_json:
            print_json(_summary(found))
            return
        hint = "" if found.status == "finished" else f"; `phi3lora runs resume {found.id}` goes on"
        typer.echo(f"Run {found.id} is back in {found.folder}{hint}.", err=True)
        return
    copies = backed_up(_token())
    if as_json:
        print_json([asdict(copy) for copy in copies])
    elif copies:
        print_copies(copies)
    else:
        typer.echo("No run of yours is on the Hub; hub.backup: true keeps one there.", err=True)


@app.command()
def chat(
    adapter: Annotated[
        str, typer.Option(metavar="PATH", help="An adapter's folder, a run's id, or its folder.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Ask this once and leave.")] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temperature: Annotated[float, sampling("temperature")] = Options.temperature,
    top_k: Annotated[int, sampling("top_k")] = Options.top_k,
    top_p: Annotated[float, sampling("top_p")] = Options.top_p,
    min_p: Annotated[float, sampling("min_p")] = Options.min_p,
    repetition_penalty: Annotated[
        float, sampling("repetition_penalty")
    ] = Options.repetition_penalty,
    max_new_tokens: Annotated[int, sampling("max_new_tokens")] = Options.max_new_tokens,
    seed: Annotated[int, sampling("seed")] = Options.seed,
    as_json: AsJson = False,
) -> None:
    """Ask base and tuned the same, side by side."""
    from phi3lora.chat.whole import Chat

    if as_json and prompt is None:
        raise ConfigError([Problem("--json", "answers one question; give it with --prompt.")])
    base, folder = _adapter(adapter)
    engine = Chat(Settings.from_environment())
    for notice in engine.load(base, folder, token=_stored_token()):
        typer.echo(notice, err=True)
    options = Options(
        system, temperature, top_p, max_new_tokens, seed, top_k, min_p, repetition_penalty
    )
    if prompt is None:
        _converse(engine, options)
    else:
        _ask_once(engine, prompt, options, as_json)


@app.command()
def evaluate(
    run: RunName,
    rows: Annotated[int | None, typer.Option(min=1, help="Held-out rows to answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score base and tuned on the rows that were held out of a run, and write its report."""
    from phi3lora.evaluation.report import evaluate as score
    from phi3lora.runs.store import ACTIVE
    from phi3lora.terminal import print_json, print_line, show_progress

    found = _find(run)
    if found.status in ACTIVE:
        raise RunError(f"Run {found.id} is {found.status}; wait for its end, or stop it, first.")
    cache = Settings.from_environment().cache_folder / found.owner
    score = partial(score, token=_stored_token(), cache_folder=cache)
    with _device(found):
        if as_json:
            print_json(score(found.config, found.folder, rows).to_json())
            return
        with show_progress(as_json=False) as show:
            report = score(found.config, found.folder, rows, emit=show)
    for comparison in report.comparisons:
        print_line(
            f"{comparison.name:>16}  base {comparison.base:.4f}  tuned {comparison.tuned:.4f}  "
            f"difference {comparison.difference:+.4f} ({comparison.low:+.4f} to "
            f"{comparison.high:+.4f})  {comparison.verdict}"
        )
    print_line(report.summary())


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's id, or its folder; for code also a YAML file or a recipe.",
        ),
    ],
    to: Annotated[
        Literal["loralib", "merged", "script", "notebook"],
        typer.Option(
            help="`loralib`: its checkpoint; `merged`: the base with the adapter in its weights; "
            "`script`, `notebook`: what trains the same on transformers, peft and trl alone, with "
            "its rows beside it, as JSONL."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where it is written; it must be new.")
    ] = None,
    portable: Annotated[
        bool, typer.Option("--portable", help="Code that names no folder of this machine.")
    ] = False,
    changes: Changes = None,
) -> None:
    """Make something else of a run: a merged model, a loralib checkpoint, plain code."""
    from phi3lora.runs.export import CODE, default_output, export_code
    from phi3lora.runs.export import export as write

    token = _stored_token()
    if to in CODE and _is_config(run):
        config = _read_config(run, changes)
        place = output or default_output(to, "")
        place = export_code(config, to, place, token=token, portable=portable)
    else:
        if changes:
            raise ConfigError([Problem("--set", "changes a YAML file or a recipe, not a run.")])
        found = _find(run)
        place = output or default_output(to, found.id)
        place = write(found, to, place, token=token, portable=portable)
    typer.echo(f"Written: {place.resolve()}", err=True)


@app.command(name="import")
def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="`torch.save(lora.lora_state_dict(model))`.")
    ],
    base: Annotated[
        str | None, typer.Option(help="The model it was trained on, if it does not say.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="`lora_alpha` of its layers, if it does not say.")
    ] = None,
    enable_lora: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ON,OFF,…", help=f"Slices of MergedLinear: `{QKV}=on,off,on`."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of the adapter; it must be new.")
    ] = None,
) -> None:
    """Turn a loralib checkpoint into a PEFT adapter."""
    from phi3lora.lora.loralib import import_loralib, recorded_base
    from phi3lora.models.base import check_base

    folder = output or Path(f"{file.stem}-adapter")
    if folder.exists():
        raise RunError(f"{folder} exists already; name another folder with --output.")
    if (name := base or recorded_base(file)) is None:
        raise ConfigError([Problem("--base", "the file does not say its base; name it.")])
    slices = _pairs("--enable-lora", enable_lora) or {}
    enabled = {part: _switches(text) for part, text in slices.items()}
    for notice in import_loralib(
        file,
        folder,
        check_base(name, token=_stored_token()),
        alpha=alpha,
        enable_lora=enabled or None,
    ):
        typer.echo(notice, err=True)
    typer.echo(f"Adapter: {folder.resolve()}", err=True)


@app.command()
def push(
    run: RunName,
    repo: Annotated[str, typer.Option(metavar="USER/NAME", help="Where to publish it.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is new.")] = False,
    pull_request: Annotated[
        bool, typer.Option("--pr", help="Propose it with a pull request.")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model, base and update in one.")
    ] = False,
    card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own model card; see --draft.")
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Print the model card, and publish nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a run on the Hub: its adapter, its config and its evidence."""
    from phi3lora.hub.upload import draft_card
    from phi3lora.hub.upload import push as publish
    from phi3lora.terminal import print_json, print_line

    found = _find(run)
    if draft:
        print_line(draft_card(found.folder, repo, _stored_token(), merged))
        return
    with _sending(as_json) as progress:
        done = publish(
            found.folder,
            repo,
            _token(),
            private=private,
            pull_request=pull_request,
            merged=merged,
            card=_text(card),
            script=_training_script(found),
            progress=progress,
            tell=_tell,
        )
    if as_json:
        print_json(asdict(done))
        return
    print_line(f"{done.pull_request or done.url}\n\n{done.snippet}")


@app.command()
def deploy(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="`USER/NAME` of the Space.")],
    compare: Annotated[
        str | None,
        typer.Option(metavar="ADAPTER", help="Only a page that compares this adapter."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Such as t4-small; the Hub bills it to you.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="If the Space is new.")] = False,
    volume: Annotated[
        str | None, typer.Option(metavar="BUCKET", help="Keeps runs over restarts: `USER/NAME`.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Set it to what the variable NAME holds here."),
    ] = None,
    variable: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Seen by everybody.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a Space from this repository, or update it."""
    from phi3lora.hub import space as spaces
    from phi3lora.terminal import print_json, print_line

    wanted = spaces.SpaceSettings(
        hardware, private, _from_environment(secret), _pairs("--variable", variable), volume
    )
    with _sending(as_json) as progress:
        make = partial(spaces.deploy_comparison, compare) if compare else spaces.deploy
        done = make(space, _token(), wanted, progress=progress, tell=_tell)
    for note in done.notes:
        typer.echo(note, err=True)
    if as_json:
        print_json(asdict(done))
    else:
        print_line(done.url)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="Words of its name; none for suggestions.")] = "",
    models: Annotated[bool, typer.Option("--models", help="Bases instead of datasets.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Search the Hub for datasets, or for bases of type phi3."""
    from phi3lora.hub.access import search_datasets, search_models
    from phi3lora.terminal import print_found, print_json

    find = search_models if models else search_datasets
    page = find(query, _stored_token(), limit)
    if as_json:
        print_json([asdict(found) for found in page])
    elif page:
        print_found(page)
    else:
        typer.echo(f"Nothing on the Hub is called {query!r}; try fewer words.", err=True)


@app.command()
def whoami(as_json: AsJson = False) -> None:
    """Say who is signed in to the Hub, and what the token may do."""
    from phi3lora.hub.access import identity
    from phi3lora.terminal import clock, print_figures, print_json

    who = identity(_token())
    if as_json:
        print_json({**asdict(who), "scopes": sorted(who.scopes)})
        return
    may = {True: "yes", False: "no", None: "where it was given leave"}[who.can_write]
    print_figures(
        {
            "name": who.name,
            "organisations": ", ".join(who.orgs),
            "token": who.role,
            "may write": may,
            "expires": clock(who.expires),
        }
    )


@app.command(name="app")
def open_app(
    port: Annotated[int | None, typer.Option(help="7860 unless it is taken.")] = None,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 lets other machines in; they can train then.")
    ] = "127.0.0.1",
) -> None:
    """Open the pages in a browser: Train, Runs, Compare."""
    from phi3lora.ui.app import launch

    launch(Settings.from_environment(), host=host, port=port)


@app.command(hidden=True)
def docs(folder: Annotated[Path, typer.Argument()] = Path("docs")) -> None:
    """Write the generated pages of the documentation again."""
    from phi3lora.reference import command_page, option_page

    folder.mkdir(exist_ok=True)
    (folder / "cli.md").write_text(command_page(typer.main.get_command(app)), encoding="utf-8")
    (folder / "config.md").write_text(option_page(), encoding="utf-8")


# What the commands share


def _read_config(name: str, changes: list[str] | None) -> RunConfig:
    """The config of a file or a recipe, with changes; translated names are told."""
    if name in recipes() and not Path(name).is_file():
        config, notices = load_recipe(name)
    elif Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        config, notices = RunConfig.from_yaml(Path(name))
    else:
        known = ", ".join(recipes())
        raise ConfigError([Problem("", f"{name!r} is no YAML file and no recipe ({known}).")])
    settings, more = translate_fields(dict(parse_setting(change) for change in changes or []))
    for notice in [*notices, *more]:
        typer.echo(notice, err=True)
    return config.with_values(settings) if settings else config


def _is_config(name: str) -> bool:
    """Whether a name is a YAML file or a recipe, rather than a run."""
    return name in recipes() or Path(name).suffix in {".yaml", ".yml"}


def _run_for(store: RunStore, config: RunConfig, folder: Path | None) -> Run:
    """A new run, or the one that the folder holds if it is the same."""
    from phi3lora.runs.store import open_run, with_whole_paths

    if folder is None or not (folder / "state.json").exists():
        return store.create(config, folder=folder)
    run = open_run(folder)
    old, new = run.config, with_whole_paths(config)
    if old != new:
        fields = ", ".join(_differences(old.model_dump(), new.model_dump()))
        raise RunError(
            f"{folder} holds another run: it differs in {fields}. Name another folder, or delete "
            f"that run with `phi3lora runs delete {folder}`."
        )
    return run


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the options that differ."""
    for name in new:
        before, after = old.get(name), new[name]
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name


def _follow(queue: Queue, run: Run, begin: int, as_json: bool) -> None:
    """Show a run to its end, and end as it does. Ctrl-C asks it to stop; twice leaves it."""
    from phi3lora.terminal import show_progress

    with _stopping(queue, run) as asked, show_progress(as_json) as show:
        for event in run.follow(begin):
            show(event)
    run = run.refresh()
    if asked and run.status == "stopped":
        typer.echo("Stopped and saved; the same run can be resumed.", err=True)
        raise typer.Exit(130)
    _end_as(run)


@contextmanager
def _stopping(queue: Queue, run: Run) -> Iterator[list[int]]:
    """The first Ctrl-C asks the run to save and stop; the second one leaves it to itself."""
    asked: list[int] = []

    def stop(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        run.stop_file.touch()
        typer.echo("Saving; Ctrl-C again leaves the run to stop by itself.", err=True)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_as(run: Run) -> None:
    """Say how a run ended, with its exit status."""
    if run.status == "finished":
        typer.echo(run.message or "Finished.", err=True)
        result = run.result
        typer.echo(f"{result.noun.capitalize()}: {result.folder.resolve()}", err=True)
        return
    typer.echo(f"Run {run.id} {run.status}. {run.message}".rstrip(), err=True)
    raise typer.Exit(run.state.exit_status or 1)


@contextmanager
def _device(run: Run) -> Iterator[None]:
    """Hold the run's device: a training beside it would share its memory, and both might fail."""
    from phi3lora.runs.backends.local import device_kind, devices
    from phi3lora.runs.worker import lock_one, take

    settings = Settings.from_environment()
    settings.home.mkdir(parents=True, exist_ok=True)
    kind = device_kind(run.config)
    held = lock_one(settings, devices(kind))
    if held is None:
        busy = [other for other in _store().all() if other.status in ("running", "stopping")]
        who = ", ".join(other.id for other in busy if other.state.device == kind) or "another run"
        raise RunError(f"The device is in use by {who}; wait for its end, or stop it, first.")
    name, descriptor = held
    try:
        take(name)
        yield
    finally:
        os.close(descriptor)


def _switches(text: str) -> list[bool]:
    """`on,off,on` as booleans."""
    words = [word.strip().lower() for word in text.split(",")]
    known = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}
    if wrong := [word for word in words if word not in known]:
        message = f"expected on or off for each slice, got {wrong[0]!r}."
        raise ConfigError([Problem("--enable-lora", message)])
    return [known[word] for word in words]


def _store() -> RunStore:
    from phi3lora.runs.store import RunStore

    return RunStore(Settings.from_environment())


def _queue() -> Queue:
    from phi3lora.runs.queue import Queue

    return Queue(Settings.from_environment())


def _find(name: str) -> Run:
    """A run by its id or its folder."""
    from phi3lora.runs.store import LOCAL, open_run

    folder = Path(name).expanduser()
    return open_run(folder) if folder.is_dir() else _store().get(name, LOCAL)


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
    """Where a run is: its place in the line, its last step, its verdict."""
    from phi3lora.events import Step
    from phi3lora.runs.life import holder
    from phi3lora.runs.store import ACTIVE

    steps = [event for event in run.events()[0] if isinstance(event, Step)]
    last = asdict(steps[-1]) if steps else {}
    losses = [step.loss for step in steps if step.loss is not None]
    names = ("step", "total_steps", "epoch", "tokens_per_second", "seconds_left")
    return {
        "position": _queue().position(run),
        "pid": holder(run.folder) if run.status in ACTIVE else None,
        **{name: last.get(name) for name in names},
        "loss": losses[-1] if losses else None,
        "adapter": str(run.result.folder.resolve()) if run.has_result else None,
    }


def _stored_token() -> str | None:
    """The Hub token of whoever uses this terminal."""
    from phi3lora.hub.access import stored_token

    return stored_token()


def _token() -> str:
    """The same, where nothing can be done without one."""
    token = _stored_token()
    if token is None:
        raise HubError(
            "Nobody is signed in to the Hub here. Sign in with `hf auth login`, or set HF_TOKEN."
        )
    return token


def _tell(message: str) -> None:
    typer.echo(message, err=True)


@contextmanager
def _sending(as_json: bool) -> Iterator[Callable[[float], None] | None]:
    """A bar of what has arrived on the Hub, where somebody looks."""
    from phi3lora.terminal import show_share

    if as_json:
        yield None
        return
    with show_share("sending") as show:
        yield show


def _training_script(run: Run) -> str | None:
    """What trains the same, to lay beside it; None, and why, where it cannot be written."""
    from phi3lora.training.script import script

    try:
        return script(run.config, portable=True, token=_stored_token())
    except Phi3LoraError as error:
        _tell(f"Published without a training script: {error}")
        return None


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("--card", f"{path} cannot be read: {error}.")]) from None


def _from_environment(names: list[str] | None) -> dict[str, str]:
    """Secrets by name: a command's arguments can be seen by others, its environment cannot."""
    missing = [name for name in names or [] if not os.environ.get(name)]
    if missing:
        raise ConfigError([Problem("--secret", f"the variable {missing[0]} holds nothing here.")])
    return {name: os.environ[name] for name in names or []}


def _pairs(option: str, texts: list[str] | None) -> dict[str, str] | None:
    """`["prompt=Question"]` as a mapping."""
    if not texts:
        return None
    pairs = [text.partition("=") for text in texts]
    if wrong := [
        text for text, (name, _, value) in zip(texts, pairs, strict=True) if not name or not value
    ]:
        raise ConfigError([Problem(option, f"expected NAME=VALUE, got {wrong[0]!r}.")])
    return {name.strip(): value.strip() for name, _, value in pairs}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _show_inspection(config: RunConfig, limit: int | None, as_json: bool) -> None:
    from phi3lora.data.inspection import inspect as look
    from phi3lora.models.base import resolve_path
    from phi3lora.models.hardware import detect_hardware
    from phi3lora.models.loading import load_tokenizer
    from phi3lora.terminal import print_conversation, print_figures, print_json, print_line

    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    token = _stored_token()
    tokenizer = load_tokenizer(path, config.model.revision, token)
    found = look(config, tokenizer, token=token, limit=limit)
    figures = found.to_json()
    if as_json:
        print_json(figures)
        return
    preview = figures.pop("preview")
    print_figures({**figures, "format": f"{found.format}: {found.reason}"})
    for pieces in preview:
        print_line()
        print_conversation(pieces)


def _show_checks(look: Any) -> None:
    from phi3lora.terminal import print_figures, print_line, with_units

    marks = {"green": "ok", "amber": "note", "red": "NO"}
    for check in look.checks:
        print_line(f"{marks[check.level]:>4}  {check.name}: {check.found} {check.remedy}".rstrip())
    if look.estimate:
        print_line()
        figures = with_units(asdict(look.estimate))
        if not figures.pop("exact"):
            figures["steps"] = f"about {figures['steps']:,}"
        print_figures(figures)


def _adapter(name: str) -> tuple[ModelConfig, Path]:
    """What was trained and its base, from an adapter's folder, a run, or a run's folder."""
    folder = Path(name).expanduser()
    if not folder.is_dir() or (folder / "state.json").exists():
        run = _find(name)
        return run.config.model, run.result.ready()
    from phi3lora.lora.adapters import read_adapter_config

    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not base:
        raise AdapterError(f"{folder} does not name its base; its adapter_config.json should.")
    return ModelConfig(path=base), folder


def _ask_once(engine: Chat, prompt: str, options: Options, as_json: bool) -> None:
    from phi3lora.terminal import print_json, print_pair

    pairs = engine.reply([{"role": "user", "content": prompt}], options=options)
    if not as_json:
        print_pair(pairs)
        return
    *_, last = pairs
    names = ("base", "tuned", "stopped_base", "stopped_tuned", "tokens_base", "tokens_tuned")
    print_json({name: getattr(last, name) for name in names})


def _converse(engine: Chat, options: Options) -> None:
    """Ask and answer until an empty line or the end of the input."""
    from phi3lora.terminal import print_pair

    base: list[Message] = []
    tuned: list[Message] = []
    while prompt := _read_line():
        base.append({"role": "user", "content": prompt})
        tuned.append({"role": "user", "content": prompt})
        last = print_pair(engine.reply(base, tuned, options))
        base.append({"role": "assistant", "content": last.base})
        tuned.append({"role": "assistant", "content": last.tuned})


def _read_line() -> str:
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


def _quiet_libraries() -> None:
    """What libraries say to their developers is not for the people at a terminal."""
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> None:
    """The console script `phi3lora`."""
    _quiet_libraries()
    app(prog_name="phi3lora")


if __name__ == "__main__":
    main()
