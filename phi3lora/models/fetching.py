"""How far a download from the Hub is, for those who wait for it.

    snapshot_download(repo, tqdm_class=telling(tell, expected=8_000_000_000))

huggingface_hub tells bars alone how many bytes have come. This one draws nothing, whatever the
environment says about bars, and tells the share of the bytes instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

Told = Callable[[float], None]  # a share, 0 to 1


def telling(tell: Told, expected: int) -> type[tqdm]:
    """A class of bars for one download, which calls `tell` from the threads that download.

    Args:
        expected: bytes that will come. Files say their size one by one as they begin, so that a
            small one that is complete would look like the whole.
    """
    lock = threading.Lock()

    class Telling(tqdm):
        """The bars of bytes among it count: one for the network, one for the disk."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self._counts = kwargs.get("unit") == "B"

        def update(self, n: float | None = 1) -> bool | None:
            with lock:
                self.n += n or 0
                if self._counts and self.n > 0:
                    tell(min(1.0, self.n / max(expected, self.total or 0)))
            return None

    return Telling
