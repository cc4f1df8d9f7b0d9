"""What every chat is asked, wherever it computes: to load, to answer, to make room.

    class Here(Answering): ...                 chat.engine.ChatEngine, chat.whole.Chat: in this app
    class Lent(Answering): ...                 runs.backends.zerogpu.LentChat: on a lent GPU

A chat is handed a `Request`, so that what one may ask is written here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phi3lora.chat.options import BOTH, Options, Pair, Side
from phi3lora.chat.requests import Request, never
from phi3lora.config import ModelConfig

if TYPE_CHECKING:
    from phi3lora.data.conversation import Message

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Room:
    """Whether a base can be in memory now, in bytes; `message` says what to do if not."""

    fits: bool
    need: int
    free: int
    message: str = ""


class Answering(ABC):
    """Answers with base and tuned, safe to ask from any thread."""

    _default: tuple[ModelConfig, Path | None] = (ModelConfig(), None)

    def load(
        self,
        base: ModelConfig | str,
        adapter: Path | None = None,
        *,
        token: str | None = None,
        progress: Tell | None = None,
        against: Path | None = None,
        against_base: ModelConfig | None = None,
    ) -> list[str]:
        """Load a base, and an adapter or two beside it; later replies use the base and `adapter`
        unless they name others.

        Blocks; `progress` hears what is being done. Returns notices: what fell back, what to know.
        Raises BusyError, ModelError, AdapterError or HubError.
        """
        base = _model(base)
        wanted = Request(base, adapter, token=token, against=against, against_base=against_base)
        notices = self._load(wanted, progress)
        self._default = (base, adapter)
        return notices

    def reply(
        self,
        messages: list[Message],
        messages_tuned: list[Message] | None = None,
        options: Options | None = None,
        should_stop: Callable[[], bool] = never,
        *,
        base: ModelConfig | str | None = None,
        adapter: Path | None = None,
        sides: tuple[Side, ...] = BOTH,
        token: str | None = None,
        against: Path | None = None,
        against_base: ModelConfig | None = None,
    ) -> Iterator[Pair]:
        """Both answers as they grow; the last Pair is complete.

        Args:
            messages: the base column's conversation, ending with the user's words.
            messages_tuned: the tuned column's, where it differs.
            options: how to sample.
            should_stop: asked between tokens; True ends both answers where they are.
            base, adapter: what to answer with; what was loaded last by default. Without an
                adapter only the base answers.
            sides: which columns to fill.
            token: the visitor's, for a base that the Hub gives to some only.
            against, against_base: what the base's column answers with instead of the untouched
                base: another adapter, on the same base or on one of its own.

        A reader that is slower than the model gets fewer, longer steps. Closing the iterator
        cancels. Raises BusyError and ConfigError at once, ModelError, AdapterError and HubError
        when the answer is read.
        """
        options = options or Options()
        options.check()
        model, adapter = self._named(base, adapter)
        conversations: dict[Side, list[Message]] = {}
        if "base" in sides or adapter is None:
            conversations["base"] = messages
        if "tuned" in sides and adapter is not None:
            conversations["tuned"] = messages if messages_tuned is None else messages_tuned
        request = Request(
            model,
            adapter,
            conversations,
            options,
            should_stop,
            token,
            against=against,
            against_base=against_base,
        )
        return self._answer(request)

    @abstractmethod
    def fits(self, base: ModelConfig | str | None = None, token: str | None = None) -> Room:
        """Whether a base can be in memory, beside a training if one computes.

        Raises ModelError or HubError when there is no such base.
        """

    @abstractmethod
    def release(self) -> None:
        """Free the memory now. Requests load the base again, as soon as there is room."""

    @abstractmethod
    def _load(self, request: Request, progress: Tell | None) -> list[str]:
        """Load what a request names, which asks nothing. Returns notices."""

    @abstractmethod
    def _answer(self, request: Request) -> Iterator[Pair]:
        """The answers to a request whose options are within bounds."""

    def _named(
        self, base: ModelConfig | str | None, adapter: Path | None
    ) -> tuple[ModelConfig, Path | None]:
        """What a call means by the base and adapter that it names or leaves out."""
        if base is None:
            return self._default[0], adapter or self._default[1]
        return _model(base), adapter


def _model(base: ModelConfig | str) -> ModelConfig:
    return ModelConfig(path=base) if isinstance(base, str) else base
