"""The picture of a link to a comparison: the question, and both answers beside each other.

png = picture(Shared("Who?", ("Base", "Tuned"), ("A robot.", "Arr!")))       1200 by 630
"""

from __future__ import annotations

import functools
import io
import threading
from typing import Any

from phi3lora.app.shared import Shared

WIDTH, HEIGHT, EDGE = 1200, 630, 64
MOST_LINES = {"question": 2, "answer": 8}
LONGEST = 600  # characters of a text that are laid out
KEPT = 32  # pictures, of some 30 KB
GROUND, CARD, LINE, TEXT, QUIET, ACCENT = (
    "#f7f8f8",
    "#ffffff",
    "#dfe3e3",
    "#171c1e",
    "#5b6668",
    "#125f5b",
)
_drawing = threading.Lock()  # one at a time: pictures are for who looks at a link, not for a crowd


@functools.lru_cache(maxsize=KEPT)
def picture(shared: Shared) -> bytes:
    """A PNG, drawn once for each pair of answers."""
    with _drawing:
        return _drawn(shared)


def _drawn(shared: Shared) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    brush = ImageDraw.Draw(image)
    top = EDGE
    for line in lines_of(brush, shared.question, font(44), WIDTH - 2 * EDGE, "question"):
        brush.text((EDGE, top), line, TEXT, font(44))
        top += 56
    _answers(brush, shared, top + 24)
    brush.text((EDGE, HEIGHT - 48), "phi3lora: base and tuned, side by side", QUIET, font(20))
    target = io.BytesIO()
    image.save(target, "PNG", optimize=True)
    return target.getvalue()


def _answers(brush: Any, shared: Shared, top: int) -> None:
    """Two cards beside each other."""
    gap, bottom = 24, HEIGHT - 72
    width = (WIDTH - 2 * EDGE - gap) // 2
    for place, (title, said) in enumerate(zip(shared.titles, shared.answers, strict=True)):
        left = EDGE + place * (width + gap)
        brush.rounded_rectangle((left, top, left + width, bottom), 16, CARD, LINE, 2)
        name = lines_of(brush, title, font(22), width - 48, "question")[:1]
        brush.text((left + 24, top + 20), "".join(name), ACCENT if place else QUIET, font(22))
        room = (bottom - top - 80) // 38
        for row, line in enumerate(lines_of(brush, said, font(28), width - 48, "answer")[:room]):
            brush.text((left + 24, top + 62 + 38 * row), line, TEXT, font(28))


@functools.cache
def font(size: int) -> Any:
    """A face with many scripts where the machine has one, else the one that Pillow brings."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def lines_of(brush: Any, text: str, face: Any, width: int, kind: str) -> list[str]:
    """A text in lines that fit; what is too much ends in "…"."""
    most, lines, line = MOST_LINES[kind], list[str](), ""
    pieces = "".join(sign if sign.isprintable() else " " for sign in text[:LONGEST]).split()
    for word in pieces:
        longer = f"{line} {word}".strip()
        if brush.textlength(longer, face) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while brush.textlength(line, face) > width:  # a word that is longer than a line
            cut = _fitting(brush, line, face, width)
            lines.append(line[:cut])
            line = line[cut:]
    lines.append(line)
    if len(lines) > most or len(text) > LONGEST:
        lines = lines[:most]
        while lines[-1] and brush.textlength(lines[-1] + " …", face) > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += " …"
    return lines


def _fitting(brush: Any, word: str, face: Any, width: int) -> int:
    """How many signs of a word fit, at least one."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        if brush.textlength(word[:middle], face) <= width:
            low = middle
        else:
            high = middle - 1
    return low
