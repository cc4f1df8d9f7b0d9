"""How many rows a split on the Hub has, without reading them.

footers(files)                   # exact, from the ends of Parquet files
by_size(files, rows)             # about, from the files' bytes and those of some rows
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_PLAIN = (".jsonl", ".json", ".csv", ".tsv")
MOST_FOOTERS = 64  # files whose ends are fetched, a few KB each


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split, at one commit, and who asks for them."""

    repo: str
    sha: str
    paths: list[str]
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None


def footers(split: SplitFiles) -> int | None:
    """Rows of Parquet files; None for other files, or too many of them."""
    paths = split.paths
    if len(paths) > MOST_FOOTERS or not all(path.endswith(".parquet") for path in paths):
        return None
    import pyarrow.parquet
    from huggingface_hub import HfFileSystem

    files = HfFileSystem(endpoint=split.endpoint, token=split.token or False)
    total = 0
    for path in paths:
        with files.open(f"datasets/{split.repo}@{split.sha}/{path}", "rb") as file:
            total += pyarrow.parquet.read_metadata(file).num_rows
    return total


def by_size(split: SplitFiles, rows: Sequence[dict[str, Any]]) -> int | None:
    """Rows of JSON and CSV files: their bytes over those of the rows that were read."""
    from huggingface_hub import HfApi

    if not rows or not all(path.endswith(_PLAIN) for path in split.paths):
        return None
    api = HfApi(endpoint=split.endpoint, token=split.token or False)
    found = api.get_paths_info(split.repo, split.paths, repo_type="dataset", revision=split.sha)
    total = sum(getattr(file, "size", 0) for file in found)
    as_text = _json_bytes if split.paths[0].endswith((".jsonl", ".json")) else _csv_bytes
    each = sum(map(as_text, rows)) / len(rows)
    return round(total / each) if each else None


def _json_bytes(row: dict[str, Any]) -> int:
    return len(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace")) + 1


def _csv_bytes(row: dict[str, Any]) -> int:
    return sum(len(str(value).encode("utf-8", "replace")) + 1 for value in row.values())
