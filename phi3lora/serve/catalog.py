"""Which models a program may name, and what it means by a name.

catalog = Catalog(app)                     everything the caller may compare
catalog = Catalog(app, ["ann/pirate"])     these alone, as `phi3lora serve --adapter` says
catalog.listed(caller)                     [Served("example:pirate", …), …]
catalog.find("pocket", caller)             a base alone, or a result on its base
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import BUNDLED, PIRATE, Subject
from phi3lora.chat.options import Side
from phi3lora.config import POCKET, ModelConfig
from phi3lora.errors import Phi3LoraError
from phi3lora.hub.access import SUGGESTED_MODELS
from phi3lora.serve.protocol import ApiError


@dataclass(frozen=True)
class Served:
    """A model that can be asked.

    Attributes:
        name: as a request says it.
        subject: base and result.
        side: which of the two answers.
    """

    name: str
    subject: Subject
    side: Side
    created: int = 0


class Catalog:
    """Names into models; one engine answers for all of them.

    Args:
        only: adapters, runs or folders that are served, with their bases, and nothing else.
        base: what answers by its own name beside them.
    """

    def __init__(
        self, app: Application, only: Sequence[str] = (), base: ModelConfig | None = None
    ) -> None:
        settled = app.comparing.settled
        self._app, self._base = app, base
        self._only = (settled,) if settled else tuple(only)

    def listed(self, caller: Caller) -> list[Served]:
        """Bases first, then what was made of them. Raises Phi3LoraError."""
        tuned = list(self._named(caller) if self._only or self._base else self._runs(caller))
        bases = [_base_of(self._base)] if self._base else []
        bases += [] if self._only or self._base else [_base_of(ModelConfig(path=POCKET))]
        bases += [_base_of(one.subject.base) for one in tuned]
        return list({one.name: one for one in [*bases, *tuned]}.values())

    def _named(self, caller: Caller) -> Iterator[Served]:
        for name in self._only:
            subject = self._app.comparing.subject(name, caller)
            yield Served(name, subject, "tuned" if subject.result else "base")

    def _runs(self, caller: Caller) -> Iterator[Served]:
        yield Served(BUNDLED, PIRATE, "tuned")
        for run in self._app.comparing.runs(caller):
            try:
                subject = self._app.comparing.subject(run.id, caller)
            except Phi3LoraError:
                continue  # damaged: its own page says how
            yield Served(run.id, subject, "tuned", int(run.state.created))

    def find(self, name: str, caller: Caller) -> Served:
        """What a request asks for. ApiError 404 where there is no such model for this caller."""
        if self._only or self._base:
            return self._among(self.listed(caller), name)
        if name in (POCKET, *SUGGESTED_MODELS):
            return _base_of(ModelConfig(path=name))
        try:
            return Served(name, self._app.comparing.subject(name, caller), "tuned")
        except Phi3LoraError as error:
            own = [one for one in self.listed(caller) if one.name == name]  # bases of one's runs
            if not own:
                raise _missing(str(error)) from None
            return own[0]

    def _among(self, served: list[Served], name: str) -> Served:
        for one in served:
            if one.name == name:
                return one
        names = ", ".join(one.name for one in served)
        raise _missing(f"This server has no model {name[:100]!r}; it serves {names}.")


def _base_of(base: ModelConfig) -> Served:
    return Served(base.path, Subject(base), "base")


def _missing(message: str) -> ApiError:
    return ApiError(404, message, param="model", code="model_not_found")
