"""Preflights for many: data, machine and Hub are checked before launch, in helper processes.

    pool = PreflightPool(settings)
    done = pool.preflight(config, token, person="ann")    done.inspection, done.checks

The process that serves the pages stays small and quick: transformers, tokenizing and a GPU's
context live in helpers, which start with the first preflight and end with the app. On a Space
people are strangers: one preflight of a person at a time, each within bounds of time and memory. A
command runs them in its own process: `Preflights`.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.app.helper import GIB, Helper, HelperDied, Limits
from phi3lora.config import DataConfig, RunConfig
from phi3lora.data.folders import version_of
from phi3lora.errors import Phi3LoraError
from phi3lora.hub.jobs import Flavor
from phi3lora.models.hardware import Hardware, detect_hardware
from phi3lora.runs.store import LOCAL
from phi3lora.settings import Settings
from phi3lora.training.offers import Offer, hardware_of, offers
from phi3lora.training.preflight import (
    PREVIEW_ROWS,
    Elsewhere,
    Preflight,
    inspection,
    preflight,
)

if TYPE_CHECKING:
    from phi3lora.data.columns import Columns
    from phi3lora.data.findings import Finding
    from phi3lora.data.opened import OpenRow

WORKERS = 2  # a long preflight of one visitor leaves room for another's
CACHED = 32
FINDING_ROWS = 20  # of a kind, that a page lists
OF_STRANGERS = Limits(seconds=60, bytes=4 * GIB)
PATIENCE = 90.0  # seconds that a preflight waits for a helper
MOST_WAITING = 2  # preflights of one person, beside the one that is computed
MOST_STRANGERS = 20  # of all who did not sign in, who see the bundled data


class Preflights:
    """Preflights in this process, as a command runs them.

    The last inspections are remembered while their data is the same: it is not read again.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cache: OrderedDict[str, Any] = OrderedDict()
        self._keeping = threading.Lock()
        self._hardware: Hardware | None = None
        self._asking = threading.Lock()

    def inspection(self, config: RunConfig, token: str | None = None, person: str = "") -> Any:
        """The data alone, which is known sooner than the rest; None where it cannot be read.

        Why not is said by the preflight that follows, which does not read the data again.
        """
        key = _data_key(config, token, None)
        if (found := self._cache.get(key)) is None:
            found = self._call(person, _inspection, config, self._settings, token)
            if found is not None:
                self._keep(key, found)
        return found

    def preflight(
        self,
        config: RunConfig,
        token: str | None = None,
        tokens_per_second: float | None = None,
        person: str = "",
        elsewhere: Elsewhere | None = None,
    ) -> Preflight:
        """Inspect the data and run the checks. What is wrong is in the result, not raised.

        Args:
            tokens_per_second: of an earlier run like this one, for the time.
            person: who asks, and whose runs `model.adapter` may name.
            elsewhere: the machine that it is for, if it is not this one.

        Raises Phi3LoraError where a helper reached its bounds or failed.
        """
        key = _data_key(config, token, elsewhere)
        cached, asked = self._cache.get(key), (config, self._settings, token)
        done: Preflight = self._call(
            person, _preflight, *asked, cached, tokens_per_second, person, elsewhere
        )
        if done.inspection is not None:
            self._keep(key, done.inspection)
        return done

    def offers(
        self,
        config: RunConfig,
        flavors: list[Flavor],
        speeds: dict[str, float],
        token: str | None = None,
        person: str = "",
    ) -> list[Offer]:
        """What a run would take on each machine of the Hub. Raises HubError."""
        key = _data_key(config, token, Elsewhere(hardware_of(flavors[-1])))
        cached, asked = self._cache.get(key), (config, self._settings, token)
        inspection, found = self._call(person, offers, *asked, cached, flavors, speeds)
        if inspection is not None:
            self._keep(key, inspection)
        return list(found)

    def parts(
        self, path: str, name: str | None, token: str | None, person: str = ""
    ) -> tuple[list[str], list[str]]:
        """Configurations and splits of a Hub dataset. Raises DataError or HubError."""
        parts: tuple[list[str], list[str]] = self._call(person, _parts, path, name, token)
        return parts

    def columns(self, data: DataConfig, token: str | None, person: str = "") -> Columns:
        """The columns of a table, its first rows, and what is read as what.

        Raises DataError or HubError.
        """
        found: Columns = self._call(person, _columns, data, token)
        return found

    def findings(
        self, config: RunConfig, token: str | None, person: str = "", *, likelihood: bool = False
    ) -> list[Finding]:
        """Rows that one may want to leave out, or those that the base finds odd.

        Raises what reading the rows and the base raises.
        """
        function = _odd_under_base if likelihood else _to_leave_out
        found: list[Finding] = self._call(person, function, config, token)
        return found

    def row(
        self,
        config: RunConfig,
        token: str | None,
        person: str,
        number: int,
        source: int,
        edited: bool = False,
    ) -> OpenRow:
        """A row of a source as `data.opened.open_row` finds it. Raises DataError or HubError."""
        found: OpenRow = self._call(person, _row, config, token, number, source, edited)
        return found

    def hardware(self) -> Hardware:
        """The device on which a run would compute, if it says nothing else; asked once."""
        with self._asking:
            if self._hardware is None:
                self._hardware = self._call("", detect_hardware)
            return self._hardware

    def close(self) -> None:
        """End what was started for it; nothing was."""

    def _call(self, person: str, function: Any, *arguments: Any) -> Any:
        """The function's answer, wherever it is computed."""
        return function(*arguments)

    def _keep(self, key: str, inspection: Any) -> None:
        with self._keeping:
            self._cache[key] = inspection
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)


class PreflightPool(Preflights):
    """Preflights in helper processes, as whoever serves many runs them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._limits = OF_STRANGERS if settings.on_space else Limits()
        self._changed = threading.Condition()
        self._idle: list[Helper] = []
        self._busy: list[Helper | None] = []  # None: one that is being started
        self._of: Counter[str] = Counter()  # preflights that are computed, by person
        self._waiting: Counter[str] = Counter()
        self._closed = False

    def _call(self, person: str, function: Any, *arguments: Any) -> Any:
        """Have a helper compute; one that died is replaced once."""
        for _ in range(2):
            with self._turn(person) as helper, suppress(HelperDied):
                return helper.ask(function, arguments, self._limits)
        raise Phi3LoraError(
            "Reading the data ended without an answer, most likely for want of memory. Set a row "
            "limit (data.max_rows) and try again."
        )

    @contextmanager
    def _turn(self, person: str) -> Iterator[Helper]:
        """A helper for one question, when it is this person's turn and one is free."""
        with self._changed:
            self._take_place(person)
            helper = self._idle.pop() if self._idle else None
            self._busy.append(helper)
            self._of[person] += 1
        try:
            if helper is None or not helper.alive:
                fresh = Helper(strangers=self._settings.on_space)
                with self._changed:
                    self._busy[self._busy.index(helper)] = fresh
                helper = fresh
            yield helper
        finally:
            with self._changed:
                self._busy.remove(helper)
                self._of[person] -= 1
                if helper is not None and helper.alive:
                    self._idle.append(helper)
                if self._closed:
                    self._end_idle()
                self._changed.notify_all()

    def _take_place(self, person: str) -> None:
        """Wait until a helper is free, and on a Space until the person's last preflight ended."""
        alone = self._settings.on_space
        most = MOST_WAITING if person else MOST_STRANGERS
        if alone and self._waiting[person] >= most:
            raise Phi3LoraError(
                f"{most} previews of yours are waiting already; wait until one has ended."
            )
        self._waiting[person] += 1
        try:
            free = self._changed.wait_for(
                lambda: len(self._busy) < WORKERS and not (alone and self._of[person]),
                PATIENCE if alone else None,
            )
        finally:
            self._waiting[person] -= 1
        if not free:
            raise Phi3LoraError("Others are reading their data just now; try again in a minute.")

    def close(self) -> None:
        """End the helper processes; those that compute end when they have answered."""
        with self._changed:
            self._closed = True
            self._end_idle()

    def _end_idle(self) -> None:
        while self._idle:
            self._idle.pop().end()


def _data_key(config: RunConfig, token: str | None, elsewhere: Elsewhere | None) -> str:
    """Equal where the same rows become the same tokens for the same caller.

    Of a file, its size and time count as well: it may have been edited since. Which base `auto`
    is depends on the machine.
    """
    parts = [
        config.data.model_dump_json(),
        config.model.path,
        config.model.revision or "",
        str(config.training_config.max_length),
        token or "",
        elsewhere.hardware.device if elsewhere else "",
    ]
    for path in (config.data.path, *(source.path for source in config.data.more)):
        with suppress(OSError, RuntimeError, ValueError):  # `~nobody`, a NUL: the preflight says so
            parts.append(version_of(Path(path).expanduser()))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()


def _preflight(
    config: RunConfig,
    settings: Settings,
    token: str | None,
    inspection: Any,
    tokens_per_second: float | None,
    person: str,
    elsewhere: Elsewhere | None,
) -> Preflight:
    """The checks; `model.adapter` may name a run of this person's, or an adapter on the Hub."""
    from phi3lora.runs.starting import find

    return preflight(
        config,
        settings,
        token,
        inspection,
        tokens_per_second,
        lambda name: find(name, person or LOCAL, settings, token),
        elsewhere,
    )


def _inspection(config: RunConfig, settings: Settings, token: str | None) -> Any:
    """In the helper: the data of a preflight, before the libraries of a training are imported."""
    try:
        return inspection(config, settings, token)
    except Phi3LoraError:
        return None


def _columns(data: DataConfig, token: str | None) -> Columns:
    """In the helper, likewise."""
    from phi3lora.data.columns import columns_of

    return columns_of(data, token)


def _parts(path: str, name: str | None, token: str | None) -> tuple[list[str], list[str]]:
    """In the helper: the `datasets` library stays out of the app."""
    from phi3lora.data.sources import configurations, splits

    names = configurations(path, token=token)
    chosen = name if name in names else (names[0] if len(names) > 1 else None)
    return names, splits(path, chosen, token=token)


def _to_leave_out(config: RunConfig, token: str | None) -> list[Finding]:
    """In the helper: what the first rows hold, whatever the config leaves out of them."""
    from phi3lora.data.inspection import inspect

    tokenizer = _tokenizer(config, token)
    looked = config.with_values({"data.leave_out": []})
    seen = inspect(looked, tokenizer, token=token, limit=PREVIEW_ROWS, findings=True)
    return [replace(finding, rows=finding.rows[:FINDING_ROWS]) for finding in seen.findings]


def _tokenizer(config: RunConfig, token: str | None) -> Any:
    """Of the base that would be trained; no weights are read."""
    from phi3lora.models.base import resolve_path
    from phi3lora.models.loading import load_tokenizer

    path = resolve_path(config.model.path, detect_hardware(config.model.device))
    return load_tokenizer(path, config.model.revision, token, weights=False)


def _row(config: RunConfig, token: str | None, number: int, source: int, edited: bool) -> OpenRow:
    """In the helper: one row, as training would read it."""
    from phi3lora.data.opened import open_row

    tokenizer = _tokenizer(config, token)
    return open_row(config, number, tokenizer, source=source, token=token, edited=edited)


def _odd_under_base(config: RunConfig, token: str | None) -> list[Finding]:
    """In the helper: what the base finds most and least likely."""
    from phi3lora.evaluation.likelihood import by_likelihood

    return by_likelihood(config, token=token)
