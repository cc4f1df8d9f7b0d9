"""The process of one run: wait for a turn, train, prove, and write down how it ended.

    python -m phi3lora.runs.worker FOLDER [LOCK]

LOCK is the open file of the run's lock, which whoever starts a worker hands over; a worker that
was given none takes it. It outlives the app that started it. While it waits it is light: nothing
heavy is imported before its turn. A file `stop` in the folder, or SIGTERM, asks it to save and
stop. Tokens come by a pipe; nothing it writes contains one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from phi3lora.data.plan import holds_out
from phi3lora.errors import ChangedInputsError, Phi3LoraError, RunError
from phi3lora.events import Emit, Ended, Event, EventLog, Notice, Stage
from phi3lora.importing import heavy_imports
from phi3lora.isolation import end_with_parent, hide_process, receive_token
from phi3lora.runs import life
from phi3lora.runs.afterwards import tell_end
from phi3lora.runs.backends.local import devices, watch
from phi3lora.runs.copies import Copy, copied
from phi3lora.runs.group import dismiss, group_of, needed, share_job
from phi3lora.runs.permission import check_paths
from phi3lora.runs.queue import waiting_runs
from phi3lora.runs.redaction import RedactedStream, redact, redact_event
from phi3lora.runs.renewal import renewable
from phi3lora.runs.store import Run, RunStore, changed, open_run
from phi3lora.settings import Settings
from phi3lora.training.launcher import launched
from phi3lora.versions import without_advice
from phi3lora.wording import describe

logger = logging.getLogger("phi3lora.runs.worker")

POLL_SECONDS = 0.5
NICENESS = 5
OOM_SCORE = 800  # of 1000: where memory runs out, a run goes before the app
RESERVE_BYTES = 256 * 1024  # given up when the disk is full, to write down why the run ended
ShouldStop = Callable[[], bool]


def main() -> int:
    """Work on the run whose folder is the first argument. Returns the exit status."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if launched():
        end_with_parent()  # who is one of several launched processes, so that all end together
    _step_back()
    settings = Settings.from_environment()
    if settings.on_space:
        hide_process()
    token = receive_token()
    sys.stdout = cast(TextIO, RedactedStream(sys.stdout, token))
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr, token))
    folder = Path(sys.argv[1])
    hold(folder, int(sys.argv[2]) if len(sys.argv) > 2 else None)
    status = work(open_run(folder), settings, stopped.is_set, token)
    if not settings.on_space:  # there the app does, which knows where to
        tell_end(open_run(folder), settings)
    return status


def hold(folder: Path, lock: int | None) -> None:
    """Hold the run's lock until this process ends. Raises RunError where another worker has it."""
    lock = life.take(folder) if lock is None else lock
    if lock is None:
        raise RunError(f"Another worker, process {life.holder(folder)}, has {folder}.")
    os.set_inheritable(lock, False)  # it is not for programs that the training starts
    life.sign(lock, os.getpid())


class Reporter:
    """Emits events without secrets, to the event log and, in words, to the log."""

    def __init__(self, log: EventLog, token: str | None) -> None:
        self._log = log
        self._token = token
        self.ended = False  # whether the training has said how it ended

    def __call__(self, event: Event) -> None:
        event = redact_event(event, self._token)
        self.ended = isinstance(event, Ended) or (self.ended and isinstance(event, Notice))
        self._log.emit(event)
        logger.info(describe(event))


def work(
    run: Run,
    settings: Settings,
    should_stop: ShouldStop,
    token: str | None = None,
    every: float | None = None,
) -> int:
    """Do one run from its place in the queue to its end. Returns the exit status.

    Whatever happens, the state says how it ended.

    Args:
        every: seconds after which events go to the Hub without a checkpoint; None for never.
    """

    def stop() -> bool:
        return should_stop() or run.stop_file.exists()

    with EventLog(run.folder / "events.jsonl") as log:
        emit = Reporter(log, token)
        # The copy on the Hub is finished after the turn, so that the next run need not wait, and
        # after the end was written down, so that nobody waits to hear of it.
        with (
            copied(run, emit, token, settings, every) as copy,
            renewable(run.folder, copy.sign_in),
        ):
            try:
                return _work(run, settings, copy, stop, token)
            except Exception as error:  # noqa: BLE001 - a run never ends without a word
                return _failed(run, error, emit, token)
            finally:
                with suppress(OSError):
                    _reserve(run).unlink(missing_ok=True)


def _work(run: Run, settings: Settings, copy: Copy, stop: ShouldStop, token: str | None) -> int:
    """The way of a run that meets no error; returns the exit status."""
    begin_log(run.config.training_config.log_level)
    check_paths(run.config, run.owner, settings, run.folder)
    with turn(run, RunStore(settings), copy, stop) as held:
        if held is None:
            return _cancelled(run, copy)
        if held != ["cpu"] or run.config.model.device == "cpu":
            take(held)  # else a GPU that cannot be counted from outside stays in sight
        _reserve(run).write_bytes(bytes(RESERVE_BYTES))
        run = changed(run, status="running", started=time.time(), cards=held)
        copy.begin()
        return compute(run, settings, copy, stop, token).state.exit_status or 0


@contextmanager
def turn(
    run: Run, store: RunStore, emit: Emit, should_stop: ShouldStop
) -> Iterator[list[str] | None]:
    """Hold the run's devices: it waits until none older waits and as many are free as it takes.

    Yields their names; None where it was asked to stop. Raises RunError for more than there are.
    """
    names = devices(run.state.device)
    number = needed(run.config, names)
    if launched():
        names = names[:number]  # the launcher deals them out in this order
    waiting = False
    while not should_stop():
        if _none_older(run, store) and (held := lock_several(store.settings, names, number)):
            try:
                yield [name for name, _ in held]
            finally:
                _unlock(held)
            return
        if not waiting:
            emit(Stage(name=f"waiting for the {'device' if number == 1 else 'devices'}"))
            waiting = True
        time.sleep(POLL_SECONDS)
    yield None


def _none_older(run: Run, store: RunStore) -> bool:
    own = (run.state.queued or 0.0, run.id)
    waiting = waiting_runs(store, run.state.device)
    return not any((other.state.queued or 0.0, other.id) < own for other in waiting)


Held = tuple[str, int]  # a device's name, and the descriptor that locks it


def lock_several(settings: Settings, names: list[str], number: int) -> list[Held] | None:
    """Lock so many devices, or none: what is held without being used would be idle."""
    held: list[Held] = []
    for name in names:
        if len(held) < number and (one := lock_one(settings, [name])):
            held.append(one)
    if len(held) == number:
        return held
    _unlock(held)
    return None


def _unlock(held: list[Held]) -> None:
    for _, descriptor in held:
        os.close(descriptor)


def lock_one(settings: Settings, names: list[str]) -> Held | None:
    """Lock the first device that is free; the system unlocks it when this process ends."""
    for name in names:
        safe = "".join(letter if letter.isalnum() else "_" for letter in name)
        path = settings.home / f"device-{safe}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {error.strerror}. Give this user the right to it, or "
                "name another place in PHI3LORA_HOME."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return name, descriptor
    return None


def take(names: list[str]) -> None:
    """See those devices and no other: what is not this run's is another's."""
    if not launched():  # else each process takes its own of those that the launcher sees
        os.environ["CUDA_VISIBLE_DEVICES"] = "" if names == ["cpu"] else ",".join(names)


def compute(
    run: Run, settings: Settings, emit: Emit, should_stop: ShouldStop, token: str | None
) -> Run:
    """Train, then prove; returns the run with its final state. Raises whatever they raise."""
    config = run.config
    deadline = _deadline(run, settings)
    cache = settings.cache_folder / run.owner  # nobody reads what another's token fetched
    if run.state.outcome != "finished":  # else it was interrupted while it was proved
        outcome = _train(run, settings, emit, should_stop, token, deadline)
        run = changed(run, outcome=outcome)
    else:
        dismiss(config.model.device == "cpu")
    message = ""
    if run.state.outcome == "paused":
        message = (
            f"Paused after {settings.hours_per_run:g} hours, the longest that a run may compute at "
            "a time here; resume it to go on."
        )
    if run.state.outcome == "finished" and config.evaluation.enabled and holds_out(config.data):

        def late() -> bool:
            return should_stop() or (deadline is not None and time.monotonic() > deadline)

        message = _prove(run, emit, late, token, cache)
    return end(run, run.state.outcome or "finished", message, 0)


def _train(
    run: Run,
    settings: Settings,
    emit: Emit,
    should_stop: ShouldStop,
    token: str | None,
    deadline: float | None,
) -> str:
    """Train, beside other processes where several devices do; returns the outcome."""
    with heavy_imports():
        from phi3lora.runs.starting import with_start
        from phi3lora.training.trainer import train

    config, accepted = with_start(run, settings, token), run.state.accept_changes
    with group_of(config, token, lambda reason: _abandon(run, emit, reason)) as group:
        try:
            share_job(config, folder=str(run.folder), owner=run.owner, accept_changes=accepted)
            return train(
                config,
                run.folder,
                emit,
                should_stop=should_stop,
                deadline=deadline,
                token=token,
                cache_folder=settings.cache_folder / run.owner,
                accept_changes=accepted,
            )
        except Exception as error:
            raise group.explained(error) from error
        finally:
            group.part()


def _abandon(run: Run, emit: Emit, reason: str) -> None:
    """End a run whose training waits for a process that is gone, from another thread."""
    emit(Ended(outcome="failed", message=reason))
    end(open_run(run.folder), "failed", reason, 1)
    os._exit(1)


def _deadline(run: Run, settings: Settings) -> float | None:
    """Until when a run may compute, in seconds of `time.monotonic()`; None for no limit.

    A worker that hears nobody is ended from outside a while later.
    """
    if settings.hours_per_run is None:
        return None
    seconds = settings.hours_per_run * 3600
    watch(run.folder, os.getpid(), seconds + settings.stop_seconds, "hours")
    return time.monotonic() + seconds


def _prove(run: Run, emit: Emit, should_stop: ShouldStop, token: str | None, cache: Path) -> str:
    """Write the report. The adapter exists already, so a failure here is a notice, not an end."""
    from phi3lora.evaluation.report import evaluate

    try:
        report = evaluate(
            run.config,
            run.folder,
            emit=emit,
            should_stop=should_stop,
            cache_folder=cache,
            token=token,
        )
        return report.summary()
    except Exception as error:  # noqa: BLE001 - told, and logged in full
        message = f"The adapter is finished, its evaluation is not: {explain(error, token)[0]}"
        logger.warning(traceback.format_exc())
        emit(Notice(message=message, level="warning"))
        return message


def _cancelled(run: Run, emit: Emit) -> int:
    message = "Cancelled before its turn; resume it to queue it again."
    emit(Ended(outcome="stopped", message=message))
    end(run, "stopped", message, 0)
    return 0


def _failed(run: Run, error: Exception, emit: Reporter, token: str | None) -> int:
    """Say why: to the state, the events and the log; a traceback goes to the log alone."""
    message, status = explain(error, token)
    _reserve(run).unlink(missing_ok=True)
    with suppress(OSError):
        if status != 2:
            logger.error("".join(traceback.format_exception(error)))
        if not emit.ended:
            emit(Ended(outcome="failed", message=message))
    now = open_run(run.folder)
    changes = error.changes if isinstance(error, ChangedInputsError) else []
    run = changed(run if now.damaged else now, changes=changes)
    end(run, "failed", message, status)
    return status


def explain(error: BaseException, token: str | None = None) -> tuple[str, int]:
    """What to tell people about an error, and the exit status it means."""
    if isinstance(error, Phi3LoraError):
        return redact(str(error), token), error.exit_status
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full; delete runs that are no longer needed, then resume.", 1
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}: give this user the right to it, then resume.", 1
    kind = type(error).__name__
    what = redact(f"{kind}: {error}", token)
    return f"A fault of ours ended the run ({what}); its log has the details.", 1


def end(run: Run, status: str, message: str, exit_status: int) -> Run:
    """Write how it ended, the last thing a worker writes."""
    return changed(run, status=status, message=message, exit_status=exit_status, ended=time.time())


def _reserve(run: Run) -> Path:
    return run.folder / ".reserve"


def begin_log(level: str) -> None:
    """Lines with times; the training itself says what it runs, with which versions."""
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.WARNING if level == "passive" else level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.captureWarnings(True)
    without_advice()


def _step_back() -> None:
    """Pages and chat go first where cores are short; where memory runs out, this process goes.

    Linux kills the process with the highest score; elsewhere there is no such file.
    """
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


if __name__ == "__main__":
    sys.exit(main())
