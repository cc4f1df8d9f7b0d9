"""YAML as people mean it, and from strangers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError
from phi3lora.strict_yaml import (
    LARGEST,
    front_matter,
    read_typed,
    read_yaml,
    shorten,
    write_yaml,
)

AWKWARD = {
    **{"a": "no", "b": "1e-4", "c": "012345", "d": "0x1f", "e": 1e-4, "f": "true", "g": ""},
    **{"h": None, "i": "null", "j": 5e-06, "k": True, "l": "2024-01-31", "m": [1, "2"], "n": "~"},
    **{"o": "1.5", "p": float("inf"), "q": "1_000", "r": "12e45678", "s": "=", "t": "<<"},
    **{"u": "y", "v": "-", "w": ".", "x": "a: b", "y": "#c", "z": "12:30", "on": {"off": "yes"}},
}


def test_what_is_written_is_read_again() -> None:
    assert read_yaml(write_yaml(AWKWARD)) == AWKWARD
    # Older readers take `no` for False, so it is written in quotes for them.
    older = yaml.safe_load(write_yaml(AWKWARD))
    assert [older[key] for key in "abcdeflzu"] == [AWKWARD[key] for key in "abcdeflzu"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("1e-4", 1e-4),
        ("5.0e-06", 5e-6),
        ("1_000", 1000),
        ("0123456", "0123456"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("", None),
        ("no: 1", {"no": 1}),
        ("1: a", {"1": "a"}),
    ],
)
def test_scalars_are_what_people_mean(text: str, value: object) -> None:
    assert read_yaml(text) == value


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ntitle: *c"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "an anchor or alias in line 1"),
        ("title: a\ndata: {}\ntitle: b", "names 'title' twice, again in line 3"),
        ("title: a\ndata: {path: x, path: y}", "names 'path' twice"),
        ("[" * 3000 + "]" * 3000, "nested more than 20 levels deep"),
        ("title: " + "9" * 10_000, "a number of 10,000 digits in line 1"),
        ("title: " + "x" * LARGEST, "at most 65,536 are read"),
        ("title: !!python/object/apply:os.system [ls]", "tags are not read"),
        ("title: a: b", "line 1, column 9: a value with a colon needs quotes"),
        ("title: \x00", "a character that YAML does not allow"),
        ("[a, b]: c", "a key that is no name"),
        ("title: [", "is not YAML: line 1"),
    ],
)
def test_what_no_configuration_holds_is_refused_in_words(
    text: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_yaml(tmp_path / "run.yaml")
    assert says in str(caught.value)
    assert "run.yaml" in str(caught.value)
    assert "unicode string" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_long_values_and_many_problems_are_cut_in_messages() -> None:
    assert len(shorten("x" * 10_000)) == 200
    assert shorten(10**5000) == "a huge number"
    text = write_yaml(
        {"model": {"dtype": "x" * 20_000}, "data": {f"k{n}" * 9: n for n in range(999)}}
    )
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_text(text)
    assert "and 950 more" in str(caught.value)
    assert len(str(caught.value)) < 10_000


def test_front_matter_is_read_as_strictly() -> None:
    assert front_matter("\n---\na: no\n---\n# T\n---\n") == {"a": "no"}
    assert front_matter("# no lines\n---\na: 1\n---\n") == front_matter("---\n[a]\n---\n") == {}
    for evil in ("a: &a [x]\nb: [*a]", "a: !!python/name:os.system", "a: " + "[" * 99):
        with pytest.raises(ConfigError, match=r"README\.md"):
            front_matter(f"---\n{evil}\n---\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("prompt: Frage, completion: Antwort", {"prompt": "Frage", "completion": "Antwort"}),
        ("prompt: a, b", {"prompt": "a, b"}),  # YAML as it stands
        ("{prompt: a}", {"prompt": "a"}),
        ("[1, 2]", [1, 2]),
    ],
)
def test_pairs_in_one_line_need_no_braces(text: str, value: object) -> None:
    assert read_typed(text) == value


@pytest.mark.parametrize("text", ["a: b: c", "prompt: a, completion:", "a: 1}, {b: 2", "a: [, b"])
def test_what_are_no_pairs_is_refused_as_it_was_typed(text: str) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        read_typed(text)
