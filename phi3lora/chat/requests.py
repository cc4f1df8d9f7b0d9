"""What somebody asked of the engine, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.chat.options import Options, Pair, Side
from phi3lora.config import ModelConfig
from phi3lora.errors import DataError

if TYPE_CHECKING:
    from phi3lora.chat.serving import Column, Serving
    from phi3lora.data.conversation import Message


LONGEST_QUESTION = 2_000  # characters that a stranger asks at once
LONGEST_TALK = 100_000  # of a conversation, answers included


def check_lengths(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise DataError for more than a stranger may ask at once: reading it costs everybody."""
    asked = [len(message["content"]) for message in messages if message["role"] != "assistant"]
    if max(asked, default=0) > LONGEST_QUESTION:
        raise DataError(
            f"A question has at most {LONGEST_QUESTION:,} characters here, this one has "
            f"{max(asked):,}. Ask in fewer words."
        )
    if sum(len(message["content"]) for message in messages) > LONGEST_TALK:
        raise DataError("This conversation is too long to go on; clear it and ask again.")


def never() -> bool:
    """A `should_stop` for an answer that nobody stops."""
    return False


@dataclass(eq=False)
class Request:
    """One question to base and tuned; or only to have them loaded.

    Attributes:
        base, adapter: what to answer with.
        against, against_base: what the base's column answers with, where that is another adapter
            than none, and the base of that one where it is another.
        conversations: for each side the messages to answer; empty for loading only.
        options: how to sample.
        should_stop: asked between tokens.
        token: the visitor's, for a base that the Hub gives to some only.
        columns: the answers, once it has had its first turn.
        serving: the loaded base that `columns` belong to; None before, and when it was released.
        notes: what is being done for it, oldest first; the last is shown.
        notices: what to know about base and adapter.
        asked: when it came, in seconds of the monotonic clock.
        turn_began: when it last got the model, in seconds of the monotonic clock.
        changes: goes up whenever there is something new to read.
        cancelled: its reader is gone.
    """

    base: ModelConfig
    adapter: Path | None = None
    conversations: dict[Side, list[Message]] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    should_stop: Callable[[], bool] = never
    token: str | None = None
    against: Path | None = None
    against_base: ModelConfig | None = None
    columns: dict[Side, Column] = field(default_factory=dict)
    serving: Serving | None = None
    notes: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    asked: float = field(default_factory=time.monotonic)
    turn_began: float = 0.0
    changes: int = 0
    cancelled: bool = False
    finished: bool = False
    error: BaseException | None = None

    @property
    def adapters(self) -> dict[Side, Path]:
        """The adapter of each column that has one."""
        both: dict[Side, Path | None] = {"base": self.against, "tuned": self.adapter}
        return {side: folder for side, folder in both.items() if folder is not None}

    @property
    def open_columns(self) -> list[Column]:
        """The answers that have not ended."""
        return [column for column in self.columns.values() if not column.done]

    @property
    def said(self) -> int:
        """Tokens of its answers so far."""
        return sum(column.new for column in self.columns.values())

    @property
    def waiting_since(self) -> float:
        """When it came, or had its last turn."""
        return self.turn_began if self.columns else self.asked

    @property
    def promised(self) -> int:
        """Tokens that its caches may grow to; before the first turn a guess, on the high side."""
        if self.columns:
            return sum(column.limit for column in self.columns.values())
        return self._guess

    @cached_property
    def _guess(self) -> int:
        bytes_ = sum(
            len(message["content"].encode())
            for messages in self.conversations.values()
            for message in messages
        )
        return bytes_ // 2 + self.options.max_new_tokens * len(self.conversations)

    def stopping(self) -> bool:
        """Whether somebody wants it to end here."""
        return self.cancelled or self.should_stop()

    def note(self, text: str) -> None:
        """Say what is being done."""
        if not self.notes or self.notes[-1] != text:
            self.notes.append(text)
            self.changes += 1

    def finish(self, error: BaseException | None = None) -> None:
        """Mark it as answered, or as failed with an error, and wake its reader."""
        self.error, self.finished = error, True
        self.changes += 1

    def fail(self, error: BaseException) -> None:
        """End here with an error; nothing of the model is touched, for it may be what broke."""
        self.serving = None
        self.finish(error)

    def detach(self) -> None:
        """Let go of the loaded base; what was said is kept, and read again by the next one."""
        self.serving = None
        for column in self.columns.values():
            column.row.forget()
            column.row.adapter = None

    def pair(self) -> Pair:
        """Both answers as they are."""
        base, tuned = self.columns.get("base"), self.columns.get("tuned")
        speaking = bool(self.columns) and self.serving is not None
        return Pair(
            base=base.stream.text if base else "",
            tuned=tuned.stream.text if tuned else "",
            done_base=self.finished or (base is not None and base.done),
            done_tuned=self.finished or (tuned is not None and tuned.done),
            stopped_base=base is not None and base.stopped,
            stopped_tuned=tuned is not None and tuned.stopped,
            tokens_base=base.new if base else 0,
            tokens_tuned=tuned.new if tuned else 0,
            prompt_base=base.prompt if base else 0,
            prompt_tuned=tuned.prompt if tuned else 0,
            note="" if speaking or not self.notes else self.notes[-1],
        )
