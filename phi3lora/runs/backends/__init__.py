"""Where a run computes: each place is a Backend, and a run's state names it by its name.

    backend = backend_of("local")
    backend.start(folder, settings, token, begin)
    backend.alive(folder); backend.stop(folder, seconds)

Adding one is a module here and a line in `backend_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.settings import Settings


class Backend(Protocol):
    """A place where runs compute. It knows a run by its folder, and nothing of its state."""

    def start(
        self, folder: Path, settings: Settings, token: str | None, begin: Callable[[], None]
    ) -> None:
        """Start a worker on a run, which waits for its turn; returns at once.

        `begin` is called as soon as the folder is this worker's and nobody else's, before it
        runs. Raises RunError where another worker has the folder, OSError where none can start.
        """

    def stop(self, folder: Path, seconds: float) -> None:
        """See that a run which was asked to stop ends, by force after so many seconds."""

    def alive(self, folder: Path) -> bool:
        """Whether a worker computes this run, or waits to."""

    def offers(self, config: RunConfig) -> str:
        """The kind of device on which such a run would compute: `cpu` or `cuda`."""


BackendName = Literal["local", "zerogpu", "jobs"]


def backend_for(config: RunConfig, settings: Settings) -> BackendName:
    """Where a new run computes: on a lent GPU where that is all there is, else on this machine."""
    return "zerogpu" if settings.zero_gpu and config.model.device != "cpu" else "local"


def backend_of(name: str) -> Backend:
    """The backend of that name. Raises RunError for one that this version does not have."""
    if name == "local":
        from phi3lora.runs.backends.local import LocalBackend

        return LocalBackend()
    if name == "zerogpu":
        from phi3lora.runs.backends.zerogpu import ZeroGpuBackend

        return ZeroGpuBackend()
    if name == "jobs":
        from phi3lora.runs.backends.jobs import JobsBackend

        return JobsBackend()
    raise RunError(f"There is no backend {name!r} here; expected `local`, `zerogpu` or `jobs`.")
