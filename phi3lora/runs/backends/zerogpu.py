"""Runs on a GPU that is lent by the call (ZeroGPU): slice after slice, while their page is open.

    for run in drive(run, settings, token): ...      # called by an event of the owner's browser
    chat = LentChat(settings)                        # each reply is a call

`spaces` forks the app for each decorated function, asks the scheduler for a device, and charges
the visitor whose page made the call: a thread without a browser's request behind it gets none. So
with the page closed, or the quota spent, a run is paused, and goes on with the next event. A slice
ends in a whole checkpoint before its time is over; the next continues from it to the bit.

Nothing here starts CUDA in the app's own process. It imports what computes, though: a fork finds
that, and no seconds of anybody's quota go into importing it. Arguments and results, which are
pickled, are paths and numbers; a token reaches the fork through a named pipe, which lives in memory
alone.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import spaces
from spaces.zero.config import get_config

from phi3lora import words
from phi3lora.chat.answering import Answering, Room, Tell
from phi3lora.chat.options import Options, Pair
from phi3lora.chat.requests import Request
from phi3lora.chat.whole import Chat
from phi3lora.config import ModelConfig, RunConfig
from phi3lora.data.plan import holds_out
from phi3lora.errors import AccessError, Phi3LoraError, RunError
from phi3lora.evaluation.report import evaluate
from phi3lora.events import (
    DOWNLOADING,
    Ended,
    Event,
    EventLog,
    Notice,
    Resumed,
    Step,
    in_twentieths,
)
from phi3lora.models.base import check_base, fetch, resolve_path
from phi3lora.models.hardware import Hardware, lend
from phi3lora.runs import life
from phi3lora.runs.backends.quota import (
    LONGEST,
    QUOTA,
    SAVING,
    Slice,
    added,
    shorter,
    spent,
    wanted_seconds,
    with_slice,
)
from phi3lora.runs.copies import Copy, copied
from phi3lora.runs.preparing import get_ready
from phi3lora.runs.starting import with_start
from phi3lora.runs.store import Run, changed, open_run
from phi3lora.runs.worker import Reporter, end, explain
from phi3lora.settings import Settings
from phi3lora.training.checkpoints import newest_whole
from phi3lora.training.trainer import train

NAME = "zerogpu"
ANSWER = 30.0  # seconds asked for beside those of the answer's tokens
SLOWEST = 20.0  # tokens a second
LOST = 3  # slices in a row that may end without a step before the run is given up
SENDING = 120.0  # seconds that the next slice waits for a checkpoint to be on the Hub
AGAIN = re.compile(r"Try again in ([^.]+)\.")


WHOLE = {"NVIDIA H200": 132}  # multiprocessors of a card that is lent in parts


class QuotaError(AccessError):
    """The scheduler lends no device now; the message says why, and what to do."""


def lent_hardware() -> Hardware:
    """The card that is lent, as `spaces` knows it: for checks and estimates."""
    card = get_config()
    whole = WHOLE.get(card["model"], card["sm_count"])
    return Hardware(
        device="cuda",
        name=f"{card['model']} (ZeroGPU)",
        memory_total=card["memory"],
        memory_free=card["memory"],
        bfloat16=card["sm_major"] >= 8,
        cores=len(os.sched_getaffinity(0)),
        capability=(card["sm_major"], card["sm_minor"]),
        share=card["sm_count"] / whole,
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
PREPARES = "The base is fetched and the data prepared first; that costs no quota."


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
    began = time.monotonic()
    seen: dict[str, float] = {"step": 0, "total": 0, "resumed": 0}

    def note(event: Event) -> None:
        if isinstance(event, Resumed):
            seen["resumed"] = event.step
        if isinstance(event, Step):
            seen.setdefault("first", time.monotonic())
            seen["total"] = event.total_steps
        if isinstance(event, Step | Ended):
            seen["step"] = event.step

    with _reporting(folder, pipe, note) as (run, emit, token, cache):
        outcome = train(
            with_start(run, Settings.from_environment(), token),
            run.folder,
            emit,
            should_stop=run.stop_file.exists,
            deadline=began + seconds - SAVING,
            token=token,
            cache_folder=cache,
        )
    now = time.monotonic()
    return asdict(
        Slice(
            outcome=outcome,
            step=int(seen["step"]),
            steps=int(seen["step"] - seen["resumed"]),
            total=int(seen["total"]),
            loading=seen.get("first", now) - began,
            seconds=now - began,
        )
    )


@spaces.GPU(duration=_seconds)
def prove_slice(folder: str, pipe: str, seconds: float) -> tuple[str, float]:
    """Score base and tuned on the held-out rows; the report's summary, and the seconds it took."""
    began = time.monotonic()
    with _reporting(folder, pipe) as (run, emit, token, cache):
        report = evaluate(run.config, run.folder, emit=emit, cache_folder=cache, token=token)
    return report.summary(), time.monotonic() - began


def _answer_seconds(question: dict[str, Any]) -> int:
    """Loading, which a call soon after the last is spared, and the longest answer."""
    return int(ANSWER + question["options"]["max_new_tokens"] / SLOWEST)


def asks(options: Options) -> str:
    """What an answer costs, said before it is asked for."""
    seconds = _answer_seconds({"options": asdict(options)})
    return (
        f"Each answer is computed on a lent GPU: up to {seconds} s of your daily quota "
        f"({words.duration(QUOTA['free'])} with a free account); what it does not need is given "
        "back."
    )


@spaces.GPU(duration=_answer_seconds)
def answer(question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Both answers as they grow, each a `Pair` as a mapping.

    The fork outlives the call: what it loaded serves the next one, as long as it idles.
    """
    global _engine
    lend(None)
    _engine = _engine or Chat(Settings.from_environment())
    adapter, said = question["adapter"], question["conversations"]
    against, against_base = question["against"], question["against_base"]
    for pair in _engine.reply(
        said.get("base", []),
        said.get("tuned"),
        Options(**question["options"]),
        Path(question["stop"]).exists,
        base=ModelConfig(**question["base"]),
        adapter=Path(adapter) if adapter else None,
        sides=tuple(said),
        against=Path(against) if against else None,
        against_base=ModelConfig(**against_base) if against_base else None,
    ):
        yield asdict(pair)


_engine: Chat | None = None  # of a fork


@contextmanager
def _reporting(
    folder: str, pipe: str, note: Callable[[Event], None] = lambda _: None
) -> Iterator[tuple[Run, Callable[[Event], None], str | None, Path]]:
    """The run, where its events go, its owner's token and cache; its log is written meanwhile."""
    lend(None)
    token = received(pipe)
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

    Called by an event of its owner's browser. What needs no GPU is done first, on nobody's quota;
    between two slices the checkpoint is backed up, if the run asks for it. Ends, with the run
    paused, where no device is lent: the message says until when. Raises RunError where another
    page computes it already.
    """
    with _held(run) as run:
        run = _ready(run, settings, token)
    yield run
    if run.status == "paused":
        with copied(run, _teller(run), token, settings) as copy:
            copy.begin()
            yield from _slices(run, token, copy)


def _ready(run: Run, settings: Settings, token: str | None) -> Run:
    """The run with its base fetched and its rows prepared; ended where that cannot be done."""
    if run.state.outcome == "finished":  # its proof alone is left
        return changed(run, status="paused", message=WAITS)
    run = changed(run, status="running", message=PREPARES)
    try:
        ready = get_ready(run, settings, token)
    except Exception as error:  # noqa: BLE001 - written down as the run's state
        message, status = explain(error, token)
        return end(run, "failed", message, status)
    return changed(run, status="paused", message=WAITS) if ready else end(run, "stopped", "", 0)


def _slices(run: Run, token: str | None, copy: Copy) -> Iterator[Run]:
    """Slice after slice, until the run is over or no device is lent."""
    lost, asked = 0, None
    while lost < LOST:
        with _held(run) as run:
            seconds = asked or wanted_seconds(run)
            try:
                run, asked, lost, goes_on = _slice(run, token, seconds, copy), None, 0, True
            except Exception as error:  # noqa: BLE001 - written down as the run's state
                if (
                    asked := shorter(error, seconds, run, get_config()["duration_factor"])
                ) is not None:
                    continue
                goes_on = _aborted(error)
                lost, asked = lost + goes_on, min(2 * seconds, LONGEST)
                run = _refused(run, error, token)
        yield run
        if run.status != "paused" or not goes_on:
            return
    yield end(run, "failed", "The GPU was taken away three times before a step was made.", 1)


def _slice(run: Run, token: str | None, seconds: float, copy: Copy) -> Run:
    """The run after one call: of the training, or of the proof once that is over."""
    run = changed(run, status="running", started=run.state.started or time.time(), message="")
    with sent(token) as pipe:
        if run.state.outcome == "finished":
            summary, took = prove_slice(str(run.folder), pipe, seconds)
            return _over(changed(run, lent=added(run.state.lent, took)), "finished", summary)
        found = Slice(**train_slice(str(run.folder), pipe, seconds))
    run = changed(run, outcome=found.outcome, lent=with_slice(run.state.lent, found))
    _tell(run, found)
    if checkpoint := newest_whole(run.folder / "checkpoints", lambda _: None):
        copy.send(str(checkpoint.relative_to(run.folder)), SENDING)
    proves = run.config.evaluation.enabled and holds_out(run.config.data)
    if found.outcome == "finished" and proves:
        return changed(run, status="paused", message="Trained; its evaluation is next.")
    if found.outcome == "paused":
        return changed(run, status="paused", message=WAITS)
    return _over(run, found.outcome, "")


def _over(run: Run, status: str, message: str) -> Run:
    """The run at its end, which says what it cost."""
    return end(run, status, f"{message} {spent(run.state.lent)}".strip(), 0)


def _tell(run: Run, found: Slice) -> None:
    """What a slice cost, and all so far, among the run's events."""
    share = found.loading / max(found.seconds, 1e-9)
    _teller(run)(
        Notice(
            message=f"A slice of {found.seconds:.0f} s on a lent GPU ended at step "
            f"{found.step}; {found.loading:.0f} s of it ({share:.0%}) were loading. "
            f"{spent(run.state.lent)}",
            level="info",
        )
    )


def _teller(run: Run) -> Callable[[Event], None]:
    """Writes an event into the run's log of events."""

    def emit(event: Event) -> None:
        with EventLog(run.folder / "events.jsonl") as log:
            log.emit(event)

    return emit


def _refused(run: Run, error: Exception, token: str | None) -> Run:
    """The run after a call that brought nothing: paused if it can go on, failed if it cannot."""
    said = in_words(error)
    if said is not None:
        return changed(run, status="paused", message=str(said))
    message, status = explain(error, token)
    if run.state.outcome == "finished":  # the proof alone failed
        return _over(run, "finished", f"The adapter is finished, its evaluation is not: {message}")
    return end(run, "failed", message, status)


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
        for base in filter(None, (request.base, request.against_base)):
            self._folder(base, request.token, progress)
        return [asks(Options())]

    def _answer(self, request: Request) -> Iterator[Pair]:
        """Raises QuotaError, when the answer is read, where no device is lent."""
        other = request.against_base
        with tempfile.TemporaryDirectory(prefix="phi3lora-") as place:
            stop = Path(place) / "stop"
            question = {
                "conversations": request.conversations,
                "options": asdict(request.options),
                "base": self._fetched_as(request.base, request.token),
                "adapter": str(request.adapter) if request.adapter else None,
                "against": str(request.against) if request.against else None,
                "against_base": self._fetched_as(other, request.token) if other else None,
                "stop": str(stop),
            }
            yield from _streamed(question, stop, request.should_stop)

    def _fetched_as(self, base: ModelConfig, token: str | None) -> dict[str, Any]:
        """A base as a fork loads it, from its files here."""
        folder = str(self._folder(base, token))
        return base.model_copy(update={"path": folder, "revision": None}).model_dump()

    def _folder(self, base: ModelConfig, token: str | None, progress: Tell | None = None) -> Path:
        """The base's files on this machine, fetched if need be."""

        def told(share: float) -> None:
            if progress is not None:
                progress(f"{DOWNLOADING}: {share:.0%}")

        key = (base.path, base.revision)
        if key not in self._fetched:
            path = resolve_path(base.path, lent_hardware())
            found = check_base(path, base.revision, token)
            self._fetched[key] = fetch(found, token, tell=in_twentieths(told))
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
    """A named pipe that gives a token to whoever reads its line first, and then is gone.

    Opened for both ways, it waits for no reader (Linux's pipes only), and what nobody read goes
    with it.
    """
    with tempfile.TemporaryDirectory(prefix="phi3lora-") as folder:
        pipe = Path(folder) / "token"
        os.mkfifo(pipe, 0o600)
        with os.fdopen(os.open(pipe, os.O_RDWR), "wb", buffering=0) as file:
            file.write(f"{token or ''}\n".encode())
            yield str(pipe)


def received(pipe: str) -> str | None:
    """The token that `sent` put there; None where it was none."""
    with Path(pipe).open(encoding="utf-8") as file:
        return file.readline().strip() or None


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
        return QuotaError(
            "This account may not hold the GPU that long at a time. Ask for a shorter answer, or "
            "sign in with an account that may."
        )
    if title == "ZeroGPU queue timeout":
        return QuotaError("No GPU became free within a minute. Try again in a moment.")
    if message == "GPU task aborted":
        return RunError(
            "The GPU was taken away in the middle; the run goes on from its last checkpoint."
        )
    return RunError(f"ZeroGPU could not compute: {message}")


lend(lent_hardware())
