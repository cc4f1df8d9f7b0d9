"""The application without a face: its parts, made once and handed to whoever shows them.

    app = Application.open(settings)
    app.launching.launch(config, app.callers.caller(session))

A test replaces a part: `dataclasses.replace(app, comparing=...)`.
"""

from __future__ import annotations

from dataclasses import dataclass

from phi3lora.app.callers import Callers
from phi3lora.app.comparing import Comparing
from phi3lora.app.datasets import Datasets
from phi3lora.app.editing import Editing
from phi3lora.app.launching import Launching
from phi3lora.app.models import Models
from phi3lora.app.preflights import PreflightPool, Preflights
from phi3lora.app.publishing import Publishing
from phi3lora.app.views import Follower
from phi3lora.app.voting import Voting
from phi3lora.importing import heavy_imports
from phi3lora.runs.bin import expire
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import RunStore
from phi3lora.runs.sweep import sweep
from phi3lora.settings import Settings


@dataclass(frozen=True)
class Application:
    """What a door has: who asks, and all that can be done."""

    settings: Settings
    callers: Callers
    datasets: Datasets
    models: Models
    launching: Launching
    comparing: Comparing
    publishing: Publishing
    views: Follower
    preflights: Preflights

    @classmethod
    def open(cls, settings: Settings, *, helper: bool = True) -> Application:
        """All parts, over one store. Nothing is loaded or asked yet.

        Args:
            helper: run preflights in a process of their own, as whoever serves many should.
        """
        if settings.zero_gpu:  # its functions must be there when a Space starts
            with heavy_imports():
                from phi3lora.runs.backends import zerogpu  # noqa: F401
        store = RunStore(settings)
        views, callers = Follower(store), Callers(settings)
        preflights = PreflightPool(settings) if helper else Preflights(settings)
        launching = Launching(settings, store, Queue(settings, store), views, preflights)
        callers.on_sign_in = launching.renew
        return cls(
            settings,
            callers,
            Datasets(settings, store, preflights),
            Models(preflights),
            launching,
            _comparing(settings, store, views, callers),
            Publishing(settings),
            views,
            preflights,
        )

    @property
    def editing(self) -> Editing:
        """What can be done to single rows of data."""
        return Editing(self.settings, self.preflights)

    @property
    def voting(self) -> Voting:
        """What can be done with the votes of whatever is compared here."""
        return Voting(self.settings, self.comparing, self.datasets, self.launching)

    def sweep(self) -> None:
        """Remove what killed processes left behind, and runs that were in the bin for 30 days."""
        sweep(self.settings)
        expire(self.launching.store)

    def close(self) -> None:
        """End the helper process, if one was started."""
        self.preflights.close()


def _comparing(settings: Settings, store: RunStore, views: Follower, callers: Callers) -> Comparing:
    """The chat of this app, or that of the server that its owner names. Raises ConfigError."""
    if settings.chat_url is None:
        return Comparing(settings, store, views, callers)
    from phi3lora.app.elsewhere import ComparingElsewhere, named

    return ComparingElsewhere(settings, store, views, callers, named(settings))
