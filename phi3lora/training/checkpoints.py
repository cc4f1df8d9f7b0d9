"""Checkpoints of a run: which are whole, and what a resume takes from them.

checkpoint = last_whole_checkpoint(folder / "checkpoints")
keep_within(checkpoint)        # a checkpoint may be a stranger's: it names no other place
"""

from __future__ import annotations

import json
from pathlib import Path

from phi3lora.errors import TrainingError

STATE = "trainer_state.json"


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    The trainer writes `trainer_state.json` last, so a checkpoint without it, or with half of it,
    was cut short by a crash.
    """
    found = sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True)
    return next((path for path in found if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are there and its last one is complete."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    needed = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]
    weights = [*checkpoint.glob("*.safetensors")]
    return bool(
        state.get("global_step") == _step_of(checkpoint)
        and weights
        and all((checkpoint / name).is_file() for name in needed)
    )


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def keep_within(checkpoint: Path) -> None:
    """Let a checkpoint call no other place its best but a neighbour of its own.

    The trainer loads whatever `best_model_checkpoint` names, and a run that was brought back from
    the Hub may have been written by anybody. Raises TrainingError where it cannot be mended.
    """
    file = checkpoint / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        best = state.get("best_model_checkpoint")
        if best is None:
            return
        own = checkpoint.parent / Path(str(best)).name
        state["best_model_checkpoint"] = str(own) if is_whole(own) else None
        file.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{checkpoint.name} cannot be read: {error}.") from None
