"""`phi3lora serve`: OpenAI's protocol without the pages."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from phi3lora.cli.root import app
from phi3lora.cli.shared import here, tell
from phi3lora.config import ModelConfig
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.ui.guard import Rules

KEY = "PHI3LORA_API_KEY"
NAMED = 6  # models that the first line names; /v1/models lists them all


@app.command()
def serve(
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Serve this run, folder or adapter on the Hub beside its base; may be repeated. "
            "Without it all finished runs are served.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Serve this base, too, under its own name.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Listen on this address; 0.0.0.0 lets the network in, with a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Listen on this port.")] = 8000,
) -> None:
    """Answer OpenAI's protocol with base and tuned models: /v1/models, /v1/chat/completions.

    Beyond this machine every request needs the key of PHI3LORA_API_KEY, or the one that is shown.
    """
    import uvicorn
    from starlette.applications import Starlette

    from phi3lora.serve.catalog import Catalog
    from phi3lora.serve.openai import routes
    from phi3lora.ui.guard import Guard

    application, caller = here()
    base = ModelConfig(path=model) if model else None
    catalog = Catalog(application, adapter or [], base)
    named = [one.name for one in catalog.listed(caller)]  # what cannot be served is said now
    rules = _rules(host, application.settings)
    answering = Starlette(routes=routes(application, lambda _: caller, catalog))
    more = f" and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    tell(f"Serving {', '.join(named[:NAMED])}{more} at http://{host}:{port}/v1")
    if rules.key is not None and KEY not in os.environ:
        tell(f"The key: {rules.key}")
    uvicorn.run(Guard(answering, rules), host=host, port=port, log_level="warning")


def _rules(host: str, settings: Settings) -> Rules:
    """Who may ask: this machine, or whoever has the key."""
    from dataclasses import replace

    from phi3lora.ui.guard import rules_for

    rules = rules_for(settings, host)
    key = os.environ.get(KEY)
    return replace(rules, key=key) if key else rules
