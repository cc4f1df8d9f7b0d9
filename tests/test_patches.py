"""What we change in libraries is listed, undone, and noticed when a library moves."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from trl import DPOConfig, GRPOConfig

from phi3lora.training.fast import tested
from phi3lora.training.fast.attention import PACKED
from phi3lora.training.fast.patches import CHANGES, PATCHES, patched
from phi3lora.training.fast.tested import PRIVATE, TESTED, Private, moved
from phi3lora.versions import library_versions
from tests.small import small_model

ROOT = Path(__file__).parent.parent


def arguments(**changes: Any) -> Any:
    values = {"label_smoothing_factor": 0.0, "torch_compile": False, **changes}
    return SimpleNamespace(**values)


def test_each_patch_is_named_and_undone() -> None:
    model = small_model()
    base = model.get_base_model()
    before = base.config._attn_implementation
    pairs = DPOConfig("unused", use_cpu=True)
    hot = GRPOConfig("unused", use_cpu=True, temperature=1.7)
    put_in = set()
    for args, wanted in ((arguments(), "loss"), (pairs, "answers"), (hot, "answers")):
        with patched(model, args) as names:
            assert names == ["attention", wanted, "layers"]
            assert base.config._attn_implementation == PACKED
            assert "forward" in vars(base)
        put_in |= set(names)
    assert put_in == {patch.name for patch in PATCHES}
    assert base.config._attn_implementation == before == "sdpa"
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"label_smoothing_factor": 0.1}, ["attention", "layers"]),
        ({"torch_compile": True}, ["attention", "loss"]),
    ],
)
def test_what_cannot_be_replaced_stays(changes: dict[str, Any], left: list[str]) -> None:
    with patched(small_model(), arguments(**changes)) as names:
        assert names == left


def test_patches_are_undone_after_an_error_too() -> None:
    model = small_model()
    with pytest.raises(RuntimeError, match="in between"), patched(model, arguments()):
        raise RuntimeError("in between")
    assert model.get_base_model().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.by)
def test_what_changes_a_model_elsewhere_is_where_the_list_says(change: Any) -> None:
    module, _, name = change.by.partition(":")
    assert hasattr(importlib.import_module(module), name)


# Versions


def test_no_library_has_moved() -> None:
    assert moved() == []


@pytest.mark.parametrize("name", TESTED)
def test_the_installed_version_is_one_that_was_tested(name: str) -> None:
    installed = Version(library_versions([name])[name]).base_version
    assert installed in SpecifierSet(TESTED[name]), (
        f"{name} {installed} is installed, and {TESTED[name]} was tested: run the suite with it, "
        "then widen phi3lora/training/fast/tested.py and requirements.txt."
    )


def test_requirements_admit_what_was_tested_and_nothing_else() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    admitted = {
        (found := Requirement(line)).name: found.specifier
        for line in lines
        if line and not line.startswith("#")
    }
    for name, versions in TESTED.items():
        assert admitted[name] == SpecifierSet(versions), name


@pytest.mark.parametrize(
    ("private", "words"),
    [
        (Private("trl:Gone.method", "a.py"), r"trl .* has moved: trl:Gone.method is gone"),
        (Private("peft.nowhere:X", "a.py"), r"peft .* is gone .* Tested are peft>="),
        (Private("trl.data_utils:pack_dataset", "a.py", ("dataset", "speed")), "lacks speed"),
        (Private("peft.tuners.lora:LoraLayer", "b.py", source=("lora_Q",)), "phi3lora/b.py needs"),
    ],
)
def test_what_has_moved_is_said_in_a_sentence(
    private: Private, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tested, "PRIVATE", (private,))
    (sentence,) = moved()
    assert re.search(words, sentence)


def test_every_private_name_says_who_uses_it() -> None:
    for private in PRIVATE:
        assert (ROOT / "phi3lora" / private.used).is_file(), private.used
