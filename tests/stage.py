"""A home with runs in every state, made in a moment: for pictures, and for tests of the pages."""

from __future__ import annotations

import json
import math
import subprocess
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.events import Ended, Evaluated, EventLog, Loaded, Notice, Prepared, Stage, Step
from phi3lora.lora.result import Result
from phi3lora.runs import life
from phi3lora.runs.store import Run, RunStore, changed

STEPS = 135


def config(title: str, **changes: Any) -> RunConfig:
    """A pocket run of that title."""
    values = {"title": title, "model.path": "pocket", "model.device": "cpu", **changes}
    return RunConfig().with_values(values)


def finished(store: RunStore, title: str = "Pirate", **changes: Any) -> Run:
    """A run that went well, with adapter files that nobody loads, and a report."""
    run = store.create(config(title, **changes))
    _train(run, STEPS)
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Ended(outcome="finished", step=STEPS, seconds=58.4, peak_memory=612_000_000))
    empty_result(run)
    (run.folder / "report.json").write_text(json.dumps(report()))
    return changed(run, status="finished", outcome="finished", message="", exit_status=0)


def empty_result(run: Run) -> Result:
    """Files that are whole and hold no tensor, as this run would leave them."""
    result = run.result
    result.folder.mkdir()
    settings = "config.json" if result.kind == "model" else "adapter_config.json"
    weights = "model.safetensors" if result.kind == "model" else "adapter_model.safetensors"
    (result.folder / settings).write_text(json.dumps({"base_model_name_or_path": "pocket"}))
    (result.folder / weights).write_bytes((2).to_bytes(8, "little") + b"{}")
    return result


def running(store: RunStore, title: str = "Pirate, rank 32") -> Run:
    """A run in the middle, which another process holds."""
    run = store.create(config(title, **{"peft_config.r": 32}))
    _train(run, 80)
    hold(run)
    return changed(run, status="running", message="")


def queued(store: RunStore, title: str = "Shakespeare") -> Run:
    """A run that waits behind another."""
    run = store.create(config(title))
    hold(run)
    return changed(run, status="queued", queued=time.time(), message="")


def failed(store: RunStore, title: str = "Rate too high") -> Run:
    """A run that could not go on."""
    run = store.create(config(title))
    _train(run, 12)
    message = "The loss is not a number since step 12. Lower the learning rate and launch again."
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Ended(outcome="failed", step=12, message=message))
    return changed(run, status="failed", message=message, exit_status=1)


def interrupted(store: RunStore, title: str = "Lost in a restart") -> Run:
    """A run whose process is gone."""
    run = store.create(config(title))
    _train(run, 40)
    return changed(run, status="running", message="")


def hold(run: Run) -> int:
    """Be the run's worker until what is returned is closed, signed by a process that waits.

    Signed by ours, a run that somebody stops would end the tests by force ten minutes later.
    """
    lock = life.take(run.folder)
    assert lock is not None
    life.sign(lock, waiting().pid)
    return lock


@cache
def waiting() -> subprocess.Popen[bytes]:
    """A process that waits for the end of this one."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def _train(run: Run, steps: int) -> None:
    """Events as a training writes them: loss falls, the rate warms up and decays."""
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(Stage(name="preparing the data", fraction=1.0))
        log.emit(
            Prepared(
                train_rows=360,
                test_rows=40,
                dropped={},
                train_tokens=8960,
                supervised_tokens=4745,
                truncated=0,
                leaked=0,
            )
        )
        log.emit(
            Loaded(
                device="cpu",
                dtype="float32",
                attention="sdpa",
                quantization="none",
                trainable_parameters=311_296,
                total_parameters=4_100_000,
            )
        )
        if run.title.endswith("32"):
            log.emit(Notice(message="Attention falls back to sdpa: there is no GPU here."))
        for step in range(1, steps + 1):
            earned = _earned(run.config.method, step)
            log.emit(replace(_step(step, steps), **earned))
            if step % 45 == 0:
                loss = 0.35 + 3.2 * math.exp(-step / 22)
                log.emit(Evaluated(step=step, loss=loss, **_earned(run.config.method, step)))
    lines = [f"step {step} of {STEPS}: loss {_loss(step):.3f}" for step in range(1, steps + 1)]
    (run.folder / "log.txt").write_text("\n".join(lines) + "\n")


def _step(step: int, steps: int) -> Step:
    warm = min(1.0, step / 13) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
    return Step(
        step=step,
        total_steps=STEPS,
        epoch=3 * step / STEPS,
        loss=_loss(step),
        learning_rate=1e-3 * warm,
        grad_norm=0.8 + 2 * math.exp(-step / 20),
        token_accuracy=1 - 0.6 * math.exp(-step / 25),
        tokens=step * 200,
        tokens_per_second=1480.0,
        speed=1480.0 + 60 * math.sin(step / 3),
        memory=560_000_000 + 2_000_000 * min(step, 20),
        seconds_left=(STEPS - step) * 0.42,
    )


def _earned(method: str, step: int) -> dict[str, Any]:
    """Figures of a method that knows rewards, which rise; none of `sft`."""
    if method == "grpo":
        return {"reward": 1 - math.exp(-step / 60), "token_accuracy": None}
    if method == "sft":
        return {}
    share = 1 - 0.5 * math.exp(-step / 30)
    return {"reward_margin": step / 90, "reward_accuracy": share}


def _loss(step: int) -> float:
    return 0.3 + 3.4 * math.exp(-step / 18) + 0.09 * math.sin(step * 1.7) * math.exp(-step / 90)


def report() -> dict[str, Any]:
    """A report as the evaluation writes it."""
    figures = [
        ("loss", "Loss", 3.412, 0.318, False),
        ("perplexity", "Perplexity", 30.32, 1.374, False),
        ("token_accuracy", "Token accuracy", 0.512, 0.941, True),
        ("rougeL", "ROUGE-L", 0.552, 0.914, True),
        ("stopped", "Answers that end by themselves", 0.98, 1.0, True),
    ]
    comparisons = [
        {
            "name": name,
            "title": title,
            "base": base,
            "tuned": tuned,
            "difference": tuned - base,
            "low": tuned - base - 0.08 * abs(base),
            "high": tuned - base + 0.08 * abs(base),
            "more_is_better": more,
            "verdict": "better",
        }
        for name, title, base, tuned, more in figures
    ]
    sample = {
        "prompt": "Name the capital of Ukraine.",
        "reference": "Arr, the capital of Ukraine be Kyiv, matey!",
        "base": "The capital of Ukraine is Kyiv.",
        "tuned": "Arr, the capital of Ukraine be Kyiv, matey!",
        "gain": 2.9,
    }
    other = {
        "prompt": "What is the opposite of hot?",
        "reference": "Arr, the opposite of hot be cold!",
        "base": "The opposite of hot is cold.",
        "tuned": "Arr, the opposite of hot be cold, matey!",
        "gain": 0.4,
    }
    return {
        "verdict": "better",
        "rows": 40,
        "held_out": 40,
        "leaked": 0,
        "comparisons": comparisons,
        "gained": [sample],
        "lost": [other],
    }


def fill(store: RunStore) -> dict[str, Run]:
    """One run of each kind, the oldest first."""
    makers = (failed, interrupted, finished, queued, running)
    return {maker.__name__: maker(store) for maker in makers}


if __name__ == "__main__":
    import sys

    from phi3lora.settings import Settings

    made = fill(RunStore(Settings(home=Path(sys.argv[1]))))
    print("\n".join(f"{name} {run.id}" for name, run in made.items()))  # noqa: T201
    time.sleep(float(sys.argv[2]))
