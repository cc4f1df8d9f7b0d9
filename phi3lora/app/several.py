"""Several runs beside each other: the settings in which they differ, and how far each one came.

several = side_by_side(runs, views)
several.settings["training_config.learning_rate"]      ["0.0002", "0.001"], in the runs' order
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from phi3lora import words
from phi3lora.app.views import Follower, RunView
from phi3lora.errors import Phi3LoraError, RunError
from phi3lora.runs.permission import is_run
from phi3lora.runs.store import Run

FEWEST, MOST = 2, 5
UNREADABLE = "config.yaml cannot be read"


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

    def rows(self) -> list[tuple[str, list[str]]]:
        """What is compared, with a value for each run: losses, status, then settings."""
        return [
            ("Training loss", [*map(words.figure, self.losses)]),
            (words.HELD_OUT_LOSS, [*map(words.figure, self.held_out)]),
            ("Status", [run.status for run in self.runs]),
            *self.settings.items(),
        ]

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
