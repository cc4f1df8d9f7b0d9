"""Rows of Parquet, Arrow and Excel files, a few at a time and within bounds of memory.

A file of a few KB can hold a value of gigabytes, or one value a billion times: how many rows are
unpacked at once depends on what the file's own footer says of its sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree
from zipfile import BadZipFile, ZipFile

from phi3lora.data.opening import LONGEST
from phi3lora.errors import DataError

Report = Callable[[float], None]
BUDGET = 1 << 27  # bytes that a batch of rows may take
MOST_ROWS = 1000
_BOMB = 1000  # times as large as packed: text is packed to a tenth
_SHEET = 1 << 29  # bytes of a sheet, or of its texts
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def parquet_rows(path: Path, report: Report | None) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file.

    Raises:
        DataError: broken, or it would unpack to more than any data does.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            done, total = 0, file.metadata.num_rows
            for group in range(file.metadata.num_row_groups):
                size = _rows_at_once(path, file.metadata.row_group(group))
                for batch in file.iter_batches(batch_size=size, row_groups=[group]):
                    yield from batch.to_pylist()
                    done += batch.num_rows
                    if report and total:
                        report(done / total)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path.name} is a broken Parquet file: {error}. Write it again."
        ) from error


def parquet_count(path: Path) -> int:
    """Rows, as the footer says."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def _rows_at_once(path: Path, group: Any) -> int:
    """Rows of a batch, such that even the largest value in each would fit.

    A value in a dictionary stands once in the file and once in each row that has it, so such a
    batch may be as large as its rows times all that the group unpacks to.
    """
    rows = max(group.num_rows, 1)
    largest = 0
    for number in range(group.num_columns):
        column = group.column(number)
        packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
        if unpacked > LONGEST and unpacked > _BOMB * max(packed, 1):
            raise DataError(
                f"{path.name} unpacks to {unpacked >> 20:,} MiB from {packed >> 10:,} KiB in one "
                "column, as no text does. Write it again with the rows alone."
            )
        if packed < max(1 << 20, rows * 8):
            largest += unpacked
        else:
            largest += 8 * unpacked // rows + _dictionary(column) * unpacked // packed
    return max(1, min(MOST_ROWS, BUDGET // max(largest, 1)))


def _dictionary(column: Any) -> int:
    """Bytes of a column's dictionary, packed; writers keep it below a MiB or so."""
    if not column.has_dictionary_page:
        return 0
    return int(max(column.data_page_offset - (column.dictionary_page_offset or 0), 0))


def arrow_rows(path: Path, report: Report | None) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow stream or file, as `datasets` writes them; mapped, not read.

    Raises:
        DataError: it is damaged.
    """
    import pyarrow

    size = max(path.stat().st_size, 1)
    try:
        with pyarrow.memory_map(str(path)) as source:
            for batch in _record_batches(source):
                step = max(1, min(MOST_ROWS, batch.num_rows * BUDGET // max(batch.nbytes, 1)))
                for start in range(0, batch.num_rows, step):
                    yield from batch.slice(start, step).to_pylist()
                if report:
                    report(min(source.tell() / size, 1.0))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is a broken Arrow file: {error}. Write it again.") from error


def arrow_count(path: Path) -> int | None:
    """Rows of an Arrow file, from its batches' heads; None where it is damaged."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            return sum(batch.num_rows for batch in _record_batches(source))
    except (pyarrow.ArrowException, OSError):
        return None


def _record_batches(source: Any) -> Iterator[Any]:
    import pyarrow

    if bytes(source.read(6)) == b"ARROW1":
        source.seek(0)
        file = pyarrow.ipc.open_file(source)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        source.seek(0)
        yield from pyarrow.ipc.open_stream(source)


# Excel


def is_workbook(path: Path) -> bool:
    """Whether a ZIP archive is a workbook of Excel."""
    try:
        with ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (BadZipFile, OSError):
        return False


def sheet_rows(path: Path) -> Iterator[list[str]]:
    """The cells of the first sheet, row by row, each as text.

    Raises:
        DataError: damaged, or larger than a sheet can be.
    """
    try:
        with ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if re.match(r"xl/worksheets/\w+\.xml", n))
            texts = _shared(path, archive)
            with _part(path, archive, names[0] if names else "xl/worksheets/sheet1.xml") as part:
                for _, row in ElementTree.iterparse(part):
                    if row.tag == f"{_MAIN}row":
                        yield _cells(row, texts)
                        row.clear()
    except (BadZipFile, ElementTree.ParseError, KeyError, ValueError, IndexError) as error:
        raise DataError(
            f"{path.name} is a broken workbook: {error}. Save its sheet as CSV."
        ) from error


def _part(path: Path, archive: ZipFile, name: str) -> IO[bytes]:
    if archive.getinfo(name).file_size > _SHEET:
        raise DataError(
            f"{path.name} unpacks to more than {_SHEET >> 20} MiB; save its sheet as CSV."
        )
    return archive.open(name)


def _shared(path: Path, archive: ZipFile) -> list[str]:
    """The texts that cells refer to by number."""
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    texts = []
    with _part(path, archive, "xl/sharedStrings.xml") as part:
        for _, item in ElementTree.iterparse(part):
            if item.tag == f"{_MAIN}si":
                texts.append("".join(piece.text or "" for piece in item.iter(f"{_MAIN}t")))
                item.clear()
    return texts


def _cells(row: Any, texts: list[str]) -> list[str]:
    """Text by column, empty where the sheet leaves one out."""
    cells: list[str] = []
    for cell in row.iter(f"{_MAIN}c"):
        place = _column(cell.get("r") or "")
        cells += [""] * (place - len(cells))
        value = cell.find(f"{_MAIN}v")
        if cell.get("t") == "s" and value is not None:
            cells.append(texts[int(value.text or "")])
        elif cell.get("t") == "inlineStr":
            cells.append("".join(piece.text or "" for piece in cell.iter(f"{_MAIN}t")))
        else:
            cells.append(value.text or "" if value is not None else "")
    return cells


def _column(reference: str) -> int:
    """`C7` is 2; at most the 16,384 columns that Excel has."""
    place = 0
    for letter in re.match(r"[A-Z]{0,3}", reference).group(0):  # type: ignore[union-attr]
        place = place * 26 + ord(letter) - 64
    return max(min(place, 1 << 14) - 1, 0)
