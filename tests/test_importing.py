"""Imports without the collector: it is on again afterwards, and freezes no more than it has to."""

from __future__ import annotations

import gc
import sys
import types

import pytest

from phi3lora.importing import MANY, heavy_imports


def test_what_was_imported_is_passed_over_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    before = gc.get_freeze_count()
    with heavy_imports():
        assert not gc.isenabled()
        made = {f"found_{number}": types.ModuleType("one") for number in range(MANY + 1)}
        sys.modules.update(made)
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_what_was_there_already_freezes_nothing() -> None:
    """A question is no reason to keep for ever what is there while it is asked."""
    before = gc.get_freeze_count()
    with heavy_imports():
        import json  # noqa: F401
    assert gc.get_freeze_count() <= before
    assert gc.isenabled()


def test_one_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), heavy_imports():
        raise ImportError("no such module")
    assert gc.isenabled()
