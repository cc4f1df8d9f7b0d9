"""Preflights for many: data, machine and Hub are checked before launch, in a helper process.

    pool = PreflightPool(settings)
    done = pool.preflight(config, token)       done.inspection, done.checks, done.estimate

The process that serves the pages stays small and quick: transformers, tokenizing and a GPU's
context live in this helper, which starts with the first preflight and ends with the app. A
command runs them in its own process: `HerePreflights`.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from phi3lora.config import RunConfig
from phi3lora.errors import Phi3LoraError
from phi3lora.isolation import hide_process, inherited
from phi3lora.settings import Settings
from phi3lora.training.preflight import Preflight, preflight

WORKERS = 2  # a long preflight of one visitor leaves room for another's
KEPT = 32  # inspections that are remembered


class Preflights(Protocol):
    """Where preflights are run."""

    def preflight(
        self, config: RunConfig, token: str | None = None, tokens_per_second: float | None = None
    ) -> Preflight:
        """Inspect the data and run the checks. What is wrong is in the result, not raised."""

    def parts(self, path: str, name: str | None, token: str | None) -> tuple[list[str], list[str]]:
        """Configurations and splits of a Hub dataset. Raises DataError or HubError."""

    def close(self) -> None:
        """End what was started for it."""


class HerePreflights:
    """In this process, one at a time, remembering nothing: for a command."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def preflight(
        self, config: RunConfig, token: str | None = None, tokens_per_second: float | None = None
    ) -> Preflight:
        return preflight(config, self._settings, token, None, tokens_per_second)

    def parts(self, path: str, name: str | None, token: str | None) -> tuple[list[str], list[str]]:
        return _parts(path, name, token)

    def close(self) -> None:
        """Nothing was started."""


class PreflightPool:
    """In a helper process, remembering the last inspections while their data is the same."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def preflight(
        self, config: RunConfig, token: str | None = None, tokens_per_second: float | None = None
    ) -> Preflight:
        """Inspect the data and run the checks. What is wrong is in the result, not raised.

        Data that was inspected lately, with the same settings, is not read again.
        """
        key = _data_key(config, token)
        cached = self._kept.get(key)
        done = self._run(config, self._settings, token, cached, tokens_per_second)
        if done.inspection is not None:
            with self._lock:
                self._kept[key] = done.inspection
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return done

    def parts(self, path: str, name: str | None, token: str | None) -> tuple[list[str], list[str]]:
        """Configurations and splits of a Hub dataset. Raises DataError or HubError."""
        return self._ready().submit(_parts, path, name, token).result()

    def _run(self, *arguments: Any) -> Preflight:
        """Have the helper do it; a helper that was killed is replaced once."""
        for attempt in (1, 2):
            pool = self._ready()
            try:
                return pool.submit(preflight, *arguments).result()
            except BrokenProcessPool:
                self._replace(pool)
                if attempt == 2:
                    raise Phi3LoraError(
                        "Reading the data ended without an answer, most likely for want of "
                        "memory. Set a row limit (data.max_rows) and try again."
                    ) from None
        raise AssertionError("unreachable")

    def _ready(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    WORKERS,
                    multiprocessing.get_context("spawn"),
                    initializer=_begin,
                    initargs=(self._settings.on_space,),
                )
            return self._pool

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is broken:
                self._pool = None
        broken.shutdown(wait=False)

    def close(self) -> None:
        """End the helper process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _data_key(config: RunConfig, token: str | None) -> str:
    """Equal where the same rows become the same tokens for the same caller.

    A file is known by its size and time as well: it may have been edited since.
    """
    parts = [
        config.data.model_dump_json(),
        config.model.path,
        config.model.revision or "",
        str(config.training_config.max_length),
        token or "",
    ]
    file = Path(config.data.path).expanduser()
    if file.is_file():
        stat = file.stat()
        parts.append(f"{stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _parts(path: str, name: str | None, token: str | None) -> tuple[list[str], list[str]]:
    """In the helper: the `datasets` library stays out of the app."""
    from phi3lora.data.sources import configurations, splits

    names = configurations(path, token=token)
    chosen = name if name in names else (names[0] if len(names) > 1 else None)
    return names, splits(path, chosen, token=token)


def _begin(on_space: bool) -> None:
    """A helper whose app was killed would wait for work for ever; it knows no secret of a Space."""
    if on_space:
        hide_process()
        for name in os.environ.keys() - inherited(os.environ).keys():
            del os.environ[name]
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(0)), daemon=True).start()
