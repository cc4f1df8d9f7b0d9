"""Where else a run's curves are: in the experiment tracker that it reports to.

found = tracker_of(run)
found.title, found.address, found.command      "Weights & Biases", "https://wandb.ai/…", ""
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from phi3lora.errors import Phi3LoraError
from phi3lora.runs.store import Run

HEAD = 262_144  # bytes at a log's begin, where wandb names its page
# As wandb 0.12 to 0.2x say it: "View run at URL", "View run NAME at: URL".
_WANDB = re.compile(r"View run\b.{0,200}?\bat:? (https?://[\w.:/%-]+)")


@dataclass(frozen=True)
class Tracker:
    """One of them.

    Attributes:
        address: its page; empty where it is not known, or where it has none.
        command: what shows it on the machine that holds the run; empty where a page does.
    """

    title: str
    address: str = ""
    command: str = ""


def tracker_of(run: Run) -> Tracker | None:
    """What the run has reported to; None where it reports nowhere, or has not begun to."""
    try:
        name = run.config.training_config.report_to
    except Phi3LoraError:  # its message says that the config cannot be read
        return None
    place = run.folder.resolve() / name
    if name == "wandb":
        found = _WANDB.search(_head_of_log(run))
        return Tracker("Weights & Biases", address=found[1]) if found else None
    if name == "none" or not place.is_dir():
        return None
    folder = shlex.quote(str(place))
    if name == "tensorboard":
        return Tracker("TensorBoard", command=f"tensorboard --logdir {folder}")
    return Tracker("Trackio", command=f"TRACKIO_DIR={folder} trackio show")


def _head_of_log(run: Run) -> str:
    try:
        with (run.folder / "log.txt").open("rb") as file:
            return file.read(HEAD).decode("utf-8", "replace")
    except OSError:
        return ""
