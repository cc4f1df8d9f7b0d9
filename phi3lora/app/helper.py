"""A process that computes for the app what may hang, crash or grow: it can be ended, and replaced.

    helper = Helper(strangers=True)
    helper.ask(function, arguments, Limits(seconds=60, bytes=4 * GIB))

The function is one of a module, its arguments and answer can be pickled. Whatever goes wrong comes
back as an error of ours, in words. The process is started with a clean environment, for
/proc/PID/environ shows for ever what a process was started with.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import select
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from phi3lora.errors import Phi3LoraError
from phi3lora.isolation import hide_process, inherited

PACKAGE_PARENT = Path(__file__).parents[2]
GIB = 2**30
POLL_SECONDS = 0.1  # how often a helper's memory is read while it computes


class HelperDied(Exception):
    """The process ended in the middle, by itself."""


@dataclass(frozen=True)
class Limits:
    """What one question may take; None for as much as it likes.

    Attributes:
        seconds: where it computes for half of them at least; on a busy machine three times as many.
        bytes: of memory that the process may have in use.
    """

    seconds: float | None = None
    bytes: int | None = None


class Helper:
    """The app's end of it."""

    def __init__(self, strangers: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from phi3lora.app.helper import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(strangers),
        )

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, function: Callable[..., Any], arguments: tuple[Any, ...], limits: Limits) -> Any:
        """The function's answer, computed there.

        Raises the errors of ours that it raises, Phi3LoraError for any other and where a limit is
        reached (then the process is gone), HelperDied where it ended by itself.
        """
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        try:
            requests.write(pickle.dumps((function, arguments)))
            requests.flush()
            self._wait(answers.fileno(), limits)
            fine, answer = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError):
            self.end()
            raise HelperDied from None
        if not fine:
            raise answer
        return answer

    def _wait(self, answers: int, limits: Limits) -> None:
        """Until an answer comes, or a limit is reached."""
        began, computed = time.monotonic(), self._computed()
        while not select.select([answers], [], [], POLL_SECONDS)[0]:
            if _is_over(limits, time.monotonic() - began, self._computed() - computed):
                self.end()
                raise Phi3LoraError(
                    f"Reading the data took longer than {limits.seconds:g} s and was ended. "
                    "Set a row limit (data.max_rows), or use fewer columns and shorter rows."
                )
            if limits.bytes is not None and self._bytes() > limits.bytes:
                self.end()
                raise Phi3LoraError(
                    f"Reading the data took more than {limits.bytes / GIB:.0f} GB of memory and "
                    "was ended. Set a row limit (data.max_rows), or use smaller files."
                )

    def _bytes(self) -> int:
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def _computed(self) -> float:
        """Seconds of a processor that it has had."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def end(self) -> None:
        """Kill the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not sent any more
                    continue


def _is_over(limits: Limits, waited: float, computed: float) -> bool:
    """Whether its time is over; one that others leave no processor to is waited for."""
    if limits.seconds is None or waited <= limits.seconds:
        return False
    return computed > limits.seconds / 2 or waited > 3 * limits.seconds


def environment(strangers: bool, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a helper is started with; for strangers' data no secret of anybody."""
    kept = inherited(environ) if strangers else dict(environ)
    kept.pop("HF_TOKEN", None)  # it is handed the token of whoever asks
    if strangers:
        kept["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    path = [str(PACKAGE_PARENT), environ.get("PYTHONPATH", "")]
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PHI3LORA_STRANGERS": "1" if strangers else "",
    }


def serve() -> None:
    """The helper's end: answer until the app is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print belongs into the log
    if os.environ.get("PHI3LORA_STRANGERS"):
        hide_process()
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")  # what libraries say to their developers
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked,), daemon=True).start()
    while True:
        answers.write(_answer(*asked.get()))
        answers.flush()


def _read(asked: queue.SimpleQueue[Any]) -> None:
    """Requests as they come. The app's end of the pipe closes with the app, however it ended."""
    try:
        while True:
            asked.put(pickle.load(sys.stdin.buffer))
    except BaseException:  # noqa: BLE001 the app is gone: there is nobody to tell
        os._exit(0)


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """(True, answer) or (False, error), as bytes that the app can read for certain."""
    try:
        return pickle.dumps((True, function(*arguments)))
    except Phi3LoraError as error:
        return pickle.dumps((False, _plain(error)))
    except BaseException as error:
        logging.getLogger(__name__).exception("A preflight failed")
        what = f"{type(error).__name__}: {str(error)[:300]}"
        return pickle.dumps(
            (False, Phi3LoraError(f"The data or the base could not be read ({what})."))
        )


def _plain(error: Phi3LoraError) -> Phi3LoraError:
    """The error itself where it survives the journey, else its words."""
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error) and vars(copy) == vars(error) and str(copy) == str(error):
            return error
    except Exception:  # noqa: BLE001 its words do
        logging.getLogger(__name__).debug("%s cannot be pickled", type(error))
    return Phi3LoraError(str(error))
