"""Comparing through somebody else's server of OpenAI's protocol: `PHI3LORA_CHAT_URL`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from phi3lora.app.callers import Caller, Callers
from phi3lora.app.comparing import BOTH, Comparing, Subject
from phi3lora.app.views import Follower
from phi3lora.chat.options import Options, Pair, Side
from phi3lora.chat.remote import RemoteChat, Server
from phi3lora.chat.requests import check_lengths
from phi3lora.config import ModelConfig
from phi3lora.errors import ConfigError, Problem
from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings

KEY = "PHI3LORA_CHAT_KEY"


def named(settings: Settings) -> Server:
    """The server of the settings. Raises ConfigError where an address or a name is missing."""
    url = settings.chat_url or ""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError([Problem("PHI3LORA_CHAT_URL", "expected http://HOST/v1 or https://.")])
    if not settings.chat_base:
        message = "expected the name of the base on that server, as its /v1/models lists it."
        raise ConfigError([Problem("PHI3LORA_CHAT_BASE", message)])
    return Server(url, settings.chat_base, settings.chat_tuned)


class ComparingElsewhere(Comparing):
    """Two models of a server and nothing else, whatever is named."""

    def __init__(
        self,
        settings: Settings,
        store: RunStore,
        views: Follower,
        callers: Callers,
        server: Server,
    ) -> None:
        super().__init__(settings, store, views, callers)
        self._server = server
        self._remote = RemoteChat(server, os.environ.get(KEY))
        self.settled = server.tuned or server.base

    def subject(self, name: str, caller: Caller, revision: str | None = None) -> Subject:
        """The two models, by the names that the server knows."""
        server = self._server
        if not server.tuned:
            return Subject(ModelConfig(path=server.base), name=server.base)
        return Subject(ModelConfig(path=server.base), Path(server.tuned), "model", server.tuned)

    def load(self, subject: Subject, caller: Caller) -> Iterator[str]:
        """Ask the server whether it is there; says what the columns mean. Raises ModelError."""
        yield from self._remote.load(subject.base, subject.result)

    def reply(
        self,
        subject: Subject,
        base: list[Any],
        tuned: list[Any],
        options: Options,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        caller: Caller,
        sides: tuple[Side, ...] = BOTH,
    ) -> Iterator[Pair]:
        """The answers as they grow. Raises Phi3LoraError."""
        if self.settings.on_space:
            check_lengths([*base, *tuned, options.first()])
        yield from self._remote.reply(
            base,
            tuned,
            options,
            should_stop,
            base=subject.base,
            adapter=subject.result,
            sides=sides,
        )
