"""The root of the commands, and where every error of ours ends up.

Exit status 2 is for something the user can mend, 1 for anything else, 130 for Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import phi3lora
from phi3lora.errors import Phi3LoraError


class Commands(TyperGroup):
    """Turns our errors into a line and an exit status; the one place that does."""

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


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"phi3lora {phi3lora.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Fine-tune Phi-3 with LoRA: see the data, train, prove it, publish it, compare it."""


def _quiet_libraries() -> None:
    """What libraries say to their developers is not for the people at a terminal."""
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> None:
    """The console script `phi3lora`."""
    from phi3lora.cli import app as whole  # with the commands of every file

    _quiet_libraries()
    whole(prog_name="phi3lora")
