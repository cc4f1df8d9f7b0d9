"""Choosing data: search and suggestions, parts of a Hub dataset, uploads.

datasets = Datasets(settings, store, preflights)
datasets.search("pirate", caller)              what the Hub has, or suggestions
datasets.keep_upload(Path("chat.jsonl"), caller)
datasets.inspect(config, caller)               format, counts, a few rendered conversations
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phi3lora.app.callers import Caller, check_may_look, check_may_train
from phi3lora.app.preflights import Preflights
from phi3lora.app.uploads import keep
from phi3lora.config import RunConfig
from phi3lora.data.sources import is_local
from phi3lora.errors import Phi3LoraError
from phi3lora.hub.access import Found, search_datasets, search_models
from phi3lora.runs.permission import check_path, check_paths
from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.data.columns import Columns
    from phi3lora.data.findings import Finding
    from phi3lora.data.inspection import Inspection

FOUND, RECENT = 8, 3  # suggestions on the page; datasets used lately among them
LATELY = 20  # runs whose datasets are suggested again


@dataclass(frozen=True)
class Suggestion:
    """A dataset to pick: what the Hub tells about it, and whether the caller used it lately."""

    found: Found
    used_lately: bool = False


@dataclass(frozen=True)
class Parts:
    """Configurations and splits of a dataset, and which of them to begin with."""

    names: list[str]
    splits: list[str]
    name: str | None
    split: str


NO_PARTS = Parts([], ["train"], None, "train")


class Datasets:
    """Everything about data before there is a run."""

    def __init__(self, settings: Settings, store: RunStore, preflights: Preflights) -> None:
        self.settings = settings
        self._store = store
        self._preflights = preflights

    def search(self, query: str, caller: Caller) -> list[Suggestion]:
        """Datasets on the Hub that match.

        Without words: what the caller trained on lately, their own, and suggestions. Raises
        HubError, and AccessError for who may not train here.
        """
        check_may_train(caller, self.settings)
        found = list(search_datasets(query, caller.token, limit=FOUND))
        recent = [] if query else self._recent(caller)
        suggestions = [Suggestion(Found(path), used_lately=True) for path in recent]
        suggestions += [Suggestion(one) for one in found if one.id not in recent]
        return suggestions[:FOUND]

    def _recent(self, caller: Caller) -> list[str]:
        """Hub datasets of the caller's latest runs, newest first."""
        paths = []
        for run in self._store.list(caller.name)[:LATELY]:
            try:
                paths.append(run.config.data.path)
            except Phi3LoraError:
                continue
        return [path for path in dict.fromkeys(paths) if not is_local(path)][:RECENT]

    def find(self, query: str, caller: Caller, limit: int, *, models: bool = False) -> list[Found]:
        """Datasets, or bases of type phi3, by words of their name. Raises HubError."""
        search = search_models if models else search_datasets
        return list(search(query, caller.token, limit))

    def parts(self, path: str, name: str | None, caller: Caller) -> Parts:
        """What a dataset has to choose from; a file or an example has nothing.

        Raises AccessError, DataError or HubError.
        """
        check_may_train(caller, self.settings)
        check_path("data.path", path, caller.name, self.settings)
        if is_local(path):
            return NO_PARTS
        names, splits = self._preflights.parts(path, name, caller.token, caller.name)
        chosen = name if name in names else (names[0] if len(names) > 1 else None)
        first = next((split for split in splits if split.startswith("train")), splits[0])
        return Parts(names, splits, chosen, first)

    def columns(self, config: RunConfig, caller: Caller) -> Columns:
        """The columns of the data that a config names, with its first rows and what is read.

        Raises AccessError, DataError or HubError.
        """
        check_may_look(config, caller, self.settings)
        check_paths(config, caller.name, self.settings)
        return self._preflights.columns(config.data, caller.token, caller.name)

    def keep_upload(self, temporary: Path, caller: Caller) -> Path:
        """Keep a dropped file where a run can still read it tomorrow. Raises DataError."""
        check_may_train(caller, self.settings)
        return keep(temporary, caller.name, self.settings, self._named(caller))

    def _named(self, caller: Caller) -> set[Path]:
        """Files that the caller's runs name: they are not swept away under them."""
        found = set()
        for run in self._store.list(caller.name):
            with suppress(Phi3LoraError):
                data = run.config.data
                found |= {Path(data.path), *(Path(source.path) for source in data.more)}
        return found

    def inspect(
        self,
        config: RunConfig,
        caller: Caller,
        limit: int | None = None,
        *,
        findings: bool = False,
    ) -> Inspection:
        """Read and render the rows in this process, at most `limit` of them.

        With `findings` also what one may want to leave out.
        """
        from phi3lora.data.inspection import inspect
        from phi3lora.models.hardware import detect_hardware
        from phi3lora.models.loading import load_tokenizer, resolve_path

        path = resolve_path(config.model.path, detect_hardware(config.model.device))
        tokenizer = load_tokenizer(path, config.model.revision, caller.token, weights=False)
        return inspect(config, tokenizer, token=caller.token, limit=limit, findings=findings)

    def likelihood(
        self, config: RunConfig, caller: Caller, limit: int | None = None
    ) -> list[Finding]:
        """The rows that the base finds most and least likely, computed in this process."""
        from phi3lora.evaluation.likelihood import by_likelihood

        return by_likelihood(config, token=caller.token, limit=limit)

    def findings(self, config: RunConfig, caller: Caller, *, likelihood: bool) -> list[Finding]:
        """Rows that one may want to leave out, or by `likelihood`, looked for in a helper process.

        Raises AccessError for who may not look or may not name such a file, and what reading the
        rows and the base raises.
        """
        check_may_train(caller, self.settings)
        check_paths(config, caller.name, self.settings)
        return self._preflights.findings(config, caller.token, caller.name, likelihood=likelihood)
