"""The ``hub`` fixture. Name this module in ``pytest_plugins`` of ``tests/conftest.py``.

Importing it points this whole process at a port of 127.0.0.1 and switches the clients
offline, before huggingface_hub or datasets read their environment. A test that asks for
``hub`` is online: it finds an empty Hub there, and empty client caches. Other tests reach
nothing. At the end of the session an unknown route that was asked for is an error.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import PERSONAL, LoopbackHub, client_settings

_EARLY = [name for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]
if _EARLY:
    raise RuntimeError(f"import tests.hub.fixtures before {_EARLY}: they read HF_ENDPOINT once")

_HOME = tempfile.TemporaryDirectory(prefix="hub-client-")
_HUB = LoopbackHub()
for _name in [name for name in os.environ if name.startswith("HF_") or name in PERSONAL]:
    del os.environ[_name]
os.environ.update(client_settings(_HUB.url, _HOME.name), HF_HUB_OFFLINE="1")


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
    forget()
    go_offline(False)
    yield _running_hub
    go_offline(True)
    _running_hub.reset()


@pytest.fixture
def without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files go by LFS, as where hf_xet is not installed or switched off."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def go_offline(offline: bool) -> None:
    """Tell the clients of this process, which read their environment once."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = offline  # type: ignore[attr-defined]


def forget() -> None:
    """Empty the clients' caches: an earlier test's repo must not answer for this one's."""
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()
    for path in Path(_HOME.name).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
