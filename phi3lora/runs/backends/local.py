"""Runs on this machine: a detached process each, one computing at a time on one device.

LocalBackend().start(folder, settings, token, begin)   # the process outlives this one
devices("cuda")                   # ["0", "1"]: one lock file and one queue of runs
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from phi3lora.config import RunConfig
from phi3lora.errors import RunError
from phi3lora.isolation import inherited, send_token
from phi3lora.models.hardware import Hardware, visible_gpus
from phi3lora.runs import life
from phi3lora.runs.afterwards import after_worker
from phi3lora.settings import Settings

PACKAGE_PARENT = Path(__file__).parents[3]
LEAVING_SECONDS = 5.0  # for which a worker that has just ended is waited for


class LocalBackend:
    """A worker process for each run; it lives as long as it holds the lock in the run's folder."""

    def start(
        self, folder: Path, settings: Settings, token: str | None, begin: Callable[[], None]
    ) -> None:
        """Take the run's lock, and start a worker that inherits it."""
        hand_over(folder, settings, token, begin, "phi3lora.runs.worker")

    def stop(self, folder: Path, seconds: float) -> None:
        """Leave it to a process of its own, which outlives a terminal, to end the worker."""
        if (pid := life.holder(folder)) is not None:
            watch(folder, pid, seconds, "stop")

    def alive(self, folder: Path) -> bool:
        """Whether its lock is held."""
        return life.is_held(folder)

    def offers(self, config: RunConfig) -> str:
        """`cuda` if it may use a GPU and there is one, else `cpu`."""
        return device_kind(config)


def hand_over(
    folder: Path, settings: Settings, token: str | None, begin: Callable[[], None], module: str
) -> None:
    """Take the run's lock, and start a process of that module that inherits it.

    Raises RunError where another process has the run, OSError where none can be started.
    """
    lock = life.take(folder, LEAVING_SECONDS)
    if lock is None:
        raise RunError(
            "Its worker has not left yet: it computes, or sends the last of the backup. Wait a "
            "moment, then try again."
        )
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        begin()
        process = _start(folder, lock, worker_environment(settings), module)
        life.sign(lock, process.pid)
    finally:
        os.close(lock)  # the worker's copy keeps it
    send_token(process, token)

    def reap() -> None:  # so that no dead child lingers
        process.wait()
        after_worker(folder, settings)

    threading.Thread(target=reap, daemon=True, name=f"reaper of {folder.name}").start()


def watch(folder: Path, pid: int, seconds: float, reason: str) -> None:
    """Start the process that ends a worker by force after so many seconds, one for each reason."""
    module = "phi3lora.runs.backends.ending"
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(folder), str(pid), str(seconds), reason],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**inherited(os.environ), "PYTHONPATH": _python_path()},
        start_new_session=True,
    )
    threading.Thread(target=process.wait, daemon=True, name=f"end of {folder.name}").start()


def _start(
    folder: Path, lock: int, environment: dict[str, str], module: str
) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(folder), str(lock)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=[lock],
            start_new_session=True,
        )


def worker_environment(
    settings: Settings, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What the worker inherits; on a Space no secret of its owner's. Its token comes by a pipe."""
    environment = inherited(environ) if settings.on_space else dict(environ)
    environment.pop("HF_TOKEN", None)
    if settings.on_space:
        environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    environment["PHI3LORA_HOME"] = str(settings.home)
    environment["PYTHONPATH"] = _python_path(environment)
    environment["PYTHONFAULTHANDLER"] = "1"
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # a log is read, not watched
    if "PYTORCH_CUDA_ALLOC_CONF" not in environment:
        # Batches without padding have another size each; fixed segments would be torn to pieces.
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    return environment


def _python_path(environ: Mapping[str, str] = os.environ) -> str:
    """Where a child finds this package."""
    return os.pathsep.join(filter(None, [str(PACKAGE_PARENT), environ.get("PYTHONPATH", "")]))


def device_kind(config: RunConfig) -> str:
    """In whose queue a run waits: `cuda` if it may use a GPU and there is one, else `cpu`."""
    return "cuda" if config.model.device != "cpu" and devices("cuda") else "cpu"


def devices(kind: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the devices of a kind, as CUDA_VISIBLE_DEVICES takes them; without torch."""
    if kind == "cpu":
        return ["cpu"]
    return visible_gpus(environ)


def card_of(hardware: Hardware) -> str:
    """The name by which a run takes that device; a GPU that cannot be counted goes with the CPU."""
    names = visible_gpus() if hardware.device == "cuda" else []
    return names[hardware.index] if hardware.index < len(names) else "cpu"
