"""docs/architecture.md names modules, functions and files that exist; other pages name tests."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "phi3lora"
TEXT = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`([a-z_]+(?:\.\w+)+)`", TEXT)))
ENDINGS = (".py", ".md", ".yaml", ".json", ".jsonl", ".txt", ".lock")
FILES = sorted(set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`|`(\w+\.py)`", TEXT)))
WALKS = ("A row to its gradient", "A message to two answers", "A click to a finished run")


def module_of(name: str) -> tuple[Path, list[str]]:
    """The file of a dotted name's module, and what is named inside it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:end])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file, parts[end:]
    raise AssertionError(f"{name}: there is no such module")


@cache
def defined(file: Path) -> set[str]:
    """Names of a module's classes, functions and methods, dotted."""
    found = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(ENDINGS)])
def test_a_name_is_in_the_code(name: str) -> None:
    file, inside = module_of(name)
    if inside:
        assert ".".join(inside) in defined(file), f"{file.name} has no {'.'.join(inside)}"


@pytest.mark.parametrize("found", FILES)
def test_a_file_is_there(found: tuple[str, str]) -> None:
    name = found[0] or found[1]
    of_runs = {"checkpoints/", "adapter/", "model/"}
    places = [PACKAGE / name, REPOSITORY / name]
    assert name in of_runs or any(place.exists() for place in places), name


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_has_its_stops(walk: str) -> None:
    part = TEXT.split(f"## {walk}\n", 1)[1].split("\n## ", 1)[0]
    stops = re.findall(r"^\d+\. .*`[a-z_]+(?:\.\w+)+`", part, flags=re.MULTILINE)
    assert 5 <= len(stops) <= 9


def test_every_package_has_its_layer() -> None:
    table = TEXT.split("## Layers", 1)[1].split("## Words", 1)[0]
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"`(\w+)`", table))


CHANGES = re.findall(r"^\| (an? [^|]+) \| (\d) \| ([^|]+) \| `(\w+)` \|$", TEXT, flags=re.MULTILINE)


def rooms_of(name: str) -> set[str]:
    """Where a name is imported, used or spelt out; of phi3, classes of transformers and the type.

    `models.phi3` is the one table that everybody may ask.
    """
    rooms = set()
    for file in PACKAGE.rglob("*.py"):
        said = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                said |= {alias.name for alias in node.names}
                said |= {*(node.module or "").split(".")} - {"phi3"}
            elif isinstance(node, ast.Name | ast.Attribute):
                said.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                said.add(node.target.id)
            elif isinstance(node, ast.ClassDef):
                said.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
        own = {
            word
            for word in said
            if re.fullmatch(r"Phi3[A-Z]\w+|phi3", word) and not word.startswith("Phi3Lora")
        }
        if own if name == "Phi3" else name in said:
            rooms.add(file.relative_to(PACKAGE).parts[0])
    return rooms


@pytest.mark.parametrize(("change", "number", "files", "name"), CHANGES)
def test_a_change_needs_the_rooms_that_the_table_says(
    change: str, number: str, files: str, name: str
) -> None:
    named = {path.split("/")[0] for path in re.findall(r"`([\w/]+(?:/|\.py))`", files)}
    assert len(named) == int(number), change
    assert rooms_of(name) <= named, change
    assert rooms_of(name) & named, change


# How many rooms a change may need, by the beginning of its row.
MOST = {
    "a format": 1,
    "an option": 1,
    "a language": 1,
    "a page": 2,
    "a backend": 2,
    "a model family": 4,
}


def test_every_change_of_the_table_is_tested_and_needs_no_more_rooms_than_it_may() -> None:
    for name, most in MOST.items():
        (number,) = [int(number) for change, number, *_ in CHANGES if change.startswith(name)]
        assert number <= most, name
    assert len(CHANGES) == len(MOST)


@pytest.mark.parametrize("page", ["decisions", "reliability", "security"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)(?:\.py)?`", text))
    files = list((REPOSITORY / "tests").rglob("test_*.py"))
    written = {name.rpartition(".")[2] for file in files for name in defined(file)}
    written |= {file.stem for file in files}
    assert len(named) > 10
    assert not named - written
