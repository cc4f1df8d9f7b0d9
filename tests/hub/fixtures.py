"""The ``hub`` fixture. Name this module in ``pytest_plugins`` of ``tests/conftest.py``.

Importing it points this whole process at a Hub on a free port of 127.0.0.1, before
huggingface_hub or datasets read their environment. The Hub starts with the first test
that asks for it, is empty at the start of each test, and is gone at the end.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest

from .server import PERSONAL, LoopbackHub, client_settings

_EARLY = [name for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]
if _EARLY:
    raise RuntimeError(
        f"tests.hub.fixtures must be imported before {_EARLY}: they read HF_ENDPOINT once"
    )

_HOME = tempfile.TemporaryDirectory(prefix="hub-client-")
_HUB = LoopbackHub()
for _name in [name for name in os.environ if name.startswith("HF_") or name in PERSONAL]:
    del os.environ[_name]
os.environ.update(client_settings(_HUB.url, _HOME.name))


@pytest.fixture(scope="session")
def _running_hub() -> Iterator[LoopbackHub]:
    with _HUB as hub:
        yield hub
    if hub.unknown:
        pytest.fail(f"the Hub was asked what it does not know: {sorted(set(hub.unknown))}")


@pytest.fixture
def hub(_running_hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """An empty Hub at ``HF_ENDPOINT``, for this test alone."""
    _running_hub.reset()
    forget_listings()
    yield _running_hub
    _running_hub.reset()


def forget_listings() -> None:
    """Drop what the client remembers of repos that are gone."""
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import HfFileSystem

        HfFileSystem.clear_instance_cache()
