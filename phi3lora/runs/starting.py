"""The adapter that a run goes on from: found by its name, and kept in the run's folder.

    config = with_start(run, settings, token)      # model.adapter is a folder of the run's then
    find(name, owner, settings, token)             # where it lies now; AdapterError, HubError

A copy is kept, so that the run can be resumed when the other run is deleted, and is trained on
what it began with.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError
from phi3lora.hub.adapters import fetch_adapter
from phi3lora.hub.client import is_hub_id
from phi3lora.lora.starting import CHAIN, KEPT, START, chain_of, find_start
from phi3lora.runs.permission import is_run
from phi3lora.runs.store import Run, RunStore
from phi3lora.settings import Settings


def with_start(run: Run, settings: Settings, token: str | None) -> RunConfig:
    """The run's config with `model.adapter` as a folder of its own; copied there the first time."""
    named, place = run.config.model.adapter, run.folder / START
    if named is None:
        return run.config
    if not place.is_dir():
        found = find(named, run.owner, settings, token)
        _keep(found, place, [*chain_of(found.parent), named])
    return run.config.with_values({"model.adapter": str(place)})


def find(name: str, owner: str, settings: Settings, token: str | None) -> Path:
    """Where an adapter lies: a run's of this owner, a folder's or file's, or the Hub's.

    Raises RunError for a run that is not theirs or has none, HubError and AdapterError.
    """
    if is_run(name):
        result = RunStore(settings).get(name, owner).result
        if result.kind == "model":
            raise AdapterError(
                f"model.adapter: run {name} trained the whole model. Name its folder in "
                "model.path instead."
            )
        return result.ready()
    place = Path(name).expanduser()
    if os.path.exists(place):
        return find_start(place)
    if is_hub_id(name):
        return fetch_adapter(name, token, settings.cache_folder).folder
    raise AdapterError(
        f"model.adapter: expected a run, a folder, a loralib checkpoint or USER/NAME on the Hub, "
        f"got {name[:100]!r}, which is none of them."
    )


def _keep(source: Path, place: Path, chain: list[str]) -> None:
    """Copy an adapter's files into a folder that appears whole or not at all."""
    unfinished = place.with_name(f"{place.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    if source.is_file():
        files = [source, source.with_suffix(".json")]
    else:
        files = [source / name for name in KEPT]
    for file in files:
        if file.is_file():
            shutil.copyfile(file, unfinished / file.name)
    (unfinished / CHAIN).write_text(json.dumps(chain), encoding="utf-8")
    unfinished.rename(place)
