"""The bytes and the text of a file: unpacked, in the encoding it has, and a bounded line at a time.

with opened(path) as file:
    for line in lines(file, path): ...
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from phi3lora.errors import DataError

LONGEST = 1 << 25  # bytes of one row; a conversation of a million tokens has four million
_PROBED = 1 << 24  # bytes by which an encoding is recognised
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_GZIP, _ZSTD, _BZIP2, _XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"
#: What the name of a packed file ends with.
PACKED = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True)
class Opened:
    """A file's bytes, unpacked; `packed` is the file itself, by which progress is counted."""

    stream: IO[bytes]
    packed: IO[bytes]


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """A file for reading.

    Raises:
        DataError: missing, not readable, or packed and damaged.
    """
    try:
        with path.open("rb") as packed:
            start = packed.read(8)
            packed.seek(0)
            with _unpacked(packed, start) as stream:
                yield Opened(stream, packed)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; check the name and the folder.") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name} is damaged: {error}. Pack or download it again.") from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}.") from error


def _unpacked(packed: IO[bytes], start: bytes) -> IO[bytes]:
    if start.startswith(_GZIP):
        return cast(IO[bytes], gzip.GzipFile(fileobj=packed))
    if start.startswith(_BZIP2):
        return bz2.BZ2File(packed)
    if start.startswith(_XZ):
        return lzma.LZMAFile(packed)
    if start.startswith(_ZSTD):
        import pyarrow

        return io.BufferedReader(_Readable(pyarrow.CompressedInputStream(packed, "zstd")))
    return packed


class _Readable(io.RawIOBase):
    """What pyarrow unpacks, as a file of Python's."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._source.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def first_bytes(path: Path, number: int = 4096) -> bytes:
    """The beginning of a file, unpacked."""
    with opened(path) as file:
        return file.stream.read(number)


def plain_name(path: Path) -> str:
    """The name in small letters, without what says that it is packed."""
    name = path.name.lower()
    return next((name[: -len(end)] for end in PACKED if name.endswith(end)), name)


def encoding_of(path: Path) -> tuple[str, str]:
    """A file's encoding, and a notice where it was assumed.

    Raises:
        DataError: it is text in no encoding that is known.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _encoding(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _encoding(path: Path, _changed: int, _size: int) -> tuple[str, str]:
    """As it was found for this very version of a file; it is asked several times a read."""
    start = first_bytes(path, _PROBED)
    if start.startswith(_UTF16):
        return "utf-16", f"{path.name} is read as UTF-16."
    try:
        codecs.getincrementaldecoder("utf-8-sig")().decode(start)
    except UnicodeDecodeError as error:
        byte = start[error.start]
        try:
            start.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(
                f"{path.name} is not UTF-8: the byte 0x{byte:02X} cannot be read, and it is no "
                "Windows-1252 either. Save it as UTF-8."
            ) from None
        notice = f"{path.name} is not UTF-8 (the byte 0x{byte:02X}), and is read as Windows-1252."
        return "cp1252", notice
    return "utf-8-sig", ""


def text_of_file(file: Opened, encoding: str) -> io.TextIOWrapper:
    """The text of an opened file, line ends as they are."""
    return io.TextIOWrapper(file.stream, encoding=encoding, newline="")


def bounded_lines(text: IO[Any], path: Path) -> Iterator[Any]:
    """Lines of text or of bytes, none of them longer than a row may be.

    Raises:
        DataError: one is.
    """
    number = 0
    while line := text.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise DataError(
                f"{path.name}, line {number}: longer than {LONGEST >> 20} MiB, which no "
                "conversation is. Put each row on a line of its own."
            )
        yield line
