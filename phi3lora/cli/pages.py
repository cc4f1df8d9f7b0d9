"""The pages in a browser, and the generated pages of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phi3lora.cli.root import app
from phi3lora.settings import Settings


@app.command(name="app")
def open_app(
    port: Annotated[
        int | None,
        typer.Option(help="Listen on this port; without it on the first free one from 7860."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Listen on this address; 0.0.0.0 lets other machines in, which can then train."
        ),
    ] = "127.0.0.1",
) -> None:
    """Open the pages in a browser: Train, Runs, Compare."""
    from phi3lora.ui.doorman import launch_soon

    launch_soon(Settings.from_environment(), host, port)


@app.command(hidden=True)
def docs(folder: Annotated[Path, typer.Argument()] = Path("docs")) -> None:
    """Write the generated pages of the documentation again."""
    from phi3lora.app.export_page import export_page
    from phi3lora.cli.reference import command_page, option_page
    from phi3lora.serve.reference import api_page

    pages = {
        "cli": command_page(typer.main.get_command(app)),
        "config": option_page(),
        "api": api_page(),
        "export": export_page(),
    }
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
