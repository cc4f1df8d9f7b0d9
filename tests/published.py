"""A finished run that nobody had to train, for tests of what is done with one."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from phi3lora.config import RunConfig
from phi3lora.events import Ended, Evaluated, EventLog, Loaded, Prepared, Step
from phi3lora.models.pocket import CHECKPOINT

TENSORS = "adapter_model.safetensors"
EVENTS = (
    Prepared(
        train_rows=360,
        test_rows=40,
        dropped={"empty answer": 3},
        train_tokens=8981,
        supervised_tokens=4769,
        truncated=2,
        leaked=1,
    ),
    Loaded(
        device="cpu",
        dtype="float32",
        attention="sdpa",
        quantization="none",
        trainable_parameters=59_392,
        total_parameters=3_862_784,
        hardware="A very fine CPU",
    ),
    Step(step=1, total_steps=3, loss=3.5),
    Step(step=2, total_steps=3, loss=2.25),
    Evaluated(step=2, loss=2.5),
    Step(step=3, total_steps=3, loss=1.125),
    Ended(outcome="finished", step=3, seconds=83.0, peak_memory=3 << 29),
)
REPORT: dict[str, Any] = {
    "verdict": "better",
    "rows": 40,
    "held_out": 40,
    "leaked": 1,
    "comparisons": [
        {
            "name": "loss",
            "title": "Loss",
            "base": 3.25,
            "tuned": 1.5,
            "difference": -1.75,
            "low": -2.0,
            "high": -1.5,
            "more_is_better": False,
            "verdict": "better",
        },
        {
            "name": "rougeL",
            "title": "ROUGE-L",
            "base": 0.25,
            "tuned": 0.5,
            "difference": 0.25,
            "low": -0.125,
            "high": 0.375,
            "more_is_better": True,
            "verdict": "cannot tell",
        },
    ],
    "gained": [
        {
            "prompt": "Where is the treasure?",
            "reference": "Arr, under the palm.",
            "base": "It is on the island.",
            "tuned": "Arr, on the isle.",
            "gain": 1.5,
        }
    ],
    "lost": [
        {
            "prompt": "Who are you?",
            "reference": "Arr, a pirate.",
            "base": "A model.",
            "tuned": "```<script>Arr</script>",
            "gain": -0.5,
        }
    ],
}


def make_run(folder: Path, values: dict[str, Any] | None = None) -> Path:
    """A run folder as a finished training leaves it, checkpoints and pickles included."""
    folder.mkdir(parents=True, exist_ok=True)
    config = RunConfig().with_values({"model.path": "pocket", "title": "Pirate", **(values or {})})
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    (folder / "log.txt").write_text("A log stays at home.")
    with EventLog(folder / "events.jsonl") as log:
        for event in EVENTS:
            log.emit(event)
    for place in (folder / "adapter", folder / "checkpoints" / "checkpoint-3"):
        place.mkdir(parents=True)
        for name, data in adapter_files().items():
            (place / name).write_bytes(data)
        (place / "training_args.bin").write_bytes(b"a pickle")
    return folder


@cache
def adapter_files(base: str = "pocket") -> dict[str, bytes]:
    """A real adapter for the pocket Phi-3, its B not zero, so that it changes what is said."""
    import tempfile

    from phi3lora.lora.adapters import attach_adapter, save_adapter
    from phi3lora.models.loading import load_model, load_tokenizer

    config = RunConfig().with_values({"model.path": "pocket", "peft_config.r": 4})
    model: Any = load_model(config.model, for_training=True)
    model = attach_adapter(model, config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, Path(folder), config)
        load_tokenizer("pocket").save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def base_files() -> dict[str, bytes]:
    """The pocket Phi-3 as a model repository."""
    card = b"---\nlicense: apache-2.0\n---\n# A base\n"
    files = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir() if path.is_file()}
    return {**files, "README.md": card}
