"""Work in a thread of its own, heard from as it goes; whatever stops it is told in words.

for told in in_thread(lambda put: push(…, progress=put)):
    ...                                 what was put, then what the work returned
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from phi3lora.errors import Phi3LoraError, UnexpectedError
from phi3lora.training.failures import is_disk_full, is_out_of_memory

FRAME = 0.2  # seconds between two notes, so that a page is not drawn for each of a thousand
Put = Callable[[Any], None]
logger = logging.getLogger(__name__)


def in_thread(work: Callable[[Put], Any], frame: float = FRAME) -> Iterator[Any]:
    """What `work` puts, the last of each moment, then what it returns.

    Work goes on where nobody listens any more. Any exception ends the iteration: ours as it is,
    others as `in_words` tells them, so that no reader waits for ever.
    """
    notes: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def run() -> None:
        try:
            notes.put(("done", work(lambda note: notes.put(("note", note)))))
        except BaseException as error:  # noqa: BLE001 - raised again where it is listened to
            notes.put(("failed", error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        kind, value = notes.get()
        while kind == "note" and not notes.empty():
            kind, value = notes.get()
        if kind == "failed":
            raise in_words(value)
        yield value
        if kind == "done":
            return
        time.sleep(frame)


def in_words(error: BaseException) -> Phi3LoraError:
    """Our own errors as they are; any other with what happened and what to do, and its traceback
    in the log."""
    if isinstance(error, Phi3LoraError):
        return error
    logger.error("Not foreseen", exc_info=error)
    if is_out_of_memory(error):
        wrapped = UnexpectedError(
            "Memory ran out. End what else uses it, or choose a smaller base, then try again."
        )
    elif is_disk_full(error):
        wrapped = UnexpectedError("The disk is full. Make room on it, then try again.")
    else:
        said = str(error).strip() or "it says no more"
        wrapped = UnexpectedError(
            f"Something failed that should not: {type(error).__name__}: {said}. Try again; where "
            "it comes back, the log of the app holds what its authors need to know."
        )
    wrapped.__cause__ = error
    return wrapped
