"""What a run leaves behind, as plain facts for its card: nothing here asks the Hub.

facts = collect(run_folder)
facts.losses, facts.comparisons, facts.options
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3lora.config import POCKET, RunConfig, fields
from phi3lora.errors import AdapterError, HubError
from phi3lora.events import (
    Ended,
    Evaluated,
    Event,
    Loaded,
    Prepared,
    Resumed,
    Step,
    read_events,
)
from phi3lora.hub.client import is_hub_id
from phi3lora.inputs import accepted_changes
from phi3lora.lora.folder import read_adapter_config
from phi3lora.lora.starting import chain_of
from phi3lora.methods import BY_METHOD
from phi3lora.versions import library_versions


@dataclass(frozen=True)
class Origin:
    """Where a base or a dataset comes from.

    Attributes:
        name: a Hub id, or what to call it: `pocket`, an example's name, a file's.
        on_hub: whether the name is a Hub id.
        revision: branch, tag or commit; empty where it is not known.
        licence: as the Hub names it: `mit`.
    """

    name: str
    on_hub: bool = False
    revision: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything that a card tells.

    Attributes:
        options: (dotted field, title, value) of each option that matters, in order.
        losses: (step, loss) of the training; held_out_losses likewise.
        seconds: the training took, in all slices; peak_memory is in bytes.
        comparisons: base against tuned, as `report.json` holds them.
        gained, lost: sample answers, likewise.
        edited: rows of which something was replaced.
        changed: inputs that were not the same in all slices of the run, in words.
        settings: `adapter_config.json`; empty for a whole model.
    """

    title: str
    base: Origin
    data: Origin
    adapter: str  # "peft", "loralib" or "none"
    options: list[tuple[str, str, str]]
    method: str = "sft"
    more: list[Origin] = field(default_factory=list)  # further sources of rows
    chain: list[str] = field(default_factory=list)  # what training went on from, oldest first
    split: str = ""
    prepared: Prepared | None = None
    loaded: Loaded | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out_losses: list[tuple[int, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    verdict: str = ""
    scored_rows: int = 0
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    gained: list[dict[str, Any]] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    edited: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def collect(folder: Path) -> Facts:
    """The facts of a run folder. Raises ConfigError or HubError where it holds no run."""
    if not (folder / "config.yaml").is_file():
        raise HubError(f"{folder} is no run: it has no config.yaml. Name a run's id or its folder.")
    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    events, _ = read_events(folder / "events.jsonl")
    report = read_report(folder)
    steps = _of(Step, events)
    return Facts(
        title=config.title,
        base=base_of(config, folder),
        data=data_of(config),
        more=[origin(source.path, source.revision or "") for source in config.data.more],
        adapter=config.adapter,
        options=_options(config),
        method=config.method,
        chain=chain_of(folder),
        split=" / ".join(filter(None, [config.data.name, config.data.split])),
        prepared=_last(_of(Prepared, events)),
        loaded=_last(_of(Loaded, events)),
        losses=_curve(Step, events),
        held_out_losses=_curve(Evaluated, events),
        steps=max((step.step for step in steps), default=0),
        seconds=sum(end.seconds for end in _of(Ended, events)),
        peak_memory=max((end.peak_memory for end in _of(Ended, events)), default=0),
        verdict=report.get("verdict", ""),
        scored_rows=report.get("rows", 0),
        comparisons=report.get("comparisons", []),
        gained=report.get("gained", []),
        lost=report.get("lost", []),
        versions=library_versions(),
        changed=accepted_changes(folder),
        edited=sum(len(part.edits) for part in (config.data, *config.data.more)),
        settings=_settings(folder / "adapter"),
    )


def _settings(adapter: Path) -> dict[str, Any]:
    try:
        return read_adapter_config(adapter)
    except AdapterError:  # a whole model, or a run that has not ended
        return {}


def read_report(folder: Path) -> dict[str, Any]:
    """`report.json`; empty where nothing was proved."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def base_of(config: RunConfig, folder: Path) -> Origin:
    """The base by its portable name: what the adapter says, which `auto` has become by then."""
    name, revision = config.model.path, config.model.revision or ""
    try:
        settings = json.loads((folder / "adapter" / "adapter_config.json").read_text("utf-8"))
        name = settings.get("base_model_name_or_path") or name
    except (OSError, ValueError):
        pass
    loaded = _last(_of(Loaded, read_events(folder / "events.jsonl")[0]))
    if loaded and loaded.base_commit:
        revision = loaded.base_commit
    return origin(name, revision)


def data_of(config: RunConfig) -> Origin:
    """The dataset by a name that means something elsewhere."""
    return origin(config.data.path, config.data.revision or "")


def origin(name: str, revision: str = "") -> Origin:
    """A Hub id as it is; of a path on this machine the last part alone."""
    if name in (POCKET, "auto"):
        return Origin(POCKET)
    if name.startswith("example:"):
        return Origin(name)
    if is_hub_id(name) and not Path(name).exists():
        return Origin(name, True, revision)
    return Origin(Path(name).name)


def _options(config: RunConfig) -> list[tuple[str, str, str]]:
    """Every option of model, adapter and training, as the config holds it; no path among them."""
    values = config.model_dump(mode="json")
    shown = ("model", "peft_config", "training_config", BY_METHOD.get(config.method))
    rows: list[tuple[str, str, str]] = []
    for name, option in fields():
        section, _, key = name.partition(".")
        if name == "method":
            rows.append((name, str(option.title), config.method))
        elif name == "grpo_config.function" and config.method == "grpo":
            file = Path(config.grpo_config.function or "").name
            rows.append((name, str(option.title), _words(file)))
        elif section in shown and name != "model.path":
            rows.append((name, str(option.title), _words(values[section][key])))
    return rows


def _words(value: Any) -> str:
    return "–" if value in (None, "", [], {}) else str(value)


def _curve(kind: type, events: list[Event]) -> list[tuple[int, float]]:
    """(step, loss); what came after the checkpoint of a resume was done again."""
    found: dict[int, float] = {}
    for event in events:
        if isinstance(event, Resumed):
            found = {step: loss for step, loss in found.items() if step <= event.step}
        elif isinstance(event, kind) and event.loss is not None:  # type: ignore[attr-defined]
            found[event.step] = event.loss  # type: ignore[attr-defined]
    return sorted(found.items())


def _of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def _last(events: list[Any]) -> Any:
    return events[-1] if events else None
