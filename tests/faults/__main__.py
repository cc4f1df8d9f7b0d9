"""The campaign: draws trials until its time is over, and prints the table.

python -m tests.faults [--minutes 20] [--seed 1] [--only aimed,random] [--short] [--write]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tests.hub.fixtures as hub_fixtures  # isort: skip  (before huggingface_hub is imported)

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import phi3lora.evaluation.report
import phi3lora.hub.backup
import phi3lora.training.trainer  # noqa: F401  (workers are forked with everything imported)
from tests.faults.recipes import RECIPES
from tests.faults.trials import KINDS, NAMES, ONCE, Outcome, may_mount

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
MARKS = ("<!-- table -->", "<!-- end of the table -->")
SHORT = [("aimed", "LoRA+"), ("random", "LoRA+"), ("damage", "LoRA+"), ("app", "LoRA+")]
VERDICTS = ("same", "refused", "lost", "stuck")


def main() -> int:
    """Run the campaign; the exit status says whether anything was lost or stuck."""
    arguments = _arguments()
    names = arguments.only.split(",") if arguments.only else list(NAMES)
    deadline = time.monotonic() + 60 * arguments.minutes
    if "disk" in names and not may_mount():
        say("SKIPPED: full disks, for this user may not mount a tmpfs.")
    outcomes: list[Outcome] = []
    plan = iter(SHORT) if arguments.short else _plan(names, arguments.seed)
    for number, (kind, recipe) in enumerate(plan):
        if time.monotonic() > deadline:
            break
        outcome = (KINDS | ONCE)[kind](recipe, random.Random(f"{arguments.seed} {number}"))
        if outcome is not None:
            outcomes.append(outcome)
            say(f"{outcome.verdict:8} {outcome.kind}, {outcome.recipe}: {outcome.what}"[:300])
    text = table(outcomes)
    say(text)
    if arguments.write:
        write(text)
    return int(any(outcome.verdict in ("lost", "stuck") for outcome in outcomes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=18.0, help="No trial begins later.")
    parser.add_argument("--seed", type=int, default=1, help="Draws the trials.")
    parser.add_argument("--only", default="", help=f"Some of {','.join(NAMES)}.")
    parser.add_argument("--short", action="store_true", help="A handful, for `make test`.")
    parser.add_argument("--write", action="store_true", help=f"Put the table into {DOCS.name}.")
    return parser.parse_args()


def _plan(names: list[str], seed: int) -> Iterator[tuple[str, str]]:
    """What happens once, then every kind over all recipes in turn, kills twice as often."""
    for name in names:
        if name in ONCE:
            with_hub = hub_fixtures._HUB if name == "hub" else None
            if with_hub is not None:
                with with_hub:
                    for _ in range(4):
                        yield name, "LoRA+"
            else:
                yield name, "LoRA+"
    kinds = [name for name in names if name in KINDS]
    kinds += [name for name in kinds if name in ("aimed", "random")]
    chance = random.Random(seed)
    while kinds:
        round_ = [(kind, recipe) for kind in kinds for recipe in RECIPES]
        chance.shuffle(round_)
        yield from round_


def table(outcomes: list[Outcome]) -> str:
    """Kinds down, verdicts across; then recipes likewise."""
    rows = [*_part(outcomes, "kind", "what happened"), _row("**all**", outcomes), ""]
    return "\n".join([*rows, *_part(outcomes, "recipe", "recipe")])


def _part(outcomes: list[Outcome], name: str, title: str) -> list[str]:
    """A table with a row for each value of one attribute."""
    values = dict.fromkeys(getattr(outcome, name) for outcome in outcomes)
    of = {value: [o for o in outcomes if getattr(o, name) == value] for value in values}
    return [_head(title), *(_row(value, found) for value, found in of.items())]


def _head(first: str) -> str:
    return (
        f"| {first} | tried | same adapter and curves | refused in words | lost | stuck |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )


def _row(name: str, outcomes: list[Outcome]) -> str:
    counts = Counter(outcome.verdict for outcome in outcomes)
    return f"| {name} | {len(outcomes)} | " + " | ".join(str(counts[v]) for v in VERDICTS) + " |"


def write(text: str) -> None:
    """Replace the table in the documentation, with date and commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    head = f"Measured on {today} at commit {commit} with `make faults`, on a CPU.\n\n"
    DOCS.write_text(f"{before}{MARKS[0]}\n{head}{text}\n{MARKS[1]}{after}", encoding="utf-8")


def say(text: str) -> None:
    """Tell it at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
