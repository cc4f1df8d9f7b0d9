"""Where rows come from: a bundled example, a file, or the Hub.

source = open_source(config.data, token=token, cache_folder=folder)
source.first(20)      # reads the first rows only
source.rows()         # all of them, one at a time
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from phi3lora.config import POCKET, DataConfig
from phi3lora.data.files import (
    Report,
    count_rows,
    is_lines,
    kind_of,
    notices_of,
    read_file,
)
from phi3lora.data.folders import SUFFIXES, files_of
from phi3lora.data.hub_rows import HubSet, Tell
from phi3lora.errors import DataError
from phi3lora.hub.client import is_hub_id

_HERE = Path(__file__).resolve().parent.parent
# In a checkout examples/ stands beside the package; a wheel carries it inside.
_FOLDER = _HERE / "examples" if (_HERE / "examples").is_dir() else _HERE.parent / "examples"
#: Bundled datasets: a manner, a form and a tone; the same pirate in other shapes; and sums.
EXAMPLES: dict[str, Path] = {
    "pirate": _FOLDER / "pirate.jsonl",
    "orders": _FOLDER / "orders.jsonl",
    "support": _FOLDER / "support.jsonl",
    "pirate_sharegpt": _FOLDER / "pirate_sharegpt.json",
    "pirate_instructions": _FOLDER / "pirate_instructions.csv",
    "pirate_prompts": _FOLDER / "pirate_prompts.parquet",
    "pirate_preferences": _FOLDER / "pirate_preferences.jsonl",
    "sums": _FOLDER / "sums.jsonl",
}
#: What those that differ in more than their shape teach: a title and a sentence each.
TAUGHT: dict[str, tuple[str, str]] = {
    "pirate": (
        "Talk like a pirate",
        "A manner: 400 plain questions, each answered as a pirate would.",
    ),
    "orders": (
        "Answer in JSON",
        "A form: 300 orders in a sentence, each answered as JSON with the same keys.",
    ),
    "support": (
        "Sound like your support desk",
        "A tone: 240 complaints, each answered kindly, with what was done and when.",
    ),
}
EXAMPLE_PREFIX = "example:"
_LOOK = 100  # rows whose columns are taken for all there are


@dataclass(frozen=True)
class Count:
    """A number of rows; "about" where it was extrapolated."""

    rows: int
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.rows:,}" if self.exact else f"about {self.rows:,}"


@dataclass(frozen=True)
class Source:
    """Rows and where they come from.

    Attributes:
        kind: `example`, `file` or `hub`.
        label: what to call it: the example's name, the file's, or the Hub id.
        notices: what was assumed to read it, a sentence each.
        max_rows: as many rows as are used, from the first; None for all.
    """

    kind: Literal["example", "file", "hub"]
    label: str
    max_rows: int | None = None
    notices: list[str] = field(default_factory=list, kw_only=True)
    _all: Callable[[Report | None], Iterator[dict[str, Any]]] = field(repr=False, kw_only=True)
    _stream: Callable[[Report | None], Iterator[dict[str, Any]]] = field(repr=False, kw_only=True)
    _count: Callable[[], int | None] = field(repr=False, kw_only=True)
    _identity: Callable[[], list[Any]] = field(repr=False, kw_only=True)
    _about: Callable[[list[dict[str, Any]]], int | None] = field(
        default=lambda rows: None, repr=False, kw_only=True
    )

    def first(self, n: int) -> list[dict[str, Any]]:
        """The first `n` rows; no more than these are read or fetched."""
        return list(islice(self._stream(None), min(n, self.max_rows or n)))

    def rows(
        self, report: Report | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """All rows, or `max_rows` or `limit` of them; `report` is told the share that was read."""
        limits = [n for n in (self.max_rows, limit) if n is not None]
        return islice(self._stream(report), min(limits)) if limits else self._all(report)

    @cached_property
    def head(self) -> list[dict[str, Any]]:
        """A handful of rows to recognise the format by.

        Raises:
            DataError: there is no row.
        """
        rows = self.first(_LOOK)
        if not rows:
            raise DataError(f"{self.label} has no rows; expected one conversation a row.")
        return rows

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the first rows, in order of appearance."""
        return list(dict.fromkeys(str(column) for row in self.head for column in row))

    @cached_property
    def count(self) -> int | None:
        """How many rows there are, where that is known without reading them."""
        total = self._count()
        return total if total is None or self.max_rows is None else min(total, self.max_rows)

    def expected(self, read: int, share: float | None) -> Count | None:
        """How many rows there are, after some were read and more are left.

        Args:
            read: rows when `share` was told, or all that were read.
            share: of a file's bytes, from 0 to 1; None where that is not known.
        """
        if self.max_rows is not None and read >= self.max_rows:
            return Count(self.max_rows)
        if self.count is not None:
            return Count(self.count)
        about = round(read / share) if share else self._about(self.head)
        if about is None:
            return None
        return Count(min(max(about, read), self.max_rows or about), exact=False)

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the rows do: a file's content, a Hub dataset's commit."""
        identity = json.dumps([*self._identity(), self.max_rows])
        return hashlib.sha256(identity.encode()).hexdigest()


def open_source(
    data: DataConfig,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    cache_folder: Path | None = None,
    tell: Tell | None = None,
) -> Source:
    """Find the data; a file is looked at, and the Hub asked for access, before any row is read.

    Args:
        data: path, configuration, split, revision, row limit.
        token: the caller's own, for the Hub.
        endpoint: the Hub's address, None for the environment's.
        cache_folder: the caller's own, for downloads.
        tell: told when a busy Hub is waited for.

    Raises:
        DataError: nothing usable there.
        HubError: the Hub said no, or nothing.
    """
    if data.path.startswith(EXAMPLE_PREFIX):
        name = data.path.removeprefix(EXAMPLE_PREFIX)
        return _file_source("example", name, _example(name), data)
    if _is_file(data.path):
        path = _path_of(data.path)
        return _file_source("file", path.name, path, data)
    hub_set = HubSet(
        data.path, data.name, data.split, data.revision, token, endpoint, cache_folder, tell
    )
    return Source(
        "hub",
        data.path,
        data.max_rows,
        _all=hub_set.rows,
        _stream=lambda report: hub_set.stream(),
        _count=lambda: hub_set.count,
        _about=hub_set.about,
        _identity=lambda: ["hub", data.path, data.name, data.split, hub_set.sha],
    )


def _path_of(written: str) -> Path:
    """A path as it was typed; `~` is home. DataError for what no file can be called."""
    try:
        if "\0" not in written:
            return Path(written).expanduser()
    except RuntimeError:  # `~nobody`
        pass
    raise DataError(f"data.path: {written[:80]!r} is no file name that can be found here.")


def configurations(
    path: str, *, revision: str | None = None, token: str | None = None, endpoint: str | None = None
) -> list[str]:
    """Configurations of a Hub dataset; none for a file or an example."""
    if is_local(path):
        return []
    return HubSet(path, revision=revision, token=token, endpoint=endpoint).configurations()


def splits(
    path: str,
    name: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> list[str]:
    """Splits of a Hub dataset's configuration; none for a file or an example."""
    if is_local(path):
        return []
    return HubSet(path, name, revision=revision, token=token, endpoint=endpoint).splits()


def is_local(path: str) -> bool:
    """Whether a path names an example or a file on this machine, rather than a Hub dataset."""
    return path.startswith(EXAMPLE_PREFIX) or _is_file(path)


def names_no_file(path: str) -> bool:
    """Whether this can be nothing but a bundled name or an id on the Hub."""
    if path in ("auto", POCKET):
        return True
    if path.startswith(EXAMPLE_PREFIX):
        return path.removeprefix(EXAMPLE_PREFIX).replace("-", "_").isidentifier()
    return is_hub_id(path, owner=False) and not Path(path).exists()


def not_applicable(data: DataConfig) -> list[str]:
    """A notice for each option that means a Hub dataset, where the data is on this machine."""
    if not is_local(data.path):
        return []
    notices = []
    if data.test_split:
        share = f"{data.test_size:.0%}" if data.test_size < 1 else f"{data.test_size:.0f}"
        instead = f"{share} of its rows are" if data.test_size else "nothing is"
        notices.append(
            f"data.test_split ({data.test_split}) is left aside: {data.path} has one split, so "
            f"{instead} held out instead (data.test_size)."
        )
    given = {"name": data.name, "revision": data.revision}
    for option, value in given.items():
        if value is not None:
            notices.append(
                f"data.{option} ({value}) is left aside: only datasets of the Hub have one."
            )
    if data.split != "train" and not _has_lists(data.path):
        notices.append(f"data.split ({data.split}) is left aside: {data.path} has one split only.")
    return notices


def _has_lists(path: str) -> bool:
    """Whether a file may hold several lists of rows by name: one JSON object, not lines of them."""
    if path.startswith(EXAMPLE_PREFIX):
        return False
    file = Path(path).expanduser()
    kind = kind_of(file)
    return kind == "folder" or (kind == "json" and not is_lines(file))


def _is_file(path: str) -> bool:
    """A path that exists, or that cannot be anything but a file's."""
    looks_like_one = path.startswith((".", "/", "~")) or "\\" in path or path.count("/") > 1
    return (
        looks_like_one
        or path.lower().endswith(SUFFIXES)
        or not is_hub_id(path, owner=False)
        or Path(path).exists()
    )


def _example(name: str) -> Path:
    path = EXAMPLES.get(name) or next((p for p in EXAMPLES.values() if p.name == name), None)
    if path is None:
        raise DataError(f"There is no example {name!r}; there are {', '.join(EXAMPLES)}.")
    return path


def _file_source(
    kind: Literal["example", "file"], label: str, path: Path, data: DataConfig
) -> Source:
    kind_of(path)  # refuses now what is no file of rows
    split = data.split
    return Source(
        kind,
        label,
        data.max_rows,
        _all=lambda report: read_file(path, split, report),
        _stream=lambda report: read_file(path, split, report),
        _count=lambda: count_rows(path, split),
        _identity=lambda: ["file", path.suffix.lower(), split, *_hashes(path, split)],
        notices=notices_of(path, split),
    )


def _hashes(path: Path, split: str) -> list[str]:
    files = files_of(path, split) if path.is_dir() else [path]
    return [_content_hash(file) for file in files]


def _content_hash(path: Path) -> str:
    """Of all bytes: a file that is dropped twice is prepared once, one that was edited again."""
    digest = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
