"""The same abilities from a terminal: `phi3lora`, or `python -m phi3lora`.

One file for each group of commands. Each command reads its arguments, calls the application, and
prints what it returns; what is heavy is imported inside the commands.
"""

from phi3lora.cli import data, training, runs, chat, votes, sharing, serve, pages  # noqa: F401, I001 - their order
from phi3lora.cli.root import app, main

__all__ = ["app", "main"]
