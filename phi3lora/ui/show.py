"""Plain values as text and as small pieces of HTML; whatever came from outside is escaped.

show.duration(75)        "1 min 15 s"
show.size(3_221_225_472) "3.0 GB"
show.facts([("Rows", "1,000")])
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

SIGNS = {"green": "✓", "amber": "!", "red": "×", "grey": "i"}


def text(value: object) -> str:
    """Escaped for HTML, text and attributes alike."""
    return html.escape(str(value), quote=True)


def count(number: float) -> str:
    """`12,345`."""
    return f"{number:,.0f}"


def short_count(number: float) -> str:
    """`3.2 M`, `12.4 k`, `57`."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.1f} {unit}"
    return count(number)


def size(number: float) -> str:
    """Bytes as `3.0 GB` (powers of 1024, as memory is sold)."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit in ("B", "KB") else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TB"


def duration(seconds: float) -> str:
    """`9 s`, `1 min 15 s`, `3 h 05 min`, `2 days 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    days, rest = divmod(whole, 86_400)
    return f"{days} day{'s' if days > 1 else ''} {rest // 3600} h"


def ago(seconds: float) -> str:
    """`just now`, `5 min ago`, `3 h ago`, `2 days ago`."""
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86_400:
        return f"{seconds // 3600:.0f} h ago"
    days = int(seconds // 86_400)
    return f"{days} day{'s' if days > 1 else ''} ago"


def figure(number: float | None, digits: int = 3) -> str:
    """A measured number at sensible length, or a dash where there is none."""
    if number is None:
        return "–"
    return f"{number:.1e}" if 0 < abs(number) < 1e-3 else f"{number:.{digits}f}"


def signed(number: float, digits: int = 3) -> str:
    """`+0.429`, or `−3.094` with a real minus."""
    return f"{number:+.{digits}f}".replace("-", "−")


def heading(title: str, sub: str = "", number: int | None = None) -> str:
    """A section's title with a line under it."""
    mark = f'<span class="step-number">{number}</span>' if number else ""
    under = f"<p>{text(sub)}</p>" if sub else ""
    return f'<div class="section-head">{mark}<div><h2>{text(title)}</h2>{under}</div></div>'


def empty(title: str, next_step: str, link: tuple[str, str] | None = None) -> str:
    """What to do where there is nothing to show; `link` is (label, address)."""
    anchor = f'<a class="quiet-button" href="{text(link[1])}">{text(link[0])}</a>' if link else ""
    return f'<div class="empty"><h3>{text(title)}</h3><p>{text(next_step)}</p>{anchor}</div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Labelled numbers in a row: (label, value with unit)."""
    cells = "".join(
        f"<div><dt>{text(label)}</dt><dd>{text(value)}</dd></div>" for label, value in pairs
    )
    return f'<dl class="facts">{cells}</dl>'


def badge(label: str, colour: str = "grey") -> str:
    """A small coloured word."""
    return f'<span class="badge {text(colour)}">{text(label)}</span>'


def notice(message: str, colour: str = "amber") -> str:
    """A line that wants to be read."""
    body = "<br>".join(text(line) for line in message.splitlines())
    return f'<div class="notice {text(colour)}"><i>{SIGNS[colour]}</i><div>{body}</div></div>'


def checks(items: Iterable[tuple[str, str, str, str]]) -> str:
    """Pre-flight as a list: (level, name, what was found, remedy or empty)."""
    rows = []
    for level, name, found, remedy in items:
        mend = f'<span class="remedy">{text(remedy)}</span>' if remedy else ""
        rows.append(
            f'<li class="{text(level)}"><i aria-label="{text(level)}">{SIGNS[level]}</i>'
            f"<div><b>{text(name)}</b><span>{text(found)}</span>{mend}</div></li>"
        )
    return f'<ul class="checks">{"".join(rows)}</ul>'


def progress(fraction: float | None, left: str, right: str, state: str = "") -> str:
    """A bar with a line over it; an unknown fraction moves by itself."""
    known = fraction is not None
    width = f"width:{100 * min(1.0, max(0.0, fraction or 0.0)):.1f}%" if known else ""
    now = f'aria-valuenow="{100 * (fraction or 0):.0f}"' if known else ""
    kind = "bar" if known else "bar waiting"
    return (
        f'<div class="progress {text(state)}"><div class="progress-text"><span>{text(left)}</span>'
        f"<span>{text(right)}</span></div>"
        f'<div class="{kind}" role="progressbar" aria-valuemin="0" aria-valuemax="100" {now}>'
        f'<b style="{width}"></b></div></div>'
    )


def bars(title: str, items: Sequence[tuple[str, int, bool]], ends: tuple[str, str]) -> str:
    """A small bar chart of (words for a pointer, height, stands out), and its axis' ends."""
    highest = max(1, *(number for _, number, _ in items))
    columns = "".join(
        f'<i title="{text(words)}"{" class=over" if over else ""} '
        f'style="height:{max(100 * number / highest, 2 if number else 0):.1f}%"></i>'
        for words, number, over in items
    )
    return (
        f'<figure class="bars" aria-label="{text(title)}"><figcaption>{text(title)}</figcaption>'
        f"<div>{columns}</div><p><span>{text(ends[0])}</span><span>{text(ends[1])}</span></p>"
        f"</figure>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A plain table; `align` has an `r` for each right-aligned column, such as `lrr`."""
    kinds = [' class="r"' if letter == "r" else "" for letter in align.ljust(len(columns), "l")]
    head = "".join(
        f"<th{kind}>{text(name)}</th>" for name, kind in zip(columns, kinds, strict=True)
    )
    cells = (
        "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return (
        f'<div class="table-frame"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
