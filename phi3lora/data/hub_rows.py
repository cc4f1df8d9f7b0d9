"""Rows of a dataset on the Hub, through the `datasets` library.

    hub_set = HubSet("user/name", split="train", token=token, cache_folder=folder)
    hub_set.sha                     # the commit that this caller may read; all else is pinned to it
    hub_set.stream()                # the first rows, without a download
    hub_set.rows()                  # all of them: files are downloaded once, then read from disk

Access is asked first, with the caller's own token, since a shared cache would serve one user's
private files to the next; downloads go to the caller's cache folder. What was downloaded can be
read again without the Hub. Every way to fail has a message of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from phi3lora.data.files import Report
from phi3lora.data.hub_cards import LARGEST_FILE, NAMES, check_card
from phi3lora.data.hub_counts import SplitFiles, by_size, footers
from phi3lora.errors import DataError, Phi3LoraError
from phi3lora.hub.client import (
    INSTEAD,
    HubRequest,
    Readable,
    Tell,
    Unreachable,
    check_access,
    explained,
    first_line,
    with_retries,
)

T = TypeVar("T")
_FIRST_BYTES = 1 << 20  # of a JSON file at a time; the library's 10 MiB are much for a preview


@dataclass(frozen=True)
class _Files:
    """What has to be read: kept beside the downloads, so that it can be read without the Hub."""

    sha: str
    module: str  # of datasets: parquet, json, csv, …
    options: dict[str, Any]  # of that module, where the repo's card sets them
    paths: list[str]  # in the repo
    count: int | None


@dataclass(frozen=True)
class HubSet:
    """One split of one configuration of a dataset, at one commit.

    Attributes:
        repo: `user/name`.
        name: configuration, where there are several.
        split: such as `train`.
        revision: branch, tag or commit; None for the main branch.
        token: the caller's; without one the caller is anonymous, whatever the machine has stored.
        endpoint: the Hub's address; None for the environment's.
        cache_folder: the caller's own; None for the library's shared one.
        tell: told when a busy Hub is waited for.
    """

    repo: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    cache_folder: Path | None = None
    tell: Tell | None = field(default=None, repr=False, compare=False)

    @cached_property
    def sha(self) -> str:
        """The commit, once the Hub has said that this caller may read it.

        Raises:
            HubError: not found, private, gated, no such revision, down; or offline and not cached.
        """
        try:
            return self._check_access()
        except Unreachable:
            if self._kept is not None:
                return self._kept.sha
            raise

    @cached_property
    def count(self) -> int | None:
        """Rows, where the repo's card or the ends of its Parquet files say so; asks the Hub."""
        known = self._known
        if known.count is not None:
            return known.count
        with self._in_words():
            return footers(self._split_files)

    def about(self, rows: list[dict[str, Any]]) -> int | None:
        """Rows, by the bytes of the files and of these rows."""
        with self._in_words():
            return by_size(self._split_files, rows)

    @property
    def _split_files(self) -> SplitFiles:
        return SplitFiles(self.repo, self.sha, self._known.paths, self.token, self.endpoint)

    def stream(self) -> Iterator[dict[str, Any]]:
        """Rows as they arrive; only what is read is fetched."""
        if self._is_kept:
            yield from self._read(self._kept_paths())
            return
        with self._in_words():
            builder = self._builder
            if (
                hasattr(builder.config, "chunksize")
                and type(builder.config).__name__ == "JsonConfig"
            ):
                builder.config.chunksize = _FIRST_BYTES
            rows = builder.as_streaming_dataset(split=self.split)
        yield from self._told(iter(rows))

    def rows(self, report: Report | None = None) -> Iterator[dict[str, Any]]:
        """All rows: the split's files are downloaded, if they are not there, and read."""
        paths = self._kept_paths() if self._is_kept else self._download(report)
        yield from self._read(paths)

    def configurations(self) -> list[str]:
        """Subsets that its card or its folders name; one, `default`, where neither does."""
        from datasets import get_dataset_config_names

        with self._in_words():
            return list(
                self._with_retries(lambda: get_dataset_config_names(self.repo, **self._access()))
            )

    def splits(self) -> list[str]:
        """Names of the splits of this configuration."""
        with self._in_words():
            return _split_names(self._any_split)

    # Asking

    def _check_access(self) -> str:
        readable = check_access(
            "dataset",
            self.repo,
            self.token,
            self.revision,
            endpoint=self.endpoint,
            tell=self.tell,
        )
        script = f"{self.repo.split('/')[-1]}.py"
        if script in readable.files:
            raise DataError(_SCRIPT.format(repo=self.repo, script=script))
        self._check_cards(readable)
        return readable.commit

    def _check_cards(self, readable: Readable) -> None:
        """Refuse a card that leads out of its repository, before `datasets` follows it."""
        from huggingface_hub import HfApi

        names = [name for name in NAMES if name in readable.files]
        if not names:
            return
        api = HfApi(endpoint=self.endpoint, token=self.token or False)
        pinned: dict[str, Any] = {"repo_type": "dataset", "revision": readable.commit}
        for file in api.get_paths_info(self.repo, names, **pinned):
            size = getattr(file, "size", 0)
            if size > LARGEST_FILE:
                raise DataError(
                    f"{self.repo} has a {file.path} of {size >> 20} MiB, expected "
                    f"{LARGEST_FILE >> 20} at most. Choose another copy of this dataset."
                )
            kept = api.hf_hub_download(self.repo, file.path, cache_dir=self._files_folder, **pinned)
            text = Path(kept).read_text(encoding="utf-8", errors="replace")
            check_card(file.path, text, self.repo)

    def _access(self) -> dict[str, Any]:
        """Arguments that every call of `datasets` gets."""
        cache = str(self.cache_folder / "datasets") if self.cache_folder else None
        return {"revision": self.sha, "token": self.token or False, "cache_dir": cache}

    @cached_property
    def _any_split(self) -> Any:
        from datasets import load_dataset_builder

        def ask() -> Any:
            return load_dataset_builder(self.repo, self.name, **self._access())

        try:
            return self._with_retries(ask)
        except ValueError as error:
            if "onfig" not in str(error):  # "BuilderConfig … not found", "Config name is missing"
                raise
        names = ", ".join(self.configurations())
        asked = f"no configuration {self.name!r}" if self.name else "several configurations"
        raise DataError(f"{self.repo} has {asked}; set data.name to one of: {names}.")

    @cached_property
    def _builder(self) -> Any:
        builder = self._any_split
        names = _split_names(builder)
        if self.split not in names:
            raise DataError(
                f"{self.repo} has no split {self.split!r}; set data.split to one of: "
                f"{', '.join(names)}."
                + (" For the first rows alone, set data.max_rows." if "[" in self.split else "")
            )
        return builder

    @cached_property
    def _described(self) -> _Files:
        with self._in_words():
            builder = self._builder
        start = f"hf://datasets/{self.repo}@{self.sha}/"
        files = [str(file) for file in (builder.config.data_files or {}).get(self.split, [])]
        foreign = [file for file in files if not file.startswith(start)]
        if foreign or not files:
            where = foreign[0] if foreign else "nowhere"
            raise DataError(
                f"{self.repo} keeps its rows outside of the repo ({where}); expected JSON, CSV or "
                "Parquet files in it. Download them and drop the file here."
            )
        splits = builder.info.splits or {}
        count = splits[self.split].num_examples if self.split in splits else None
        module = type(builder).__module__.rpartition(".")[2]
        paths = [file.removeprefix(start) for file in files]
        return _Files(self.sha, module, _options(builder.config), paths, count)

    # Keeping

    @property
    def _note(self) -> Path:
        """Where what was downloaded is written down."""
        folder = self.cache_folder
        if folder is None:
            from huggingface_hub.constants import HF_HOME

            folder = Path(HF_HOME) / "phi3lora"
        key = json.dumps([self.endpoint, self.repo, self.name, self.split, self.revision])
        return folder / "hub" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    @cached_property
    def _kept(self) -> _Files | None:
        try:
            return _Files(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def _known(self) -> _Files:
        """What has to be read, without the Hub where it was downloaded."""
        return self._kept if self._kept and self._is_kept else self._described

    @cached_property
    def _is_kept(self) -> bool:
        """Whether this very commit was downloaded whole."""
        return self.sha == getattr(self._kept, "sha", None) and bool(self._kept_paths())

    def _kept_paths(self) -> list[str]:
        """Local files of what was downloaded; none if one of them is gone."""
        from huggingface_hub import try_to_load_from_cache

        kept = self._kept
        if kept is None:
            return []
        found = [
            try_to_load_from_cache(
                self.repo,
                path,
                cache_dir=self._files_folder,
                repo_type="dataset",
                revision=kept.sha,
            )
            for path in kept.paths
        ]
        paths = [path for path in found if isinstance(path, str)]
        return paths if len(paths) == len(found) else []

    @property
    def _files_folder(self) -> Path | None:
        return self.cache_folder / "hub" / "files" if self.cache_folder else None

    def _download(self, report: Report | None) -> list[str]:
        """The split's files, into the caller's cache; resumed where they were cut off."""
        from huggingface_hub import HfApi

        api, wanted, paths = HfApi(endpoint=self.endpoint), self._described, []
        for number, path in enumerate(wanted.paths, 1):
            with self._in_words():
                paths.append(
                    self._with_retries(
                        lambda path=path: api.hf_hub_download(  # type: ignore[misc]
                            self.repo,
                            path,
                            repo_type="dataset",
                            revision=wanted.sha,
                            token=self.token or False,
                            cache_dir=self._files_folder,
                        )
                    )
                )
            if report:
                report(number / len(wanted.paths))
        self._note.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._note.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(vars(wanted)), encoding="utf-8")
        temporary.replace(self._note)
        self.__dict__.pop("_kept", None)
        self.__dict__.pop("_is_kept", None)
        return [str(path) for path in paths]

    def _read(self, paths: list[str]) -> Iterator[dict[str, Any]]:
        """Rows of local files, streamed, so that no second copy lands on the disk."""
        from datasets import load_dataset

        wanted = self._known
        with self._in_words():
            rows = load_dataset(
                wanted.module,
                data_files={"rows": paths},
                split="rows",
                streaming=True,
                **wanted.options,
            )
        yield from self._told(iter(rows))

    def _told(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows; a failure on the way is told in words, one in whoever reads them is not."""
        while True:
            with self._in_words():
                row = next(rows, None)
            if row is None:
                return
            yield row

    # Failing

    @property
    def _request(self) -> HubRequest:
        return HubRequest(
            self.repo,
            "dataset",
            self.revision,
            self.token,
            self.endpoint,
            instead=INSTEAD["dataset"],
        )

    def _with_retries(self, call: Callable[[], T]) -> T:
        return with_retries(call, self.tell)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Turn what the Hub's clients and `datasets` raise into our errors."""
        try:
            with explained(self._request):
                yield
        except Phi3LoraError:
            raise
        except Exception as error:
            told = self._explain(error)
            if told is None:
                raise
            raise told from error

    def _explain(self, error: Exception) -> DataError | None:
        """Our error for one of `datasets`, or None for a fault of our own."""
        from datasets.data_files import EmptyDatasetError
        from datasets.exceptions import DataFilesNotFoundError, DatasetsError

        if isinstance(error, EmptyDatasetError | DataFilesNotFoundError):
            return DataError(_EMPTY.format(repo=self.repo))
        if isinstance(error, RuntimeError) and "scripts are no longer" in str(error):
            return DataError(_SCRIPT.format(repo=self.repo, script="a Python file"))
        if isinstance(error, DatasetsError | ValueError | OSError):
            return DataError(f"{self.repo} cannot be read: {first_line(error)}.")
        return None


_SCRIPT = (
    "{repo} is read by a script of its own ({script}), and code from the Hub is never run here. "
    "Choose a copy of it in Parquet, JSON or CSV files."
)
_EMPTY = "{repo} is empty: it has no JSON, CSV or Parquet file. Choose another dataset."


def _split_names(builder: Any) -> list[str]:
    return [str(name) for name in (builder.config.data_files or builder.info.splits or ())]


def _options(config: Any) -> dict[str, Any]:
    """What the repo's card sets for its reader, such as the delimiter of a CSV file."""
    usual = type(config)()
    skipped = {"name", "version", "data_dir", "data_files", "description", "features"}
    values = {
        item.name: getattr(config, item.name) for item in fields(config) if item.name not in skipped
    }
    plain = (str, int, float, bool, list)
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, plain) and value != getattr(usual, name)
    }
