"""One of the processes: `accelerate launch … -m tests.together FOLDER`.

FSDP is for GPUs in accelerate, and bfloat16 in transformers is for GPUs or for none. Both run on a
CPU, over gloo, once they are told that these processes have a GPU each: the fake part of these
tests is that answer, and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.importing import heavy_imports

with heavy_imports():
    from transformers import training_args

    from phi3lora.training import kinds, processes
    from phi3lora.training.trainer import train


def main() -> None:
    """Train every scenario of `scenarios.json`; the main process writes `found.json`."""
    folder = Path(sys.argv[1])
    found = {}
    for way, scenarios in json.loads((folder / "scenarios.json").read_text()).items():
        processes.prepare(way, int(os.environ["WORLD_SIZE"]))
        if way != "ddp":
            _pretend()
        if way.startswith("zero"):
            _without_compiler()
        found[way] = _trained(folder / way, scenarios)
    if processes.is_main():
        (folder / "found.json").write_text(json.dumps(found))


def _trained(folder: Path, scenarios: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, one in scenarios.items():
        config = RunConfig().with_values(one["changes"])
        events: list[Any] = []
        stop = _After(one["stop_after"])
        answers = _recorded() if config.method == "grpo" else []
        outcomes = [train(config, folder / name, events.append, stop)]
        if one["again"]:
            outcomes.append(train(config, folder / name, events.append))
        found[name] = {"outcomes": outcomes, "answers": answers, **_seen(events)}
    return found


def _recorded() -> list[list[list[int]]]:
    """What all processes will answer in the next training."""
    from phi3lora.training import grpo
    from tests.together.answers import Recorder

    grpo.FastGRPOTrainer, Recorder.said = Recorder, []  # type: ignore[misc]
    return Recorder.said


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
        "rewards": [step.reward for step in steps],
        "norms": [step.grad_norm for step in steps],
        "accuracies": [step.token_accuracy for step in steps],
        "tokens": [step.tokens for step in steps],
        "notices": [event.message for event in events if event.kind == "notice"],
    }


def _pretend() -> None:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    training_args.is_torch_bf16_gpu_available = lambda: True
    processes.join = lambda cpu: PartialState(timeout=processes.PATIENCE)
    made = kinds.SFTConfig
    kinds.SFTConfig = lambda *args, use_cpu, **rest: made(*args, **rest)  # type: ignore[assignment,misc]


def _without_compiler() -> None:
    """DeepSpeed goes over gloo, and compiles no kernel of its own for sums in shared memory.

    That takes minutes, and a build that was killed leaves a lock for which the next one waits.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


main()
