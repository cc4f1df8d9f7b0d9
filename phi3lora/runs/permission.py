"""Which files a run may name: asked wherever a run starts, and before anything is backed up.

    check_paths(config, owner, settings, folder)     AccessError for somebody else's file

On a Space visitors are strangers: a run reads what its owner uploaded, what came along in its own
folder, rows and whole models of its owner's other runs, an example, or the Hub. On one's own
machine it reads whatever its owner names. A function that rewards runs on one's own machine alone.
"""

from __future__ import annotations

from pathlib import Path

from phi3lora.config import RunConfig
from phi3lora.data.sources import EXAMPLE_PREFIX, names_no_file
from phi3lora.errors import AccessError, RunError
from phi3lora.lora.starting import START
from phi3lora.runs.store import ID, RunStore
from phi3lora.settings import Settings


def check_paths(
    config: RunConfig, owner: str, settings: Settings, folder: Path | None = None
) -> None:
    """Raises AccessError where a config names a file that is not its owner's.

    Args:
        folder: of the run, once it has one.
    """
    check_path("data.path", config.data.path, owner, settings, folder)
    for number, source in enumerate(config.data.more):
        check_path(f"data.more.{number}.path", source.path, owner, settings, folder)
    check_path("model.path", config.model.path, owner, settings, folder)
    if config.model.adapter is not None and not is_run(config.model.adapter):
        check_path("model.adapter", config.model.adapter, owner, settings, folder)
    named = {"model.path": config.model.path, "model.adapter": config.model.adapter or ""}
    check_function(config.grpo_config.function, settings)
    for field, path in named.items() if settings.on_space else []:
        if path.startswith(EXAMPLE_PREFIX):
            raise AccessError(f"{field}: an example is data; name one on the Hub, or leave it out.")


def check_function(named: str | None, settings: Settings) -> None:
    """Raises AccessError where a function of somebody's own would run on a machine not theirs.

    On a Space none runs. At home it must not lie among the runs either: those that come back from
    the Hub may have been written by anybody.
    """
    if named is None:
        return
    if settings.on_space:
        raise AccessError(
            "grpo_config.function: a Python function of your own runs on your own machine alone; "
            "reward exact answers, a pattern, a length or JSON here."
        )
    try:
        place = Path(named.rpartition(":")[0]).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise AccessError(f"grpo_config.function: {named!r} names no file ({error}).") from None
    if place.is_relative_to(settings.home.resolve()):
        raise AccessError(
            f"grpo_config.function: {place} lies among the runs, where files come from the Hub; "
            "keep code of yours elsewhere."
        )


def check_path(
    field: str, path: str, owner: str, settings: Settings, folder: Path | None = None
) -> None:
    """The same for one option."""
    if names_no_file(path) or may_read(path, owner, settings, folder):
        return
    raise AccessError(
        f"{field}: files of this machine cannot be named here; upload a file, or name a dataset "
        "or model on the Hub."
    )


def is_run(name: str) -> bool:
    """Whether this is the id of a run; whose it is, the store says when it is opened."""
    return ID.fullmatch(name) is not None


def may_read(path: str, owner: str, settings: Settings, folder: Path | None = None) -> bool:
    """Whether a run of this owner may read a path, links followed."""
    if not settings.on_space:
        return True
    own = [folder / "data", folder / START] if folder else []
    try:
        place = Path(path).expanduser().resolve()
        roots = [settings.uploads(owner), *own, *_of_own_run(place, owner, settings)]
        allowed = [root.resolve() for root in roots]
        if not _is_under(place, allowed):
            return False
        inside = place.rglob("*") if place.is_dir() else ()
        return all(_is_under(file.resolve(), allowed) for file in inside)
    except (OSError, RuntimeError, ValueError):  # a loop of links, `~nobody`, a NUL
        return False


def _of_own_run(place: Path, owner: str, settings: Settings) -> list[Path]:
    """Where a run of this owner keeps rows and a whole model: another run of theirs may use them.

    Nothing for a place that is in no run of theirs.
    """
    runs = settings.runs_folder.resolve()
    if not place.is_relative_to(runs) or place == runs:
        return []
    try:
        run = RunStore(settings).get(place.relative_to(runs).parts[0], owner)
    except RunError:
        return []
    return [run.folder / "data", run.folder / "model"]


def _is_under(place: Path, roots: list[Path]) -> bool:
    return any(place.is_relative_to(root) for root in roots)
