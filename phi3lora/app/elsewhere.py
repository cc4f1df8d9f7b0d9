"""Comparing through somebody else's server of OpenAI's protocol: `PHI3LORA_CHAT_URL`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from phi3lora.app.callers import Caller, Callers
from phi3lora.app.comparing import Comparing, Subject
from phi3lora.app.views import Follower
from phi3lora.chat.answering import Answering
from phi3lora.chat.remote import RemoteChat, Server
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
        self.settled = server.tuned or server.base

    def subject(self, name: str, caller: Caller, revision: str | None = None) -> Subject:
        """The two models, by the names that the server knows."""
        server = self._server
        if not server.tuned:
            return Subject(ModelConfig(path=server.base), name=server.base)
        return Subject(ModelConfig(path=server.base), Path(server.tuned), "model", server.tuned)

    def _new_engine(self) -> Answering:
        return RemoteChat(self._server, os.environ.get(KEY))

    def _check(self, subject: Subject, caller: Caller) -> None:
        """Who may ask is the server's to say, of the key that its owner gave."""
