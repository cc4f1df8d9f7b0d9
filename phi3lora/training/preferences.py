"""Trainers that learn from preferences: TRL's, for rows that are rendered already.

    trainer = FastDPOTrainer(model=model, args=DPOConfig(...), train_dataset=rows, …)

Rows have `input_ids` and `labels` of an answer with its prompt, `rejected_input_ids` and
`rejected_labels` of a worse one (empty where there is none), and `good`. The losses are TRL's own;
`fast` has them from log-probabilities at the answers' positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer, KTOTrainer

from phi3lora.training.fast.loss import IGNORED
from phi3lora.training.fast.trainer import Resumable

REFERENCE = "ref"  # what TRL calls the adapter that it compares with
COLUMNS = ["input_ids", "labels", "rejected_input_ids", "rejected_labels", "good"]
Row = dict[str, Any]


class Judged(Resumable):
    """What trainers of preferences share: rows as they are, put together by our collators."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = [*COLUMNS, "label", "KL_input_ids", "KL_labels"]

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """Rows come rendered, cut and checked."""
        return dataset.select_columns(COLUMNS)


class Referred(Resumable):
    """Trainers that compare the model with a reference: the base, or the adapter it starts with.

    Args:
        start: whether the adapter at the start of the training is the reference, of which TRL
            keeps a copy; else it is the base, with the adapter off.
    """

    def __init__(self, *args: Any, start: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not is_peft_model(self.model):  # no reference is asked for, so there is no copy
            return
        if not start and REFERENCE in self.model.peft_config:
            self.model.delete_adapter(REFERENCE)
        # The copy is made again at each start; neither a checkpoint nor the result holds it.
        self.model.save_pretrained = partial(
            self.model.save_pretrained, selected_adapters=["default"]
        )


class FastDPOTrainer(Referred, Judged, DPOTrainer):
    """DPOTrainer on pairs that are rendered already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pad = kwargs["processing_class"].pad_token_id
        super().__init__(*args, data_collator=PairCollator(pad), **kwargs)


class FastKTOTrainer(Referred, Judged, KTOTrainer):
    """KTOTrainer on answers that are rendered already; a pair is a good answer and a bad one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pad = kwargs["processing_class"].pad_token_id
        super().__init__(*args, data_collator=LabelCollator(pad), **kwargs)

    def _prepare_dataset(self, dataset: Any, _: Any, args: Any, name: str) -> Any:
        seed = args.seed if args.data_seed is None else args.data_seed
        kl = args.per_device_train_batch_size if self.calculate_KL else 0
        return Unpaired(dataset, kl, args.max_length, seed if name == "train" else None)


@dataclass
class PairCollator:
    """Pairs → a batch, (2 · rows, longest): better answers, then worse ones, padded on the right.

    `split` keeps them apart by name, with labels, as ORPO's trainer has them.
    """

    pad: int
    split: bool = False

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        better = [(row["input_ids"], row["labels"]) for row in rows]
        worse = [(row["rejected_input_ids"], row["rejected_labels"]) for row in rows]
        if not self.split:
            return padded([*better, *worse], self.pad)
        found: dict[str, Tensor] = {}
        for name, sides in (("chosen", better), ("rejected", worse)):
            batch = padded(sides, self.pad)
            labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, IGNORED)
            found |= {f"{name}_{key}": value for key, value in batch.items()}
            found[f"{name}_labels"] = labels
        return found


@dataclass
class LabelCollator:
    """Answers that are called good or bad → a batch, beside it the mismatched ones for the KL."""

    pad: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        batch = padded([(row["input_ids"], row["labels"]) for row in rows], self.pad)
        if "KL_input_ids" in rows[0]:
            other = padded([(row["KL_input_ids"], row["KL_labels"]) for row in rows], self.pad)
            batch |= {f"KL_{name}": value for name, value in other.items()}
        return {**batch, "label": torch.tensor([row["label"] for row in rows])}


def padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """(ids, labels) of each row → ids, attention mask and completion mask, each (rows, longest)."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, (tokens, labels) in enumerate(rows):
        ids[place, : len(tokens)] = torch.tensor(tokens)
        attention[place, : len(tokens)] = 1
        completion[place, : len(tokens)] = (torch.tensor(labels) != IGNORED).long()
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


class Unpaired(torch.utils.data.Dataset[Row]):
    """Every answer of some rows by itself, in a random order that stays.

    Beside each stands its prompt with the answer before it in its batch, by which KTO measures how
    far the model is from its reference: x₁y₁, x₂y₂, … → x₁yₙ, x₂y₁, … (Ethayarajh et al., 4.1).

    Args:
        batch: rows that are read together, 0 for no such second answer.
        limit: tokens at which it is cut.
        seed: of the order; None leaves the answers as they come.
    """

    def __init__(self, rows: Dataset, batch: int, limit: int, seed: int | None) -> None:
        self.rows, self.batch, self.limit = rows, batch, limit
        worse = [len(ids) > 0 for ids in rows["rejected_input_ids"]]
        self.places = answer_places(worse, seed)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Row:
        own = self._answer(place)
        if not self.batch:
            return own
        first = place - place % self.batch
        size = min(self.batch, len(self) - first)
        other = self._answer(first + (place - first - 1) % size)
        mine, theirs = (_first_learnt(one["labels"]) for one in (own, other))
        ids = own["input_ids"][:mine] + other["input_ids"][theirs:]
        labels = own["labels"][:mine] + other["labels"][theirs:]
        return {**own, "KL_input_ids": ids[: self.limit], "KL_labels": labels[: self.limit]}

    def _answer(self, place: int) -> Row:
        number, side = self.places[place]
        row = self.rows[number]
        good = bool(row["good"]) and not side
        ids, labels = row[f"{side}input_ids"], row[f"{side}labels"]
        return {"input_ids": ids, "labels": labels, "label": good}


def answer_places(worse: Sequence[bool], seed: int | None) -> list[tuple[int, str]]:
    """(row, prefix of its columns) of each answer; `worse` says which rows have a second one."""
    places = [
        (row, side)
        for row, has_worse in enumerate(worse)
        for side in ("", "rejected_")[: 1 + has_worse]
    ]
    if seed is None:
        return places
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    return [places[place] for place in order.tolist()]


def _first_learnt(labels: list[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != IGNORED)
