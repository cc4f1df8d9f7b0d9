"""The rows of an exported script: conversations, as the run's own reader reads them.

    write_rows(config, Path("."), tokenizer)        # [train.jsonl, test.jsonl]

Whatever format the data is in, the script reads one: `{"messages": [...]}` a line, or what TRL's
trainers of preferences take. What the run drops is not there, and what it holds out stands in a
file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.config import RunConfig
from phi3lora.data.conversation import Message, uses_tools
from phi3lora.data.preparation import prepare
from phi3lora.errors import DataError
from phi3lora.methods import PAIRED
from phi3lora.models.phi3 import MARKS

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, TEST = "train.jsonl", "test.jsonl"


def write_rows(
    config: RunConfig,
    folder: Path,
    tokenizer: Any,
    *,
    token: str | None = None,
    cache_folder: Path | None = None,
) -> list[Path]:
    """Write what is trained, and what is held out if anything is; returns the files.

    Raises what `prepare` raises, and DataError for rows that a script would not write as the run.
    """
    prepared = prepare(config, tokenizer, token=token, cache_folder=cache_folder)
    own = [mark for mark in MARKS if mark in tokenizer.get_vocab()]
    files = [_write(_rows(config, prepared.conversations, trained=True), folder / TRAIN, own)]
    if prepared.test is not None:
        files.append(_write(_rows(config, prepared.test), folder / TEST, own))
    return files


def _rows(config: RunConfig, rows: Dataset, trained: bool = False) -> Iterator[dict[str, Any]]:
    """Rows as the script reads them, in the order in which the run does."""
    if config.method in PAIRED:
        yield from (_pair(row["messages"], row["rejected"]) for row in rows)
    elif config.method == "kto":
        yield from _answers(rows, config.training_config.order_seed if trained else None)
    else:
        yield from ({"messages": _plain(row["messages"])} for row in rows)


def _pair(better: list[Any], worse: list[Any]) -> dict[str, Any]:
    better, worse = _plain(better), _plain(worse)
    return {"prompt": better[:-1], "chosen": better[-1:], "rejected": worse[-1:]}


def _answers(rows: Dataset, seed: int | None) -> Iterator[dict[str, Any]]:
    """Every answer by itself, and whether it is a good one."""
    from phi3lora.training.preferences import answer_places

    for number, side in answer_places([bool(row) for row in rows["rejected"]], seed):
        row = rows[number]
        messages = _plain(row["rejected"] if side else row["messages"])
        good = bool(row["good"]) and not side
        yield {"prompt": messages[:-1], "completion": messages[-1:], "label": good}


def _plain(messages: list[Any]) -> list[Any]:
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def _write(rows: Iterable[dict[str, Any]], file: Path, marks: list[str]) -> Path:
    with file.open("w", encoding="utf-8") as lines:
        for row in rows:
            lists = (part for part in row.values() if isinstance(part, list))
            _check([message for messages in lists for message in messages], marks)
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file


def _check(messages: list[Message], marks: list[str]) -> None:
    """DataError for what the script's few lines would write otherwise than the run."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if uses_tools(messages) or any(mark in answer for mark in marks for answer in answers):
        raise DataError(
            "The rows use tools, or hold marks of the model's own such as <think>, which an "
            "exported script would write as plain text. Train them here, or leave them out."
        )
