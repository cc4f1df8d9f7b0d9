"""Everything that needs a GPU, in one command: tests first, then the table of benchmarks.

    python -m benchmarks.on_gpu [--out FOLDER]          # `make gpu`, about 40 minutes
    python -m benchmarks.on_gpu --small --out FOLDER    # every step at toy size, on a CPU too

The tests say whether it is right; the benchmarks write docs/benchmarks.md, with the device and the
versions. What fails is listed at the end, and the rest goes on. Without a GPU that PyTorch can use
it says so, and ends with status 2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import DOCS, REPOSITORY

NONE_HERE = "There is no GPU here that PyTorch can use, so nothing was tested and nothing measured."


def main(argv: list[str] | None = None) -> int:
    """Run all of it; returns the exit status."""
    arguments = _arguments(argv)
    if not arguments.small and not _has_gpu():
        print(NONE_HERE)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        planned = steps(base, arguments.out, arguments.small)
        failed = [name for name, command in planned if not _ran(name, command)]
    for name in failed:
        print(f"FAILED: {name}")
    return 1 if failed else 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--out", type=Path, default=DOCS, help="where tables and pictures go")
    made.add_argument("--small", action="store_true", help="toy sizes: does every step run?")
    return made.parse_args(argv)


def _has_gpu() -> bool:
    """Asked in a process of its own: this one holds no memory of the card while others measure."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


def steps(base: Path, out: Path, small: bool = False) -> list[tuple[str, list[str]]]:
    """Name and arguments of Python, in order; the base is made once, and measured by all."""
    toy = ["--small"] * small
    gpu = ["-m", "benchmarks.gpu", "--base", str(base), "--out", str(out), "--lengths", "2048"]
    gpu += toy
    chat = ["-m", "benchmarks.chat", "--size", "mini", "--dtype", "bfloat16", "--rounds", "3"]
    # What decides otherwise on a GPU; pocket loads there by itself.
    tested = ["on_gpu", "attention", "loss", "fast", "slices", "trainer", "engine"]
    tested = tested[:1] if small else tested
    files = [f"tests/test_{name}.py" for name in tested]
    return [
        ("tests", ["-m", "pytest", "-q", *files]),
        ("the base", ["-m", "benchmarks.gpu", "--make", str(base), *toy]),
        ("LoRA", [*gpu, "--method", "lora"]),
        ("LoRA with checkpointing", [*gpu, "--method", "lora", "--checkpointing", "--rounds", "1"]),
        ("QLoRA", [*gpu, "--method", "qlora"]),
        ("chat", [*chat, "--out", str(out), *toy]),
    ]


def _ran(name: str, command: list[str]) -> bool:
    print(f"== {name}", flush=True)
    began = time.monotonic()
    ended = subprocess.run([sys.executable, *command], cwd=REPOSITORY)
    print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
