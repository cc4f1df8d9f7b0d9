"""`make attacks`: the whole catalogue, and its table.

python -m tests.attacks [--short] [--only secrets] [--write]

    with --write the table goes into docs/security.md
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
    from tests.hub import fixtures  # isort: skip (the Hub is a port here, before it is read)
    from tests.attacks.classes import CLASSES
    from tests.attacks.ground import ground

    named = given.only.split(",") if given.only else list(CLASSES)
    chosen = {name: CLASSES[name] for name in named}
    rows, lost = [], []
    with (
        fixtures._HUB,
        tempfile.TemporaryDirectory() as folder,
        ground(Path(folder), full=not given.short) as place,
    ):
        for name, attack in chosen.items():
            tries = list(attack(place))
            rows.append((name, (attack.__doc__ or "").split("\n")[0], len(tries)))
            held = sum(one.held for one in tries)
            lost += [f"{name}: {one.what}" for one in tries if not one.held]
            sys.stdout.write(f"{name:<14}{len(tries):>6} tries {held:>6} held\n")
            sys.stdout.flush()
            rows[-1] = (*rows[-1], held)
    sys.stdout.write("\n".join(["", *lost, ""]) if lost else "Nobody in.\n")
    if given.write and not given.only:
        _write(rows, "The selection of `make test`" if given.short else "All of it")
    return bool(lost)


def _write(rows: list[tuple[str, str, int, int]], what: str) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    lines = [
        f"{what}, run on {date.today()}, commit {commit}.",
        "",
        "| class | what | tries | passed |",
    ]
    lines += ["| --- | --- | --- | --- |"]
    lines += [f"| {name} | {about} | {tries} | {held} |" for name, about, tries, held in rows]
    page = ROOT / "docs" / "security.md"
    text = page.read_text(encoding="utf-8")
    table = f"{START}\n" + "\n".join(lines) + f"\n{END}"
    page.write_text(
        re.sub(f"{re.escape(START)}.*{re.escape(END)}", lambda _: table, text, flags=re.DOTALL),
        encoding="utf-8",
    )


if __name__ == "__main__":
    sys.exit(main())
