"""A benchmark's picture: bars side by side, as an SVG that is the same for the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = ("#4f46e5", "#94a3b8", "#d97706", "#0d9488", "#be185d", "#64748b", "#65a30d")
WIDTH, HEIGHT, MOST_ACROSS = 4.6, 3.2, 2


def draw(pictures: list[dict[str, Any]], path: Path) -> None:
    """One panel for each of `harness.Bars`, two across."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "phi3lora", "font.size": 9, "svg.fonttype": "path"})
    from matplotlib import pyplot

    across = min(MOST_ACROSS, len(pictures))
    down = -(-len(pictures) // across)
    size = (WIDTH * across, HEIGHT * down)
    figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False)
    for panel, picture in zip(axes.flat, pictures, strict=False):
        _bars(panel, picture)
    for panel in list(axes.flat)[len(pictures) :]:
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


def _bars(panel: Any, picture: dict[str, Any]) -> None:
    """Bars by group and contestant; figures stand on them."""
    values, groups = picture["values"], picture["groups"]
    width = 0.8 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        places = [group + (number - (len(values) - 1) / 2) * width for group in range(len(groups))]
        bars = panel.bar(places, heights, width * 0.92, label=name, color=COLOURS[number % 7])
        panel.bar_label(bars, fmt=lambda height: f"{height:,.3g}", fontsize=7, padding=1)
    if picture["limit"] is not None:
        panel.axhline(picture["limit"], color="#dc2626", linestyle="--", linewidth=1, label="goal")
    panel.set_title(picture["title"], fontsize=10, loc="left")
    panel.set_ylabel(picture["unit"])
    panel.set_xticks(range(len(groups)), groups)
    panel.margins(y=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False, ncols=2, loc="upper left")
