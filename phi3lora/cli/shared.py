"""What the commands share: their common arguments, the application, configs, and what they tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3lora.config import RunConfig, parse_setting
from phi3lora.errors import ConfigError, Problem
from phi3lora.legacy import translate_fields
from phi3lora.recipes import find_config, recipes
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.app.application import Application
    from phi3lora.app.callers import Caller
    from phi3lora.runs.store import Run

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, which other programs can read.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="The id of a run, or the path of its folder.")
]
ConfigName = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="The path of a YAML file, or the name of a recipe."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change an option of the configuration; may be given several times.",
    ),
]


def here(*, helper: bool = False) -> tuple[Application, Caller]:
    """The application on this machine, and whoever types."""
    from phi3lora.app.application import Application
    from phi3lora.app.callers import terminal_caller

    return Application.open(Settings.from_environment(), helper=helper), terminal_caller()


def find_run(name: str) -> Run:
    """A run by its id or its folder."""
    application, caller = here()
    return application.launching.find(name, caller)


def read_config(name: str, changes: list[str] | None) -> RunConfig:
    """The config of a file or a recipe, with changes; translated names are told."""
    config, notices = find_config(name)
    for notice in notices:
        tell(notice)
    return with_changes(config, changes)


def with_changes(config: RunConfig, changes: list[str] | None) -> RunConfig:
    """The config with what `--set` says; translated names are told."""
    settings, notices = translate_fields(dict(parse_setting(change) for change in changes or []))
    for notice in notices:
        tell(notice)
    return config.with_values(settings) if settings else config


def is_config(name: str) -> bool:
    """Whether a name is a YAML file or a recipe, rather than a run."""
    folder = Path(name).is_dir()  # of a run, that happens to be called like a recipe
    return not folder and (name in recipes() or Path(name).suffix in {".yaml", ".yml"})


def pairs(option: str, texts: list[str] | None) -> dict[str, str] | None:
    """`["prompt=Question"]` as a mapping."""
    if not texts:
        return None
    split = [text.partition("=") for text in texts]
    if wrong := [
        text for text, (name, _, value) in zip(texts, split, strict=True) if not name or not value
    ]:
        raise ConfigError([Problem(option, f"expected NAME=VALUE, got {wrong[0]!r}.")])
    return {name.strip(): value.strip() for name, _, value in split}


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given at the terminal, without those left at None."""
    return {name: value for name, value in values.items() if value is not None}


def from_environment(names: list[str] | None) -> dict[str, str]:
    """Secrets by name: a command's arguments can be seen by others, its environment cannot."""
    missing = [name for name in names or [] if not os.environ.get(name)]
    if missing:
        raise ConfigError([Problem("--secret", f"the variable {missing[0]} holds nothing here.")])
    return {name: os.environ[name] for name in names or []}


def tell(message: str) -> None:
    """A line beside the output, for people."""
    typer.echo(message, err=True)


@contextmanager
def sending(as_json: bool) -> Iterator[Callable[[float], None] | None]:
    """A bar of what has arrived on the Hub, where somebody looks."""
    from phi3lora.cli.terminal import show_share

    if as_json:
        yield None
        return
    with show_share("sending") as show:
        yield show
