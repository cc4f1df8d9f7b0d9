"""docs/benchmarks.md: its generated parts, written from docs/benchmarks/*.json.

    python -m benchmarks.page        write them again

Words between the parts are written by hand and stay. A part stands between
`<!-- begin NAME -->` and `<!-- end NAME -->`; `summary` and `behind` are made from all of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
ORDER = (
    "training",
    "training-checkpointing",
    "training-nf4",
    "chat",
    "chat-full",
    "startup",
    "frames",
    "data",
    "gpu-lora",
    "gpu-lora-checkpointing",
    "gpu-qlora",
    "chat-gpu",
)
COMMANDS = {
    "full-size": "python -m benchmarks.full_size",
    "chat-full": "python -m benchmarks.chat --size mini --dtype bfloat16 --no-peers",
    "training-checkpointing": "python -m benchmarks.training --checkpointing",
    "training-nf4": "python -m benchmarks.training --quantization nf4",
    "gpu-lora": "python -m benchmarks.gpu --method lora",
    "chat-gpu": "python -m benchmarks.chat --size mini --dtype bfloat16",
    "gpu-lora-checkpointing": "python -m benchmarks.gpu --method lora --checkpointing",
    "gpu-qlora": "python -m benchmarks.gpu --method qlora",
}
PART = re.compile(r"(<!-- begin ([\w-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def main() -> None:
    """Write the page's generated parts again."""
    update_page(PAGE, PAGE.parent / "benchmarks")


def update_page(page: Path, folder: Path) -> None:
    """Put every kept result between its marks; a page that is not there is not made."""
    if page.exists():
        page.write_text(render(page.read_text(encoding="utf-8"), load(folder)), encoding="utf-8")


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Every kept result by its name, in the page's order."""
    read = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")}
    kept = {name: values for name, values in read.items() if "tables" in values}
    order = {name: number for number, name in enumerate(ORDER)}
    return dict(sorted(kept.items(), key=lambda item: (order.get(item[0], len(ORDER)), item[0])))


def render(text: str, kept: dict[str, dict[str, Any]]) -> str:
    """The page with its parts made anew; a part without a result says how to get one."""
    reports = list(kept.values())
    parts = [match[2] for match in PART.finditer(text)]
    missing = [name for name in parts if name not in ("summary", "behind", *kept)]

    def part(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name == "summary":
            body = summary(reports)
        elif name == "behind":
            body = behind(reports, missing)
        elif name in kept:
            body = section(kept[name])
        else:
            body = f"Not measured yet: `{command(name)}`."
        return f"{begin}{body}\n{end}"

    return PART.sub(part, text)


def summary(reports: list[dict[str, Any]]) -> str:
    """Every goal, with what was measured."""
    rows = [
        [
            f"{report['title']}: {goal['title']}",
            promise(goal),
            figure(goal["measured"], goal["unit"]),
            "yes" if goal["met"] else "**no**",
        ]
        for report in reports
        for goal in report["goals"]
    ]
    return table(["", "Goal", "Measured", "Met"], rows)


def behind(reports: list[dict[str, Any]], missing: list[str]) -> str:
    """The goals that are not met, what stands in the way, and what nobody has measured."""
    lines = [
        f"- {report['title']}: {goal['title']}: {figure(goal['measured'], goal['unit'])} instead "
        f"of {promise(goal)}. {goal['why']}".rstrip()
        for report in reports
        for goal in report["goals"]
        if not goal["met"]
    ]
    lines += [f"- Not measured yet: `{command(name)}`." for name in missing]
    return "\n".join(lines) or "Nowhere that these benchmarks look."


def command(name: str) -> str:
    """What measures the part of that name."""
    return COMMANDS.get(name, f"python -m benchmarks.{name}")


def section(report: dict[str, Any]) -> str:
    """One benchmark: what, where, how, tables, picture."""
    parts = [report["about"], f"`{report['command']}`", where(report["machine"])]
    for one in report["tables"]:
        parts += [f"**{one['title']}**", table(one["columns"], one["rows"])]
        if one["note"]:
            parts.append(one["note"])
    if report["pictures"]:
        parts.append(f"![{report['title']}](benchmarks/{report['name']}.svg)")
    return "\n\n".join(parts)


def where(machine: dict[str, Any]) -> str:
    """Device, versions, commit and load in a line."""
    device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{device}; {machine['system']}, Python {machine['python']}; {versions}; commit "
        f"{machine['commit']}, {machine['date']}; load average {machine['load']} before and "
        f"{machine.get('load_after', '?')} after."
    )


def promise(goal: dict[str, Any]) -> str:
    """A goal's limit in words."""
    side = "at least" if goal["side"] == "least" else "at most"
    return f"{side} {figure(goal['limit'], goal['unit'])}"


def figure(value: float, unit: str) -> str:
    """Three digits that count, and the unit."""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits}{unit}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    marks = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, marks, *rows])


if __name__ == "__main__":
    main()
