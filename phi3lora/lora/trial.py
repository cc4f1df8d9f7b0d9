"""Attach an adapter to a model of shapes alone, to see whether the real one will take it.

    trained, total = attach_on_trial(config, check_base("microsoft/Phi-3-mini-4k-instruct"), start)

The model lies on torch's meta device: it has every module and no weights, and is made from the
base's `config.json` in less than a second. So targets, layers, slices, modules to save and the
adapter that training goes on from are checked before anything of the base is downloaded.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import attach_adapter
from phi3lora.lora.starting import check_start
from phi3lora.lora.targets import count_parameters
from phi3lora.models.base import BaseInfo, shapes_of
from phi3lora.models.phi3 import HEAD


def attach_on_trial(
    config: RunConfig,
    base: BaseInfo,
    start: Path | None = None,
    notices: list[str] | None = None,
) -> tuple[int, int]:
    """Trained and all parameters of the run, weight for weight as they will be counted.

    Args:
        start: the adapter that training goes on from, as `starting.find_start` gives it.
        notices: receives what is assumed of it.

    Raises AdapterError for what does not fit the base or the start, and where nothing would be
    trained.
    """
    check_head(config)
    # What follows depends on these sections alone; a form asks again at every change.
    text = RunConfig(adapter=config.adapter, peft_config=config.peft_config).to_yaml()
    counted = _count(text, base)
    if start is not None:
        found = _compare(text, base, start, _version(start))
        notices = [] if notices is None else notices
        notices += found
    return counted


@lru_cache(maxsize=64)
def _count(config_text: str, base: BaseInfo) -> tuple[int, int]:
    trained, total = count_parameters(_attach(RunConfig.from_text(config_text)[0], base))
    if not trained:
        raise AdapterError(
            "peft_config: nothing would be trained. Choose other target_modules, layers or slices."
        )
    return trained, total


@lru_cache(maxsize=16)
def _compare(
    config_text: str, base: BaseInfo, start: Path, version: tuple[tuple[int, int], ...]
) -> tuple[str, ...]:
    """What is to be told of a start that fits; the same again while its files are the same."""
    config, notices = RunConfig.from_text(config_text)[0], list[str]()
    check_start(_attach(config, base), config, start, base, notices)
    return tuple(notices)


def _version(start: Path) -> tuple[tuple[int, int], ...]:
    files = sorted(start.iterdir()) if start.is_dir() else [start]
    return tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _attach(config: RunConfig, base: BaseInfo) -> Any:
    """The base's modules without weights, with the adapter that the config describes."""
    import torch

    # Initial weights come from the base's own, which are not here; they change no shape.
    peft = config.peft_config.model_copy(update={"init_lora_weights": True})
    config = config.model_copy(update={"peft_config": peft})
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return attach_adapter(shapes_of(base), config)


def check_head(config: RunConfig) -> None:
    """Raise AdapterError for an adapter on the head, which would never be trained.

    TRL's loss and ours multiply by the head's own weights, past any adapter on it.
    """
    wanted = config.peft_config.target_modules
    names = [wanted] if isinstance(wanted, str) else wanted
    if config.adapter != "none" and HEAD in {name.rpartition(".")[2] for name in names}:
        raise AdapterError(
            f"peft_config.target_modules: an adapter on {HEAD} would not be trained, since the "
            f"loss reads its weights directly. Set peft_config.modules_to_save to [{HEAD}] to "
            "train it whole."
        )
