"""Rows of local files, one row at a time.

    for row in read_file(path, report=print): ...

JSON, JSONL, CSV, TSV, Parquet, Arrow, Excel and text, packed or not; a folder of them; what
`datasets` saves to disk. What a file is, its first bytes say, not its name. Nothing is read whole,
so a file larger than memory is read like any other; the one exception is a JSON file that is a
single object of columns. `report` is told how much has been read, from 0 to 1.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from phi3lora.data.folders import files_of
from phi3lora.data.opening import (
    LONGEST,
    Opened,
    bounded_lines,
    encoding_of,
    first_bytes,
    opened,
    plain_name,
    text_of_file,
)
from phi3lora.data.tables import (
    arrow_count,
    arrow_rows,
    is_workbook,
    parquet_count,
    parquet_rows,
    sheet_rows,
)
from phi3lora.errors import DataError

Report = Callable[[float], None]
LISTS = ("data", "rows", "train", "examples", "items", "records", "dataset")
MOST_COLUMNS = 2_000
MOST_NESTED = 3  # objects around a list of rows: `{"data": {"train": […]}}`
_CHUNK = 1 << 20  # bytes
_BLANKS = re.compile(r"\s*")
_LONGEST = 1 << 27  # characters of a JSON file that is one object
COUNTED = 400 << 20  # bytes of lines that are counted before a launch; of more, by their size
SLOWER = 4  # times that a table takes, whose cells may hold line ends
_EXPECTED = "expected JSON, JSONL, CSV, Parquet, Arrow, Excel or text"
_REFUSED = {
    b"PK\x03\x04": "a ZIP archive (or a Word file)",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
}
_ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TEXTUAL = ("json", "csv", "text")


def read_file(
    path: Path, split: str | None = None, report: Report | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a file or a folder, column → value.

    Args:
        path: the file or folder.
        split: which list of a JSON object `{"train": […], "test": […]}`, or which files.
        report: told the share that has been read.

    Raises:
        DataError: missing, empty, malformed (with the line), damaged, or of another kind.
    """
    if not path.is_dir():
        yield from _read_one(path, split, report)
        return
    files = files_of(path, split or "train")
    sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
    done, total = 0, max(sum(sizes), 1)
    for file, size in zip(files, sizes, strict=True):
        base = done

        def told(share: float, base: int = base, size: int = size) -> None:
            _tell(report, base + share * size, total)

        yield from _text_rows(file) if kind_of(file) == "text" else _read_one(file, split, told)
        done += size
        _tell(report, done, total)


def _read_one(path: Path, split: str | None, report: Report | None) -> Iterator[dict[str, Any]]:
    kind = kind_of(path)
    if kind == "parquet":
        yield from parquet_rows(path, report)
    elif kind == "arrow":
        yield from arrow_rows(path, report)
    elif kind == "xlsx":
        yield from _table(path, sheet_rows(path))
    elif kind == "text":
        yield from _paragraphs(path)
    elif kind == "csv":
        yield from _csv(path, report)
    else:
        yield from _json(path, split, report)


def count_rows(path: Path, split: str | None = None) -> int | None:
    """Rows, where files say so, or can be counted in about a second; else None."""
    total, left = 0, COUNTED
    for file in files_of(path, split or "train") if path.is_dir() else [path]:
        kind = kind_of(file)
        if kind in ("parquet", "arrow"):
            found = parquet_count(file) if kind == "parquet" else arrow_count(file)
        else:
            left -= file.stat().st_size * (SLOWER if kind == "csv" else 1)
            found = _counted(file, kind) if left >= 0 else None
        if found is None:
            return None
        total += found
    return total


def _counted(path: Path, kind: str) -> int | None:
    """Rows of a text file that has one a line, or of a table; None for others, and packed ones."""
    with opened(path) as file:
        if file.stream is not file.packed:  # what it unpacks to may be any size
            return None
    try:
        if kind == "csv":
            return sum(1 for _ in _csv(path, None))
        return _count_lines(path) if kind == "json" and is_lines(path) else None
    except DataError:  # a row that cannot be read is said once it is reached
        return None


def _count_lines(path: Path) -> int:
    encoding, _ = encoding_of(path)
    with opened(path) as file:
        wide = encoding == "utf-16"
        lines = bounded_lines(text_of_file(file, encoding) if wide else file.stream, path)
        return sum(1 for line in lines if line.strip())


def notices_of(path: Path, split: str) -> list[str]:
    """What is assumed about a file, such as its encoding, a sentence each."""
    files = files_of(path, split) if path.is_dir() else [path]
    found = (encoding_of(file)[1] for file in files[:20] if kind_of(file) in _TEXTUAL)
    return list(filter(None, found))


def kind_of(path: Path) -> str:
    """`parquet`, `arrow`, `xlsx`, `json` (or JSONL), `csv`, `text` or `folder`, by content.

    Raises:
        DataError: missing, empty, or of a kind that holds no rows.
    """
    if path.is_dir():
        return "folder"
    start = first_bytes(path)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(_ARROW):
        return "arrow"
    if start.startswith(b"PK\x03\x04") and is_workbook(path):
        return "xlsx"
    for magic, name in _REFUSED.items():
        if start.startswith(magic):
            raise DataError(f"{path.name} is {name}; {_EXPECTED}: unpack or save it as one first.")
    if start.startswith(_UTF16):
        start = start[: len(start) & ~1].decode("utf-16", "replace").encode()
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if not text:
        raise DataError(f"{path.name} is empty; {_EXPECTED} with at least one row.")
    if text[:1] in (b"{", b"[") and not plain_name(path).endswith(".txt"):
        return "json"
    if plain_name(path).endswith((".csv", ".tsv")):
        return "csv"
    if plain_name(path).endswith(".txt"):
        return "text"
    raise DataError(
        f"{path.name} is no file of rows: {_EXPECTED}, but it begins with "
        f"{text[:20].decode('utf-8', 'replace')!r}. A table must be named .csv or .tsv, text .txt."
    )


# Text


def _paragraphs(path: Path) -> Iterator[dict[str, Any]]:
    """A row for each paragraph: what stands between empty lines."""
    lines: list[str] = []
    for line in _text_lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield {"text": "".join(lines).rstrip("\r\n")}
            lines = []
    if lines:
        yield {"text": "".join(lines).rstrip("\r\n")}


def _text_rows(path: Path) -> Iterator[dict[str, Any]]:
    """A row for a whole file, as folders of texts have them."""
    parts, size = [], 0
    for line in _text_lines(path):
        parts.append(line)
        size += len(line)
        if size > LONGEST:
            raise DataError(f"{path.name} is longer than {LONGEST >> 20} MiB; split it.")
    yield {"text": "".join(parts)}


def _text_lines(path: Path) -> Iterator[str]:
    encoding, _ = encoding_of(path)
    with opened(path) as file:
        yield from bounded_lines(text_of_file(file, encoding), path)


# CSV


def _csv(path: Path, report: Report | None) -> Iterator[dict[str, Any]]:
    """Rows under a header; the delimiter is the one that the header has most of."""
    csv.field_size_limit(LONGEST)  # answers longer than the library's 128 KiB are real
    size, (encoding, _) = path.stat().st_size, encoding_of(path)
    dialect = dialect_of(path)
    with opened(path) as file:
        lines = bounded_lines(text_of_file(file, encoding), path)
        if dialect.pop("skipped"):
            next(lines)
        reader = csv.reader(_told_lines(lines, file, report, size), strict=True, **dialect)
        try:
            yield from _table(path, reader, lambda: reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path.name}, line {reader.line_num}: {error}.") from error
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from None
    _tell(report, 1, 1)


def _told_lines(
    lines: Iterator[str], file: Opened, report: Report | None, size: int
) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line
        if number % 1000 == 0:
            _tell(report, file.packed.tell(), size)


def dialect_of(path: Path) -> dict[str, Any]:
    """How cells are separated: arguments of `csv.reader`, and whether `sep=;` comes first."""
    encoding, _ = encoding_of(path)
    with opened(path) as file:
        text = text_of_file(file, encoding)
        first = text.readline(_CHUNK)
        said = re.fullmatch(r"\s*sep=(.)\s*", first)
        header = text.readline(_CHUNK) if said else first
        sample = text.read(1 << 16)
    delimiter = said.group(1) if said else _delimiter(header)
    dialect: dict[str, Any] = {"delimiter": delimiter, "skipped": bool(said)}
    if re.search(re.escape(delimiter) + ' "', header + sample):
        dialect["skipinitialspace"] = True
    if delimiter == "\t" and not _quotes_cells(header + sample):
        dialect["quoting"] = csv.QUOTE_NONE
    return dialect


def _quotes_cells(text: str) -> bool:
    """Whether quotes stand around cells of a table with tabs, rather than in its words."""
    cells = [cell for line in text.splitlines()[:-1] for cell in line.split("\t")]
    quoted = [cell for cell in cells if cell.startswith('"')]
    return bool(quoted) and all(len(cell) > 1 and cell.endswith('"') for cell in quoted)


def _delimiter(header: str) -> str:
    outside_quotes = re.sub(r'"[^"]*"', "", header)
    return max(",;\t|", key=outside_quotes.count)


def _table(
    path: Path, rows: Iterable[list[str]], line: Callable[[], int] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of cells under the first of them, which names the columns."""
    header: list[str] | None = None
    for number, cells in enumerate(rows, 1):
        if not any(cells) and (header is None or not cells):
            continue
        if header is None:
            header = _header(path, cells)
        else:
            yield _table_row(path, header, cells, line() if line else number)


def _header(path: Path, cells: list[str]) -> list[str]:
    if len(cells) > MOST_COLUMNS:
        raise DataError(
            f"{path.name}, line 1: {len(cells):,} columns, expected {MOST_COLUMNS:,} at most. "
            "Check what separates the cells, or leave columns out."
        )
    # As pandas does: a table's own numbering has no name.
    names = [cell.strip() or f"Unnamed: {place}" for place, cell in enumerate(cells)]
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise DataError(
            f"{path.name}, line 1: the column {min(twice)!r} is there twice; rename one of them."
        )
    return names


def _table_row(path: Path, header: list[str], cells: list[str], line: int) -> dict[str, Any]:
    if len(cells) > len(header):
        raise DataError(
            f"{path.name}, line {line}: expected {len(header)} cells as in the header, got "
            f"{len(cells)}. Put text that contains the delimiter in double quotes."
        )
    return {name: cells[i] if i < len(cells) else None for i, name in enumerate(header)}


def _not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"{path.name} is not UTF-8: the byte 0x{byte:02X} cannot be read. It may be Windows-1252 "
        "or Latin-1; save it as UTF-8."
    )


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
    if isinstance(value, list) and len(value) > 1 and all(isinstance(v, str) for v in value):
        return {"conversations": value}  # as LIMA has them
    raise DataError(
        f"{path.name}, row {number}: expected an object with columns, got {str(value)[:60]}."
    )


def is_lines(path: Path) -> bool:
    """Whether the first line is a whole value and more follow."""
    encoding, _ = encoding_of(path)
    with opened(path) as file:
        text = text_of_file(file, encoding)
        first = ""
        while not first.strip() and (line := text.readline(_CHUNK)):
            first = line
        rest = text.read(4096).strip()
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        whole = first.rstrip() not in ("[", "{")
        return plain_name(path).endswith(".jsonl") and whole
    return bool(rest)


def _lines(path: Path, report: Report | None) -> Iterator[Any]:
    size, (encoding, _) = path.stat().st_size, encoding_of(path)
    with opened(path) as file:
        wide = encoding == "utf-16"  # its line ends are two bytes
        lines = bounded_lines(text_of_file(file, encoding) if wide else file.stream, path)
        for number, line in enumerate(lines, 1):
            if number % 1000 == 0:
                _tell(report, file.packed.tell(), size)
            text = line if wide else _decoded(path, number, line, encoding)
            if text.strip():
                yield _loaded(path, number, text)
    _tell(report, 1, 1)


def _decoded(path: Path, number: int, line: bytes, encoding: str) -> str:
    try:
        return line.decode(encoding if number == 1 or encoding == "cp1252" else "utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def _loaded(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}, line {number}: not JSON: {error.msg} at column {error.colno}. "
            "Each line must be one whole object."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}, line {number}: {_too_much(error)}.") from None


def _too_much(error: Exception) -> str:
    """What no conversation holds: values in values in values, or a number without end."""
    deep = isinstance(error, RecursionError)
    return "nested too deep" if deep else "a number of too many digits; write it as text"


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


def _expand(value: dict[str, Any], split: str | None, depth: int = 0) -> Iterator[Any]:
    """The rows in a single object: under a name, as columns, by id, or the object itself."""
    for name in filter(None, (split, *LISTS)):
        if name in value and _is_rows(value[name]):
            yield from value[name]
            return
        if isinstance(value.get(name), dict) and depth < MOST_NESTED and not _is_one_row(value):
            yield from _expand(value[name], split, depth + 1)
            return
    cells = list(value.values())
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        names = [str(name) for name in value["columns"]]  # pandas, orient="split"
        yield from (dict(zip(names, row, strict=False)) for row in value["data"])
        return
    if cells and all(isinstance(cell, dict) for cell in cells) and not _are_numbered(cells[0]):
        yield from cells  # {id: row}
        return
    columns = [list(c.values()) if isinstance(c, dict) else c for c in cells]
    lists = all(isinstance(c, list) for c in columns)
    if columns and lists and len({len(c) for c in columns}) == 1 and not _is_one_row(value):
        yield from (dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True))
        return
    yield value


def _are_numbered(cells: dict[str, Any]) -> bool:
    """`{"0": …, "1": …}` is a column, as pandas writes it, and no row."""
    return bool(cells) and all(str(name).isdigit() for name in cells)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_one_row(value: dict[str, Any]) -> bool:
    """`{"messages": [{"role": …}]}` is one row, not a column of them."""
    return any(_is_rows(cell) and {"role", "from"} & set(cell[0]) for cell in value.values())


class _JsonReader:
    """JSON values from a file, one after another, with a bounded part of it in memory."""

    def __init__(self, path: Path, report: Report | None) -> None:
        self.path, self.report, self.size = path, report, path.stat().st_size
        self.encoding, _ = encoding_of(path)
        self.decoder = json.JSONDecoder()
        self.chunks = self._chunks()
        self.buffer, self.position, self.line = "", 0, 1
        self.taken = self.given = 0  # bytes read, and values given
        self.inside = False  # a list, of which each value is a row

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
        nested = rf'(?:\s*\{{\s*"(?:{known})"\s*:){{1,{MOST_NESTED}}}\s*(?=\[\s*\{{)'
        found = re.compile(nested).match(self.buffer)
        if found:
            self._advance(found.end())
        return bool(found)

    def array(self) -> Iterator[Any]:
        """The values of an array; what follows it is left."""
        self.inside = True
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
            except (ValueError, RecursionError) as error:
                raise self._error(_too_much(error), self.position) from None
            else:
                self._advance(end)
                return value

    def _advance(self, position: int) -> None:
        self.line += self.buffer.count("\n", self.position, position)
        self.position = position

    def _more(self) -> bool:
        """Append about as much as is there, so that a long value is tried only a few times."""
        rest = self.buffer[self.position :]
        limit = LONGEST if self.inside else _LONGEST
        if len(rest) > limit:
            raise self._error(f"one value is longer than {limit:,} characters", self.position)
        added = [next(self.chunks, "")]
        while added[-1] and sum(map(len, added)) < len(rest):
            added.append(next(self.chunks, ""))
        self.buffer, self.position = rest + "".join(added), 0
        return len(self.buffer) > len(rest)

    def _chunks(self) -> Iterator[str]:
        """The file's text in parts, none of them empty."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        try:
            with opened(self.path) as file:
                while part := file.stream.read(_CHUNK):
                    if text := decoder.decode(part):
                        self.taken = file.packed.tell()
                        yield text
            decoder.decode(b"", final=True)  # raises where the file ends within a character
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, error) from None

    def _error(self, what: str, position: int) -> DataError:
        line = self.line + self.buffer.count("\n", self.position, position)
        return DataError(f"{self.path.name}, line {line}: not JSON: {what}. Mend or remove it.")


def _tell(report: Report | None, done: float, total: int) -> None:
    if report and total:
        report(min(done / total, 1.0))
