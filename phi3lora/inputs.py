"""What a run was first started on, so that a resume does not train on something else unnoticed.

    found = fingerprint(config, data.fingerprint, base_folder)
    check_inputs(folder, found, accept_changes, notify)      ChangedInputsError says what differs

Kept in `inputs.json`: fingerprints of the rows and of the base, the options that decide the
result, the versions of the libraries, and the number of threads, which orders sums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.errors import ChangedInputsError
from phi3lora.files import write_whole
from phi3lora.methods import BY_METHOD
from phi3lora.versions import library_versions

FILE = "inputs.json"
WHOLE = 2**28  # bytes up to which a file of weights is read in full
SAMPLES = 64  # pieces of a larger one, spread evenly
PIECE = 2**20  # bytes
# Rows of one pass, and passes of one update: together the rows that an update is made of.
BATCH = (
    "training_config.per_device_train_batch_size",
    "training_config.gradient_accumulation_steps",
)
# Options that decide nothing about the result, or whose meaning a fingerprint holds.
ASIDE = {
    "title",
    "data.path",
    "data.revision",
    "model.path",
    "model.revision",
    "training_config.save_total_limit",
    "training_config.log_level",
    "training_config.report_to",
    "training_config.dataloader_num_workers",
}


def fingerprint(config: RunConfig, data: str, base: Path) -> dict[str, Any]:
    """Everything that decides the result of a run.

    Args:
        data: the fingerprint of the prepared rows.
        base: the folder of the base's files.
    """
    import torch

    return {
        "data": data,
        "base": fingerprint_base(base),
        "options": dict(_options(config)),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }


def fingerprint_base(folder: Path) -> str:
    """The Hub's commit, or a hash of the weights and of what decides how they are used.

    Of a file above 256 MiB its size and 64 pieces are read: a base that was replaced or trained
    on differs in every one of them.
    """
    if folder.parent.name == "snapshots":
        return folder.name
    found = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        found.update(f"{file.name} {file.stat().st_size} ".encode())
        for piece in _pieces(file):
            found.update(piece)
    return found.hexdigest()


def check_inputs(
    folder: Path, found: dict[str, Any], accept_changes: bool, notify: Callable[[str], None]
) -> bool:
    """Compare with the first start of the run in a folder, or write this one down as the first.

    Returns whether there was an earlier start. Raises ChangedInputsError for what differs, unless
    changes are accepted; then they are told, and kept for the report and the card. Other passes
    over the same rows of an update need nobody's word: they are told and kept, too.
    """
    first = read_inputs(folder)
    changes = list(_changes(first, found)) if first else []
    if changes and not accept_changes:
        raise ChangedInputsError(changes)
    if changes:
        notify(f"The run goes on although it changed since its first start: {'; '.join(changes)}.")
    if divided := _divided(first, found):
        notify(f"The run goes on with the same rows in each update, in other passes: {divided}.")
        changes.append(divided)
    accepted = [*first.get("accepted", []), *changes]
    if changes or not first:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE, json.dumps({**found, "accepted": accepted}, indent=1))
    return bool(first)


def accepted_changes(folder: Path) -> list[str]:
    """What changed in a run's inputs between two of its starts, in words; mostly nothing."""
    return [str(change) for change in read_inputs(folder).get("accepted", [])]


def read_inputs(folder: Path) -> dict[str, Any]:
    """What a run was first started on; empty where that was never written, or is damaged."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _changes(first: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What differs, each in a few words."""
    if first.get("data") != now["data"]:
        yield "the rows of the data"
    if first.get("base") != now["base"]:
        yield "the weights of the base"
    for part in ("options", "versions"):
        before: Any = first.get(part)
        aside = BATCH if _divided(first, now) else ()
        for name, value in now[part].items():
            if name not in aside and isinstance(before, dict) and before.get(name, value) != value:
                yield f"{name} ({before[name]} → {value})"
    if first.get("threads", now["threads"]) != now["threads"]:
        yield f"threads ({first['threads']} → {now['threads']})"


def _divided(first: dict[str, Any], now: dict[str, Any]) -> str:
    """How the rows of an update are divided into passes now, where only that changed; else empty.

    KTO compares the answers of a pass with each other, and what is dropped at the end of an epoch
    is a pass: there another division is another training.
    """
    told, earlier = now["options"], first.get("options") or {}
    before, after = ([options.get(name, 0) for name in BATCH] for options in (earlier, told))
    if before == after or before[0] * before[1] != after[0] * after[1]:
        return ""
    if told.get("method") == "kto" or told.get("training_config.dataloader_drop_last"):
        return ""
    return f"batches of {before[0]} × {before[1]} → {after[0]} × {after[1]}"


def _options(config: RunConfig) -> Iterator[tuple[str, Any]]:
    values = config.model_dump(mode="json")
    yield "adapter", values["adapter"]
    yield "method", values["method"]
    own = BY_METHOD.get(config.method)  # the other methods' options decide nothing
    for section in ("model", "data", "peft_config", "training_config", *([own] if own else [])):
        for name, value in values[section].items():
            if f"{section}.{name}" not in ASIDE:
                yield f"{section}.{name}", value


def _pieces(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= WHOLE:
            while block := opened.read(PIECE):
                yield block
            return
        for number in range(SAMPLES):
            opened.seek((size - PIECE) * number // (SAMPLES - 1))
            yield opened.read(PIECE)
