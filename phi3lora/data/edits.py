"""Rows that were edited: a small patch in the config, put over the source as it is read.

    source = open_edited(config.data)       # as `open_source`, with `data.edits` put over it

The source itself is never written. A cell that holds a list or a mapping (turns of a conversation)
is replaced by JSON, any other by the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from phi3lora.config import DataConfig
from phi3lora.data.sources import Report, Source, open_source
from phi3lora.errors import DataError

Edits = Mapping[int, Mapping[str, str]]
Rows = Callable[[Report | None], Iterator[dict[str, Any]]]


def open_edited(data: DataConfig, **options: Any) -> Source:
    """As `open_source`, whose options it takes, with the section's edits. Raises what that does."""
    return edited(open_source(data, **options), data.edits)


def edited(source: Source, edits: Edits) -> Source:
    """The source with some cells replaced; itself where there are no edits.

    Its rows raise DataError for a row or a column that there is not, or for what is no JSON where
    it must be.
    """
    if not edits:
        return source
    patch = sorted((row, sorted(cells.items())) for row, cells in edits.items())
    return replace(
        source,
        _all=_patched(source._all, edits),
        _stream=_patched(source._stream, edits),
        _identity=lambda: [*source._identity(), patch],
    )


def _patched(rows: Rows, edits: Edits) -> Rows:
    def read(report: Report | None) -> Iterator[dict[str, Any]]:
        number = -1
        for number, row in enumerate(rows(report)):
            yield _changed(number, row, edits[number]) if number in edits else row
        if beyond := [row for row in edits if row > number]:
            raise DataError(
                f"data.edits: there is no row {min(beyond)}; {number + 1:,} rows are counted from "
                "0. Was the source changed since?"
            )

    return read


def _changed(number: int, row: dict[str, Any], cells: Mapping[str, str]) -> dict[str, Any]:
    if unknown := [column for column in cells if column not in row]:
        raise DataError(
            f"data.edits: row {number} has no column {unknown[0]!r}; its columns are "
            f"{', '.join(map(repr, row))}."
        )
    return {**row, **{name: _cell(number, name, row[name], text) for name, text in cells.items()}}


def _cell(number: int, column: str, before: Any, text: str) -> Any:
    """The text, or what it says as JSON where the cell held no text."""
    if before is None or isinstance(before, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"data.edits: row {number} holds no text in {column!r} but "
            f"{type(before).__name__}; expected JSON in its place: {error}."
        ) from None
