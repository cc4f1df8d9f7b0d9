"""Work in a thread: heard from as it goes, and every exception reaches whoever listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import BASE_ALONE
from phi3lora.app.working import Put, in_thread
from phi3lora.errors import HubError, Phi3LoraError, UnexpectedError
from phi3lora.settings import Settings


def test_what_is_put_comes_and_then_the_result() -> None:
    def work(put: Put) -> str:
        put("reading")
        return "done"

    assert list(in_thread(work, 0)) in (["reading", "done"], ["done"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (HubError("The Hub is down."), r"^The Hub is down\.$"),
        (RuntimeError("CUDA error: device-side assert"), "RuntimeError: CUDA error"),
        (OSError(28, "No space left on device"), "disk is full"),
        (MemoryError(), "Memory ran out"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_any_exception_ends_the_wait(error: BaseException, said: str) -> None:
    def work(put: Put) -> None:
        put("reading")
        raise error

    with pytest.raises(Phi3LoraError, match=said) as told:
        list(in_thread(work, 0))
    assert isinstance(error, HubError) or isinstance(told.value, UnexpectedError)


class Broken:
    """An engine whose loading ends as a GPU's sometimes does."""

    def load(self, *_: Any, **__: Any) -> list[str]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_page_that_loads_hears_of_any_failure(settings: Settings, tmp_path: Path) -> None:
    comparing = Application.open(settings).comparing
    comparing._engine = Broken()  # type: ignore[assignment]
    with pytest.raises(UnexpectedError, match="illegal memory access"):
        list(comparing.load(BASE_ALONE, Caller()))
