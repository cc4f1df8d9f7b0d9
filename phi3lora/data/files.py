"""Rows of a local file: JSON, JSONL, CSV or Parquet, one row at a time.

    for row in read_file(path, report=print): ...

What a file is, its first bytes say, not its name. Nothing is read whole, so a file larger than
memory is read like any other; the one exception is a JSON file that is a single object of columns.
`report` is told how much has been read, from 0 to 1.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from phi3lora.errors import DataError

Report = Callable[[float], None]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
LISTS = ("data", "rows", "train", "examples", "items", "records", "dataset")
_CHUNK = 1 << 20  # bytes
_BLANKS = re.compile(r"\s*")
_LONGEST = 1 << 28  # characters of one JSON value
_EXPECTED = "expected JSON, JSONL, CSV or Parquet"
_REFUSED = {
    b"PK\x03\x04": "a ZIP archive (or an Excel or Word file)",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_file(
    path: Path, split: str | None = None, report: Report | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a file, column → value.

    Args:
        path: the file.
        split: which list of a JSON object `{"train": […], "test": […]}`.
        report: told the share that has been read.

    Raises:
        DataError: missing, empty, malformed (with the line), not UTF-8, or of another kind.
    """
    kind = kind_of(path)
    try:
        if kind == "parquet":
            yield from _parquet(path, report)
        elif kind == "csv":
            yield from _csv(path, report)
        else:
            yield from _json(path, split, report)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}.") from error


def delimiter_of(path: Path) -> str:
    """What separates the cells of a CSV file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _delimiter(file.readline())


def count_rows(path: Path) -> int | None:
    """Rows, where the file says so without being read."""
    if kind_of(path) != "parquet":
        return None
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def kind_of(path: Path) -> str:
    """`parquet`, `json` (or JSONL) or `csv`, by content.

    Raises:
        DataError: a folder, missing, empty, or of a kind that holds no rows.
    """
    start = _first_bytes(path)
    if start.startswith(b"PAR1"):
        return "parquet"
    for magic, name in _REFUSED.items():
        if start.startswith(magic):
            raise DataError(f"{path.name} is {name}; {_EXPECTED}: unpack or save it as one first.")
    if start.startswith(_UTF16):
        raise DataError(f"{path.name} is UTF-16, expected UTF-8: save it with that encoding.")
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if not text:
        raise DataError(f"{path.name} is empty; {_EXPECTED} with at least one row.")
    if text[:1] in (b"{", b"["):
        return "json"
    if path.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    raise DataError(
        f"{path.name} is no file of rows: {_EXPECTED}, but it begins with "
        f"{text[:20].decode('utf-8', 'replace')!r}. A table of text must be named .csv or .tsv."
    )


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        inside = f" It holds {', '.join(files[:5])}." if files else ""
        raise DataError(f"{path} is a folder, expected one file: {_EXPECTED}.{inside}")
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; check the name and the folder.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"{path.name} is not UTF-8: the byte 0x{byte:02X} cannot be read. It may be Windows-1252 "
        "or Latin-1; save it as UTF-8."
    )


# Parquet and CSV


def _parquet(path: Path, report: Report | None) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            done, total = 0, file.metadata.num_rows
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
                done += batch.num_rows
                _tell(report, done, total)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{path.name} is a broken Parquet file: {error}. Write it again."
        ) from error


def _csv(path: Path, report: Report | None) -> Iterator[dict[str, Any]]:
    """Rows under a header; the delimiter is the one that the header has most of."""
    csv.field_size_limit(1 << 30)  # answers longer than the library's 128 KiB are real
    size = path.stat().st_size
    with path.open("rb") as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        first = text.readline()
        reader = csv.reader(chain([first], text), delimiter=_delimiter(first), strict=True)
        try:
            header = _header(path, next(reader))
            for number, cells in enumerate(reader):
                if cells:
                    yield _csv_row(path, header, cells, reader.line_num)
                if number % 1000 == 0:
                    _tell(report, raw.tell(), size)
        except csv.Error as error:
            raise DataError(f"{path.name}, line {reader.line_num}: {error}.") from error


def _delimiter(header: str) -> str:
    outside_quotes = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=outside_quotes.count)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(
            f"{path.name}, line 1: the column {min(twice)!r} is there twice; rename one of them."
        )
    return names


def _csv_row(path: Path, header: list[str], cells: list[str], line: int) -> dict[str, Any]:
    if len(cells) > len(header):
        raise DataError(
            f"{path.name}, line {line}: expected {len(header)} cells as in the header, got "
            f"{len(cells)}. Put text that contains the delimiter in double quotes."
        )
    return {name: cells[i] if i < len(cells) else None for i, name in enumerate(header)}


# JSON


def _json(path: Path, split: str | None, report: Report | None) -> Iterator[dict[str, Any]]:
    """An array, an object with a list of rows or with columns, or one value after another."""
    if is_lines(path):
        values: Iterator[Any] = _lines(path, report)
    else:
        values = _values(path, split, report)
    for number, value in enumerate(values, 1):
        yield _row(path, number, value)


def _row(path: Path, number: int, value: Any) -> dict[str, Any]:
    """A row as an object; a bare text or a bare list of turns gets the column's usual name."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {"messages": value}
    raise DataError(
        f"{path.name}, row {number}: expected an object with columns, got {json.dumps(value)[:60]}."
    )


def is_lines(path: Path) -> bool:
    """Whether the first line is a whole value and more follow."""
    with path.open("rb") as file:
        first = b""
        while not first.strip() and (line := file.readline(_CHUNK)):
            first = line
        rest = file.read(4096).strip()
    try:
        json.loads(first.decode("utf-8-sig", "replace"))
    except ValueError:
        return path.suffix.lower() == ".jsonl" and first.rstrip() not in (b"[", b"{")
    return bool(rest)


def _lines(path: Path, report: Report | None) -> Iterator[Any]:
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            done += len(line)
            if number % 1000 == 0:
                _tell(report, done, size)
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield json.loads(text)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path.name}, line {number}: not JSON: {error.msg} at column {error.colno}. "
                    "Each line must be one whole object."
                ) from None
    _tell(report, size, size)


def _values(path: Path, split: str | None, report: Report | None) -> Iterator[Any]:
    reader = _JsonReader(path, report)
    yield from _all_values(reader, split)
    _tell(report, 1, 1)


def _all_values(reader: _JsonReader, split: str | None) -> Iterator[Any]:
    if reader.peek() == "[" or reader.skip_to_list((split, *LISTS)):
        yield from reader.array()
        return
    first, second = reader.value(), reader.peek()
    if not second:
        yield from _expand(first, split)
        return
    yield first
    while reader.peek():
        yield reader.value()


def _expand(value: dict[str, Any], split: str | None) -> Iterator[Any]:
    """The rows in a single object: under a name, as columns, or the object itself."""
    for name in (split, *LISTS):
        if name in value and _is_rows(value[name]):
            yield from value[name]
            return
    columns = [list(c.values()) if isinstance(c, dict) else c for c in value.values()]
    lists = all(isinstance(c, list) for c in columns)
    if columns and lists and len({len(c) for c in columns}) == 1 and not _is_one_row(value):
        yield from (dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True))
        return
    yield value


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_one_row(value: dict[str, Any]) -> bool:
    """`{"messages": [{"role": …}]}` is one row, not a column of them."""
    return any(_is_rows(cell) and {"role", "from"} & set(cell[0]) for cell in value.values())


class _JsonReader:
    """JSON values from a file, one after another, with a bounded part of it in memory."""

    def __init__(self, path: Path, report: Report | None) -> None:
        self.path, self.report, self.size = path, report, path.stat().st_size
        self.decoder = json.JSONDecoder()
        self.chunks = self._chunks()
        self.buffer, self.position, self.line = "", 0, 1
        self.taken = self.given = 0  # bytes read, and values given

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            found = _BLANKS.match(self.buffer, self.position)
            self._advance(found.end() if found else self.position)
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self._more():
                return ""

    def skip_to_list(self, names: tuple[str | None, ...]) -> bool:
        """Step into `{"data": [{…` and say so; stay where the file begins otherwise."""
        known = "|".join(re.escape(name) for name in names if name)
        found = re.compile(rf'\s*\{{\s*"(?:{known})"\s*:\s*(?=\[\s*\{{)').match(self.buffer)
        if found:
            self._advance(found.end())
        return bool(found)

    def array(self) -> Iterator[Any]:
        """The values of an array; what follows it is left."""
        self.peek()
        self._advance(self.position + 1)
        while (mark := self.peek()) != "]":
            if not mark:
                raise self._error("the list is not closed: the file ends too early", self.position)
            yield self.value()
            self.given += 1
            if self.given % 1000 == 0:  # letters stand for bytes, which is near enough
                left = len(self.buffer) - self.position
                _tell(self.report, max(self.taken - left, 1), self.size)
            mark = self.peek()
            if mark == ",":
                self._advance(self.position + 1)
            elif mark and mark != "]":
                raise self._error("expected a comma or the end of the list", self.position)

    def value(self) -> Any:
        """The next value, however long it takes to arrive."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - 16
                if not cut or not self._more():
                    raise self._error(error.msg, error.pos) from None
            else:
                self._advance(end)
                return value

    def _advance(self, position: int) -> None:
        self.line += self.buffer.count("\n", self.position, position)
        self.position = position

    def _more(self) -> bool:
        """Append about as much as is there, so that a long value is tried only a few times."""
        rest = self.buffer[self.position :]
        if len(rest) > _LONGEST:
            raise self._error(f"one value is longer than {_LONGEST:,} characters", self.position)
        added = [next(self.chunks, "")]
        while added[-1] and sum(map(len, added)) < len(rest):
            added.append(next(self.chunks, ""))
        self.buffer, self.position = rest + "".join(added), 0
        return len(self.buffer) > len(rest)

    def _chunks(self) -> Iterator[str]:
        """The file's text in parts, none of them empty."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        with self.path.open("rb") as file:
            while part := file.read(_CHUNK):
                if text := decoder.decode(part):
                    self.taken = file.tell()
                    yield text
        decoder.decode(b"", final=True)  # raises where the file ends within a character

    def _error(self, what: str, position: int) -> DataError:
        line = self.line + self.buffer.count("\n", self.position, position)
        return DataError(f"{self.path.name}, line {line}: not JSON: {what}. Mend or remove it.")


def _tell(report: Report | None, done: int, total: int) -> None:
    if report and total:
        report(min(done / total, 1.0))
