"""LLaMA-Factory's training step, by an interpreter that has it: it needs versions of its own.

    python -m venv FOLDER && FOLDER/bin/pip install torch==2.13.0 llamafactory
    python -m benchmarks.training --llamafactory FOLDER/bin/python

This file is also what that interpreter runs. It stays alive between its turns: a line on standard
input is a turn, and the answer is a line with the seconds of a step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANSWER = "turn: "


class LlamaFactory:
    """The contestant, as the benchmark sees it."""

    def __init__(self, python: str, wishes: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [python, "-I", __file__, json.dumps(wishes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.facts = self._read()

    def step(self) -> float:
        """A turn: a few steps; seconds of one."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.facts |= self._read()
        return float(self.facts["seconds"])

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return dict(json.loads(line.removeprefix(ANSWER)))
        raise RuntimeError(f"LLaMA-Factory ended with {self._process.wait()}; run it by hand.")


@contextmanager
def llamafactory(python: str, wishes: dict[str, Any]) -> Iterator[LlamaFactory]:
    """A contestant for the length of a `with` block."""
    contestant = LlamaFactory(python, wishes)
    try:
        yield contestant
    finally:
        contestant.close()


# What its own interpreter runs


def serve(wishes: dict[str, Any]) -> None:
    """Take turns until standard input ends."""
    import torch

    if wishes["clock"] == "cpu":
        torch.set_num_threads(1)
    _answer(_versions())
    for _ in sys.stdin:
        _answer(_turn(wishes))


def _turn(wishes: dict[str, Any]) -> dict[str, float]:
    """`llamafactory-cli train` with a file of these values, and a clock."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    now = time.process_time if wishes["clock"] == "cpu" else time.perf_counter
    moments: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not moments:
                moments.append(now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append(now())

    run_exp(_arguments(wishes), [Clock()])
    return {"seconds": (moments[-1] - moments[0]) / wishes["steps"], "peak": _peak()}


def _arguments(wishes: dict[str, Any]) -> dict[str, Any]:
    """The YAML file, as its documentation writes one; packing without leaks is `neat_packing`."""
    folder = Path(wishes["folder"])
    rows = {"rows": {"file_name": wishes["rows"]}}
    (folder / "dataset_info.json").write_text(json.dumps(rows), encoding="utf-8")
    return {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "model_name_or_path": wishes["base"],
        "template": "phi",
        "dataset_dir": str(folder),
        "dataset": "rows",
        "output_dir": str(folder / "out"),
        "overwrite_output_dir": True,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "cutoff_len": wishes["length"],
        "packing": True,
        "neat_packing": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "disable_gradient_checkpointing": not wishes["checkpointing"],
        "learning_rate": 1e-4,
        "max_steps": wishes["steps"],
        "bf16": True,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 42,
    }


def _versions() -> dict[str, Any]:
    from importlib.metadata import version

    names = ("llamafactory", "torch", "transformers", "peft", "trl")
    return {"versions": {name: version(name) for name in names}}


def _peak() -> float:
    """Bytes that this process held at most."""
    import resource

    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _answer(values: dict[str, Any]) -> None:
    print(ANSWER + json.dumps(values), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
