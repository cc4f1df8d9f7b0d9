"""Minutes of GPU quota: what a run takes, how it is cut, what fits into a day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from phi3lora.app.launching import blocking
from phi3lora.config import RunConfig
from phi3lora.hub.access import Identity
from phi3lora.models.hardware import Hardware
from phi3lora.runs.backends.quota import (
    FIRST,
    LONGEST,
    QUOTA,
    SAVING,
    Slice,
    quota_check,
    quota_seconds,
    shorter,
    spent,
    wanted_seconds,
    with_slice,
)
from phi3lora.runs.store import Lent, Run, RunState
from phi3lora.training.estimate import estimate_for
from phi3lora.training.preflight import Preflight
from phi3lora.training.speed import proof_seconds
from tests.test_estimate import inspection
from tests.test_machines import MINI

H200 = Hardware(
    "cuda", "NVIDIA H200 (ZeroGPU)", 70 * 2**30, 70 * 2**30, True, 8, (9, 0), 0, 60 / 132
)


def found(rows: int, **changes: Any) -> tuple[RunConfig, Preflight]:
    """Phi-3-mini on rows of 500 tokens, at 10,000 tokens a second."""
    config, seen = RunConfig().with_values(changes), inspection(kept=rows, length=500)
    need = estimate_for(config, MINI, H200, seen, 10_000.0)
    return config, Preflight([], seen, need, MINI)


def test_what_ends_within_a_day_is_green() -> None:
    check = quota_check(*found(300), None)
    assert check.level == "green"
    assert "5 min 00 s a day" in check.found


def test_what_does_not_is_refused_and_what_does_is_named() -> None:
    config, seen = found(9000)
    check = quota_check(config, seen, Identity("ann"))
    assert check.level == "red"
    assert blocking(replace(seen, checks=[check]))
    assert "A Job has no such limit" in check.remedy
    [fix] = check.fixes
    smaller, fits = found(fix.values["data.max_rows"], **fix.values)
    assert fix.values["data.max_rows"] > 500
    assert quota_check(smaller, fits, Identity("ann")).level == "green"
    assert quota_check(config, seen, Identity("ann", pro=True)).level == "green"


def test_updates_are_cut_where_they_are_what_was_asked_for() -> None:
    config, seen = found(9000, **{"training_config.max_steps": 5000})
    [fix] = quota_check(config, seen, None).fixes
    smaller, fits = found(9000, **fix.values)
    assert quota_check(smaller, fits, None).level == "green"
    assert 10 < fix.values["training_config.max_steps"] < 5000


def test_a_proof_that_alone_is_too_long_leaves_nothing_to_offer() -> None:
    config, seen = found(9000, **{"evaluation.rows": 5000})
    check = quota_check(config, seen, None)
    assert check.level == "red"
    assert check.fixes == ()


def test_what_is_not_known_is_said() -> None:
    config, seen = found(300)
    assert seen.estimate is not None
    for unknown in (
        replace(seen, base=None),
        replace(seen, estimate=None),
        replace(seen, estimate=replace(seen.estimate, seconds=None)),
    ):
        assert quota_check(config, unknown, None).level == "amber"


def test_each_slice_loads_again() -> None:
    config, _ = found(300)
    once = quota_seconds(config, MINI, 100)
    assert quota_seconds(config, MINI, 600) - once > 500 + 2 * 8
    unproved = config.with_values({"evaluation.enabled": False})
    assert once - quota_seconds(unproved, MINI, 100) > proof_seconds(config)


@dataclass
class Refusal(Exception):
    title: str
    message: str


@pytest.fixture
def run(settings: Any) -> Callable[..., Run]:
    def make(outcome: str | None = None, **lent: Any) -> Run:
        state = RunState(id="20261121-093000-4f1a2b", outcome=outcome, lent=Lent(**lent))
        return Run(settings.runs_folder / state.id, state)

    return make


def test_how_long_a_slice_is(run: Callable[..., Run]) -> None:
    assert wanted_seconds(run()) == FIRST
    slow = run(slices=1, longest_loading=30, per_step=1, steps_left=1000)
    assert wanted_seconds(slow) == 30 / 0.2 + SAVING, "a fifth of it loads"
    never = run(slices=1, longest_loading=200, per_step=1, steps_left=1000)
    assert wanted_seconds(never) == LONGEST
    nearly = run(slices=1, longest_loading=30, per_step=1, steps_left=10)
    assert wanted_seconds(nearly) == 30 + SAVING + 12, "no more than is needed"


def test_what_is_asked_for_after_a_refusal(run: Callable[..., Run]) -> None:
    left = Refusal("ZeroGPU quota exceeded", "(60s requested vs. 45s left)")
    none = Refusal("ZeroGPU quota exceeded", "(60s requested vs. 12s left)")
    assert shorter(left, 60, run()) == 45
    assert shorter(left, 60, run(), factor=1.5) == 30
    assert shorter(none, 60, run()) is None
    assert shorter(left, 60, run(slices=1, longest_loading=40)) is None, "loading alone takes that"
    assert shorter(left, 60, run("finished")) is None, "the proof is one slice"
    long = Refusal("ZeroGPU illegal duration", "(240s) is larger than the maximum allowed")
    assert shorter(long, 240, run()) == 120
    assert shorter(long, 40, run()) is None
    assert shorter(ValueError("60s left"), 60, run()) is None


def test_what_was_lost_is_counted() -> None:
    lent = with_slice(Lent(), Slice("paused", 11, 11, 40, loading=20, seconds=60))
    assert (lent.per_step, lent.steps_left) == (4, 29)
    lent = with_slice(lent, Slice("finished", 40, 29, 40, loading=10, seconds=140))
    assert (lent.slices, lent.longest_loading, lent.steps_left) == (2, 20, 0)
    assert spent(lent) == "It used 3 min 20 s of GPU quota in 2 slices; 15% of that was loading."
    assert QUOTA["free"] == 300
