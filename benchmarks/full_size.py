"""A Phi-3-mini of full size, random weights, in 4 bits: does it load and train on this machine?

    python -m benchmarks.full_size CONFIG_FOLDER [--layers 32] [--tokens 128]

CONFIG_FOLDER holds Phi-3-mini's `config.json`. The weights are made shard by shard in a temporary
folder (7.6 GB), loaded as `model.quantization: nf4`, and trained for two steps with LoRA on all
linear layers. Prints seconds and the process's peak memory, mapped files included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SHARD = 10**9  # bytes


def main() -> None:
    """Make the checkpoint in a process of its own, so that its memory is not counted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.config, options.layers, options.make)
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", __spec__.name, *sys.argv[1:], "--make", folder],
                       check=True)  # fmt: skip
        train(Path(folder), options.tokens)


def make(source: Path, layers: int, folder: Path) -> None:
    """Write a random checkpoint, never more than a shard of it in memory."""
    from safetensors.torch import save_file
    from transformers import Phi3Config, Phi3ForCausalLM

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
            file = f"model-{number:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            files |= dict.fromkeys(shard, file)
            shard = {}
    index = json.dumps({"metadata": {}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def train(folder: Path, tokens: int) -> None:
    """Load in 4 bits and take two steps."""
    from phi3lora.config import RunConfig
    from phi3lora.lora.adapters import attach_adapter
    from phi3lora.lora.targets import count_parameters
    from phi3lora.models.loading import load_model

    began = time.monotonic()
    config, _ = RunConfig.from_values({"model": {"path": str(folder), "quantization": "nf4"}})
    base = load_model(config.model, for_training=True)
    report("loaded", began)
    model: Any = attach_adapter(base, config)
    print("trainable, total: {:,}, {:,}".format(*count_parameters(model)))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    row = torch.randint(3, base.config.vocab_size, (1, tokens))
    for step in (1, 2):
        began = time.monotonic()
        loss = model(input_ids=row, labels=row).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report(f"step {step}, loss {float(loss):.2f}", began)


def report(what: str, began: float) -> None:
    """One line: what, seconds, peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    print(f"{what}: {time.monotonic() - began:.0f} s, peak {peak:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
