"""Rows that were edited: a small patch in the config, put over the source as it is read.

    source = open_edited(config.data)       # as `open_source`, with `data.edits` put over it

The source itself is never written. An edit names a column, or a place in what a cell holds:
`messages.1.content` is what the second turn says. A text there is replaced by the text, anything
else (a list of turns, a number) by JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from phi3lora.config import DataConfig
from phi3lora.data.cells import list_in
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
            yield changed(number, row, edits[number]) if number in edits else row
        if beyond := [row for row in edits if row > number]:
            raise DataError(
                f"data.edits: there is no row {min(beyond)}; {number + 1:,} rows are counted from "
                "0. Was the source changed since?"
            )

    return read


def changed(number: int, row: dict[str, Any], cells: Mapping[str, str]) -> dict[str, Any]:
    """A row with its edits: whole cells first, then what stands in them. Raises DataError."""
    edited = dict(row)
    for name, text in sorted(cells.items(), key=lambda cell: cell[0] not in row):
        column, inside = _place(number, row, name)
        try:
            edited[column] = _put(edited[column], inside, text)
        except ValueError as error:
            raise DataError(f"data.edits: row {number}, {name!r}: {error}.") from None
    return edited


def _place(number: int, row: Mapping[str, Any], name: str) -> tuple[str, list[str]]:
    """The column, and where in its cell; a column may have dots in its name."""
    if name in row:
        return name, []
    within = [column for column in row if name.startswith(f"{column}.")]
    if not within:
        raise DataError(
            f"data.edits: row {number} has no column {name!r}; its columns are "
            f"{', '.join(map(repr, row))}."
        )
    column = max(within, key=len)
    return column, name[len(column) + 1 :].split(".")


def _put(held: Any, inside: Sequence[str], text: str) -> Any:
    """What a cell holds, with the text at its place. Raises ValueError where there is no such."""
    if not inside:
        return _cell(held, text)
    first, *rest = inside
    if isinstance(held, str) and (turns := list_in(held)) is not None:
        return json.dumps(_put(turns, inside, text), ensure_ascii=False)
    if isinstance(held, Mapping) and first in held:
        return {**held, first: _put(held[first], rest, text)}
    if isinstance(held, list | tuple) and first.isdecimal() and int(first) < len(held):
        return [*held[: int(first)], _put(held[int(first)], rest, text), *held[int(first) + 1 :]]
    raise ValueError(f"there is no {first!r} in {type(held).__name__}")


def _cell(before: Any, text: str) -> Any:
    """The text, or what it says as JSON where no text was held."""
    if before is None or isinstance(before, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"no text is held there but {type(before).__name__}; expected JSON instead: {error}"
        ) from None
