"""The evidence of a run: verdict, table of figures, and sample answers side by side."""

from __future__ import annotations

from typing import Any

from phi3lora import words
from phi3lora.ui import show

VERDICTS = {
    "better": ("green", "Better than its base"),
    "worse": ("red", "Worse than its base"),
    "cannot tell": ("grey", "These rows cannot tell it from its base"),
}


def verdict_words(report: dict[str, Any]) -> str:
    """`Better than its base on 40 held-out rows`."""
    _, verdict = VERDICTS.get(str(report.get("verdict")), ("grey", "No verdict"))
    return f"{verdict} on {words.counted(report.get('rows', 0), 'held-out row')}"


def verdict_line(report: dict[str, Any]) -> str:
    """The verdict as it stands over everything else, with the loss and one pair of answers."""
    colour, verdict = VERDICTS.get(str(report.get("verdict")), ("grey", "No verdict"))
    rows = words.counted(report.get("rows", 0), "held-out row")
    return (
        f'<section class="verdict {colour}" aria-label="Verdict"><p><b>{verdict}</b> on {rows}'
        f"{_decisive(report)}</p>{_one_pair(report)}</section>"
    )


def _decisive(report: dict[str, Any]) -> str:
    """What the method is judged by: `loss by token 6.84 → 0.03`, `reward 0.10 → 0.92`."""
    found = {item.get("name"): item for item in report.get("comparisons", [])}
    if item := found.get("win_rate"):
        base, tuned = (f"{100 * item[side]:.0f} %" for side in ("base", "tuned"))
        return f"<span>better answer likelier {base} → {tuned}</span>"
    if item := found.get("earned"):
        base, tuned = (words.figure(item[side], 2) for side in ("base", "tuned"))
        return f"<span>reward {base} → {tuned}</span>"
    if item := found.get("reward_margin"):
        return f"<span>reward margin {words.figure(item['tuned'], 2)}</span>"
    if item := found.get("loss"):
        base, tuned = words.figure(item["base"], 2), words.figure(item["tuned"], 2)
        return f"<span>loss by token {base} → {tuned}</span>"
    return ""


def _one_pair(report: dict[str, Any]) -> str:
    """What both said where tuned gained most."""
    gained = report.get("gained") or []
    if not gained:
        return ""
    sample = gained[0]
    return (
        f'<p class="pair"><q>{show.text(sample["prompt"])}</q> '
        f"<span>{show.text(sample['base'])}</span> → "
        f"<strong>{show.text(sample['tuned'])}</strong></p>"
    )


def evidence(report: dict[str, Any] | None, active: bool) -> str:
    """Table and samples; where there are none, why."""
    if report is None:
        wait = "It is made when training ends." if active else "This run made no report."
        return show.empty(
            "No evidence yet",
            f"{wait} A report needs held-out rows (data.test_size) and evaluation.enabled.",
        )
    lost = [row for row in report.get("lost", []) if row.get("gain", -1) < 0]
    body = [
        '<div class="section-head"><div><h2>Base against tuned</h2>'
        f"<p>{show.text(verdict_words(report))} that were not trained on.</p></div></div>",
        comparison_table(report.get("comparisons", [])),
        chosen_rows(report),
        *samples("Gained most", report.get("gained", [])),
        *samples("Lost most", lost),
    ]
    if not lost:
        body.append('<p class="none-lost">No held-out row got worse.</p>')
    return "".join(body)


def chosen_rows(report: dict[str, Any]) -> str:
    """Which rows the run's owner left out and edited; nothing where all are as they came."""
    said = words.chosen_rows(report.get("left_out") or {}, report.get("edited") or 0)
    return show.notice(said, "grey") if said else ""


def comparison_table(comparisons: list[dict[str, Any]]) -> str:
    """A row for each figure: base, tuned, difference with its interval.

    A figure of which neither more nor less is better, such as a length, has no verdict.
    """
    rows = [
        (
            show.said(item["title"]),
            words.figure(item["base"]),
            words.figure(item["tuned"]),
            words.signed(item["difference"]),
            f"{words.signed(item['low'])} to {words.signed(item['high'])}",
            "–" if item.get("more_is_better", True) is None else show.said(item["verdict"]),
        )
        for item in comparisons
    ]
    columns = ("Figure", "Base", "Tuned", "Difference", "95 % interval", "Tuned is")
    return show.table(columns, rows, align="lrrrrl")


def samples(title: str, items: list[dict[str, Any]]) -> list[str]:
    """Held-out rows with the answers of both."""
    if not items:
        return []
    cards = "".join(
        '<article class="sample">'
        f'<p class="asked">{show.text(item["prompt"])}</p>'
        f"<div><h4>Base</h4>{show.answer(item['base'])}</div>"
        f'<div class="tuned"><h4>Tuned</h4>{show.answer(item["tuned"])}</div>'
        f"<div><h4>In the data</h4>{show.answer(item['reference'])}</div></article>"
        for item in items
    )
    return [f'<h3 class="samples-title">{show.text(title)}</h3>{cards}']
