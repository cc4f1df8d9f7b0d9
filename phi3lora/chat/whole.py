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
from phi3lora.errors import ModelError
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.data.formats import Message


class WholeModels:
    """Answers like `ChatEngine`, the base first and then the tuned model."""

    def __init__(self, settings: Settings, base: ChatEngine | None = None) -> None:
        """`base` is an engine that serves others, too; one of its own by default."""
        self._base, self._tuned = base or ChatEngine(settings), ChatEngine(settings)
        self._loaded: tuple[ModelConfig, Path] | None = None

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
        notices += self._tuned.load(_own(base, tuned), progress=progress)
        self._loaded = (base, tuned)
        return notices

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

        `base` and `adapter` (the folder of the tuned model) are what was loaded last by default.
        Raises ModelError where nothing was loaded, and what `ChatEngine.reply` raises.
        """
        if base is not None and adapter is not None:
            self._loaded = (base, adapter)
        if self._loaded is None:
            raise ModelError("No model is loaded; load a base and a tuned model first.")
        model, own_model = self._loaded[0], _own(*self._loaded)
        pair = Pair()
        for pair in self._base.reply(
            messages, options=options, should_stop=should_stop, base=model, token=token
        ):
            yield replace(pair, done_tuned=False)
        asked = messages if messages_tuned is None else messages_tuned
        for own in self._tuned.reply(
            asked, options=options, should_stop=should_stop, base=own_model
        ):
            yield replace(
                pair,
                tuned=own.base,
                done_tuned=own.done_base,
                stopped_tuned=own.stopped_base,
                tokens_tuned=own.tokens_base,
            )


def _own(base: ModelConfig, tuned: Path) -> ModelConfig:
    """The tuned model as a base of its own, in the precision of the one it came from."""
    return base.model_copy(update={"path": str(tuned), "revision": None})
