"""What a run takes of its visitor's daily GPU quota (ZeroGPU), and how it is cut into slices.

quota_check(config, found, who)       before the launch: its minutes, beside those of a day
wanted_seconds(run)                   how long the next slice should be
spent(run.state.lent)                 what it had so far, and how much of that was loading
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from phi3lora import words
from phi3lora.checks import Check, Fix
from phi3lora.config import RunConfig
from phi3lora.hub.access import Identity
from phi3lora.models.base import BaseInfo
from phi3lora.runs.store import Lent, Run
from phi3lora.training.preflight import Preflight
from phi3lora.training.speed import proof_seconds

FIRST = 60.0  # seconds of the first slice, which finds out how long loading takes
LONGEST = 240.0
SAVING = 10.0  # seconds at a slice's end in which no step begins: for the checkpoint
LOADING_SHARE = 0.2  # of a slice, at most, goes into loading
SHORTEST = 30.0  # seconds of a slice; less would be spent on loading
SPARE = 1.2  # times the seconds that the last steps should take
PROOF = 30.0  # seconds asked for beside those of the proof's answers
# Seconds of a GPU a day, as documented in August 2026; the Hub gives them on no request.
QUOTA = {"free": 300.0, "PRO": 2400.0}
# Until the first step of a slice, assumed until one was measured: the fork, and the base's weights.
FORKING, READ_A_SECOND = 8.0, 1e9  # seconds, bytes
LEAST_ROWS = 20  # that a run is still offered to be cut down to
KEPT_BACK = 0.9  # of a day's quota is what a smaller run is made to fit
LEFT = re.compile(r"(\d+)s left")


@dataclass(frozen=True)
class Slice:
    """What a slice came to.

    Attributes:
        outcome: `finished`, `stopped` or `paused`, as `train` returned it.
        step: updates made so far, in all slices.
        steps: of them, those of this slice.
        total: updates of the whole run.
        loading: seconds until the first step began.
        seconds: of the device, all in all.
    """

    outcome: str
    step: int
    steps: int
    total: int
    loading: float
    seconds: float


def added(lent: Lent, seconds: float) -> Lent:
    return lent.model_copy(update={"slices": lent.slices + 1, "seconds": lent.seconds + seconds})


def with_slice(lent: Lent, found: Slice) -> Lent:
    """What a run had of lent GPUs, one slice of the training more."""
    later = found.steps - 1  # the first one counts as loading: it is seen when it is done
    made = (found.seconds - found.loading) / later if later > 0 else lent.per_step
    return Lent(
        slices=lent.slices + 1,
        seconds=lent.seconds + found.seconds,
        loading=lent.loading + found.loading,
        longest_loading=max(lent.longest_loading, found.loading),
        per_step=made,
        steps_left=found.total - found.step if found.total else lent.steps_left,
    )


def spent(lent: Lent) -> str:
    """What a run had of lent GPUs, in words."""
    return (
        f"It used {words.duration(lent.seconds)} of GPU quota in "
        f"{words.counted(lent.slices, 'slice')}; {lent.lost:.0%} of that was loading."
    )


def wanted_seconds(run: Run) -> float:
    """How long the next slice should be: a fifth of it at most loads, and no more than needed.

    A slice of the training finds out how long loading and a step take; the proof is one slice.
    """
    lent = run.state.lent
    if run.state.outcome == "finished":
        return min(PROOF + lent.longest_loading + proof_seconds(run.config), LONGEST)
    if not lent.slices:
        return min(FIRST, LONGEST)
    seconds = max(FIRST, lent.longest_loading / LOADING_SHARE + SAVING)
    if lent.steps_left is not None and lent.per_step:
        rest = lent.longest_loading + SAVING + SPARE * lent.steps_left * lent.per_step
        seconds = min(seconds, max(rest, SHORTEST))
    return min(seconds, LONGEST)


def shorter(error: Exception, seconds: float, run: Run, factor: float = 1.0) -> float | None:
    """Seconds to ask for after a refusal: what is left of the quota, if that brings steps.

    Args:
        factor: seconds of quota that `spaces` asks for, for each of ours.
    """
    title = str(getattr(error, "title", ""))
    if title == "ZeroGPU illegal duration":
        left: float | None = seconds / 2
    elif title == "ZeroGPU quota exceeded":
        found = seconds_left(error)
        left = found and found // factor
    else:
        return None
    lent = run.state.lent
    least = max(SHORTEST, lent.longest_loading + SAVING + 2 * lent.per_step)
    if run.state.outcome == "finished" or left is None or not least <= left < seconds:
        return None
    return left


def seconds_left(error: Exception) -> float | None:
    """What is left of a quota, if the refusal says so."""
    found = LEFT.search(str(getattr(error, "message", error)))
    return float(found[1]) if found else None


def quota_check(config: RunConfig, found: Preflight, who: Identity | None) -> Check:
    """Whether the run can end on what its visitor has of a GPU in a day.

    Args:
        who: the visitor; None where that is not known, who is taken to have a free account.
    """
    kind = "PRO" if who is not None and who.pro else "free"
    day = QUOTA[kind]
    has = f"a {kind} account has {words.duration(day)} a day"
    if found.base is None or found.estimate is None or found.estimate.seconds is None:
        return Check("Quota", "amber", f"How much GPU quota it takes is not known; {has}.")
    need = quota_seconds(config, found.base, found.estimate.seconds)
    said = f"About {words.duration(need)} of GPU quota, in slices while the page is open; {has}."
    if need <= day:
        return Check("Quota", "green", said)
    fixes = tuple(_smaller(config, found, day))
    remedy = " ".join(f"{fix.label}: it fits." for fix in fixes)
    pro = " PRO has enough." if kind == "free" and need <= QUOTA["PRO"] else ""
    return Check("Quota", "red", said, f"{remedy}{pro} A Job has no such limit.".strip(), fixes)


def quota_seconds(config: RunConfig, base: BaseInfo, training: float) -> float:
    """Seconds of a GPU for a run whose training alone takes so many."""
    loading = FORKING + base.stored / READ_A_SECOND
    slices = max(math.ceil(training / (LONGEST - SAVING - loading)), 1)
    proof = proof_seconds(config)
    return training + slices * loading + (loading + proof if proof else 0.0)


def _smaller(config: RunConfig, found: Preflight, day: float) -> Iterator[Fix]:
    """The same run on as many rows, or for as many updates, as a day's quota is enough for."""
    need = found.estimate.seconds
    room = KEPT_BACK * day - (quota_seconds(config, found.base, need) - need)
    if room <= 0:
        return
    if config.training_config.max_steps > 0:
        steps = int(found.estimate.steps * room / need)
        if steps:
            label = f"Make {words.counted(steps, 'update')}"
            yield Fix(label, {"training_config.max_steps": steps})
    elif (rows := int(_rows(found.inspection) * room / need)) >= LEAST_ROWS:
        yield Fix(f"Train on {words.count(rows)} rows", {"data.max_rows": rows})


def _rows(inspection: Any) -> int:
    """Rows of the whole source, as far as that is known."""
    expected = None if inspection.complete else inspection.expected
    return int(expected.rows if expected else inspection.rows)
