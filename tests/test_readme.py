"""The README is true: its commands parse, its tree exists, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

from phi3lora import __version__
from phi3lora.cli import app

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FRONT_MATTER, _, TEXT = README.removeprefix("---\n").partition("\n---\n")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
SHELL_LINES = [
    line.partition("#")[0].strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.strip()
]


def tree_paths() -> list[str]:
    """The paths that the tree names, from the repository's top."""
    tree = next(block for language, block in BLOCKS if block.startswith("app.py"))
    parent, paths = "", []
    for line in tree.splitlines():
        name = line.split()[0]
        inner = line.startswith("  ")
        paths.append(parent + name if inner else name)
        parent = parent if inner else name
    return paths


@pytest.mark.parametrize("path", tree_paths())
def test_the_tree_exists(path: str) -> None:
    assert (REPOSITORY / path).exists()


def test_the_tree_is_whole() -> None:
    named = set(tree_paths())
    package = {
        f"phi3lora/{path.name}" + ("/" if path.is_dir() else "")
        for path in (REPOSITORY / "phi3lora").iterdir()
        if not path.name.startswith("__")
    }
    assert package <= named


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if line.startswith("phi3lora")])
def test_every_command_is_one(line: str) -> None:
    """The command and each of its options exist; RUN and the like stand for real names."""
    group = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    with group.make_context("phi3lora", words, resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, words)
        assert command is not None, name
        options = {option for parameter in command.params for option in parameter.opts}
        commands = getattr(command, "commands", {})
        assert not commands or rest[0] in commands
        assert {word for word in rest if word.startswith("--")} <= options


@pytest.mark.parametrize("line", [line for line in SHELL_LINES if line.startswith("make")])
def test_every_make_target_is_one(line: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (REPOSITORY / target).exists(), target


def test_the_front_matter_is_a_spaces() -> None:
    card = yaml.safe_load(FRONT_MATTER)
    assert card["sdk"] == "gradio"
    assert (REPOSITORY / card["app_file"]).is_file()
    assert card["hf_oauth"] is True
    assert not {"write-repos", "manage-repos"} & set(card["hf_oauth_scopes"])
    assert len(card["short_description"]) <= 60


def test_the_readme_suggests_zero_gpu_and_the_hub_page_says_what_happens_there() -> None:
    """For who duplicates the Space: on ZeroGPU, on a T4, on four L4; each with its browser test."""
    assert yaml.safe_load(FRONT_MATTER)["suggested_hardware"] == "zero-a10g"
    page = (REPOSITORY / "docs" / "hub.md").read_text(encoding="utf-8")
    for place in ("ZeroGPU", "a T4", "four L4"):
        assert f"\n**Duplicated on {place}.**" in page
    for line in re.findall(r"(?m)^\| (?:ZeroGPU|one T4|four L4) \| `(tests/\S+)`", page):
        assert "browser" in (REPOSITORY / line).read_text(encoding="utf-8")
    assert len(re.findall(r"(?m)^\| (?:ZeroGPU|one T4|four L4) \| `tests/", page)) == 3


def test_the_version_is_the_packages() -> None:
    assert f'version = "{__version__}"' in (REPOSITORY / "pyproject.toml").read_text()
