"""The entry point of a Space, and of `make run`: build the interface and launch it.

python app.py [--host HOST] [--port PORT]
"""

from __future__ import annotations

import argparse

import spaces  # noqa: F401 - before gradio and torch, or ZeroGPU cannot lend its device


def main() -> None:
    """Read the environment and the two options, and serve until interrupted."""
    from phi3lora.errors import Phi3LoraError
    from phi3lora.settings import Settings
    from phi3lora.ui.doorman import launch_soon

    settings = Settings.from_environment()
    parser = argparse.ArgumentParser(description="phi3lora: train and compare Phi-3 with LoRA.")
    parser.add_argument("--host", default="0.0.0.0" if settings.on_space else "127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    arguments = parser.parse_args()
    try:
        launch_soon(settings, arguments.host, arguments.port)
    except Phi3LoraError as error:
        parser.exit(error.exit_status, f"Error: {error}\n")


if __name__ == "__main__":
    main()
