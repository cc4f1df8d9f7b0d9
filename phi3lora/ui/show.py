"""Small pieces of HTML; whatever came from outside is escaped.

show.facts([("Rows", "1,000")])
show.notice("Pick other data.")
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterable, Sequence

from phi3lora.thoughts import split_thoughts

SIGNS = {"green": "✓", "amber": "!", "red": "×", "grey": "i"}


class Html(str):
    """Text that is HTML already, where a table has buttons among its cells."""


def said(words: object) -> Html:
    """Our own words in a place that is left as it is otherwise, to be said in every language."""
    return Html(f"<span data-say>{text(words)}</span>")


def text(value: object) -> str:
    """Escaped for HTML, text and attributes alike."""
    return html.escape(str(value), quote=True)


def answer(said: str) -> str:
    """A model's answer, what it thought before folded away."""
    found = split_thoughts(said)
    if not found.thoughts:
        return f"<p>{text(said)}</p>"
    fold = f"<details><summary>Thoughts</summary><p>{text(found.thoughts)}</p></details>"
    return f"{fold}<p>{text(found.said)}</p>"


CODE = re.compile(r"`([^`\n]+)`")


@functools.cache
def address() -> re.Pattern[str]:
    """An address on the Hub: the public one, or the one that this installation works with."""
    from huggingface_hub.constants import ENDPOINT

    return re.compile(rf"(?:https://huggingface\.co|{re.escape(ENDPOINT)})/[\w./-]*[\w/-]")


def linked(value: object) -> str:
    """Escaped, with addresses on the Hub as links and what stands in backticks as code."""
    link = '<a href="{0}" target="_blank" rel="noopener">{0}</a>'
    return address().sub(lambda found: link.format(found[0]), with_code(value))


def with_code(value: object) -> str:
    """Escaped, with what stands in backticks as code."""
    return CODE.sub(r"<code>\1</code>", text(value))


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
    body = "<br>".join(linked(line) for line in message.splitlines())
    return f'<div class="notice {text(colour)}"><i>{SIGNS[colour]}</i><div>{body}</div></div>'


def more(summary: str, body: str) -> str:
    """What is there for who asks: a line that opens."""
    lines = "<br>".join(text(line) for line in body.splitlines())
    return f'<details class="more"><summary>{text(summary)}</summary><p>{lines}</p></details>'


def checks(items: Iterable[tuple[str, str, str, str]]) -> str:
    """Pre-flight as a list: (level, name, what was found, remedy or empty)."""
    rows = []
    for level, name, found, remedy in items:
        mend = f'<span class="remedy">{text(remedy)}</span>' if remedy else ""
        rows.append(
            f'<li class="{text(level)}"><i role="img" aria-label="{text(level)}">{SIGNS[level]}</i>'
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
        f'<div class="{kind}" role="progressbar" aria-label="{text(left)}" aria-valuemin="0" '
        f'aria-valuemax="100" {now}>'
        f'<b style="{width}"></b></div></div>'
    )


def bars(
    title: str, items: Sequence[tuple[str, int, bool]], axis: Sequence[str], over: str = ""
) -> str:
    """A small bar chart of (words for a pointer, height, stands out), and what its axis says.

    A screen reader is told how high the highest bar is, and where; and `over`, what those are that
    stand out.
    """
    highest = max(1, *(number for _, number, _ in items))
    most = max(items, key=lambda item: item[1])[0] if items else ""
    said = f"{title}: {most}. {over}" if over else f"{title}: {most}"
    columns = "".join(
        f'<i title="{text(words)}"{" class=over" if out else ""} '
        f'style="height:{max(100 * number / highest, 2 if number else 0):.1f}%"></i>'
        for words, number, out in items
    )
    return (
        f'<figure class="bars"><figcaption>{text(title)}</figcaption>'
        f'<div role="img" aria-label="{text(said)}"><b>{highest:,}</b>'
        f"{columns}</div>"
        f"<p>{''.join(f'<span>{text(one)}</span>' for one in axis)}</p></figure>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """A plain table; `align` has an `r` for each right-aligned column, such as `lrr`."""
    kinds = [' class="r"' if letter == "r" else "" for letter in align.ljust(len(columns), "l")]
    head = "".join(
        f"<th{kind}>{text(name)}</th>" for name, kind in zip(columns, kinds, strict=True)
    )
    cells = (
        "".join(
            f'<td{kind} data-of="{text(name)}">'
            f"{cell if isinstance(cell, Html) else text(cell)}</td>"
            for name, cell, kind in zip(columns, row, kinds, strict=True)
        )
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return (
        f'<div class="table-frame" tabindex="0"><table class="plain"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
