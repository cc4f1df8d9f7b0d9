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

from phi3lora.chat.engine import ChatEngine, no_training
from phi3lora.chat.options import Options, Pair, Side
from phi3lora.chat.requests import never
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

    def load(
        self,
        base: ModelConfig | str,
        adapter: Path | None = None,
        *,
        token: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[str]:
        """As `ChatEngine.load`; a whole model is loaded beside its base, if there is room."""
        if adapter is None or not is_whole(adapter):
            return super().load(base, adapter, token=token, progress=progress)
        base = ModelConfig(path=base) if isinstance(base, str) else base
        own = _own(base, adapter)
        notices = super().load(base, token=token, progress=progress)
        if self._tuned.fits(own).fits:
            notices += self._tuned.load(own, progress=progress)
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
        sides: tuple[Side, ...] = ("base", "tuned"),
        token: str | None = None,
    ) -> Iterator[Pair]:
        """As `ChatEngine.reply`; of a whole model the base answers first."""
        named, adapter = self._named(base, adapter)
        if adapter is None or not is_whole(adapter):
            return super().reply(
                messages,
                messages_tuned,
                options,
                should_stop,
                base=named,
                adapter=adapter,
                sides=sides,
                token=token,
            )
        options = options or Options()
        options.check()
        asked = {"base": messages, "tuned": messages if messages_tuned is None else messages_tuned}
        return self._one_by_one(
            {side: asked[side] for side in sides}, options, should_stop, named, adapter, token
        )

    def release(self) -> None:
        """Free the memory of both now."""
        super().release()
        self._tuned.release()

    def _one_by_one(
        self,
        asked: dict[Side, list[Message]],
        options: Options,
        should_stop: Callable[[], bool],
        base: ModelConfig,
        folder: Path,
        token: str | None,
    ) -> Iterator[Pair]:
        pair = Pair(done_base="base" not in asked)
        if "base" in asked:
            if not self.fits(base, token).fits:
                self._tuned.release()
            answers = super().reply(
                asked["base"], None, options, should_stop, base=base, sides=("base",), token=token
            )
            for pair in answers:
                yield replace(pair, done_tuned=pair.done and "tuned" not in asked)
        if "tuned" in asked:
            own = _own(base, folder)
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
