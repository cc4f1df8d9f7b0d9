"""What was edited and left out by hand of a source, kept as a small file of its editor's.

    patches = Patches(settings)
    patches.read(config.data, "ann")             what is kept for these rows; None where nothing is
    patches.keep(config, "ann")                  the file

It lies among the uploads, whatever the source is, which stays as it is; and it is a configuration
of its `data` alone, so that a command takes it as well. A run keeps its own copy, in its config.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from phi3lora.config import DataConfig, RunConfig
from phi3lora.data.sources import EXAMPLE_PREFIX, is_local
from phi3lora.errors import ConfigError, DataError
from phi3lora.files import write_whole
from phi3lora.settings import Settings
from phi3lora.strict_yaml import write_yaml

FOLDER = "edits"
MOST = 200  # files of one person on a Space; the oldest go
_KEPT = ("path", "name", "split", "revision", "leave_out_rows", "edits")


@dataclass(frozen=True)
class Patch:
    """Edits that are kept: their file, and whether the source was written after them."""

    data: DataConfig
    file: Path
    stale: bool


class Patches:
    """Patches by owner and source."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def file(self, data: DataConfig, owner: str) -> Path:
        """Where the edits of these rows are kept; the same for every commit of a Hub dataset."""
        named = [data.path, data.name or "", data.split]
        digest = hashlib.sha256("\0".join(named).encode("utf-8", "replace")).hexdigest()[:12]
        readable = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(data.path).name)[:60].strip("-.") or "rows"
        return self._settings.uploads(owner) / FOLDER / f"{readable}-{digest}.yaml"

    def read(self, data: DataConfig, owner: str) -> Patch | None:
        """What is kept for the rows that a section names. A file that is damaged holds nothing."""
        file = self.file(data, owner)
        try:
            kept = RunConfig.from_yaml(file)[0].data
            return Patch(kept, file, _is_later(data.path, file))
        except (ConfigError, OSError):
            return None

    def keep(self, config: RunConfig, owner: str) -> Path:
        """Write down what the config edits and leaves out; nothing of it ends the file.

        Raises DataError where it cannot be written.
        """
        file = self.file(config.data, owner)
        section = {name: getattr(config.data, name) for name in _KEPT}
        try:
            if not (config.data.edits or config.data.leave_out_rows):
                file.unlink(missing_ok=True)
                return file
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, write_yaml({"data": section}))
            if self._settings.on_space:
                _forget_oldest(file.parent)
        except OSError as error:
            raise DataError(f"The edits could not be kept: {error.strerror}.") from None
        return file


def _is_later(path: str, file: Path) -> bool:
    """Whether a file of this machine was written after its edits."""
    if path.startswith(EXAMPLE_PREFIX) or not is_local(path):
        return False
    with suppress(OSError, RuntimeError, ValueError):
        return Path(path).expanduser().stat().st_mtime > file.stat().st_mtime
    return False


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.yaml"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MOST]:
        file.unlink(missing_ok=True)
