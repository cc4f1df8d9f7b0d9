"""What every benchmark shares: contestants in turn, medians, ratios, one file and one picture.

    taken = take_turns({"ours": run_ours, "theirs": run_theirs}, rounds=5)
    ratio(taken, "theirs", "ours")                 how many times as fast we are
    publish(Report(name="startup", title=..., command=..., tables=[...], goals=[...]), folder)

A figure by itself says little on a machine that others use too. So contestants take turns within
each round, the figures are medians over the rounds, and the result is the median of the rounds'
ratios: what slows a whole round down falls out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.page import update_page
from phi3lora.versions import library_versions

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
DATA = REPOSITORY.parent / "shared" / "data"  # the real vocabulary and rows, where they are at hand
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "tokenizers",
    "bitsandbytes",
    "gradio",
    "liger-kernel",
    "unsloth",
    "flash-attn",
    "llamafactory",
)
LOAD = os.getloadavg()[0]  # before this process has measured anything
Contestant = Callable[[], float]  # does its work and says how many seconds it took
Taken = dict[str, list[float]]  # contestant → seconds (or any other figure) in each round


@dataclass(frozen=True)
class Table:
    """Rows of words and figures under a title."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """A figure that was promised: `least` or `most` says which side of the limit is good."""

    title: str
    measured: float
    limit: float
    side: Literal["least", "most"]
    unit: str = ""
    why: str = ""  # what stands in the way, where it is not reached

    @property
    def met(self) -> bool:
        """Whether the figure is on the promised side."""
        return self.measured >= self.limit if self.side == "least" else self.measured <= self.limit


@dataclass(frozen=True)
class Bars:
    """A picture: one bar for each contestant in each group.

    Attributes:
        values: contestant → one figure for each group.
        groups: what the figures stand for, in order; one empty name for a single group.
        limit: a dashed line, where there is a goal in the same unit.
    """

    title: str
    unit: str
    values: dict[str, list[float]]
    groups: list[str] = field(default_factory=lambda: [""])
    limit: float | None = None


@dataclass
class Report:
    """What a benchmark found: enough to print it, to draw it and to keep it."""

    name: str
    title: str
    about: str
    command: str
    tables: list[Table]
    goals: list[Goal] = field(default_factory=list)
    pictures: list[Bars] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())


# Measuring


def take_turns(contestants: Mapping[str, Contestant], rounds: int, warm_up: int = 1) -> Taken:
    """Let everybody run once a round, in order. `warm_up` rounds are not counted."""
    taken: Taken = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        for name, contestant in contestants.items():
            seconds = contestant()
            if number >= 0:
                taken[name].append(seconds)
    return taken


def medians(taken: Taken) -> dict[str, float]:
    """The middle one of each contestant's figures."""
    return {name: statistics.median(values) for name, values in taken.items()}


def ratio(taken: Taken, one: str, other: str) -> float:
    """Median of the rounds' ratios: how many times `one` takes as long as `other`."""
    return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))


def timed(work: Callable[[], Any]) -> float:
    """Seconds of a call, with what it left running on a GPU."""
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    """Wait for the GPU, where torch is in use and there is one."""
    import sys

    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


# The machine


def describe_machine() -> dict[str, Any]:
    """Device, versions, and how busy the machine was."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "gpu": _gpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": library_versions(LIBRARIES),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load": round(LOAD, 1),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu_name() -> str | None:
    """By the driver's own tool: importing torch for it would cost the startup benchmark memory."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().replace("\n", "; ") or None


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# The command line and the result


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    lines = (description or "").splitlines()
    made = argparse.ArgumentParser(description=lines[0] if lines else "")
    made.add_argument("--rounds", type=int, default=rounds, help="how often everybody has a turn")
    made.add_argument(
        "--small", action="store_true", help="seconds instead of minutes: does it run?"
    )
    made.add_argument("--out", type=Path, default=DOCS, help="where the table and picture go")
    return made


def command_line(module: str, argv: list[str]) -> str:
    """What to type to measure the same elsewhere: without the paths of this machine."""
    said = " ".join(["python -m", module, *argv])
    return re.sub(r" --out \S+", "", re.sub(r"(--llamafactory) \S+", r"\1 PYTHON", said))


def publish(report: Report, docs: Path = DOCS) -> None:
    """Print the tables; keep figures and picture in `docs/benchmarks/`, and bring the page up.

    The page, `docs/benchmarks.md`, is only changed where it has this benchmark's marks.
    """
    report.machine["load_after"] = round(os.getloadavg()[0], 1)
    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    kept = as_json(report)
    text = json.dumps(kept, indent=2, ensure_ascii=False)
    (folder / f"{report.name}.json").write_text(text + "\n", encoding="utf-8")
    if report.pictures:
        from benchmarks.picture import draw

        draw(kept["pictures"], folder / f"{report.name}.svg")
    _print(report)
    update_page(docs / "benchmarks.md", folder)


def as_json(report: Report) -> dict[str, Any]:
    """Plain values, with the verdict on each goal."""
    values = asdict(report)
    for goal, kept in zip(report.goals, values["goals"], strict=True):
        kept["met"] = goal.met
    return values


def _print(report: Report) -> None:
    print(f"\n{report.title}")
    for table in report.tables:
        print(f"\n{table.title}")
        rows = [table.columns, *table.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
        for row in rows:
            first, *others = zip(row, widths, strict=True)
            cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
            print("  " + "  ".join(cells))
        if table.note:
            print(f"  {table.note}")
    for goal in report.goals:
        at = "at least" if goal.side == "least" else "at most"
        verdict = "met" if goal.met else "NOT met"
        print(
            f"  goal {verdict}: {goal.title}: {goal.measured:.3g}{goal.unit}, "
            f"{at} {goal.limit:g}{goal.unit}"
        )
