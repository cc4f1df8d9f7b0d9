"""Several runs beside each other: their order, the settings that differ, how each one came out.

several = side_by_side(runs, views)
several.settings["training_config.learning_rate"]      ["0.0002", "0.001"], in the runs' order
ordered(runs, "loss", views)                           the lowest first, those without one last
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from phi3lora import words
from phi3lora.app.views import Follower, RunView
from phi3lora.errors import Phi3LoraError, RunError
from phi3lora.runs.permission import is_run
from phi3lora.runs.store import ACTIVE, Run

FEWEST, MOST = 2, 5
UNREADABLE = "config.yaml cannot be read"
Order = Literal["newest", "loss", "title", "status", "base", "size", "time"]
Key = float | str | None
BASE = "model.path"


@dataclass(frozen=True)
class Figure:
    """What runs are compared by: a text for each run, and what it is sorted by; None comes last."""

    name: str
    texts: list[str]
    keys: Sequence[Key]


@dataclass(frozen=True)
class Several:
    """Runs in the order in which they were named.

    Attributes:
        views: what each one's events say.
        settings: dotted names of the options that differ, with each run's value in words.
    """

    runs: list[Run]
    views: list[RunView]
    settings: dict[str, list[str]]

    @property
    def losses(self) -> list[float | None]:
        """The last training loss of each."""
        return [view.losses[-1][1] if view.losses else None for view in self.views]

    @property
    def held_out(self) -> list[float | None]:
        """The last held-out loss of each."""
        return [view.held_out[-1][1] if view.held_out else None for view in self.views]

    @property
    def figures(self) -> list[Figure]:
        """What is compared: losses, base, size, time, status, then the settings that differ."""
        bases, sizes = [base_of(run) for run in self.runs], [size_of(run) for run in self.runs]
        times, statuses = [time_of(run) for run in self.runs], [run.status for run in self.runs]
        return [
            Figure("Training loss", [*map(words.figure, self.losses)], self.losses),
            Figure(words.HELD_OUT_LOSS, [*map(words.figure, self.held_out)], self.held_out),
            Figure("Base", bases, bases),
            Figure("Size", [words.size(one) if one else "–" for one in sizes], sizes),
            Figure("Time", [words.duration(one) if one else "–" for one in times], times),
            Figure("Status", [*statuses], statuses),
            *(
                Figure(name, one, keys_of(one))
                for name, one in self.settings.items()
                if name != BASE
            ),
        ]

    def rows(self) -> list[tuple[str, list[str]]]:
        """The same with a value for each run in words."""
        return [(figure.name, figure.texts) for figure in self.figures]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for other programs."""
        return {
            "runs": [run.id for run in self.runs],
            "titles": [run.title for run in self.runs],
            "loss": self.losses,
            "held_out_loss": self.held_out,
            "settings": self.settings,
        }


def side_by_side(runs: Sequence[Run], follower: Follower) -> Several:
    """Two to five runs. RunError for fewer or more."""
    if not FEWEST <= len(runs) <= MOST:
        raise RunError(f"Name {FEWEST} to {MOST} runs to put beside each other, got {len(runs)}.")
    views = [follower.view(run) for run in runs]
    return Several(list(runs), views, differing([_options(run) for run in runs]))


def differing(options: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Names whose values are not the same everywhere, with the values."""
    names = dict.fromkeys(name for one in options for name in one)
    found = {name: [one.get(name, "") for one in options] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def keys_of(texts: Sequence[str]) -> list[Key]:
    """Numbers where all that is set are numbers, else the texts."""
    try:
        return [None if text in ("", "not set") else float(text) for text in texts]
    except ValueError:
        return list(texts)


def ordered(runs: Sequence[Run], by: Order, follower: Follower) -> list[Run]:
    """Runs, newest first, in another order; one without what is asked for comes last."""
    if by == "newest":
        return list(runs)

    def place(run: Run) -> tuple[bool, Any]:
        key = _key(run, by, follower)
        return key is None, key

    return sorted(runs, key=place)


def _key(run: Run, by: Order, follower: Follower) -> Key:
    if by == "loss":
        losses = follower.view(run).losses
        return losses[-1][1] if losses else None
    if by == "size":
        return size_of(run)
    if by == "time":
        return time_of(run)
    return {"title": run.title.lower(), "base": base_of(run).lower()}.get(by, run.status)


def base_of(run: Run) -> str:
    """The base's path or id; empty where the config cannot be read."""
    try:
        return run.config.model.path
    except Phi3LoraError:
        return ""


def size_of(run: Run) -> int | None:
    """Bytes of the weights that a run made; None while it computes, and where there are none."""
    if run.status in ACTIVE:
        return None
    try:
        files = [file for file in run.result.folder.glob("*.safetensors") if file.is_file()]
        return sum(file.stat().st_size for file in files) or None
    except (Phi3LoraError, OSError):
        return None  # the run itself says that it cannot be read


def time_of(run: Run) -> float | None:
    """Seconds from a run's beginning to its end; None before that."""
    began, ended = run.state.started, run.state.ended
    if run.status in ACTIVE or began is None or ended is None or ended <= began:
        return None
    return ended - began


def _options(run: Run) -> dict[str, str]:
    """Dotted names and values; what cannot be read differs in that."""
    try:
        values = run.config.model_dump(exclude={"title"})
    except Phi3LoraError:
        return {"configuration": UNREADABLE}
    return dict(_flat(values))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "not set" if value is None else str(value)


def run_before(run: Run) -> str:
    """The id of the run whose result this one went on from; empty where it began anew."""
    try:
        start = run.config.model.adapter or ""
    except Phi3LoraError:
        return ""
    return start if is_run(start) else ""
