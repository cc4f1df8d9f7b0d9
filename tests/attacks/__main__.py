"""`make attacks`: the whole catalogue, and its table.

python -m tests.attacks [--short] [--only secrets,crowds:queue] [--write]

    with --write the rows of the classes that were tried are replaced in docs/security.md;
    crowds:queue tries of the measured attacks of a class those with "queue" in their name

All of it takes half an hour on two cores with nothing else to do: isolation, crowds, bombs and
launches three to five minutes each, every other class less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.attacks.ground import Try

ROOT = Path(__file__).parents[2]
Row = tuple[str, str, int, int]  # class, what it is, tries, how many were held off
HEAD = """| class | what | tries | passed | date | commit |
| --- | --- | --- | --- | --- | --- |"""
START, END = "<!-- the table: written by `make attacks` -->", "<!-- its end -->"


def main() -> int:
    """Try everything; 0 where the app held."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true", help="write docs/security.md")
    options.add_argument("--short", action="store_true", help="the selection of `make test`")
    options.add_argument("--only", default="", help="some classes, by name: files,secrets")
    given = options.parse_args()
    if given.write and ":" in given.only:
        options.error("a part of a class has no row: leave out --write, or what follows the colon")
    from tests.hub import fixtures  # isort: skip (the Hub is a port here, before it is read)
    from tests.attacks.classes import CLASSES, LONG, MEASURED
    from tests.attacks.ground import ground

    named = given.only.split(",") if given.only else list(CLASSES)
    if given.short:
        named = [name for name in named if name not in LONG]
    chosen = dict(name.partition(":")[::2] for name in named)  # class → part of its attacks' names
    if unknown := chosen.keys() - CLASSES.keys():
        options.error(f"there is no class {', '.join(unknown)}; there are {', '.join(CLASSES)}")
    rows: list[Row] = []
    lost: list[str] = []
    with (
        fixtures._HUB,
        tempfile.TemporaryDirectory() as folder,
        ground(Path(folder), full=not given.short) as place,
    ):
        for name, part in chosen.items():
            attack, place.part = CLASSES[name], part
            tries = list(_told(attack(place)) if name in MEASURED else attack(place))
            held = sum(one.held for one in tries)
            rows.append((name, (attack.__doc__ or "").split("\n")[0], len(tries), held))
            lost += [f"{name}: {one.what}" for one in tries if not one.held]
            sys.stdout.write(f"{name:<14}{len(tries):>6} tries {held:>6} held\n")
            sys.stdout.flush()
    sys.stdout.write("\n".join(["", *lost, ""]) if lost else "Nobody in.\n")
    if given.write and not given.short:
        _write(rows, list(CLASSES))
    return bool(lost)


def _told(tries: Iterator[Try]) -> Iterator[Try]:
    """Each as it comes: these take minutes, and say what was measured."""
    for one in tries:
        sys.stdout.write(f"    {'held' if one.held else 'LOST'} {one.what}\n")
        sys.stdout.flush()
        yield one


def _write(rows: list[Row], names: list[str]) -> None:
    """Each class with its last trial's date and commit: those that were not tried keep theirs."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    page = ROOT / "docs" / "security.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    table, _, after = rest.partition(END)
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    for row in rows:
        cells = [str(cell) for cell in (*row, date.today(), commit)]
        lines[row[0]] = f"| {' | '.join(cells)} |"
    body = "\n".join([HEAD, *(lines[name] for name in names if name in lines)])
    page.write_text(f"{before}{START}\n{body}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
