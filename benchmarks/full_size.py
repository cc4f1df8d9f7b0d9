"""A Phi-3-mini of full size, random weights, in 4 bits: does it load and train on this machine?

    python -m benchmarks.full_size [CONFIG_FOLDER] [--layers 32] [--tokens 128]

CONFIG_FOLDER holds Phi-3-mini's `config.json` and vocabulary. The weights are made shard by shard
in a temporary folder (7.6 GB), then a run with `model.quantization: nf4` and LoRA on all linear
layers trains on them for two steps, as any run does. Its process is ended if it comes to hold more
than `--limit` GiB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import DATA, DOCS, Goal, Report, Table, publish

SHARD = 10**9  # bytes
GIB = 2**30
LIMIT = 14.0  # GiB


def main() -> None:
    """Make the checkpoint, and train on it, each in a process of its own."""
    options = _options()
    if options.make:
        make(options.config, options.layers, options.make)
    elif options.train:
        train(options.train, options.tokens)
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _need_room(folder)
            seconds = _child("--make", folder, options.limit)[0]
            total, peak = _child("--train", folder, options.limit)
            publish(_report(folder, seconds, total, peak, options), options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path, nargs="?", default=DATA / "phi-3-mini-4k-instruct")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="longest conversation")
    parser.add_argument("--limit", type=float, default=LIMIT, help="GiB that it may hold")
    parser.add_argument("--out", type=Path, default=DOCS, help="where the table goes")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _need_room(folder: Path) -> None:
    """Say at once when the disk, or the memory, cannot hold it."""
    disk, memory = shutil.disk_usage(folder).free / GIB, psutil.virtual_memory().available / GIB
    if disk < 12 or memory < 12:
        sys.exit(f"12 GiB of disk and memory are needed; {disk:.0f} and {memory:.0f} are free.")


def _child(step: str, folder: Path, limit: float) -> tuple[float, float]:
    """Seconds and peak memory in GiB of one step; it is ended where it holds more than `limit`."""
    began, peak = time.monotonic(), 0.0
    command = [sys.executable, "-m", "benchmarks.full_size", *sys.argv[1:], step, str(folder)]
    child = psutil.Popen(command)
    while child.poll() is None:
        try:
            # Pages of mapped files count too, though the system may drop them.
            peak = max(peak, child.memory_info().rss / GIB)
        except psutil.NoSuchProcess:
            break
        if peak > limit:
            child.kill()
            sys.exit(f"{step} came to hold {peak:.1f} GiB, more than {limit:g}: ended.")
        time.sleep(0.2)
    if child.wait():
        sys.exit(f"{step} ended with status {child.returncode}.")
    return time.monotonic() - began, peak


def make(source: Path, layers: int, folder: Path) -> None:
    """Write a random checkpoint, never more than a shard of it in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import Phi3Config, Phi3ForCausalLM

    for file in source.glob("*.j*"):
        shutil.copyfile(file, folder / file.name)
    values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = Phi3Config(**values | {"num_hidden_layers": layers})
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {
            name: weight.shape for name, weight in Phi3ForCausalLM(config).state_dict().items()
        }
    files: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    for number, (name, shape) in enumerate(shapes.items()):
        weight = torch.empty(shape, dtype=torch.bfloat16)
        shard[name] = weight.normal_(0, 0.02) if weight.dim() > 1 else weight.fill_(1)
        if sum(2 * t.numel() for t in shard.values()) > SHARD or number == len(shapes) - 1:
            file_name = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file_name, metadata={"format": "pt"})
            files |= dict.fromkeys(shard, file_name)
            shard = {}
    index = json.dumps({"metadata": {}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def train(folder: Path, tokens: int) -> None:
    """Two steps of a run on the checkpoint; what it told is kept beside it."""
    from phi3lora.config import RunConfig
    from phi3lora.events import EventLog
    from phi3lora.training.trainer import train as run

    config, _ = RunConfig.from_values(
        {
            "model": {"path": str(folder), "quantization": "nf4", "device": "cpu"},
            "data": {"path": "example:pirate", "max_rows": 8, "test_size": 0},
            "training_config": {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "max_length": tokens,
                "gradient_checkpointing": True,
                "eval_strategy": "no",
                "save_strategy": "no",
                "logging_steps": 1,
                "log_level": "warning",
            },
        }
    )
    with EventLog(folder / "run" / "events.jsonl") as log:
        run(config, folder / "run", log.emit)


def _report(
    folder: Path, making: float, total: float, peak: float, options: argparse.Namespace
) -> Report:
    """The table, from what the run told."""
    from phi3lora.events import read_events

    events: list[Any] = read_events(folder / "run" / "events.jsonl")[0]
    loaded = next(event for event in events if event.kind == "loaded")
    loading = next(e for e in events if e.kind == "stage" and e.name == "loading the model")
    ended = next(event for event in events if event.kind == "ended")
    steps = {e.step: e for e in events if e.kind == "step" and e.loss is not None}
    seconds = [steps[1].time - loaded.time, steps[2].time - steps[1].time]
    prepared = next(event for event in events if event.kind == "prepared")
    weights = loaded.total_parameters - loaded.trainable_parameters
    rows = [
        ["making 7.6 GB of random weights", f"{making:.0f} s"],
        ["loading, in 4 bits, with its adapter", f"{loaded.time - loading.time:.0f} s"],
        *([f"step {number}", f"{taken:.0f} s"] for number, taken in enumerate(seconds, 1)),
        ["the run, from start to saved adapter", f"{total:.0f} s"],
        ["peak memory, mapped files included", f"{peak:.1f} GiB"],
    ]
    about = (
        f"Phi-3-mini's own configuration and vocabulary, {weights:,} random weights in NF4 with "
        f"double quantization, beside them {loaded.trainable_parameters:,} trained (LoRA, "
        "r 16, all linear layers), gradient checkpointing, two steps of four short conversations "
        f"({prepared.train_tokens:,} tokens in all), through the same `train()` as any run. "
        f"Losses {steps[1].loss:.2f} and {steps[2].loss:.2f}; outcome: {ended.outcome}."
    )
    return Report(
        name="full-size",
        title="Full size on a CPU",
        about=about,
        command="python -m benchmarks.full_size",
        tables=[Table("Two steps of QLoRA", ["", "measured"], rows)],
        goals=[
            Goal("peak of a full-size Phi-3-mini in training", peak, options.limit, "most", " GiB")
        ],
        figures={"making_s": making, "total_s": total, "peak_gib": peak, "step_s": seconds},
    )


if __name__ == "__main__":
    main()
