"""Runs on disk: one folder each, and the folder is the truth.

    store = RunStore(settings)
    run = store.create(config, owner="local")
    run = store.get(run.id, owner="local")
    run.status, run.events(), run.log_tail(20)

A run folder holds `config.yaml`, `state.json`, `events.jsonl`, `log.txt`, `checkpoints/`,
`adapter/` and `report.json`. Each file has one writer. `state.json` belongs to whoever holds the
lock in the folder (see `life`): while a run lives that is its worker. A state that says `running`
while nobody holds the lock was interrupted. `identity.json` says whose run it is, and is never
written again: where the state is damaged, the run is still shown to its owner, as damaged.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from phi3lora.config import POCKET, RunConfig, SourceConfig
from phi3lora.errors import ConfigError, Problem, RunError, StoredConfigError
from phi3lora.events import Event, read_events
from phi3lora.files import write_whole
from phi3lora.hub.jobs import JobRequest
from phi3lora.lora.result import Result, find_result
from phi3lora.lora.starting import START
from phi3lora.redaction import redact
from phi3lora.runs import life
from phi3lora.runs.backends import BackendName, backend_for, backend_of
from phi3lora.settings import Settings

LOCAL = "local"  # the owner of runs on one's own machine
UNKNOWN = "?"  # of a damaged run that does not say whose it is; nobody is called so
Stored = Literal["queued", "running", "finished", "stopped", "paused", "failed"]
Status = Literal[Stored, "stopping", "interrupted", "damaged"]
ACTIVE = frozenset({"queued", "running", "stopping"})
RESUMABLE = frozenset({"stopped", "paused", "failed", "interrupted", "damaged"})
Moment = Annotated[float, Field(ge=0, le=4e9, allow_inf_nan=False)]  # until the year 2096

ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
FILES = (
    "config.yaml",
    "state.json",
    "identity.json",
    "inputs.json",
    "run.json",
    "events.jsonl",
    "log.txt",
    "report.json",
    "stop",
    "worker.lock",
    ".ending-stop.lock",
    ".ending-hours.lock",
    ".reserve",
)
SECTIONS = ("adapter", "model", "data", "peft_config", "training_config", "evaluation", "hub")
FOLDERS = (
    START,
    "checkpoints",
    "adapter",
    "adapter.unfinished",
    "model",
    "model.unfinished",
    "tensorboard",
    "wandb",
    "trackio",
    ".backup",
    ".outcome",
)
LEFT = (
    "Nobody follows its Job here any more, which may have gone on. Resume it to follow the Job, or "
    "to fetch what it came to; no second one is started meanwhile."
)
LONGEST_TITLE = 100
GONE = (
    "Its process is gone: killed, out of memory, or the machine was restarted. "
    "Resume it to go on from the last checkpoint."
)
DAMAGED = (
    "Its state.json is missing or damaged. Its data, checkpoints and result are as they were: "
    "resume it to go on with them, or delete it."
)


class JobRef(BaseModel):
    """A Job whose outcome has not been fetched yet."""

    id: str
    key: str  # tells the Jobs of one run apart: what they leave in its repository names it
    owner: str  # the account that pays
    repo: str
    url: str = ""
    flavor: str = ""
    seconds: int = 0  # after which the Hub ends it
    dollars_per_second: float = 0.0


class Lent(BaseModel):
    """What a run had of lent GPUs so far: whole slices, in seconds of the visitor's quota."""

    slices: int = 0
    seconds: float = 0.0
    loading: float = 0.0  # of these, until a step began
    longest_loading: float = 0.0
    per_step: float = 0.0  # seconds, in the last slice that made steps
    steps_left: int | None = None

    @property
    def lost(self) -> float:
        """The share of it that went into loading."""
        return self.loading / self.seconds if self.seconds else 0.0


class RunState(BaseModel):
    """What `state.json` says. Times are in seconds since 1970."""

    id: str
    owner: str = LOCAL
    title: str = ""
    status: Stored = "stopped"
    message: str = ""
    outcome: str | None = None  # how the training ended, as `train` returned it
    exit_status: int | None = None  # 0 done, 1 could not go on or a fault of ours, 2 the user's
    device: str = "cpu"  # in whose queue it waits: `cpu` or `cuda`
    cards: list[str] = []  # names of the GPUs that it had when it computed last
    backend: BackendName = "local"  # where it computes
    flavor: str | None = None  # the machine that its Jobs run on
    at_most: float | None = None  # dollars that each of its Jobs may cost
    job: JobRef | None = None
    lent: Lent = Lent()
    created: Moment = 0.0
    queued: Moment | None = None
    started: Moment | None = None
    ended: Moment | None = None
    changes: list[str] = []  # of its inputs since its first start, which it stopped for
    accept_changes: bool = False  # whether it goes on with them


@dataclass(frozen=True)
class Run:
    """One training as it was on disk a moment ago; `refresh` reads it again."""

    folder: Path
    state: RunState
    damaged: bool = False  # whether the state is made up, since the one on disk cannot be read

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def owner(self) -> str:
        return self.state.owner

    @property
    def title(self) -> str:
        return self.state.title

    @property
    def status(self) -> Status:
        """The stored status, unless its worker is gone or was asked to stop."""
        if self.damaged:
            return "running" if self.alive else "damaged"
        stored = self.state.status
        if stored in ("queued", "running") and not self.alive:
            # A worker writes its last state before it lets go: what is read now is its last word.
            now = read_state(self.folder)
            stored = now.status if now else stored
            return "interrupted" if stored in ("queued", "running") else stored
        if stored in ("queued", "running") and self.stop_file.exists():
            return "stopping"
        return stored

    @property
    def alive(self) -> bool:
        """Whether a worker computes it, or waits to."""
        return backend_of(self.state.backend).alive(self.folder)

    @property
    def message(self) -> str:
        """Why it ended, or what it waits for; empty while all is well."""
        gone = LEFT if self.state.job else GONE
        said: dict[str, str] = {"interrupted": gone, "damaged": DAMAGED}
        return said.get(self.status, self.state.message)

    @property
    def stop_file(self) -> Path:
        """Its presence asks the worker to save and stop."""
        return self.folder / "stop"

    @property
    def result(self) -> Result:
        """What it leaves: an adapter, a loralib checkpoint, or a whole model.

        Raises ConfigError where its config cannot be read.
        """
        return find_result(self.folder, self.config)

    @property
    def report(self) -> dict[str, Any]:
        """Its proof, as plain values; empty where nothing was proved yet."""
        from phi3lora.hub.facts import read_report

        return read_report(self.folder)

    @property
    def has_result(self) -> bool:
        """Whether something whole is there to chat with, publish or download."""
        try:
            return self.result.whole
        except ConfigError:
            return False

    @cached_property
    def config(self) -> RunConfig:
        """What it trains. Raises StoredConfigError: it is missing, damaged or too old."""
        file = self.folder / "config.yaml"
        try:
            config = RunConfig.from_yaml(file)[0]
        except ConfigError as error:
            raise StoredConfigError(error.problems) from None
        lines = file.read_text(encoding="utf-8").splitlines()
        begun = {line.partition(":")[0] for line in lines}
        if missing := [name for name in SECTIONS if name not in begun]:
            raise StoredConfigError(
                [
                    Problem(
                        "",
                        f"{file} is damaged: it lacks {', '.join(missing)}. Copy it from a backup "
                        "of the run, or start a new one.",
                    )
                ]
            )
        return config

    def refresh(self) -> Run:
        """The run as it is on disk now. Raises RunError if it was deleted."""
        return open_run(self.folder)

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """Events from a byte offset on, and the offset to ask from next time."""
        return read_events(self.folder / "events.jsonl", offset)

    def events_end(self) -> int:
        """The offset after the last event written so far."""
        try:
            return (self.folder / "events.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    def follow(self, offset: int = 0, poll: float = 0.25) -> Iterator[Event]:
        """Events as they come, until the run is no longer active."""
        while True:
            active = self.refresh().status in ACTIVE
            events, offset = self.events(offset)
            yield from events
            if not active:
                return
            if not events:
                time.sleep(poll)

    def log_tail(self, lines: int = 50) -> str:
        """The last lines of the log, without reading all of it."""
        return _tail(self.folder / "log.txt", lines)


class RunStore:
    """All runs of an installation."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._folder = str(settings.runs_folder)
        self._seen: dict[str, tuple[tuple[int, int], Run]] = {}

    def create(
        self,
        config: RunConfig,
        owner: str = LOCAL,
        title: str = "",
        folder: Path | None = None,
        job: JobRequest | None = None,
    ) -> Run:
        """A new run, not started yet; in `folder` if one is named, which must be empty or new.

        Args:
            job: where it is to compute on a machine of the Hub.

        Raises RunError where it cannot be written.
        """
        try:
            return self._create(with_whole_paths(config), owner, title, folder, job)
        except OSError as error:
            raise RunError(
                f"The run's folder cannot be written: {error}. Make room there, or name another "
                "place in PHI3LORA_HOME."
            ) from None

    def _create(
        self,
        config: RunConfig,
        owner: str,
        title: str,
        folder: Path | None,
        job: JobRequest | None,
    ) -> Run:
        # A token that somebody typed as a title is written nowhere.
        title, config = redact(title), config.model_copy(update={"title": redact(config.title)})
        created = time.time()
        run_id = _new_id(created)
        title = title or config.title or Path(config.data.path).name
        state = RunState(
            id=run_id,
            owner=owner,
            title=title,
            created=created,
            message="Not started yet.",
            backend="jobs" if job else backend_for(config, self.settings),
            flavor=job.flavor if job else None,
            at_most=job.at_most if job else None,
        )
        home = self.settings.runs_folder / run_id
        home.parent.mkdir(parents=True, exist_ok=True)
        if folder is not None:
            _make_empty(folder)
            fill(folder, config, state)
            home.symlink_to(folder.resolve(), target_is_directory=True)
            return Run(home, state)
        beside = Path(tempfile.mkdtemp(prefix=".new-", dir=home.parent))  # closed to others: 700
        try:
            fill(beside, config, state)
            beside.rename(home)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        return Run(home, state)

    def all(self) -> list[Run]:
        """Everybody's runs, newest first: for the queue, never for a page."""
        try:
            names = os.listdir(self.settings.runs_folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(
                f"The runs in {self.settings.runs_folder} cannot be listed: {error.strerror}. Give "
                "this user the right to read it, or name another place in PHI3LORA_HOME."
            ) from None
        found = {name: run for name in names if (run := self._open(name))}
        seen = self._seen  # other threads read, too: read and replaced, never walked through
        self._seen = {name: kept for name in found if (kept := seen.get(name))}
        return sorted(found.values(), key=lambda run: (run.state.created, run.id), reverse=True)

    def list(self, owner: str) -> list[Run]:
        """The owner's runs, newest first; damaged ones among them, as damaged."""
        return [run for run in self.all() if run.owner == owner]

    def get(self, run_id: str, owner: str) -> Run:
        """The owner's run of that id. Somebody else's does not exist for them: RunError."""
        run = self._open(run_id) if ID.fullmatch(run_id) else None
        if run is None or run.owner != owner:
            raise RunError(
                f"There is no run {run_id!r}; `phi3lora runs list` names those there are."
            )
        return run

    def delete(self, run: Run) -> None:
        """Remove a run and all its files. RunError while it computes or waits."""
        if run.refresh().status in ACTIVE:
            raise RunError(f"Run {run.id} is not over; stop it first, then delete it.")
        try:
            self._delete(run)
        except OSError as error:
            raise RunError(f"Run {run.id} cannot be deleted: {error}.") from None

    def _delete(self, run: Run) -> None:
        home, folder = self.settings.runs_folder / run.id, run.folder.resolve()
        if home.is_symlink() or home.resolve() != folder:
            linked = home.is_symlink() and home.resolve() == folder
            _remove_contents(folder)
            if linked:
                home.unlink()
            return
        doomed = home.with_name(f".{home.name}")  # out of the list at once, whatever comes
        home.rename(doomed)
        shutil.rmtree(doomed)

    def rename(self, run: Run, title: str) -> Run:
        """Give a run another title. RunError for none, and while a worker holds the run."""
        title = redact(" ".join(title.split()))[:LONGEST_TITLE]
        if not title:
            raise RunError("A run needs a title; type one.")
        held = life.take(run.folder)
        if held is None or run.damaged:
            raise RunError(f"Run {run.id} is not over; it can be renamed once it is.")
        try:
            return changed(run.refresh(), title=title)
        except OSError as error:
            raise RunError(f"Run {run.id} cannot be renamed: {error}.") from None
        finally:
            os.close(held)

    def rebatch(self, run: Run, rows: int) -> Run:
        """Have a run compute so many rows at once when it goes on; its updates stay as they are.

        Raises ConfigError where an update cannot be divided so, RunError while a worker holds the
        run or a Job of it has not been heard to its end.
        """
        config = run.config.with_batch(rows)
        held = life.take(run.folder)
        if held is None:
            raise RunError(f"Run {run.id} is not over; stop it first.")
        try:
            now = run.refresh()
            if now.state.job:
                raise RunError(
                    f"Run {run.id} has a Job that may still compute; resume it as it is first, to "
                    "learn what that came to."
                )
            write_whole(run.folder / "config.yaml", config.to_yaml())
            if not now.damaged:  # who looked before looks again where the state was replaced
                write_state(run.folder, now.state)
            return run.refresh()
        except OSError as error:
            raise RunError(f"Run {run.id} cannot be changed: {error}.") from None
        finally:
            os.close(held)

    def _open(self, name: str) -> Run | None:
        """The run in the folder of that name, read again only if its state was replaced."""
        if not ID.fullmatch(name):
            return None
        folder = self.settings.runs_folder / name
        try:
            stat = os.stat(f"{self._folder}/{name}/state.json")  # often asked: a Path costs thrice
        except OSError:
            return damaged_run(folder, self.settings.on_space)
        stamp = (stat.st_ino, stat.st_mtime_ns)
        if (seen := self._seen.get(name)) and seen[0] == stamp:
            return seen[1]
        state = read_state(folder)
        if state is None or state.id != name:
            return damaged_run(folder, self.settings.on_space)
        run = Run(folder, state)
        self._seen[name] = (stamp, run)
        return run


def open_run(folder: Path) -> Run:
    """The run in a folder. Raises RunError if there is none."""
    state = read_state(folder)
    run = Run(folder, state) if state else damaged_run(folder)
    if run is None:
        raise RunError(f"{folder} holds no run: its state.json is missing or not readable.")
    return run


def damaged_run(folder: Path, on_space: bool = True) -> Run | None:
    """A run whose state cannot be read, as far as its other files tell; None where there is none.

    Args:
        on_space: whether a run that does not say whose it is may be somebody else's.
    """
    if not any((folder / name).exists() for name in ("identity.json", "config.yaml")):
        return None
    state = RunState(id=folder.resolve().name, owner=UNKNOWN if on_space else LOCAL)
    try:
        known = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
        state = RunState.model_validate(known)
    except (OSError, ValueError):
        pass  # written by an older version, or damaged as well
    return Run(folder, state, damaged=True)


def fill(folder: Path, config: RunConfig, state: RunState) -> None:
    """Write the first files of a run into a folder that is empty, or has come from elsewhere."""
    write_whole(folder / "config.yaml", config.to_yaml())
    identity = state.model_dump_json(include={"id", "owner", "title", "created"})
    write_whole(folder / "identity.json", identity)
    write_state(folder, state)


def read_state(folder: Path) -> RunState | None:
    """What state.json says; None where it is missing or broken."""
    try:
        return RunState.model_validate_json((folder / "state.json").read_bytes())
    except (OSError, ValidationError):
        return None


def write_state(folder: Path, state: RunState) -> None:
    """Replace state.json whole: whoever reads meanwhile sees the old one or the new one."""
    write_whole(folder / "state.json", state.model_dump_json(indent=1))


def changed(run: Run, **changes: object) -> Run:
    """Write a state with these changes, and return the run that has it.

    A config that was read stays as it was read: what was checked is what is computed.
    """
    state = run.state.model_copy(update=changes)
    write_state(run.folder, state)
    found = replace(run, state=state, damaged=False)
    if "config" in vars(run):
        vars(found)["config"] = run.config
    return found


def _with_whole_path(source: SourceConfig) -> dict[str, Any]:
    rows = Path(source.path).expanduser()
    return {**source.model_dump(), **({"path": str(rows.resolve())} if rows.exists() else {})}


def with_whole_paths(config: RunConfig) -> RunConfig:
    """A copy whose files and folders are named from the root: a run is resumed from anywhere."""
    changes: dict[str, Any] = {}
    if (rows := Path(config.data.path).expanduser()).exists():
        changes["data.path"] = str(rows.resolve())
    if config.data.more:
        changes["data.more"] = [_with_whole_path(source) for source in config.data.more]
    if config.model.path not in ("auto", POCKET) and Path(config.model.path).expanduser().is_dir():
        changes["model.path"] = str(Path(config.model.path).expanduser().resolve())
    if config.model.adapter and Path(config.model.adapter).expanduser().exists():
        changes["model.adapter"] = str(Path(config.model.adapter).expanduser().resolve())
    file, _, name = (config.grpo_config.function or "").rpartition(":")
    if file and Path(file).expanduser().is_file():
        changes["grpo_config.function"] = f"{Path(file).expanduser().resolve()}:{name}"
    return config.with_values(changes) if changes else config


def _new_id(created: float) -> str:
    """Readable, sortable by time, and not to be guessed: `20261121-093000-4f1a2b`."""
    moment = datetime.fromtimestamp(created, timezone.utc)
    return f"{moment:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _make_empty(folder: Path) -> None:
    """Make a folder, or take one that holds nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise RunError(f"{folder} cannot be a run folder: {error.strerror}.") from None
    if occupied:
        raise RunError(f"{folder} holds other files; name a folder that is new or empty.")


def _remove_contents(folder: Path) -> None:
    """Remove a run from a folder that somebody named, and nothing that is theirs."""
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in (*(folder / name for name in FILES), *folder.glob(".*.part")):
        file.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _tail(path: Path, lines: int, block: int = 8192, most: int = 1 << 20) -> str:
    """The last lines of a file, read backwards block by block, a mebibyte at most."""
    try:
        with path.open("rb") as file:
            position, data = file.seek(0, os.SEEK_END), b""
            while position and data.count(b"\n") <= lines and len(data) < most:
                start = max(0, position - block)
                file.seek(start)
                data, position = file.read(position - start) + data, start
    except FileNotFoundError:
        return ""
    tail = data.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []
    return "\n".join(tail)
