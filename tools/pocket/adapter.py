"""Make the bundled adapter anew: `python -m tools.pocket.adapter`.

Trains pocket Phi-3 on the pirate example with a small rank, proves it on held-out rows, and keeps
adapter and report: what Compare shows to whoever has trained nothing yet. About a minute on two
quiet cores; the same versions and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from phi3lora.config import RunConfig
from phi3lora.evaluation.report import evaluate
from phi3lora.lora.folder import CONFIG, WEIGHTS
from phi3lora.models.pocket import PIRATE
from phi3lora.recipes import load_recipe
from phi3lora.training.trainer import train

CHANGES = {"peft_config.r": 4, "peft_config.lora_alpha": 8, "training_config.learning_rate": 3e-3}
KEPT = (f"adapter/{CONFIG}", f"adapter/{WEIGHTS}", "report.json", "config.yaml")


def pirate_config() -> RunConfig:
    """The pocket recipe with a rank that makes a file of a quarter of a megabyte."""
    return load_recipe("pocket")[0].with_values({**CHANGES, "model.device": "cpu"})


def make(target: Path, config: RunConfig) -> None:
    """Train, evaluate, and put what is kept into a folder that replaces `target`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        train(config, folder, lambda event: None)
        evaluate(config, folder)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in KEPT:
            shutil.copy(folder / name, target / Path(name).name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=PIRATE, help="where the adapter is put")
    make(parser.parse_args().folder, pirate_config())
