"""Chat with a model that was trained whole: base and tuned are two models, both in memory.

    models = WholeModels(settings)
    models.load(run.config.model, run.result.folder)
    for pair in models.reply(messages, options=options): ...

An adapter shares its base (see `engine`); here nothing is shared, so both must fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from phi3lora.chat.engine import ChatEngine
from phi3lora.chat.options import Options, Pair
from phi3lora.chat.requests import never
from phi3lora.config import ModelConfig
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.data.conversation import Message


def _none() -> int | None:
    return None


class WholeModels:
    """Answers like `ChatEngine`, the base first and then the tuned model."""

    def __init__(self, settings: Settings, training: Callable[[], int | None] = _none) -> None:
        self._base = ChatEngine(settings, training)
        self._tuned = ChatEngine(settings, training)

    def load(
        self,
        base: ModelConfig,
        tuned: Path,
        *,
        token: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Load both; returns notices. Raises what `ChatEngine.load` raises."""
        notices = self._base.load(base, token=token, progress=progress)
        return [*notices, *self._tuned.load(_own(base, tuned), progress=progress)]

    def reply(
        self,
        messages: list[Message],
        messages_tuned: list[Message] | None = None,
        options: Options | None = None,
        should_stop: Callable[[], bool] = never,
        *,
        base: ModelConfig | None = None,
        adapter: Path | None = None,
        token: str | None = None,
    ) -> Iterator[Pair]:
        """Both answers as they grow; the last Pair is complete.

        Args:
            base, adapter: what to answer with, the folder of the tuned model among it; what was
                loaded last by default.
        """
        pair = Pair()
        for pair in self._base.reply(
            messages, options=options, should_stop=should_stop, base=base, token=token
        ):
            yield replace(pair, done_tuned=False)
        asked = messages if messages_tuned is None else messages_tuned
        tuned = _own(base, adapter) if base is not None and adapter is not None else None
        for own in self._tuned.reply(asked, options=options, should_stop=should_stop, base=tuned):
            yield replace(
                pair,
                tuned=own.base,
                done_tuned=own.done_base,
                stopped_tuned=own.stopped_base,
                tokens_tuned=own.tokens_base,
                note=own.note,
            )


def _own(base: ModelConfig, folder: Path) -> ModelConfig:
    """The tuned model, read as its base is."""
    return base.model_copy(update={"path": str(folder), "revision": None})
