"""What is trained on and what is held out: answered once, for everything that asks.

holds_out(config.data)                     # without opening anything
plan = plan_data(config.data, token=token)
plan.parts, plan.sources, plan.held_out
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from phi3lora.config import DataConfig, RunConfig, needs_held_out
from phi3lora.data.edits import open_edited
from phi3lora.data.hub_rows import Tell
from phi3lora.data.sources import Source, is_local, not_applicable
from phi3lora.errors import DataError

HeldOut = Literal["nothing", "rows", "split"]


def held_out(data: DataConfig) -> HeldOut:
    """What is kept out of training: a split of its own, some of the rows, or nothing.

    A file on this machine has one split, so `test_split` does not apply there.
    """
    if data.test_split and not is_local(data.path):
        return "split"
    return "rows" if data.test_size > 0 else "nothing"


def holds_out(data: DataConfig) -> bool:
    """Whether any row is kept out of training."""
    return held_out(data) != "nothing"


def held_out_number(rows: int, test_size: float) -> int:
    """Rows to hold out: below 1 a share of them, at least one; from 1 a number; 0 for none."""
    return round(test_size) if test_size >= 1 else max(round(rows * test_size), test_size > 0)


NOTHING_HELD_OUT = DataError(
    "The training looks at held-out rows, and none are: raise data.test_size, or name a split with "
    "rows in data.test_split, which only datasets of the Hub have."
)


def check_held_out(config: RunConfig) -> None:
    """DataError where the training looks at held-out rows, and none are."""
    if not holds_out(config.data) and needs_held_out(config):
        raise NOTHING_HELD_OUT


@dataclass(frozen=True)
class DataPlan:
    """What a run reads.

    Attributes:
        data: the section that it was made from.
        parts: a section for each source to train on, with what is its own and what all share.
        sources: those of `parts`, and the split to hold out where it is named.
        held_out: what is kept out of training.
        notices: what of the section does not apply to this data.
    """

    data: DataConfig
    parts: tuple[DataConfig, ...]
    sources: tuple[Source, ...]
    held_out: HeldOut
    notices: list[str]


def parts_of(data: DataConfig) -> tuple[DataConfig, ...]:
    """Each source to train on: the first one, and `more`, read by the options that all share."""
    shared: dict[str, Any] = {"test_split": None, "more": []}
    others = (data.model_copy(update={**shared, **dict(source)}) for source in data.more)
    return (data, *others)


def split_of(data: DataConfig) -> DataConfig | None:
    """The section of the split that is held out, where it is one of its own."""
    if held_out(data) != "split":
        return None
    split: dict[str, Any] = {"split": data.test_split, "max_rows": None}
    split |= {"leave_out_rows": [], "edits": {}}  # rows of the split to train on
    return data.model_copy(update=split)


def plan_data(
    data: DataConfig,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    cache_folder: Path | None = None,
    tell: Tell | None = None,
) -> DataPlan:
    """Open what the section names; no row is read.

    Raises:
        DataError: nothing usable there.
        HubError: the Hub said no, or nothing.
    """
    kind, parts = held_out(data), parts_of(data)
    split = split_of(data)
    wanted = [*parts, split] if split else list(parts)
    sources = tuple(
        open_edited(one, token=token, endpoint=endpoint, cache_folder=cache_folder, tell=tell)
        for one in wanted
    )
    assumed = [notice for source in sources for notice in source.notices]
    notices = [notice for part in parts for notice in not_applicable(part)]
    return DataPlan(data, parts, sources, kind, [*notices, *assumed])
