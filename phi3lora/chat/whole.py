"""The chat whose tuned side may also be a model that was trained whole.

    chat = Chat(settings)
    chat.load(run.config.model, run.result.folder)
    for pair in chat.reply(messages, options=options): ...

An adapter shares its base (see `engine`). A model that was trained whole shares nothing: it has an
engine of its own, and answers after the base. Where both do not fit, one makes room for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from phi3lora.chat.answering import Tell
from phi3lora.chat.engine import ChatEngine, no_training
from phi3lora.chat.options import Pair, Side
from phi3lora.chat.requests import Request
from phi3lora.config import ModelConfig
from phi3lora.lora.result import result_in
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.data.conversation import Message


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a model with all its weights, and no adapter."""
    return result_in(folder).kind == "model"


class Chat(ChatEngine):
    """A `ChatEngine` whose `adapter` may name a folder with a whole model."""

    def __init__(
        self, settings: Settings, training: Callable[[], int | None] = no_training
    ) -> None:
        super().__init__(settings, training)
        self._tuned = ChatEngine(settings, training)

    def _load(self, request: Request, progress: Tell | None) -> list[str]:
        """A whole model is loaded beside its base, if there is room."""
        if request.adapter is None or not is_whole(request.adapter):
            return super()._load(request, progress)
        own = _own(request.base, request.adapter)
        notices = super()._load(Request(request.base, token=request.token), progress)
        if self._tuned.fits(own).fits:
            notices += self._tuned.load(own, progress=progress)
        return notices

    def _answer(self, request: Request) -> Iterator[Pair]:
        """Of a whole model the base answers first."""
        if request.adapter is None or not is_whole(request.adapter):
            return super()._answer(request)
        return self._one_by_one(request, _own(request.base, request.adapter))

    def release(self) -> None:
        """Free the memory of both now."""
        super().release()
        self._tuned.release()

    def _one_by_one(self, request: Request, own: ModelConfig) -> Iterator[Pair]:
        asked, options, should_stop = request.conversations, request.options, request.should_stop
        pair = Pair(done_base="base" not in asked)
        if "base" in asked:
            if not self.fits(request.base, request.token).fits:
                self._tuned.release()
            alone: dict[Side, list[Message]] = {"base": asked["base"]}
            for pair in super()._answer(
                Request(request.base, None, alone, options, should_stop, request.token)
            ):
                yield replace(pair, done_tuned=pair.done and "tuned" not in asked)
        if "tuned" in asked:
            if not self._tuned.fits(own).fits:
                super().release()
            for answer in self._tuned.reply(asked["tuned"], None, options, should_stop, base=own):
                yield replace(
                    pair,
                    tuned=answer.base,
                    done_tuned=answer.done_base,
                    stopped_tuned=answer.stopped_base,
                    tokens_tuned=answer.tokens_base,
                    prompt_tuned=answer.prompt_base,
                    note=answer.note,
                )


def _own(base: ModelConfig, folder: Path) -> ModelConfig:
    """How the tuned model is loaded: as its base, from its folder."""
    return base.model_copy(update={"path": str(folder), "revision": None})
