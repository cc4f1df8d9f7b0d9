"""The house of DESIGN: imports go down, or to an earlier module of the same package."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

PACKAGE = Path(__file__).parent.parent / "phi3lora"
# Top to bottom; within a layer, from the last that may import to the first.
LAYERS = {
    "errors": 0,
    "files": 0,
    "versions": 0,
    "importing": 0,
    "settings": 0,
    "redaction": 0,
    "isolation": 0,
    "words": 0,
    "thoughts": 0,
    "checks": 0,
    "models.phi3": 0,  # a table that imports nothing, so that the configuration may ask it
    "strict_yaml": 0,
    "arguments": 0,
    "problems": 0,
    "options": 1,
    "methods": 1,
    "legacy": 1,
    "config": 1,
    "recipes": 1,
    "inputs": 1,
    "events": 1,
    "wording": 1,
    "hub.client": 2,  # what data/ and models/ need of the Hub; the rest of hub/ stands above them
    "data": 2,
    "models": 2,
    "lora": 2,
    "hub": 2,
    "training": 3,
    "evaluation": 3,
    "chat": 3,
    "runs": 4,
    "app": 5,
    "notebook": 6,
    "serve": 6,
    "ui": 6,
    "cli": 6,
    "__main__": 6,
}
PLACE = {name: place for place, name in enumerate(LAYERS)}
HEAVY = {"torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate"}
MARKUP = re.compile(r"</?(?:div|span|p|b|i|a|br|pre|table|tr|td|ul|li|h[1-6]|button|img)[ />]")
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str | None:
    """`phi3lora.data.formats` is of `data`, None for other packages; a layer may be one module."""
    names = module.split(".")
    if names[0] != "phi3lora" or len(names) < 2:
        return None
    one = ".".join(names[1:3])
    return one if one in LAYERS else names[1]


def imports(file: Path, top_level_only: bool = False) -> list[str]:
    """Names of all modules that a file imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_name(file: Path) -> str:
    return ".".join(("phi3lora", *file.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_imports_go_down(file: Path) -> None:
    own = part_of(module_name(file))
    if own == "__init__":
        # For type checkers; when it runs, they are imported as soon as one is named.
        assert {part_of(name) for name in imports(file)} <= {None, "notebook"}
        assert not [name for name in imports(file, top_level_only=True) if part_of(name)]
        return
    assert own in LAYERS, f"{own} has no layer"
    for name in imports(file):
        other = part_of(name)
        if other and other in LAYERS and other != own:
            assert PLACE[other] < PLACE[own], f"{module_name(file)} imports {name}"


def test_no_circles() -> None:
    names = {module_name(file): file for file in MODULES}
    graph = {
        name: {
            target
            for found in imports(file)
            for target in (found, found.rpartition(".")[0])
            if target in names and target != name
        }
        for name, file in names.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_gradio_is_imported_by_the_pages_alone(file: Path) -> None:
    if part_of(module_name(file)) != "ui":
        assert not [name for name in imports(file) if name.split(".")[0] == "gradio"]


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_heavy_imports_wait(file: Path) -> None:
    """The first page is up without them: below layer 2 and in the pages, functions import them."""
    if LAYERS.get(part_of(module_name(file)) or "", 0) not in (2, 3):
        heavy = {name.split(".")[0] for name in imports(file, top_level_only=True)} & HEAVY
        assert not heavy


# What the faces may take from below the application: types and plain data, and nothing that acts.
FREE = {"errors", "settings", "words", "versions", "isolation", "config", "legacy", "recipes"}
FREE |= {"events", "wording", "strict_yaml", "thoughts", "importing"}
DOORS = {"notebook", "serve", "ui", "cli"}
FACES = [file for file in MODULES if part_of(module_name(file)) in DOORS]
DATA = (str, int, float, tuple, frozenset, dict)


def is_plain(value: object) -> bool:
    """A type that holds data, the name of some values, or the values themselves."""
    if isinstance(value, type):
        pure = dataclasses.is_dataclass(value) or issubclass(value, BaseModel)
        return pure or issubclass(value, Exception) or value in (str, int)
    return typing.get_origin(value) is typing.Literal or isinstance(value, DATA)


@pytest.mark.parametrize("file", FACES, ids=module_name)
def test_pages_and_commands_call_the_application_and_nothing_below_it(file: Path) -> None:
    for name in imports(file):
        part = part_of(name)
        if part is None or part in FREE | DOORS | {"app"} or name == "phi3lora.words":
            continue
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute, None)
        assert is_plain(value), f"{module_name(file)} calls {name}: let app/ do that"


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_no_widget_command_or_markup_below_the_faces(file: Path) -> None:
    if part_of(module_name(file)) in ("ui", "cli", "__main__"):
        return
    found = {name.split(".")[0] for name in imports(file)} & {"gradio", "typer"}
    assert not found
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            markup = MARKUP.search(node.value)
            assert id(node) in documentation or not markup, f"HTML in {file}: {node.value!r}"


def test_the_rules_find_what_they_forbid(tmp_path: Path) -> None:
    from phi3lora.checks import Level
    from phi3lora.runs.queue import Queue
    from phi3lora.runs.store import ACTIVE, Run, open_run

    assert [is_plain(value) for value in (Run, ACTIVE, Level)] == [True] * 3
    assert [is_plain(value) for value in (Queue, open_run, None)] == [False] * 3
    assert MARKUP.search('<div class="card">')
    assert not MARKUP.search("<|user|>")


def test_no_page_is_long() -> None:
    long = [file.name for file in FACES if len(file.read_text().splitlines()) > 400]
    assert long == []


# Words of ours that nobody would grep for, and what the field calls it.
PRIVATE = {"Look", "Scout", "Picture", "Contest", "Match", "Wish", "Leave"}
EMPTY = re.compile(r"\b(?:an?|all|and|as|for|in|is|its?|of|one|or|that|the|them|this|to)\b")


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_names_are_the_fields_and_docstrings_say_more_than_they(file: Path) -> None:
    """A docstring that repeats its name is left out; the formatter formats everything."""
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"# (fmt: (skip|off)|TODO)", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.name not in PRIVATE
            said = ast.get_docstring(node)
            assert not said or new_words(node.name, said), f"{node.name}: {said}"


def new_words(name: str, said: str) -> set[str]:
    """What a docstring adds to a name; an example in code marks counts."""
    words = set(re.findall(r"`[^`]+`|[a-z]+", EMPTY.sub("", said.lower())))
    return words - set(re.findall(r"[a-z]+", re.sub("([A-Z])", r" \1", name).lower()))


def test_a_docstring_that_repeats_a_name_is_found() -> None:
    assert not new_words("Bytes", "Bytes.")
    assert not new_words("offered", "All of them, offered.")
    assert new_words("step_of", "20 of `checkpoint-20`.")
