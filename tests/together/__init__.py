"""Trainings by several processes of a CPU, over gloo.

    found = trained({"ddp": scenarios, "fsdp2": scenarios}, folder)

One launch trains all scenarios, one after another: most of its time goes into importing torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phi3lora.recipes import launch_files

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Scenario:
    """A training by `train`: changes to the default config, and when somebody asks to stop."""

    changes: dict[str, Any] = field(default_factory=dict)
    stop_after: int = 0  # steps; 0 for never
    again: bool = False  # the same folder once more, to its end


def trained(
    scenarios: dict[str, dict[str, Scenario]], folder: Path, number: int = 2
) -> dict[str, dict[str, dict[str, Any]]]:
    """What the main process saw, by way and scenario: outcome, figures of each step, notices.

    Args:
        number: of processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        way: {name: asdict(one) for name, one in ones.items()} for way, ones in scenarios.items()
    }
    (folder / "scenarios.json").write_text(json.dumps(wanted))
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(launch_files()["ddp"]), "--num_processes", str(number)),
            *("--main_process_port", "0", "-m", "tests.together", str(folder)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found: dict[str, dict[str, dict[str, Any]]] = json.loads((folder / "found.json").read_text())
    return found
