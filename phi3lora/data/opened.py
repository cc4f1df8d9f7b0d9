"""One row, opened to be edited: each text in it with its place, as it is read and as it was.

    row = open_row(config, 17, tokenizer, token=token)
    row.texts[1].place, row.texts[1].said          ("messages.1.content", "Arr.")
    config = with_texts(config, row, ["Who?", "A pirate."])
    config = without_edits(config, row)
    config = with_row_left_out(config, row.source, row.row, out=True)

Where several rows make one conversation, as in a tree of replies, each text keeps the row that it
stands in; it is the conversation that is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from phi3lora.config import RunConfig, SourceConfig
from phi3lora.data.cells import CONTENT_KEYS, ROLE_KEYS, THOUGHTS, first_key, list_in, turns_in
from phi3lora.data.edits import changed, open_edited
from phi3lora.data.formats import FORMATS
from phi3lora.data.plan import parts_of
from phi3lora.data.preferences import read_rows, tally_for
from phi3lora.data.reading import Recipe, Tally, gathered, recipe_for
from phi3lora.data.sources import Source, open_source
from phi3lora.errors import DataError
from phi3lora.strict_yaml import LARGEST

LONGEST = 50_000  # characters of a row that is opened: what may become its edit fits a config
FAR = 10**9  # rows; with a limit a Hub dataset is read as far as needed, and not downloaded
# Parts of a row that say nothing to anybody.
_MARKS = {"label", "id", "parent", "group", "rank", "deleted", "role", "ratings"}
_ANSWERS = {"messages", "rejected", "completion", "answer", "answers", "output"}
_SAID = {*CONTENT_KEYS, *THOUGHTS}


@dataclass(frozen=True)
class Text:
    """A text of a row.

    Attributes:
        row: where it stands in the source; the opened row's own, but for several that make one.
        place: as `data.edits` names it, such as `completion` or `messages.1.content`.
        label: who says it, or the column's name.
        said: as it is read, with the edits so far.
        before: as the source has it.
    """

    row: int
    place: str
    label: str
    said: str
    before: str

    @property
    def shown(self) -> str:
        """What is said, as a page can show it and send it back."""
        return as_shown(self.said)


@dataclass(frozen=True)
class OpenRow:
    """A row of the source by its place in the config and its number, counted from 0.

    Attributes:
        texts: what can be edited, in order.
        unused: why it is not trained on as it is now; empty where it is.
        commit: of the Hub dataset that its number is of; None for anything else.
    """

    source: int
    row: int
    texts: list[Text]
    unused: str = ""
    commit: str | None = None


class _Placed(str):
    """A text that keeps where it stands, while rows are put together."""

    text: Text


def open_row(
    config: RunConfig,
    number: int,
    tokenizer: Any,
    *,
    source: int = 0,
    token: str | None = None,
    edited: bool = False,
) -> OpenRow:
    """A row with its texts, as training would read it.

    Args:
        edited: the number is one of `data.edits`, which counts the source's rows: where several
            make one conversation, that conversation is opened.

    Raises:
        DataError: there is no such row, or nothing in it that can be edited here.
        HubError: the Hub said no, or nothing.
    """
    parts = parts_of(config.data)
    if source not in range(len(parts)):
        raise DataError(f"There is no source {source + 1}; the config names {len(parts)}.")
    one = config.model_copy(update={"data": parts[source]})
    plain = open_source(one.data, token=token)
    recipe = recipe_for(one, open_edited(one.data, token=token))
    if FORMATS[recipe.detected.format].gather is None:
        row = _nth(plain.rows(limit=number + 1), number)
        now = changed(number, row, one.data.edits.get(number, {}))
        texts, unused = _texts(number, row, now, recipe), _unused(now, recipe, tokenizer)
    else:
        rows = gathered(_placed(plain, one.data.edits, recipe), recipe, Tally())
        made = (list(_found(row)) for row in rows)
        if edited:
            number, texts = _holding(made, number)
        else:
            texts = _nth(made, number)
        unused = ""
    _check_size(number, texts)
    return OpenRow(source, number, texts, unused, _commit(plain))


def _nth(rows: Iterator[Any], number: int) -> Any:
    """Raises DataError where they end before."""
    last = -1
    for last, row in enumerate(islice(rows, number + 1)):
        if last == number:
            return row
    raise DataError(f"There is no row {number}; the last one is row {last}.")


def _holding(rows: Iterator[list[Text]], number: int) -> tuple[int, list[Text]]:
    """The row that was put together of this one of the source, among others; and its number."""
    for place, texts in enumerate(rows):
        if any(text.row == number for text in texts):
            return place, texts
    raise DataError(f"Row {number} of the source is in no conversation that is used.")


def _commit(source: Source) -> str | None:
    return str(source._identity()[-1]) if source.kind == "hub" else None


def _check_size(number: int, texts: Sequence[Text]) -> None:
    if not texts:
        raise DataError(f"Row {number} holds no text that can be edited here; it can be left out.")
    characters = sum(len(text.said) for text in texts)
    if characters > LONGEST:
        raise DataError(
            f"Row {number} holds {characters:,} characters; rows of up to {LONGEST:,} are edited "
            "here. Change the source itself, or leave the row out."
        )


# The texts of a row


def _texts(
    number: int, before: Mapping[str, Any], now: Mapping[str, Any], recipe: Recipe
) -> list[Text]:
    """Of the columns that are read, answers last."""
    parts = recipe.detected.columns
    read = [parts[name] for name in sorted(parts, key=_ANSWERS.__contains__) if name not in _MARKS]
    return [
        Text(number, place, label, said, _at(before.get(column), place[len(column) + 1 :]))
        for column in dict.fromkeys(read)
        for place, label, said in _leaves(now.get(column), column, column)
    ]


def _leaves(held: Any, place: str, label: str) -> Iterator[tuple[str, str, str]]:
    """Place, label and text of whatever says something in a cell."""
    if isinstance(held, str):
        turns = list_in(held) if turns_in(held) else None
        if turns is None:
            yield place, label, held
            return
        held = turns
    if isinstance(held, Mapping):
        role = first_key(held, ROLE_KEYS)
        for key, value in held.items():
            if role is None and key != "type":
                yield from _leaves(value, f"{place}.{key}", label)
            elif key in _SAID:
                named = str(held[role]) if role else label
                yield from _leaves(value, f"{place}.{key}", _of_turn(named, key))
    elif isinstance(held, list | tuple):
        for at, value in enumerate(held):
            yield from _leaves(value, f"{place}.{at}", label)


def _of_turn(role: str, key: str) -> str:
    return f"{role} · {key}" if key in THOUGHTS else role


def _at(held: Any, inside: str) -> str:
    """What stood at a place before; empty where it held no text."""
    for step in inside.split(".") if inside else ():
        if isinstance(held, str):
            held = list_in(held)
        if isinstance(held, Mapping):
            held = held.get(step)
        elif isinstance(held, list | tuple) and step.isdecimal() and int(step) < len(held):
            held = held[int(step)]
        else:
            return ""
    return held if isinstance(held, str) else ""


# Rows that make one together


def _placed(source: Source, edits: Any, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The rows, whose texts know where they stand."""
    for number, row in enumerate(source.rows(limit=FAR)):
        now = changed(number, row, edits.get(number, {}))
        for text in _texts(number, row, now, recipe):
            placed = _Placed(text.said)
            placed.text = text
            now = _with(now, text.place, placed)
        yield now


def _with(row: dict[str, Any], place: str, text: str) -> dict[str, Any]:
    if place in row:
        return {**row, place: text}
    column = next(name for name in row if place.startswith(f"{name}."))
    if isinstance(row[column], str):  # a list that is written as text: read anew, without places
        return row
    return {**row, column: _within(row[column], place[len(column) + 1 :].split("."), text)}


def _within(held: Any, inside: Sequence[str], text: str) -> Any:
    if not inside:
        return text
    first, *rest = inside
    if isinstance(held, Mapping):
        return {**held, first: _within(held[first], rest, text)}
    at = int(first)
    return [*held[:at], _within(held[at], rest, text), *held[at + 1 :]]


def _found(held: Any) -> Iterator[Text]:
    """The texts in a row that was put together of several; a turn's role is its label."""
    if isinstance(held, _Placed):
        yield held.text
    elif isinstance(held, Mapping):
        role = first_key(held, ROLE_KEYS)
        for value in held.values():
            for text in _found(value):
                yield text if role is None else _labelled(text, str(held[role]))
    elif isinstance(held, list | tuple):
        for value in held:
            yield from _found(value)


def _labelled(text: Text, label: str) -> Text:
    return Text(text.row, text.place, label, text.said, text.before)


def _unused(row: dict[str, Any], recipe: Recipe, tokenizer: Any) -> str:
    """Why training drops the row; empty where it does not."""
    tally = tally_for(recipe)
    if any(read_rows(iter([row]), recipe, tokenizer, tally)):
        return ""
    return next(iter(tally.dropped), "")


# What is done with it


def as_shown(text: str) -> str:
    """A text as a page can show it and send it back."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return lines.encode("utf-8", "replace").decode()


def with_texts(config: RunConfig, row: OpenRow, texts: Sequence[str]) -> RunConfig:
    """The config in which the row says this; a text that is as in the source is no edit.

    Raises:
        DataError: not a text for each, or more edits than a config holds.
    """
    if len(texts) != len(row.texts):
        raise DataError(f"Expected {len(row.texts)} texts for row {row.row}, got {len(texts)}.")
    edits = {number: dict(cells) for number, cells in _section(config, row.source).edits.items()}
    for text, said in zip(row.texts, map(as_shown, texts), strict=True):
        cells = edits.setdefault(text.row, {})
        if said == as_shown(text.before) and not _in_whole_cell(text.place, cells):
            cells.pop(text.place, None)
        elif said != text.shown:
            cells[text.place] = said
    edited = {number: cells for number, cells in edits.items() if cells}
    pinned = _section(config, row.source).revision or (row.commit if edited else None)
    return _with_section(config, row.source, edits=edited, revision=pinned)


def _in_whole_cell(place: str, cells: Mapping[str, str]) -> bool:
    """Whether a cell that is replaced as a whole holds this place."""
    return any(place.startswith(f"{name}.") for name in cells)


def without_edits(config: RunConfig, row: OpenRow) -> RunConfig:
    """The config in which the row is as the source has it."""
    numbers = {text.row for text in row.texts}
    edits = _section(config, row.source).edits
    return _with_section(
        config, row.source, edits={one: cells for one, cells in edits.items() if one not in numbers}
    )


def with_edits(config: RunConfig, kept: SourceConfig) -> RunConfig:
    """The config with the edits and left-out rows of another section beside its own."""
    mine = config.data
    rows = {**kept.edits, **mine.edits}
    return _with_section(
        config,
        0,
        edits={row: {**kept.edits.get(row, {}), **mine.edits.get(row, {})} for row in rows},
        leave_out_rows=sorted({*kept.leave_out_rows, *mine.leave_out_rows}),
        revision=mine.revision or kept.revision,
    )


def with_row_left_out(config: RunConfig, source: int, row: int, *, out: bool) -> RunConfig:
    """The config without the row, or with it again."""
    rows = set(_section(config, source).leave_out_rows) - {row}
    return _with_section(config, source, leave_out_rows=sorted(rows | {row} if out else rows))


def _section(config: RunConfig, source: int) -> SourceConfig:
    sources = (config.data, *config.data.more)
    if source not in range(len(sources)):
        raise DataError(f"There is no source {source + 1}; the config names {len(sources)}.")
    return sources[source]


def _with_section(config: RunConfig, source: int, **changes: Any) -> RunConfig:
    """The config with other options of one source. DataError where it could not be read again."""
    if source == 0:
        values: dict[str, Any] = {f"data.{name}": value for name, value in changes.items()}
    else:
        more = [one.model_dump() for one in config.data.more]
        more[source - 1] |= changes
        values = {"data.more": more}
    wanted = config.with_values(values)
    if (characters := len(wanted.to_yaml())) > LARGEST:
        raise DataError(
            f"With these edits the configuration has {characters:,} characters, {LARGEST:,} are "
            "the most. Change the source itself where so much of it is to be another."
        )
    return wanted
