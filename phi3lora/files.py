"""Files that are whole or not there, and folders whose damage shows.

    write_whole(path, text)        readers see the old file or the new one, after a crash too
    seal(folder)                   sizes and hashes of all files in it, written last
    damage(folder)                 what is wrong with a sealed folder; None where nothing is

A file is written under another name, forced to the disk, and renamed; then its folder is forced to
the disk, for a rename may otherwise be lost when the power fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
BLOCK = 1 << 20  # bytes
HASHERS = 4  # files that are hashed at once; hashlib works outside Python's lock


def write_whole(path: Path, data: str | bytes) -> None:
    """Replace a file by one that is on the disk in full. Raises OSError, and leaves the old one."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot do it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def seal(folder: Path, without: Iterable[str] = ()) -> None:
    """Force a folder's files to the disk, then write what they are into its manifest.

    Args:
        without: names that nobody needs and that may be missing later.
    """
    files = _files(folder, {MANIFEST, *without})
    for file in files:
        sync(file)
    sync(folder)
    write_whole(folder / MANIFEST, json.dumps({"files": describe(files)}, indent=1))
    sync(folder.parent)


def describe(files: list[Path]) -> dict[str, dict[str, Any]]:
    """Name → size in bytes and SHA-256."""
    with ThreadPoolExecutor(HASHERS) as pool:
        hashes = list(pool.map(digest, files))
    return {
        file.name: {"size": file.stat().st_size, "sha256": sha}
        for file, sha in zip(files, hashes, strict=True)
    }


def is_sealed(folder: Path) -> bool:
    """Whether a folder has a manifest, however damaged."""
    return (folder / MANIFEST).exists()


def sealed_names(folder: Path) -> set[str]:
    """Names in a folder's manifest; none where it cannot be read."""
    try:
        return set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def damage(folder: Path, without: Iterable[str] = ()) -> str | None:
    """The first thing that is wrong with a sealed folder, in words; None where it is whole.

    Args:
        without: names whose contents may differ.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        kept = {name: entry for name, entry in listed.items() if name not in set(without)}
        return damage_of(folder, kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"


def damage_of(folder: Path, listed: dict[str, dict[str, Any]]) -> str | None:
    """What differs from a description of the files, sizes first: they cost nothing to compare."""
    for name, entry in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if (size := file.stat().st_size) != entry["size"]:
            return f"{name} has {size:,} bytes instead of {entry['size']:,}"
    found = describe([folder / name for name in listed])
    wrong = [name for name, entry in listed.items() if found[name]["sha256"] != entry["sha256"]]
    return f"{wrong[0]} is not what was written" if wrong else None


def _files(folder: Path, without: set[str]) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name not in without)
