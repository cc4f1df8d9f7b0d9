"""What a run produced: where it is, what it is, and whether it is whole.

    result = find_result(run_folder, config)
    result.folder, result.kind, result.whole
    result.ready()          the folder; RunError where there is nothing whole in it

This is the one answer to that question: worker, evaluation, export, publishing, backup, pages and
terminal ask here. Nothing is loaded: of weights only the header and the size are read.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.lora.folder import CONFIG, WEIGHTS

Kind = Literal["adapter", "loralib", "model"]
Noun = Literal["adapter", "model"]
FOLDERS = ("adapter", "model")
LORALIB = "loralib.pt"  # beside a loralib run's adapter
MODEL_CONFIG = "config.json"
SHARDS = "model.safetensors.index.json"
LARGEST_HEADER = 100 * 2**20  # bytes, as safetensors itself allows


@dataclass(frozen=True)
class Result:
    """What a run leaves: `adapter` for plain PEFT, `loralib` for both of its files, or `model`."""

    folder: Path
    kind: Kind

    @property
    def noun(self) -> Noun:
        """`model` or `adapter`, as messages name it."""
        return "model" if self.kind == "model" else "adapter"

    @property
    def exists(self) -> bool:
        """Whether there is anything; it may be damaged."""
        return self.folder.is_dir()

    @property
    def whole(self) -> bool:
        """Whether every file is there and as long as it says."""
        return self.exists and self.damage is None

    @property
    def damage(self) -> str | None:
        """The first file that is missing or cut short; None where all are well."""
        return next(self._damaged(), None)

    def ready(self) -> Path:
        """The folder. Raises RunError where the run has no result, or a damaged one."""
        if not self.exists:
            raise RunError(f"The run has no {self.noun} yet; let it finish, or resume it, first.")
        if (damage := self.damage) is not None:
            raise RunError(
                f"The run's {self.noun} is damaged ({damage}); resume the run, which writes it "
                "again from its last checkpoint."
            )
        return self.folder

    def _damaged(self) -> Iterator[str]:
        settings = MODEL_CONFIG if self.kind == "model" else CONFIG
        if not isinstance(_read_json(self.folder / settings), dict):
            yield f"{settings} cannot be read"
        for name in self._weights():
            if not safetensors_whole(self.folder / name):
                yield f"{name} is missing or cut short"
        if self.kind == "loralib" and not zipfile.is_zipfile(self.folder / LORALIB):
            yield f"{LORALIB} is missing or cut short"

    def _weights(self) -> list[str]:
        if self.kind != "model":
            return [WEIGHTS]
        index = _read_json(self.folder / SHARDS)
        if isinstance(index, dict) and isinstance(index.get("weight_map"), dict):
            return sorted({str(name) for name in index["weight_map"].values()})
        return ["model.safetensors"]


def find_result(folder: Path, config: RunConfig) -> Result:
    """The result that a run with this config leaves in its folder, whether it is there or not."""
    kinds: dict[str, Kind] = {"none": "model", "loralib": "loralib"}
    return Result(folder / config.result, kinds.get(config.adapter, "adapter"))


def result_in(folder: Path) -> Result:
    """A result that was named by its own folder: a whole model, or else an adapter."""
    is_model = (folder / MODEL_CONFIG).is_file() and not (folder / CONFIG).is_file()
    return Result(folder, "model" if is_model else "adapter")


def safetensors_whole(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says; no tensor is read.

    A file begins with the header's length (8 bytes, little-endian) and the header (JSON), whose
    largest offset is the length of what follows.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(size, LARGEST_HEADER):
                return False
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        return bool(8 + length + max(ends, default=0) == size)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return False


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
