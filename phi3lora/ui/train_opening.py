"""What the address of the Train page asks to begin with: a run's settings, or votes to learn from.

config, note = named_config(app, request)         None for a plain address
"""

from __future__ import annotations

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.config import RunConfig
from phi3lora.ui.sessions import session_of


def named_config(app: Application, request: gr.Request) -> tuple[RunConfig, str] | None:
    """The config, and a sentence that says what it is; None where the address names none.

    Raises what keeps it from being had: no such run, or too few votes.
    """
    asked = request.query_params
    if not (asked.get("from") or asked.get("votes")):
        return None
    caller = app.callers.caller(session_of(request))
    if run_id := asked.get("from", ""):
        run = app.launching.run(run_id, caller)
        note = f"These are the settings of {run.title}. Change what you like, then launch."
        if not asked.get("further"):
            return run.config, note
        note += " The new run begins with what that one has learnt."
        return app.launching.further(run), note
    config = app.voting.config(asked["votes"], caller)
    return config, (
        f"This run learns from blind votes by {config.method.upper()}, and begins with what the "
        "compared one has learnt. Look at the pairs, then launch."
    )
