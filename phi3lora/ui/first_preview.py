"""The preview that the first page opens with: of the bundled example, as the pocket base reads it.

    python -m phi3lora.ui.first_preview        writes it again

It is kept with the package, for neither the example nor the base ever changes: the page shows it
before any library of a training is imported, and the page's own preflight replaces it.
tests/test_ui.py sees that it is what a preflight finds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

FILE = Path(__file__).with_name("first_preview.json")
POCKET_RECIPE, GPU_RECIPE = "pocket", "phi3-mini-lora"


def first_recipe() -> str:
    """Phi-3-mini where there is a GPU, pocket elsewhere; without asking torch."""
    return GPU_RECIPE if shutil.which("nvidia-smi") else POCKET_RECIPE


def first_preview() -> tuple[str, str] | None:
    """The preview and the line of its step; None where the form opens with another recipe.

    Its class tells which one it is: skeleton.html hides it where a draft, or the address, will
    fill the form with something else.
    """
    if first_recipe() != POCKET_RECIPE:
        return None
    summary, line = json.loads(FILE.read_text(encoding="utf-8"))
    return f'<div class="kept-preview">{summary}</div>', line


def computed() -> tuple[str, str]:
    """The same from a preflight of the data."""
    from phi3lora.app.preflights import Preflights
    from phi3lora.recipes import load_recipe
    from phi3lora.settings import Settings
    from phi3lora.training.preflight import Preflight
    from phi3lora.ui.train_show import data_line, data_summary

    config, _ = load_recipe(POCKET_RECIPE)
    done = Preflight([], Preflights(Settings.from_environment()).inspection(config))
    return data_summary(config, done), data_line(config, done)


def main() -> None:
    """Compute and write it."""
    text = json.dumps(computed(), indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
