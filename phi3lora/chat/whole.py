"""Chat with a model that was trained whole: base and tuned are two models, both in memory.

    models = WholeModels(settings)
    models.load(run.config.model, run.folder / "model")
    for pair in models.reply(messages, options=options): ...

An adapter shares its base (see `engine`); here nothing is shared, so both must fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from phi3lora.chat.engine import ChatEngine
from phi3lora.chat.options import Options, Pair
from phi3lora.config import ModelConfig
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.data.conversation import Message


class WholeModels:
    """Answers like `ChatEngine`, the base first and then the tuned model."""

    def __init__(self, settings: Settings) -> None:
        self._base, self._tuned = ChatEngine(settings), ChatEngine(settings)

    def load(self, base: ModelConfig, tuned: Path, *, token: str | None = None) -> list[str]:
        """Load both; returns notices. Raises what `ChatEngine.load` raises."""
        own = base.model_copy(update={"path": str(tuned), "revision": None})
        return [*self._base.load(base, token=token), *self._tuned.load(own)]

    def reply(
        self,
        messages: list[Message],
        messages_tuned: list[Message] | None = None,
        options: Options | None = None,
    ) -> Iterator[Pair]:
        """Both answers as they grow; the last Pair is complete."""
        pair = Pair()
        for pair in self._base.reply(messages, options=options):
            yield replace(pair, done_tuned=False)
        asked = messages if messages_tuned is None else messages_tuned
        for own in self._tuned.reply(asked, options=options):
            yield replace(
                pair,
                tuned=own.base,
                done_tuned=own.done_base,
                stopped_tuned=own.stopped_base,
                tokens_tuned=own.tokens_base,
            )
