"""Large files go through Xet: how far an upload is, and a store that gives no answer.

    with watched(moved, stalled_after=40):
        api.preupload_lfs_files(...)      # moved(bytes) is called meanwhile; Stalled if nothing is

huggingface_hub tells its own progress bars alone, so two of its names are replaced here, once:
`utils._xet_progress_reporting.XetUploadProgressReporter` and `utils.are_progress_bars_disabled`.
Both do as before in every thread but those inside `watched`. hf_xet itself tries again for minutes
(471 s beside a dead store); it is stopped where nothing has moved for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from phi3lora.hub.client import Unreachable

STALLED_SECONDS = 40.0
LAST_SECONDS = 300.0  # that the store may take once it has every byte
_HERE = threading.local()  # .watch of the thread that is uploading
_INSTALLED = threading.Lock()


class Stalled(Unreachable):
    """Nothing has moved for a while; trying again at once would not help."""


class Watch:
    """What one upload has reported, and when."""

    def __init__(self, moved: Callable[[int], None], seconds: float) -> None:
        self._moved, self._seconds = moved, seconds
        self._seen: tuple[int, ...] = ()
        self._since = time.monotonic()
        self._complete = False
        self.over = threading.Event()
        self.gave_up = False

    def update_progress(self, group: Any, items: Any) -> None:
        """Called by hf_xet, from a thread of its own."""
        shard = getattr(group, "shard", None)
        counts = (
            group.total_bytes,
            group.total_bytes_completed,
            group.total_transfer_bytes_completed,
            getattr(shard, "total_shards_completed", 0),
            getattr(shard, "total_shard_validation_entries_completed", 0),
        )
        if counts != self._seen:
            self._seen, self._since = counts, time.monotonic()
        self._complete = 0 < group.total_bytes <= group.total_bytes_completed
        self._moved(group.total_bytes_completed)

    def close(self) -> None:
        """The client's reporters have one."""

    def guard(self) -> None:
        """End the upload once it stalls; returns when it is over."""
        from huggingface_hub.utils._xet import abort_xet_session

        while not self.over.wait(min(1.0, self._seconds / 4)):
            patience = max(self._seconds, LAST_SECONDS) if self._complete else self._seconds
            if time.monotonic() - self._since > patience:
                self.gave_up = True
                abort_xet_session()
                return


@contextmanager
def watched(moved: Callable[[int], None], stalled_after: float = STALLED_SECONDS) -> Iterator[None]:
    """Tell how many bytes have arrived while this thread uploads, and end it where none do.

    Raises Stalled after so many seconds without a byte. Uploads that do not go through Xet have
    time-outs of their own, and are left alone.
    """
    from huggingface_hub.utils._runtime import is_xet_available

    if not is_xet_available():
        yield
        return
    _install()
    watch = _HERE.watch = Watch(moved, stalled_after)
    guard = threading.Thread(target=watch.guard, daemon=True, name="upload watch")
    guard.start()
    try:
        yield
    except RuntimeError as error:  # what hf_xet raises when it is stopped
        if not watch.gave_up:
            raise
        raise Stalled(
            "The Hub's store of large files gives no answer: nothing has arrived for "
            f"{stalled_after:.0f} s. Check the connection and try again; whole parts of 64 MB that "
            "have arrived are not sent twice."
        ) from error
    finally:
        watch.over.set()
        guard.join()
        del _HERE.watch


def _install() -> None:
    """Put our two names in place, unless they are."""
    from huggingface_hub import utils
    from huggingface_hub.utils import _xet_progress_reporting as reporting

    with _INSTALLED:
        if getattr(utils, "phi3lora_watches", False):
            return
        original, disabled = reporting.XetUploadProgressReporter, utils.are_progress_bars_disabled

        def reporter(*args: Any, **options: Any) -> Any:
            watch = getattr(_HERE, "watch", None)
            return original(*args, **options) if watch is None else watch

        def are_disabled(*args: Any, **options: Any) -> bool:
            return not hasattr(_HERE, "watch") and disabled(*args, **options)

        names: Any = reporting, utils
        names[0].XetUploadProgressReporter = reporter
        names[1].are_progress_bars_disabled = are_disabled
        names[1].phi3lora_watches = True
