"""The chat whose sides may also be models that share nothing.

    chat = Chat(settings)
    chat.load(run.config.model, run.result.folder)
    for pair in chat.reply(messages, options=options): ...

Adapters share their base (see `engine`). A model that was trained whole shares nothing, nor do two
adapters of two bases: the tuned side has an engine of its own then, and answers after the other.
Where both do not fit, one makes room for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from phi3lora.chat.answering import Tell
from phi3lora.chat.engine import ChatEngine, no_training
from phi3lora.chat.options import Pair, Side
from phi3lora.chat.requests import Request
from phi3lora.config import ModelConfig
from phi3lora.errors import ConfigError, Problem
from phi3lora.lora.result import result_in
from phi3lora.settings import Settings


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a model with all its weights, and no adapter."""
    return result_in(folder).kind == "model"


def sides_of(request: Request) -> dict[Side, tuple[ModelConfig, Path | None]]:
    """What each column answers with: a base as it is loaded, and an adapter on it.

    Raises ConfigError for a strength of what is no adapter.
    """
    return {
        "base": _side(request, "base", request.against_base or request.base, request.against),
        "tuned": _side(request, "tuned", request.base, request.adapter),
    }


def _side(
    request: Request, side: Side, base: ModelConfig, folder: Path | None
) -> tuple[ModelConfig, Path | None]:
    if folder is None or not is_whole(folder):
        return base, folder
    if request.options.strength_of(side) != 1:
        message = f"{folder.name} is a whole model; only an adapter has a strength. Set it to 1."
        raise ConfigError([Problem("strength", message)])
    return _own(base, folder), None


class Chat(ChatEngine):
    """A `ChatEngine` whose columns may also have nothing in common."""

    def __init__(
        self, settings: Settings, training: Callable[[], int | None] = no_training
    ) -> None:
        super().__init__(settings, training)
        self._tuned = ChatEngine(settings, training)

    def _load(self, request: Request, progress: Tell | None) -> list[str]:
        """The tuned side's own base is loaded beside the other, if there is room."""
        (base, against), (own, adapter) = sides_of(request).values()
        if base == own:
            return super()._load(request, progress)
        token = request.token
        notices = super()._load(Request(base, token=token, against=against), progress)
        if self._tuned.fits(own, token).fits:
            notices += self._tuned.load(own, adapter, token=token, progress=progress)
        return notices

    def _answer(self, request: Request) -> Iterator[Pair]:
        """Of two bases the one on the base's side answers first."""
        sides = sides_of(request)
        if sides["base"][0] == sides["tuned"][0]:
            return super()._answer(request)
        return self._one_by_one(request, sides)

    def release(self) -> None:
        """Free the memory of both now."""
        super().release()
        self._tuned.release()

    def _one_by_one(
        self, request: Request, sides: dict[Side, tuple[ModelConfig, Path | None]]
    ) -> Iterator[Pair]:
        asked, (base, against), (own, adapter) = request.conversations, *sides.values()
        pair = Pair(done_base="base" not in asked)
        if "base" in asked:
            if not self.fits(base, request.token).fits:
                self._tuned.release()
            for pair in super()._answer(_alone(request, "base", base, against)):
                yield replace(pair, done_tuned=pair.done and "tuned" not in asked)
        if "tuned" in asked:
            if not self._tuned.fits(own, request.token).fits:
                super().release()
            for answer in self._tuned._answer(_alone(request, "tuned", own, adapter)):
                yield replace(
                    pair,
                    tuned=answer.tuned,
                    done_tuned=answer.done_tuned,
                    stopped_tuned=answer.stopped_tuned,
                    tokens_tuned=answer.tokens_tuned,
                    prompt_tuned=answer.prompt_tuned,
                    note=answer.note,
                )


def _alone(request: Request, side: Side, base: ModelConfig, folder: Path | None) -> Request:
    """One column of a request."""
    return Request(
        base,
        folder if side == "tuned" else None,
        {side: request.conversations[side]},
        request.options,
        request.should_stop,
        request.token,
        against=folder if side == "base" else None,
    )


def _own(base: ModelConfig, folder: Path) -> ModelConfig:
    """How the tuned model is loaded: as its base, from its folder."""
    return base.model_copy(update={"path": str(folder), "revision": None})
