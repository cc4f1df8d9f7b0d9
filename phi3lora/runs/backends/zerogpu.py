"""Runs on a GPU that is lent by the call (ZeroGPU): slice after slice, while their page is open.

    for run in drive(run, settings, token): ...      # called by an event of the owner's browser
    chat = LentChat(settings)                        # each reply is a call

`spaces` forks the app for each decorated function, asks the scheduler for a device, and charges
the visitor whose page made the call: a thread without a browser's request behind it gets none. So
with the page closed, or the quota spent, a run is paused, and goes on with the next event. A slice
ends in a whole checkpoint before its time is over; the next continues from it to the bit.

Nothing here starts CUDA in the app's own process. Arguments and results, which are pickled, are
paths and numbers; a token reaches the fork through a named pipe, which lives in memory alone.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import spaces
from spaces.zero.config import get_config

from phi3lora.chat.answering import Answering, Room, Tell
from phi3lora.chat.options import Options, Pair
from phi3lora.chat.requests import Request
from phi3lora.chat.whole import Chat
from phi3lora.config import ModelConfig, RunConfig
from phi3lora.errors import AccessError, Phi3LoraError, RunError
from phi3lora.events import Ended, Event, EventLog, Notice, Step
from phi3lora.models.base import check_base, fetch, resolve_path
from phi3lora.models.hardware import Hardware, lend
from phi3lora.runs import life
from phi3lora.runs.store import Run, changed, open_run
from phi3lora.runs.worker import Reporter, end, explain
from phi3lora.settings import Settings

NAME = "zerogpu"
FIRST = 60.0  # seconds of the first slice, which finds out how long loading takes
LONGEST = 240.0
SAVING = 10.0  # seconds at a slice's end in which no step begins: for the checkpoint
LOADING_SHARE = 0.2  # of a slice, at most, goes into loading
ANSWER = 30.0  # seconds asked for beside those of the answer's tokens
SLOWEST = 20.0  # tokens a second
PROOF = 120.0  # seconds asked for to score base and tuned
LOST = 3  # slices in a row that may end without a step before the run is given up
LEFT = re.compile(r"(\d+)s left")
AGAIN = re.compile(r"Try again in ([^.]+)\.")


class QuotaError(AccessError):
    """The scheduler lends no device now; the message says why, and what to do."""


@dataclass(frozen=True)
class Slice:
    """What a slice came to.

    Attributes:
        outcome: `finished`, `stopped` or `paused`, as `train` returned it.
        step: updates made so far, in all slices.
        loading: seconds until the first step began.
        seconds: of the device, all in all.
    """

    outcome: str
    step: int
    loading: float
    seconds: float


def lent_hardware() -> Hardware:
    """The card that is lent, as `spaces` knows it: for checks and estimates."""
    card = get_config()
    return Hardware(
        device="cuda",
        name=f"{card['model']} (ZeroGPU)",
        memory_total=card["memory"],
        memory_free=card["memory"],
        bfloat16=card["sm_major"] >= 8,
        cores=len(os.sched_getaffinity(0)),
        capability=(card["sm_major"], card["sm_minor"]),
    )


class ZeroGpuBackend:
    """Nothing computes until the owner's page asks for a slice."""

    def start(
        self, folder: Path, settings: Settings, token: str | None, begin: Callable[[], None]
    ) -> None:
        """The run waits for its owner's page."""
        begin()
        changed(open_run(folder), status="paused", message=WAITS)

    def stop(self, folder: Path, seconds: float) -> None:
        """The slice sees the stop file, and the scheduler ends it in any case."""

    def alive(self, folder: Path) -> bool:
        """Whether a slice is asked for, or computes."""
        return life.is_held(folder)

    def offers(self, config: RunConfig) -> str:
        """A lent GPU."""
        return NAME


WAITS = "Computes while its page is open: open it to go on."


# In the fork


def _seconds(folder: str, pipe: str, seconds: float) -> int:
    """What `spaces` asks the scheduler for."""
    return int(seconds)


@spaces.GPU(duration=_seconds)
def train_slice(folder: str, pipe: str, seconds: float) -> dict[str, Any]:
    """Train for a while, from the last whole checkpoint on; a `Slice` as a mapping.

    Args:
        folder: of the run.
        pipe: named, from which the owner's token is read.
        seconds: after which the device is taken away.
    """
    from phi3lora.training.trainer import train

    began = time.monotonic()
    seen: dict[str, float] = {"step": 0}

    def note(event: Event) -> None:
        if isinstance(event, Step):
            seen.setdefault("first", time.monotonic())
        if isinstance(event, Step | Ended):
            seen["step"] = event.step

    with _reporting(folder, pipe, note) as (run, emit, token, cache):
        outcome = train(
            run.config,
            run.folder,
            emit,
            should_stop=run.stop_file.exists,
            deadline=began + seconds - SAVING,
            token=token,
            cache_folder=cache,
        )
    now = time.monotonic()
    return asdict(Slice(outcome, int(seen["step"]), seen.get("first", now) - began, now - began))


@spaces.GPU(duration=_seconds)
def prove_slice(folder: str, pipe: str, seconds: float) -> str:
    """Score base and tuned on the held-out rows; the report's summary."""
    from phi3lora.evaluation.report import evaluate

    with _reporting(folder, pipe) as (run, emit, token, cache):
        return evaluate(
            run.config, run.folder, emit=emit, cache_folder=cache, token=token
        ).summary()


def _answer_seconds(question: dict[str, Any]) -> int:
    """Loading, which a call soon after the last is spared, and the longest answer."""
    return int(ANSWER + question["options"]["max_new_tokens"] / SLOWEST)


@spaces.GPU(duration=_answer_seconds)
def answer(question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Both answers as they grow, each a `Pair` as a mapping.

    The fork outlives the call: what it loaded serves the next one, as long as it idles.
    """
    global _engine
    lend(None)
    _engine = _engine or Chat(Settings.from_environment())
    adapter, said = question["adapter"], question["conversations"]
    for pair in _engine.reply(
        said.get("base", []),
        said.get("tuned"),
        Options(**question["options"]),
        Path(question["stop"]).exists,
        base=ModelConfig(**question["base"]),
        adapter=Path(adapter) if adapter else None,
        sides=tuple(said),
    ):
        yield asdict(pair)


_engine: Chat | None = None  # of a fork


@contextmanager
def _reporting(
    folder: str, pipe: str, note: Callable[[Event], None] = lambda _: None
) -> Iterator[tuple[Run, Callable[[Event], None], str | None, Path]]:
    """The run, where its events go, its owner's token and cache; its log is written meanwhile."""
    lend(None)
    token = Path(pipe).read_text(encoding="utf-8") or None
    run, settings = open_run(Path(folder)), Settings.from_environment()
    handler = logging.FileHandler(run.folder / "log.txt", encoding="utf-8")
    logging.getLogger("phi3lora").addHandler(handler)
    try:
        with EventLog(run.folder / "events.jsonl") as log:
            report = Reporter(log, token)

            def emit(event: Event) -> None:
                note(event)
                report(event)

            yield run, emit, token, settings.cache_folder / run.owner
    finally:
        logging.getLogger("phi3lora").removeHandler(handler)
        handler.close()


# In the app


def drive(run: Run, settings: Settings, token: str | None) -> Iterator[Run]:
    """Compute a run slice after slice; the run as it stands after each, until it is over.

    Called by an event of its owner's browser. Ends, with the run paused, where no device is lent:
    the message says until when. Raises RunError where another page computes it already.
    """
    slices: list[Slice] = []
    lost, seconds = 0, FIRST
    while lost < LOST:
        with _held(run) as run:
            try:
                run, found = _slice(run, token, seconds)
            except Exception as error:  # noqa: BLE001 - written down as the run's state
                run = _refused(run, error, token)
                lost += _aborted(error)
                if not _aborted(error):
                    yield run
                    return
                found = None
        yield run
        if run.status != "paused":
            return
        if found is not None:
            slices, lost = [*slices, found], 0
        seconds = next_seconds(slices) if found else min(2 * seconds, LONGEST)
    yield end(run, "failed", "The GPU was taken away three times before a step was made.", 1)


def _slice(run: Run, token: str | None, seconds: float) -> tuple[Run, Slice | None]:
    """One call: of the training, or of the proof once that is over."""
    run = changed(run, status="running", started=run.state.started or time.time(), message="")
    if run.state.outcome == "finished":
        with sent(token) as pipe:
            summary = prove_slice(str(run.folder), pipe, PROOF)
        return end(run, "finished", summary, 0), None
    with sent(token) as pipe:
        found = Slice(**train_slice(str(run.folder), pipe, seconds))
    _tell(run, found)
    run = changed(run, outcome=found.outcome)
    if found.outcome == "finished" and run.config.evaluation.enabled:
        return changed(run, status="paused", message="Trained; its evaluation is next."), found
    if found.outcome == "paused":
        return changed(run, status="paused", message=WAITS), found
    return end(run, found.outcome, "", 0), found


def _tell(run: Run, found: Slice) -> None:
    """What a slice cost, among the run's events."""
    share = found.loading / max(found.seconds, 1e-9)
    with EventLog(run.folder / "events.jsonl") as log:
        log.emit(
            Notice(
                message=f"A slice of {found.seconds:.0f} s on a lent GPU ended at step "
                f"{found.step}; {found.loading:.0f} s of it ({share:.0%}) were loading.",
                level="info",
            )
        )


def _refused(run: Run, error: Exception, token: str | None) -> Run:
    """The run after a call that brought nothing: paused if it can go on, failed if it cannot."""
    words = in_words(error)
    if words is None:
        message, status = explain(error, token)
        return end(run, "failed", message, status)
    return changed(run, status="paused", message=str(words))


def _aborted(error: Exception) -> bool:
    """Whether the device was taken away in the middle of a call."""
    return str(getattr(error, "message", "")) == "GPU task aborted"


_locks: set[int] = set()  # open files of this process whose locks a fork must not keep


def _let_go() -> None:
    """In a fork: its copies of the locks would keep runs alive for as long as it idles."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _held(run: Run) -> Iterator[Run]:
    """The run as it is now, with its lock held."""
    lock = life.take(run.folder)
    if lock is None:
        raise RunError(f"Run {run.id} computes already, from another page.")
    _locks.add(lock)
    try:
        life.sign(lock, os.getpid())
        yield run.refresh()
    finally:
        _locks.discard(lock)
        os.close(lock)


class LentChat(Answering):
    """The chat on a lent GPU. The app fetches, and a fork computes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._fetched: dict[tuple[str, str | None], Path] = {}

    def fits(self, base: ModelConfig | str | None = None, token: str | None = None) -> Room:
        """A lent card has room for any Phi-3."""
        return Room(True, 0, 0)

    def release(self) -> None:
        """Nothing is held here."""

    def _load(self, request: Request, progress: Tell | None) -> list[str]:
        """Fetch the base's files, so that no lent second waits for them."""
        if progress is not None:
            progress("fetching the model")
        self._folder(request.base, request.token)
        return ["Each answer is computed on a lent GPU, and spends seconds of your daily quota."]

    def _answer(self, request: Request) -> Iterator[Pair]:
        """Raises QuotaError, when the answer is read, where no device is lent."""
        folder = str(self._folder(request.base, request.token))
        own = request.base.model_copy(update={"path": folder, "revision": None})
        with tempfile.TemporaryDirectory(prefix="phi3lora-") as place:
            stop = Path(place) / "stop"
            question = {
                "conversations": request.conversations,
                "options": asdict(request.options),
                "base": own.model_dump(),
                "adapter": str(request.adapter) if request.adapter else None,
                "stop": str(stop),
            }
            yield from _streamed(question, stop, request.should_stop)

    def _folder(self, base: ModelConfig, token: str | None) -> Path:
        """The base's files on this machine, fetched if need be."""
        key = (base.path, base.revision)
        if key not in self._fetched:
            path = resolve_path(base.path, lent_hardware())
            self._fetched[key] = fetch(check_base(path, base.revision, token), token)
        return self._fetched[key]


def _streamed(
    question: dict[str, Any], stop: Path, should_stop: Callable[[], bool]
) -> Iterator[Pair]:
    """Pairs from the fork; a reader that goes, or asks for it, ends the answer there."""
    try:
        for values in answer(question):
            if should_stop():
                stop.touch()
            yield Pair(**values)
    except GeneratorExit:
        stop.touch()
        raise
    except Exception as error:  # noqa: BLE001 - told in our words, or raised as it is
        raise in_words(error) or error from None


@contextmanager
def sent(token: str | None) -> Iterator[str]:
    """A named pipe that gives a token to whoever reads it first, and then is gone."""
    with tempfile.TemporaryDirectory(prefix="phi3lora-") as folder:
        pipe = Path(folder) / "token"
        os.mkfifo(pipe, 0o600)
        threading.Thread(target=_write, args=(pipe, token or ""), daemon=True).start()
        try:
            yield str(pipe)
        finally:
            _drain(pipe)


def _write(pipe: Path, token: str) -> None:
    """Blocks until the reader is there."""
    with pipe.open("w", encoding="utf-8") as file:
        file.write(token)


def _drain(pipe: Path) -> None:
    """Let a writer go that nobody read."""
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.close(descriptor)


def next_seconds(slices: list[Slice], longest: float = LONGEST) -> float:
    """How long the next slice should be, so that a fifth of it at most goes into loading."""
    if not slices:
        return min(FIRST, longest)
    loading = max(one.loading for one in slices)
    return min(max(FIRST, loading / LOADING_SHARE + SAVING), longest)


def in_words(error: Exception) -> Phi3LoraError | None:
    """An error of `spaces` as one of ours; None for any other.

    `spaces` raises Gradio's error with a title of its own; Gradio is not imported here.
    """
    title, message = str(getattr(error, "title", "")), str(getattr(error, "message", error))
    if not title.startswith("ZeroGPU"):
        return None
    again = AGAIN.search(message)
    if title == "ZeroGPU quota exceeded":
        until = f" It is full again in {again[1]}." if again else ""
        return QuotaError(
            f"Your GPU quota of today is spent.{until} Sign in, or subscribe to PRO, for more; the "
            "run stays where it is and goes on from there."
        )
    if title == "ZeroGPU illegal duration":
        return QuotaError("This account may not hold the GPU that long; a shorter slice is tried.")
    if title == "ZeroGPU queue timeout":
        return QuotaError("No GPU became free within a minute. Try again in a moment.")
    if message == "GPU task aborted":
        return RunError(
            "The GPU was taken away in the middle; the run goes on from its last checkpoint."
        )
    return RunError(f"ZeroGPU could not compute: {message}")


def seconds_left(error: Exception) -> float | None:
    """What is left of a quota, if the refusal says so."""
    found = LEFT.search(str(getattr(error, "message", error)))
    return float(found[1]) if found else None


lend(lent_hardware())
