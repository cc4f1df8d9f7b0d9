"""Checkpoints of a run: which are whole, and what a resume takes from them.

    checkpoint = newest_whole(folder / "checkpoints", notify)
    keep_within(checkpoint)        # a checkpoint may be a stranger's: it names no other place
    training_was_over(checkpoint)  # its weights are the result; nothing is left to train

A checkpoint is sealed when it is complete (see `files`): what was cut short by a crash has no
manifest and is removed, what was damaged later does not match its own and is set aside.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phi3lora import files
from phi3lora.errors import TrainingError

logger = logging.getLogger(__name__)
STATE = "trainer_state.json"
UNNEEDED = ("training_args.bin", "README.md")  # nobody reads them, and backups leave them out
ASIDE = "damaged-"  # before the name of a checkpoint that was set aside
Notify = Callable[[str], None]


def newest_whole(folder: Path, notify: Notify) -> Path | None:
    """The newest checkpoint that can be gone on from, or None.

    Newer ones that are damaged are set aside, and `notify` hears their names; one whose best
    checkpoint is damaged counts as damaged, for the end of its training would be another.
    """
    drop_unfinished(folder)
    for path in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        reason = damage(path)
        if reason is None and (best := best_of(path)) and best.exists() and best != path:
            lost = damage(best)
            reason = f"the best checkpoint, {best.name}, is damaged: {lost}" if lost else None
        if reason is None:
            return path
        _set_aside(path, reason, notify)
    return None


def drop_unfinished(folder: Path) -> None:
    """Remove what a crash, or a full disk, left half written."""
    for path in folder.glob("checkpoint-*"):
        if not is_finished(path):
            logger.warning("removing %s, which was not written to its end", path.name)
            shutil.rmtree(path, ignore_errors=True)


def is_finished(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end; it may have been damaged since."""
    return files.is_sealed(checkpoint) or _looks_whole(checkpoint)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None where it can be gone on from."""
    if not files.is_sealed(checkpoint):
        return None if _looks_whole(checkpoint) else "it is not complete"
    return files.damage(checkpoint, without=UNNEEDED)


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is complete, once it is on the disk."""
    files.seal(checkpoint, without=UNNEEDED)


def _looks_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint without a manifest, of an older version, has all it needs.

    The trainer writes `trainer_state.json` last. One that says that a manifest follows was cut
    short before it.
    """
    state = _read(checkpoint)
    return bool(
        state.get("global_step") == _step_of(checkpoint)
        and not _told(state, "Progress", "args").get("sealed")
        and any(checkpoint.glob("*.safetensors"))
        and any(checkpoint.glob("rng_state*.pth"))  # one for each process
        and all((checkpoint / name).is_file() for name in ("optimizer.pt", "scheduler.pt"))
    )


def training_was_over(checkpoint: Path) -> bool:
    """Whether the training had ended when it was saved: by its last step, or before, for good.

    One that somebody stopped, or that was paused, had not.
    """
    state = _read(checkpoint)
    asked = _told(state, "TrainerControl", "args").get("should_training_stop") is True
    by_itself = _told(state, "Progress", "args").get("outcome") == "finished"
    steps = state.get("global_step", 0), state.get("max_steps", 0)
    return (asked and by_itself) or steps[0] >= steps[1] > 0


def best_of(checkpoint: Path) -> Path | None:
    """The neighbour that a checkpoint calls its best; it may not exist."""
    best = _read(checkpoint).get("best_model_checkpoint")
    return None if best is None else checkpoint.parent / Path(str(best)).name


def keep_within(checkpoint: Path, notify: Notify = logger.warning) -> None:
    """Let a checkpoint call no other place its best but a neighbour of its own.

    The trainer loads whatever `best_model_checkpoint` names, and a run that was brought back from
    the Hub may have been written by anybody. Raises TrainingError where it cannot be mended.
    """
    file = checkpoint / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        named, own = state.get("best_model_checkpoint"), best_of(checkpoint)
        if own is None:
            return
        if not own.is_dir() or damage(own):
            notify(
                f"The best checkpoint so far, {own.name}, is not here; the best of the steps to "
                "come is taken."
            )
        kept = str(own) if own.is_dir() and not damage(own) else None
        if kept == named:
            return
        state["best_model_checkpoint"] = kept
        files.write_whole(file, json.dumps(state, indent=2, sort_keys=True) + "\n")
        if files.is_sealed(checkpoint):
            seal(checkpoint)
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{checkpoint.name} cannot be read: {error}.") from None


def _set_aside(checkpoint: Path, reason: str, notify: Notify) -> None:
    """Keep a damaged checkpoint under a name that nothing resumes from."""
    place = checkpoint.with_name(ASIDE + checkpoint.name)
    shutil.rmtree(place, ignore_errors=True)
    checkpoint.rename(place)
    notify(
        f"{checkpoint.name} is damaged ({reason}). It was set aside as {place.name}, and the run "
        "goes on from the one before."
    )


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _read(checkpoint: Path) -> dict[str, Any]:
    """`trainer_state.json`; empty where it cannot be read."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _told(state: dict[str, Any], callback: str, part: str) -> dict[str, Any]:
    """What a callback kept in a checkpoint."""
    kept: Any = state.get("stateful_callbacks")
    for name in (callback, part):
        kept = kept.get(name) if isinstance(kept, dict) else None
    return kept if isinstance(kept, dict) else {}
