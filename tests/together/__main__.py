"""One of the processes: `accelerate launch … -m tests.together FOLDER`.

FSDP is for GPUs in accelerate. It runs on a CPU, over gloo, once accelerate is told that these
processes have one each: the fake part of these tests is that answer, and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.training import processes
from phi3lora.training import trainer as module
from phi3lora.training.trainer import train


def main() -> None:
    """Train every scenario of `scenarios.json`; the main process writes `found.json`."""
    folder = Path(sys.argv[1])
    if processes.sharing() == "fsdp2":
        _pretend()
    found = {}
    for name, one in json.loads((folder / "scenarios.json").read_text()).items():
        config = RunConfig().with_values(one["changes"])
        events: list[Any] = []
        stop = _After(one["stop_after"])
        outcomes = [train(config, folder / name, events.append, stop)]
        if one["again"]:
            outcomes.append(train(config, folder / name, events.append))
        found[name] = {"outcomes": outcomes, **_seen(events)}
    if processes.is_main():
        (folder / "found.json").write_text(json.dumps(found))


class _After:
    """Asks to stop after so many steps; the main process alone is asked."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        assert processes.is_main(), "the main process alone is asked"
        self.left -= 1
        return self.left == 0


def _seen(events: list[Any]) -> dict[str, Any]:
    steps = [event for event in events if event.kind == "step" and event.loss is not None]
    return {
        "events": [event.kind for event in events],
        "losses": [step.loss for step in steps],
        "norms": [step.grad_norm for step in steps],
        "accuracies": [step.token_accuracy for step in steps],
        "tokens": [step.tokens for step in steps],
        "notices": [event.message for event in events if event.kind == "notice"],
    }


def _pretend() -> None:
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    processes.join = lambda cpu: PartialState(timeout=processes.PATIENCE)
    made = module.SFTConfig
    module.SFTConfig = lambda *args, use_cpu, **rest: made(*args, **rest)  # type: ignore[assignment,misc]


main()
