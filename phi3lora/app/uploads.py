"""Files that people drop on the page, kept where a run can still read them tomorrow.

path = keep(temporary, owner, settings, named)

On a Space a person has a quota, and what no run names any more goes after a week.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

from phi3lora.errors import DataError
from phi3lora.settings import Settings

BLOCK = 1 << 20
GIB = 2**30
QUOTA = 4 * GIB  # bytes that one person keeps on a Space
EXPIRES = 7 * 24 * 3600.0  # seconds
RESERVE = GIB  # bytes that strangers' files leave free for runs; a tenth of small disks
NO_ROOM = "The disk of this Space is nearly full; try again later, or put the data on the Hub."


def keep(temporary: Path, owner: str, settings: Settings, named: set[Path]) -> Path:
    """Copy a file into its owner's folder, under a name made from its content.

    Args:
        named: files that runs of the owner name; they stay.

    Raises DataError for a file that cannot be kept, or is one too many.
    """
    home = settings.uploads(owner)
    try:
        if settings.on_space:
            sweep(home, named)
            _check_quota(home, temporary)
            if not has_room(settings.home, temporary.stat().st_size):
                raise DataError(NO_ROOM)
        digest = hashlib.sha256()
        with temporary.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        folder = home / digest.hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / temporary.name
        if not kept.exists():
            shutil.copyfile(temporary, kept)
        kept.touch()  # its week begins again
    except OSError as error:
        raise DataError(f"The file could not be kept: {error.strerror}.") from None
    return kept


def sweep(home: Path, named: set[Path]) -> None:
    """Remove uploads that are older than a week and that no run names."""
    for file in home.glob("*/*"):
        if file not in named and time.time() - file.stat().st_mtime > EXPIRES:
            file.unlink(missing_ok=True)
            if not any(file.parent.iterdir()):
                file.parent.rmdir()


def has_room(folder: Path, size: int) -> bool:
    """Whether the disk of a folder, which need not exist yet, takes so many bytes more."""
    there = next(one for one in (folder, *folder.resolve().parents) if one.exists())
    disk = shutil.disk_usage(there)
    return disk.free - size >= min(RESERVE, disk.total // 10)


def _check_quota(home: Path, more: Path) -> None:
    kept = sum(file.stat().st_size for file in home.glob("*/*"))
    if kept + more.stat().st_size > QUOTA:
        raise DataError(
            f"Your uploads here would exceed {QUOTA // GIB} GB ({kept / GIB:.1f} GB are kept). "
            "They go a week after no run names them; delete runs, or put the data on the Hub."
        )
