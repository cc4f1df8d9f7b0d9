"""What a run tells the world: small typed events, one JSON object a line.

    with EventLog(folder / "events.jsonl") as log:
        log.emit(Step(step=1, total_steps=80, loss=2.1))

    events, offset = read_events(folder / "events.jsonl", offset=0)

The file is only ever appended to, by one process. A line that a crash cut short is skipped by
readers, and finished with a newline by the next writer.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; `time` is in seconds since 1970."""

    kind: ClassVar[str] = "event"
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Stage(Event):
    """The run went on to something else: `loading the model`, `preparing the data`, …"""

    kind: ClassVar[str] = "stage"
    name: str
    fraction: float | None = None  # done, 0 to 1, where it is known


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something to know: a fallback, a translated name, dropped rows."""

    kind: ClassVar[str] = "notice"
    message: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, kw_only=True)
class Prepared(Event):
    """What will be trained, counted."""

    kind: ClassVar[str] = "prepared"
    train_rows: int
    test_rows: int
    dropped: dict[str, int]  # reason → rows
    train_tokens: int
    supervised_tokens: int
    truncated: int  # rows cut at max_length
    leaked: int  # held-out prompts that are also trained on


@dataclass(frozen=True, kw_only=True)
class Loaded(Event):
    """The model is ready: where, in which precision, and how much of it is trained."""

    kind: ClassVar[str] = "loaded"
    device: str
    dtype: str
    attention: str
    quantization: str
    trainable_parameters: int
    total_parameters: int
    hardware: str = ""  # the device's own name, such as `NVIDIA A10G`
    base_commit: str = ""  # of a base from the Hub


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """Progress of the training, at each logged step."""

    kind: ClassVar[str] = "step"
    step: int
    total_steps: int
    epoch: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    token_accuracy: float | None = None
    reward_margin: float | None = None  # better less worse answers, where these are compared
    reward_accuracy: float | None = None  # pairs whose better answer has the higher reward
    reward: float | None = None  # mean of what the model's own answers earned
    tokens: int = 0  # trained so far
    tokens_per_second: float | None = None  # mean of the training so far
    speed: float | None = None  # tokens a second since the step that was told before
    memory: int | None = None  # bytes held now
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The held-out rows were scored in the middle of training."""

    kind: ClassVar[str] = "evaluated"
    step: int
    loss: float
    token_accuracy: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    reward: float | None = None


@dataclass(frozen=True)
class SampleAnswer:
    """A held-out prompt, what the data answers, and what the model does by now."""

    prompt: str
    expected: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """What the model answers to a few held-out prompts, once it was evaluated."""

    kind: ClassVar[str] = "answered"
    step: int
    rows: list[SampleAnswer]


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint is whole on disk."""

    kind: ClassVar[str] = "saved"
    step: int
    path: str  # relative to the run folder


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """The run goes on from a checkpoint; what came after it is done again."""

    kind: ClassVar[str] = "resumed"
    step: int


@dataclass(frozen=True, kw_only=True)
class Ended(Event):
    """The run, or this slice of it, is over."""

    kind: ClassVar[str] = "ended"
    outcome: Literal["finished", "stopped", "failed", "paused"]
    step: int = 0
    message: str = ""
    seconds: float = 0.0
    peak_memory: int = 0  # bytes


Emit = Callable[[Event], None]
PREPARING = "preparing the data"  # the name of a stage
DOWNLOADING = "downloading the base"
KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (Stage, Notice, Prepared, Loaded, Step, Evaluated, Answered, Saved, Resumed, Ended)
}


def by_share(emit: Emit, stage: str) -> Callable[[float], None]:
    """Progress of a stage as events, one for each twentieth at most."""
    return in_twentieths(lambda fraction: emit(Stage(name=stage, fraction=fraction)))


def in_twentieths(tell: Callable[[float], None]) -> Callable[[float], None]:
    """Tell of the first share that is heard, however little, and then of each twentieth more."""
    told = -1.0

    def hear(fraction: float) -> None:
        nonlocal told
        if fraction >= min(told + 0.05, 1.0) > told:
            told = fraction
            tell(fraction)

    return hear


class EventLog:
    """Appends events to a file; the only writer of it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if self._file.tell() and not _ends_with_newline(path):
            self._file.write(b"\n")

    def emit(self, event: Event) -> None:
        """Write one event, whole, and hand it to the system at once."""
        line = json.dumps({"kind": event.kind, **_finite(asdict(event))}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if isinstance(event, Saved | Ended):  # what a resume relies on outlives a crash
            os.fsync(self._file.fileno())

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Events from a byte offset on, and the offset to ask from next time.

    A missing file holds no events. Only whole lines are read; a broken line, a value of a wrong
    type, or a kind that this version does not know, is skipped.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data.rfind(b"\n") + 1
    events = [event for line in data[:whole].splitlines() if (event := _parse(line))]
    return events, offset + whole


def _parse(line: bytes) -> Event | None:
    try:
        values: dict[str, Any] = json.loads(line)
        event: Event = _reader(values.pop("kind")).validate_python(values)
        return event
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # pydantic's ValidationError is a ValueError


@cache
def _reader(kind: str) -> TypeAdapter[Any]:
    """What makes events of a kind, and checks the type of every value."""
    return TypeAdapter(KINDS[kind])


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: both become null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
