"""Shared by all tests: no outside world, a home of its own for each test, the pocket Phi-3."""

from __future__ import annotations

import os
from pathlib import Path

# Before any import of huggingface_hub: it reads its environment once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run side by side, and start processes of their own: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from phi3lora.settings import Settings

#: Brings `hub`, a Hub on loopback; tests that do not ask for it stay offline.
pytest_plugins = ["tests.hub.fixtures"]

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation of its own, on a local machine."""
    return Settings(home=tmp_path / "home")


@pytest.fixture(scope="session")
def real_vocabulary() -> Path:
    """The folder of the real Phi-3 vocabulary; skips where it is absent."""
    folder = SHARED_DATA / "phi-3-mini-4k-instruct"
    if not folder.is_dir():
        pytest.skip("the real Phi-3 vocabulary (shared data) is absent")
    return folder


@pytest.fixture(scope="session")
def alpaca_rows() -> Path:
    """1,000 real instruction rows; skips where they are absent."""
    file = SHARED_DATA / "alpaca_en_demo.json"
    if not file.is_file():
        pytest.skip("the real instruction rows (shared data) are absent")
    return file
