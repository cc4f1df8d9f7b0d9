"""Rows edited and left out by hand: opened, changed in the config, and kept in a small file.

    row = app.editing.open(config, caller, 17)
    config = app.editing.save(config, caller, row, ["Who?", "A pirate."])
    config = app.editing.leave_out(config, caller, 0, 17, out=True)
    app.editing.kept(config.data, caller)       what was changed of these rows before

The config is what a run trains; the file is where whoever chooses the same data finds the edits
again, on another page or at the terminal. What another page kept meanwhile is kept on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phi3lora.app.callers import Caller, check_may_train
from phi3lora.app.patches import Patch, Patches
from phi3lora.app.preflights import Preflights
from phi3lora.config import DataConfig, RunConfig
from phi3lora.data.opened import (
    OpenRow,
    with_edits,
    with_row_left_out,
    with_texts,
    without_edits,
)
from phi3lora.errors import DataError
from phi3lora.runs.permission import check_paths
from phi3lora.settings import Settings


class Editing:
    """What can be done to single rows; raises AccessError for data that is not the caller's."""

    def __init__(self, settings: Settings, preflights: Preflights) -> None:
        self.settings = settings
        self._preflights = preflights
        self._patches = Patches(settings)

    def open(
        self,
        config: RunConfig,
        caller: Caller,
        number: int,
        source: int = 0,
        *,
        edited: bool = False,
    ) -> OpenRow:
        """A row with its texts; with `edited` by its number in `data.edits`.

        Raises DataError or HubError where there is none to be had.
        """
        self._check(config, caller)
        return self._preflights.row(config, caller.token, caller.name, number, source, edited)

    def save(
        self, config: RunConfig, caller: Caller, row: OpenRow, texts: Sequence[str]
    ) -> RunConfig:
        """The config in which the row says this. Raises DataError for what no config holds."""
        self._check(config, caller)
        return self._kept_on(with_texts(self._with_kept(config, caller), row, texts), caller)

    def undo(self, config: RunConfig, caller: Caller, row: OpenRow) -> RunConfig:
        """The config in which the row is as in the source."""
        self._check(config, caller)
        return self._kept_on(without_edits(self._with_kept(config, caller), row), caller)

    def leave_out(
        self, config: RunConfig, caller: Caller, source: int, row: int, *, out: bool
    ) -> RunConfig:
        """The config without a row, or with it again."""
        self._check(config, caller)
        wanted = with_row_left_out(self._with_kept(config, caller), source, row, out=out)
        return self._kept_on(wanted, caller)

    def undo_all(self, config: RunConfig, caller: Caller) -> RunConfig:
        """The config with every source as it is, and all of its rows."""
        self._check(config, caller)
        more = [one.model_dump() | {"edits": {}, "leave_out_rows": []} for one in config.data.more]
        nothing = {"data.edits": {}, "data.leave_out_rows": [], "data.more": more}
        return self._kept_on(config.with_values(nothing), caller)

    def keep(self, config: RunConfig, caller: Caller) -> Path:
        """Write down what a config changes in its first source, beside what was kept before."""
        self._check(config, caller)
        return self._patches.keep(self._with_kept(config, caller), caller.name)

    def with_file(self, config: RunConfig, file: Path) -> RunConfig:
        """The config with the edits of a file that `keep` wrote.

        Raises ConfigError for what is no such file, DataError for one of other data.
        """
        kept = RunConfig.from_yaml(file)[0].data
        if kept.path != config.data.path:
            raise DataError(
                f"{file} edits rows of {kept.path}, and this run trains on {config.data.path}. "
                f"Name the same data, with --set data.path={kept.path}."
            )
        return with_edits(config, kept)

    def kept(self, data: DataConfig, caller: Caller) -> Patch | None:
        """What was kept for these rows; None where nothing was. Raises AccessError."""
        check_may_train(caller, self.settings)
        return self._patches.read(data, caller.name)

    def _check(self, config: RunConfig, caller: Caller) -> None:
        check_may_train(caller, self.settings)
        check_paths(config, caller.name, self.settings)

    def _with_kept(self, config: RunConfig, caller: Caller) -> RunConfig:
        """With what another page kept; where both changed a cell, this config's is the last."""
        kept = self._patches.read(config.data, caller.name)
        return config if kept is None else with_edits(config, kept.data)

    def _kept_on(self, config: RunConfig, caller: Caller) -> RunConfig:
        self._patches.keep(config, caller.name)
        return config
