"""Recipes: named RunConfig files, ready to run or to start from.

recipes()["pocket"]                          the file
config, notices = load_recipe("pocket")
describe("pocket")                           what its leading comment says
"""

from __future__ import annotations

import difflib
from pathlib import Path

from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, Problem

FOLDER = Path(__file__).parent


def recipes() -> dict[str, Path]:
    """Every recipe by name: pocket first, the guide's samples last."""
    files = sorted(FOLDER.glob("*.yaml"), key=lambda file: (*_rank(file.stem), file))
    return {file.stem: file for file in files}


def _rank(name: str) -> tuple[bool, bool]:
    return name.startswith("sample"), name != "pocket"


def load_recipe(name: str) -> tuple[RunConfig, list[str]]:
    """The recipe's config, and notices about translated names. ConfigError if there is none."""
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1) or list(known)
        message = f"no recipe is called {name!r}; there is {', '.join(near)}."
        raise ConfigError([Problem("recipe", message)])
    return RunConfig.from_yaml(known[name])


def find_config(name: str) -> tuple[RunConfig, list[str]]:
    """The config of a recipe or a YAML file by its name, and notices. Raises ConfigError."""
    file = Path(name).expanduser()
    if name in recipes() and not file.is_file():
        return load_recipe(name)
    if file.suffix in {".yaml", ".yml"}:
        return RunConfig.from_yaml(file)
    if file.is_file():
        return _configuration(file)
    message = f"{name[:100]!r} is no YAML file and no recipe ({', '.join(recipes())})."
    raise ConfigError([Problem("", message)])


def _configuration(file: Path) -> tuple[RunConfig, list[str]]:
    """Of a file of another kind, which may well be data."""
    try:
        return RunConfig.from_yaml(file)
    except ConfigError as error:
        if any(problem.field for problem in error.problems):
            raise
        message = (
            f"{file} is no configuration. If it is data, name a recipe and set its data: "
            f"`pocket --set data.path={file}`."
        )
        raise ConfigError([Problem("", message)]) from None


def describe(name: str) -> str:
    """The comment at the head of a recipe, as one paragraph."""
    lines = recipes()[name].read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment)


def launch_files() -> dict[str, Path]:
    """Configurations for `accelerate launch --config_file`, by the name of how work is shared."""
    return {file.stem: file for file in sorted((FOLDER / "accelerate").glob("*.yaml"))}
