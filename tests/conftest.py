"""Shared by all tests: no outside world, a home of its own for each test, the pocket Phi-3."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

# Before any import of huggingface_hub: it reads its environment once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
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
VOCABULARY = "phi-3-mini-4k-instruct"
MANY_MODULES = 100
GIVE_WAY = 5
MARKERS = ("browser", "slow")  # of what comes first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser's files first, then those with slow tests: no process has a long one at the end."""
    first = [{item.path for item in items if item.get_closest_marker(m)} for m in MARKERS]
    items.sort(key=lambda item: [item.path not in paths for paths in first])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, and so do all files with a browser: one is enough."""
    from xdist.scheduler import LoadFileScheduling

    class OneBrowser(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "a browser" if has_browser(file) else file

    return OneBrowser(config, log) if config.getvalue("dist") == "loadfile" else None


@cache
def has_browser(file: str) -> bool:
    """Whether a test of this file walks through pages."""
    return "mark.browser" in (REPOSITORY / file).read_text(encoding="utf-8")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where several work side by side, whoever has no browser goes after who has one.

    Pages are many small steps that wait for each other. What is computed is not in a hurry.
    """
    global _nice
    if "PYTEST_XDIST_WORKER" in os.environ and not _nice and not has_browser(item.location[0]):
        _nice = os.nice(GIVE_WAY)


_nice = 0


def pytest_collection_finish() -> None:
    keep_imports()


def pytest_runtest_logfinish() -> None:
    keep_imports()


_kept = 0  # modules that were imported when it was last done


def keep_imports() -> None:
    """Let collections pass over what was imported: classes and functions, which never go.

    Each training and each chat ends with a collection. Over a million objects of torch, gradio
    and thousands of tests it takes a second, over those of one test some milliseconds.
    """
    global _kept
    if len(sys.modules) > _kept + MANY_MODULES:
        gc.collect()
        gc.freeze()
        _kept = len(sys.modules)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Files have no place in a test's name: a compressed one says when it was made."""
    return "bytes" if isinstance(val, bytes) else None


def _shared_data() -> Path:
    """Where the real vocabulary and rows lie: named, beside this clone, or beside its origin."""
    if named := os.environ.get("PHI3LORA_TEST_DATA"):
        return Path(named)
    ask = ["git", "-C", str(REPOSITORY), "config", "remote.origin.url"]
    origin = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    places = [REPOSITORY.parent, *([Path(origin).parent] if origin.startswith("/") else [])]
    found = [place / "shared" / "data" for place in places]
    return next((folder for folder in found if (folder / VOCABULARY).is_dir()), found[0])


SHARED_DATA = _shared_data()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation of its own, on a local machine."""
    return Settings(home=tmp_path / "home")


@pytest.fixture(scope="session")
def real_vocabulary() -> Path:
    """The folder of the real Phi-3 vocabulary; skips where it is absent."""
    folder = SHARED_DATA / VOCABULARY
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was not tested for want of data is said out loud, below everything else."""
    skipped = terminalreporter.stats.get("skipped", [])
    absent = [report for report in skipped if "(shared data)" in str(report.longrepr)]
    if absent:
        terminalreporter.section("the real Phi-3 vocabulary was not tested", "!", red=True)
        terminalreporter.line(
            f"{len(absent)} tests need the real vocabulary or real rows, which lie beside the "
            "repository as shared/data; name their folder in PHI3LORA_TEST_DATA."
        )
