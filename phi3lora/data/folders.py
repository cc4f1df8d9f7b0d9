"""Folders of data: shards of one split, texts, or what `datasets` saves to disk.

files_of(folder, "train")      # the files to read, in order
"""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

from phi3lora.data.opening import plain_name
from phi3lora.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".txt")
MOST_FILES = 10_000
_NOTES = ("dataset_info.json", "state.json", "dataset_dict.json")


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split in a folder, by name.

    Raises:
        DataError: there are none, too many, or a split that is not there.
    """
    if (folder / "dataset_dict.json").is_file():
        return _saved(folder / _one_of(folder, split))
    if (folder / "state.json").is_file():
        return _saved(folder)
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and plain_name(path).endswith(SUFFIXES) and path.name not in _NOTES
    )
    found = [path for path in found if not any(p.startswith(".") for p in _names(path, folder))]
    if not found:
        raise DataError(
            f"{folder} is a folder without a file of rows; expected {', '.join(SUFFIXES)}."
        )
    named = [path for path in found if _belongs(path, folder, split)]
    chosen = named or found
    if len(chosen) > MOST_FILES:
        raise DataError(f"{folder} has {len(chosen):,} files, expected {MOST_FILES:,} at most.")
    return chosen


def version_of(path: Path) -> str:
    """Sizes and times of a file, or of what is in a folder; changes when they are edited.

    Raises OSError where there is none.
    """
    stats = [path.stat()]
    if path.is_dir():
        stats += [file.stat() for file in islice(sorted(path.rglob("*")), MOST_FILES)]
    return " ".join(f"{stat.st_size}-{stat.st_mtime_ns}" for stat in stats)


def _names(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts


def _belongs(path: Path, folder: Path, split: str) -> bool:
    """Whether `train` stands in the name: `train-00001-of-00002.parquet`, `train/a.jsonl`."""
    words = re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)", "/".join(_names(path, folder)).lower())
    return split.lower() in words


def _one_of(folder: Path, split: str) -> str:
    splits = _json(folder / "dataset_dict.json").get("splits") or []
    if split not in splits:
        names = ", ".join(map(str, splits)) or "none"
        raise DataError(f"{folder.name} has no split {split!r}; set data.split to one of: {names}.")
    return str(split)


def _saved(folder: Path) -> list[Path]:
    """The Arrow files that `save_to_disk` wrote; names with a folder in them are refused."""
    names = [str(file.get("filename")) for file in _json(folder / "state.json")["_data_files"]]
    wrong = [name for name in names if Path(name).name != name]
    if wrong:
        raise DataError(f"{folder.name}/state.json names a file elsewhere: {wrong[0][:80]!r}.")
    return [folder / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.get("splits"), values.get("_data_files", [])
        return dict(values)
    except (OSError, ValueError, AttributeError, RecursionError):
        raise DataError(f"{path} cannot be read; save the data to disk again.") from None
