"""Sizes, durations, counts and figures: written one way on pages, in terminals and on cards.

words.duration(75)           "1 min 15 s"
words.size(3_221_225_472)    "3.0 GB"
words.short_count(3.8e6)     "3.8 M"
"""

from __future__ import annotations

import time
from collections.abc import Mapping

# Two losses of the same rows: while training, each batch counts alike; in the report, each token.
HELD_OUT = "held out, mean of batches"
HELD_OUT_LOSS = "Held-out loss, mean of batches"
LOSS_BY_TOKEN = "Loss by token"


def count(number: float) -> str:
    """`12,345`."""
    return f"{number:,.0f}"


def short_count(number: float) -> str:
    """`3.2 M`, `12.4 k`, `57`."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.1f} {unit}"
    return count(number)


def counted(number: int, one: str, many: str = "") -> str:
    """`1 vote`, `2 votes`: a count with the word that fits it."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def size(number: float) -> str:
    """Bytes as `3.0 GB` (powers of 1024, as memory is sold)."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit in ("B", "KB") else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TB"


def dollars(amount: float) -> str:
    """`$0.16`, `$12.00`; what is less than a cent says so."""
    return f"${amount:.2f}" if amount >= 0.01 else "less than $0.01"


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
    return f"{counted(days, 'day')} {rest // 3600} h"


def ago(seconds: float) -> str:
    """`just now`, `5 min ago`, `3 h ago`, `2 days ago`."""
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86_400:
        return f"{seconds // 3600:.0f} h ago"
    return f"{counted(int(seconds // 86_400), 'day')} ago"


def clock(seconds: float | None) -> str:
    """A time of day, local: `2026-11-21 18:05`; empty where there is none."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def figure(number: float | None, digits: int = 3) -> str:
    """A measured number at sensible length, or a dash where there is none."""
    if number is None:
        return "–"
    return f"{number:.1e}" if 0 < abs(number) < 1e-3 else f"{number:.{digits}f}"


def signed(number: float, digits: int = 3) -> str:
    """`+0.429`, or `−3.094` with a real minus."""
    return f"{number:+.{digits}f}".replace("-", "−")


def chosen_rows(left_out: Mapping[str, int], edited: int) -> str:
    """What a run's owner did to its rows: reason → how many, and how many were edited."""
    reasons = ", ".join(f"{number:,} × {reason}" for reason, number in left_out.items())
    said = [f"Left out: {reasons}."] if reasons else []
    return " ".join([*said, *([f"Rows edited: {edited:,}."] if edited else [])])
