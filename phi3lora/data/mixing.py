"""Several sources in one run, and which of their rows are trained on, held out and left out.

chosen = choose(plan, tables, signed)        # chosen.train, chosen.test, chosen.left_out
drawn(rows, source)                          # some of them, or some of them again
split_indices(400, 0.1, seed, groups)        # near-duplicates on one side
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from phi3lora.config import DataConfig, SourceConfig
from phi3lora.data.findings import Why, find, left_out_in_words
from phi3lora.data.plan import DataPlan, held_out_number
from phi3lora.data.similar import groups
from phi3lora.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

BY_HAND = "named in data.leave_out_rows"
BY_KIND = "(data.leave_out)"


def chosen_reasons(dropped: Mapping[str, int]) -> dict[str, int]:
    """Of the reasons for which rows are not used, those that the config asks for."""
    return {
        reason: number
        for reason, number in dropped.items()
        if reason == BY_HAND or reason.endswith(BY_KIND)
    }


@dataclass(frozen=True)
class Share:
    """What one source gives to a run.

    Attributes:
        label: what to call it: an example's name, a file's, or a Hub id.
        rows: that can be used, before any is held out or drawn.
        used: rows that are trained on in an epoch, again and again where they are drawn so.
        tokens: of these.
        share: of all tokens that are trained on, from 0 to 1.
    """

    label: str
    rows: int
    used: int
    tokens: int
    share: float


@dataclass(frozen=True)
class Chosen:
    """Which rows a run uses, as indices into its sources laid end to end.

    Attributes:
        train: in order, some of them more than once where a source is drawn so.
        test: held out; indices into the split that was named for that, where one was.
        left_out: reason → rows.
        known: held-out rows that are nearly the same as a row that is trained on.
    """

    train: np.ndarray
    test: np.ndarray
    left_out: dict[str, int]
    known: int = 0


def choose(
    plan: DataPlan, tables: Sequence[Dataset], signed: Callable[[int], np.ndarray]
) -> Chosen:
    """Leave out, hold out and draw what the plan says.

    Args:
        tables: rows of each of the plan's sources, with `messages`, `input_ids` and `row`.
        signed: gives the `signatures` of a table by its number; asked where they are needed.

    Raises:
        DataError: nothing would be left to train on.
    """
    number = len(plan.parts)
    mine = tables[:number]
    left, reasons = _left_out(plan, tables, signed)
    rows = np.flatnonzero(~left)
    if not len(rows):
        raise nothing_left(len(left), plan.data)
    known = 0
    if plan.held_out == "split":
        train, test = rows, np.arange(len(tables[number]))
    else:
        like = _groups_of(plan, signed, rows)
        size, seed = plan.data.test_size, plan.data.seed
        train_at, test_at = split_indices(len(rows), size, seed, like)
        train, test = rows[train_at], rows[test_at]
        known = 0 if like is None else int(np.isin(like[test_at], like[train_at]).sum())
    ends = np.cumsum([0, *(len(table) for table in mine)])
    of_each = np.split(train, np.searchsorted(train, ends[1:-1]))
    used = [drawn(one, part) for one, part in zip(of_each, plan.parts, strict=True)]
    return Chosen(np.concatenate(used), test, reasons, known)


def _groups_of(
    plan: DataPlan, signed: Callable[[int], np.ndarray], rows: np.ndarray
) -> np.ndarray | None:
    """Which of the rows belong together; None where that does not matter."""
    if plan.held_out != "rows" or not plan.data.keep_together:
        return None
    return groups(np.concatenate([signed(i) for i in range(len(plan.parts))])[rows])


def _left_out(
    plan: DataPlan, tables: Sequence[Dataset], signed: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, dict[str, int]]:
    """Which rows are left out, by their numbers and by what a look finds; reason → rows."""
    number = len(plan.parts)
    mine = tables[:number]
    named = [
        np.isin(table.data.column("row").to_numpy(), part.leave_out_rows)
        for table, part in zip(mine, plan.parts, strict=True)
    ]
    kinds = plan.data.leave_out
    near = bool({"near_duplicates", "held_out"} & set(kinds))
    held = signed(number) if "held_out" in kinds and len(tables) > number else None
    found = find(
        chain.from_iterable(conversations_of(table) for table in mine) if kinds else (),
        np.concatenate([lengths_of(table) for table in mine]),
        kinds,
        np.concatenate([signed(i) for i in range(number)]) if near else None,
        held,
    )
    return leave_out(np.concatenate(named), found)


def leave_out(named: np.ndarray, found: dict[str, Why]) -> tuple[np.ndarray, dict[str, int]]:
    """Which rows are left out, and reason → rows; each counts once, for the first reason.

    Args:
        named: whether a row is left out by its number.
        found: what a look found, of the kinds to leave out.
    """
    left = named.copy()
    reasons = {BY_HAND: int(left.sum())} if left.any() else {}
    for name, why in found.items():
        rows = [row for row in why if not left[row]]
        left[rows] = True
        if rows:
            reasons[left_out_in_words(name)] = len(rows)
    return left, reasons


def nothing_left(rows: int, data: DataConfig) -> DataError:
    """The error for rows of which none is left."""
    return DataError(
        f"None of the {rows:,} usable rows is left after data.leave_out "
        f"({', '.join(data.leave_out) or 'empty'}) and data.leave_out_rows; take some of it back."
    )


def conversations_of(table: Dataset) -> Iterator[Any]:
    """The messages of each row, a batch in memory at a time."""
    for batch in table.select_columns(["messages"]).iter(1000):
        yield from batch["messages"]


def lengths_of(table: Dataset) -> np.ndarray:
    """Tokens of each row, from the offsets alone; of both answers where it has two."""
    import pyarrow.compute

    names = {"input_ids", "rejected_input_ids"} & set(table.column_names)
    columns = (pyarrow.compute.list_value_length(table.data.column(name)) for name in names)
    total: np.ndarray = sum(column.to_numpy() for column in columns)
    return total


def shares_of(plan: DataPlan, tables: Sequence[Dataset], chosen: Chosen) -> list[Share]:
    """What each source gives to an epoch."""
    mine = tables[: len(plan.parts)]
    ends = np.cumsum([0, *(len(table) for table in mine)])
    parts = np.split(chosen.train, np.searchsorted(chosen.train, ends[1:-1]))
    tokens = [
        int(lengths_of(table)[rows - start].sum())
        for table, rows, start in zip(mine, parts, ends, strict=False)
    ]
    return [
        Share(source.label, len(table), len(rows), one, one / max(sum(tokens), 1))
        for source, table, rows, one in zip(plan.sources, mine, parts, tokens, strict=False)
    ]


def shares_in_words(shares: Sequence[Share]) -> str:
    """What each source gives, in a sentence: `pirate 360 rows (75 % of the tokens), …`."""
    said = (f"{one.label} {one.used:,} rows ({one.share:.0%} of the tokens)" for one in shares)
    return f"An epoch mixes {', '.join(said)}."


def drawn(rows: np.ndarray, source: SourceConfig) -> np.ndarray:
    """The rows of one source that are trained on, in order; some of them more than once.

    Args:
        rows: their numbers, none twice.
        source: says how many, and the seed that decides which.
    """
    number = source.rows or max(round(len(rows) * source.weight), 1)
    if number == len(rows) or not len(rows):
        return rows
    again, rest = divmod(number, len(rows))
    some = np.random.default_rng(source.seed).permutation(rows)[:rest]
    return np.sort(np.concatenate([np.repeat(rows, again), some]))


def used_of(kept: int, source: SourceConfig) -> int:
    """How many rows `drawn` gives of so many."""
    return source.rows or max(round(kept * source.weight), 1) if kept else 0


def split_indices(
    rows: int, test_size: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to hold out, each in order; the same for the same seed.

    A group is held out as a whole. Where too few rows are in groups that fit, the rest is taken
    from groups that do not: as many are held out as were asked for.

    Args:
        rows: how many there are.
        test_size: below 1 a share (at least one row), from 1 a number, 0 for none.
        seed: decides which.
        groups: for each row a number that it shares with those that are nearly the same.

    Raises:
        DataError: it would leave nothing to train on.
    """
    number = held_out_number(rows, test_size)
    if number >= rows:
        raise DataError(
            f"Holding {number:,} of {rows:,} usable rows out leaves none to train on; lower "
            "data.test_size or add rows."
        )
    order = np.random.default_rng(seed).permutation(rows)
    if groups is not None:
        order = _whole_groups_first(order, groups, number)
    return np.sort(order[number:]), np.sort(order[:number])


def _whole_groups_first(order: np.ndarray, groups: np.ndarray, number: int) -> np.ndarray:
    """The order in which whole groups come first until `number` rows are held out.

    Without a group of two it is the order as it was.
    """
    members: dict[int, list[int]] = {}
    for row in order.tolist():
        members.setdefault(int(groups[row]), []).append(row)
    held: list[int] = []
    for group in members.values():
        if len(held) + len(group) <= number:
            held += group
    taken = set(held)
    return np.array(held + [row for row in order.tolist() if row not in taken], dtype=order.dtype)
