"""The list of the family: true sizes, what fits where, and the table in the documentation."""

from __future__ import annotations

import pytest

from phi3lora.app.models import bases
from phi3lora.models.family import FAMILY, Member, fit, table
from phi3lora.models.hardware import GIB, Hardware
from tests.conftest import REPOSITORY

# As the Hub counts them in the published weights.
PUBLISHED = {
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
}


def gpu(gib: int) -> Hardware:
    return Hardware("cuda", f"{gib} GiB", gib * GIB, gib * GIB, True, 8)


def member(path: str) -> Member:
    return next(one for one in FAMILY if one.path == path)


@pytest.mark.parametrize("path", PUBLISHED)
def test_sizes_are_the_published_ones(path: str) -> None:
    assert member(path).parameters == PUBLISHED[path]


def test_pocket_is_as_long_as_it_says() -> None:
    pocket = member("pocket")
    assert pocket.base.max_length == pocket.context


@pytest.mark.parametrize(
    ("path", "gib", "expected"),
    [
        ("microsoft/Phi-3-mini-4k-instruct", 16, "fits"),
        ("microsoft/Phi-3-mini-4k-instruct", 8, "tight"),
        ("microsoft/Phi-3-mini-4k-instruct", 4, "no"),
        ("microsoft/phi-4", 80, "fits"),
        ("microsoft/phi-4", 24, "tight"),
        ("microsoft/phi-4", 8, "no"),
        ("pocket", 1, "fits"),
    ],
)
def test_what_fits_on_a_card(path: str, gib: int, expected: str) -> None:
    assert fit(member(path), gpu(gib)) == expected


def test_the_list_of_bases_says_what_fits_and_why_not() -> None:
    listed = {base.name: base for base in bases(gpu(12))}
    assert [base.path for base in listed.values()] == [one.path for one in FAMILY]
    assert listed["Phi-3.5-mini-instruct"].title == (
        "Phi-3.5-mini-instruct · 3.8 B · 131,072 tokens · MIT · fits here"
    )
    assert listed["pocket"].title.startswith("pocket · 3.8 M · 2,048 tokens · MIT · fits here")
    assert listed["Phi-3-medium-4k-instruct"].here == (
        "tight here: in 4 bits (model.quantization: nf4)"
    )
    assert listed["phi-4"].here == "does not fit here: it needs 14 GiB of a GPU's memory"


def test_without_a_gpu_only_pocket_fits() -> None:
    cpu = Hardware("cpu", "CPU", 512 * GIB, 512 * GIB, True, 64)
    listed = bases(cpu)
    assert [base.path for base in listed if base.fit != "no"] == ["pocket"]
    assert listed[1].here == "does not fit here: it needs a GPU"


def test_the_documentation_has_the_table() -> None:
    text = (REPOSITORY / "docs" / "loading.md").read_text(encoding="utf-8")
    assert table() in text, "put what phi3lora.models.family.table() returns into docs/loading.md"
