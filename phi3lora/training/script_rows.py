"""The rows of an exported script: conversations, as the run's own reader reads them.

    write_rows(config, Path("."), tokenizer)        # [train.jsonl, test.jsonl]

Whatever format the data is in, the script reads one: `{"messages": [...]}` a line. What the run
drops is not there, and what it holds out stands in a file of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.config import RunConfig
from phi3lora.data.conversation import Message, uses_tools
from phi3lora.data.preparation import prepare
from phi3lora.errors import DataError
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
    files = [_write(prepared.conversations, folder / TRAIN, own)]
    if prepared.test is not None:
        files.append(_write(prepared.test, folder / TEST, own))
    return files


def _write(rows: Dataset, file: Path, marks: list[str]) -> Path:
    with file.open("w", encoding="utf-8") as lines:
        for row in rows.select_columns(["messages"]):
            _check(row["messages"], marks)
            messages = [
                {name: value for name, value in message.items() if value is not None}
                for message in row["messages"]
            ]
            lines.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return file


def _check(messages: list[Message], marks: list[str]) -> None:
    """DataError for what the script's few lines would write otherwise than the run."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if uses_tools(messages) or any(mark in answer for mark in marks for answer in answers):
        raise DataError(
            "The rows use tools, or hold marks of the model's own such as <think>, which an "
            "exported script would write as plain text. Train them here, or leave them out."
        )
