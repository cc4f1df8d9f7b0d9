"""docs/guide.md: every command parses with values that a run accepts, every file is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from phi3lora.cli import app
from phi3lora.config import parse_setting
from phi3lora.recipes import load_recipe, recipes

REPOSITORY = Path(__file__).parent.parent
GUIDE = (REPOSITORY / "docs" / "guide.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in GUIDE.partition("## Where a dictionary says nothing")[0].splitlines()
    if line.startswith("|") and not line.startswith(("| The ", "| ---"))
]
COMMANDS = re.findall(r"`(phi3lora [^`]+)`", GUIDE)


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The command and its parameters, as the terminal reads them."""
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    names = []
    while hasattr(command, "commands"):
        names.append(words.pop(0))
        command = command.commands[names[-1]]
    with command.make_context(names[-1], words) as context:
        return " ".join(names), context.params


def test_every_row_has_a_step_an_answer_and_a_place() -> None:
    assert len(ROWS) > 45
    assert all(len(row) == 3 and all(row) for row in ROWS)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    name, values = parsed(line)
    named = values.get("config") or values.get("run")
    if name == "train":
        assert named in recipes()
        changes = dict(parse_setting(text) for text in values["changes"] or [])
        load_recipe(named)[0].with_values(changes)


@pytest.mark.parametrize("path", sorted({row[2].strip("`") for row in ROWS}))
def test_every_file_is_there(path: str) -> None:
    assert (REPOSITORY / path).is_file()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", GUIDE):
        assert (REPOSITORY / "docs" / target).exists(), target


def test_all_samples_are_in_it() -> None:
    assert {name for name in recipes() if name.startswith("sample")} <= set(
        re.findall(r"phi3lora train (sample[\w-]+)`", GUIDE)
    )
