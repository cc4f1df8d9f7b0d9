"""What a dataset's card may say about its files, read before `datasets` acts on it.

    check_card(text, "ann/chat")       # DataError for addresses, paths and tricks

A card names its files by patterns, which `datasets` resolves with whatever file system they ask
for: an address is asked at once, and an absolute path is looked up on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from phi3lora.errors import DataError

NAMES = ("README.md", ".huggingface.yaml")  # where `datasets` looks for them
LARGEST_FILE = 1 << 22  # bytes of a card with its text
LARGEST_YAML = 1 << 19  # characters of its metadata; the largest known have a third of that
_BLOCK = re.compile(r"\A\s*---[\r\n]+([\S\s]*?)[\r\n]+---(?:\r\n|\n|\Z)")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_card(name: str, text: str, repo: str) -> None:
    """Whether all files that a card names lie in its repository.

    Args:
        name: of the file; a README has its metadata between two lines of dashes.

    Raises:
        DataError: they do not, or the metadata is no plain YAML.
    """
    found = _BLOCK.search(text) if name == NAMES[0] else None
    written = found.group(1) if found else "" if name == NAMES[0] else text
    if len(written) > LARGEST_YAML:
        raise _refused(repo, f"has more than {LARGEST_YAML:,} characters of metadata")
    for pattern in _patterns(_plain_yaml(written, repo)):
        if _leads_out(pattern):
            raise DataError(
                f"{repo} keeps its rows outside of the repo ({pattern[:200]!r}); expected JSON, "
                "CSV or Parquet files in it, by names such as data/train-*.parquet."
            )


def _plain_yaml(text: str, repo: str) -> Any:
    """YAML without aliases, of which a few lines can stand for gigabytes."""
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise _refused(repo, "uses aliases (*name) in its metadata")
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).strip().partition("\n")[0][:200]
        raise _refused(repo, f"has metadata that is no YAML ({line})") from None


def _refused(repo: str, what: str) -> DataError:
    return DataError(f"The card of {repo} {what}. Choose another copy of this dataset.")


def _patterns(values: Any) -> Iterator[str]:
    """Every text under `configs` that says where files are."""
    configs = values.get("configs") if isinstance(values, dict) else None
    for config in configs if isinstance(configs, list) else [configs]:
        if isinstance(config, dict):
            yield from _texts(config.get("data_files"))
            yield from _texts(config.get("data_dir"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _leads_out(pattern: str) -> bool:
    """Whether a pattern is an address, a chain of them, absolute, or climbs out of the folder."""
    parts = re.split(r"[/\\]", pattern)
    absolute = pattern.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", pattern)
    return "://" in pattern or "::" in pattern or bool(absolute) or ".." in parts or "\0" in pattern
