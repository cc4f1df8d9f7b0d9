"""What the editor of rows shows, made by plain functions: tests need no browser.

head_html(config, row)              which row it is, and what was done to it
changes_html(config, kept)          how many rows are edited and left out, each to open
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phi3lora import words
from phi3lora.app.patches import Patch
from phi3lora.config import RunConfig, SourceConfig
from phi3lora.data.opened import OpenRow
from phi3lora.errors import DataError
from phi3lora.ui import show

MOST_NAMED = 30  # changed rows that are named
OPEN = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-open]');
  if (!button) return;
  const shown = button.closest('figure')?.querySelector('pre[data-row]:not([hidden])');
  const row = button.dataset.open === 'shown' ? shown?.dataset.row : button.dataset.row;
  if (row || button.dataset.open === 'undo-all') {
    trigger('click', {row: row || '', do: button.dataset.open});
  }
});
"""
STALE = (
    "This file was written after its rows were edited, so their numbers may mean other rows now. "
    "Look at them before you launch, or take all back."
)


def sources_of(config: RunConfig) -> tuple[SourceConfig, ...]:
    """Every source of rows, by its place."""
    return (config.data, *config.data.more)


def source_of(values: Mapping[str, Any]) -> str:
    """The rows that the form names, so that a row's number means the same; of any commit."""
    names = ("data.path", "data.name", "data.split")
    return "\0".join(str(values.get(name) or "") for name in names)


def place_of(written: str) -> tuple[int, int]:
    """`0:17` as source and row. Raises DataError."""
    source, _, row = written.partition(":")
    if not (source.isdecimal() and row.isdecimal() and len(written) < 30):
        raise DataError("This names no row; reload the page.")
    return int(source), int(row)


def is_left_out(config: RunConfig, row: OpenRow) -> bool:
    """Whether a row is left out by hand."""
    return row.row in sources_of(config)[row.source].leave_out_rows


def is_edited(config: RunConfig, row: OpenRow) -> bool:
    """Whether anything of a row is other than in the source."""
    edits = sources_of(config)[row.source].edits
    return any(text.row in edits for text in row.texts)


def label_of(label: str, place: int) -> str:
    """`2 · assistant`."""
    return f"{place + 1} · {label[:60]}"


def row_button(source: int, row: int, title: str, do: str = "open") -> str:
    """A button that opens a row, or does something to it."""
    return (
        f'<button type="button" class="fix" data-open="{do}" data-row="{source}:{row}">'
        f"{show.text(title)}</button>"
    )


def row_name(config: RunConfig, source: int, row: int) -> str:
    """`Row 17`, or `Row 17 of source 2` where there are several."""
    return f"Row {row}" + (f" of source {source + 1}" if config.data.more else "")


def head_html(config: RunConfig, row: OpenRow) -> str:
    """Which row it is, what was done to it, and whether it is trained on."""
    badges = [show.badge("edited", "green")] if is_edited(config, row) else []
    badges += [show.badge("left out", "amber")] if is_left_out(config, row) else []
    unused = f"Not trained on as it is: {row.unused}." if row.unused else ""
    note = show.notice(unused) if unused else ""
    return (
        f'<h3 id="row-name" tabindex="-1">{show.text(row_name(config, row.source, row.row))} '
        f"{''.join(badges)}</h3>{note}"
    )


def changes_html(config: RunConfig, kept: Patch | None) -> str:
    """How many rows are edited and left out by hand, each to open; and the file that keeps it."""
    edited = [(n, row) for n, one in enumerate(sources_of(config)) for row in sorted(one.edits)]
    out = [(n, row) for n, one in enumerate(sources_of(config)) for row in one.leave_out_rows]
    said = [words.counted(len(edited), "row edited", "rows edited")] if edited else []
    if out:
        said.append(words.counted(len(out), "row left out by hand", "rows left out by hand"))
    rows = list(dict.fromkeys([*edited, *out]))
    buttons = "".join(
        row_button(*place, row_name(config, *place), "open-edited" if place in edited else "open")
        for place in rows[:MOST_NAMED]
    )
    more = f"<span>and {len(rows) - MOST_NAMED:,} more</span>" if len(rows) > MOST_NAMED else ""
    where = "The source stays as it is."
    if kept:
        name = show.text(kept.file.name)
        where = f"The source stays as it is; this is kept in <code>{name}</code>"
    stale = show.notice(STALE) if kept and kept.stale else ""
    marks = (
        f'data-edited="{" ".join(f"{n}:{row}" for n, row in edited)}" '
        f'data-out="{" ".join(f"{n}:{row}" for n, row in out)}"'
    )
    return (
        f'{stale}<div class="row-changes" {marks}><p><b>{" · ".join(said)}</b></p>'
        f'<p class="help">{where}</p>'
        f'<p class="fixes">{buttons}{more}'
        '<button type="button" class="fix" data-open="undo-all">Take all back</button></p></div>'
    )
