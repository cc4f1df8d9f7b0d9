"""See the data before any of it is trained.

    inspection = inspect(config, tokenizer)
    inspection.to_json()

Reads rows one batch at a time, and renders each as training will: what is shown is what happens.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phi3lora.config import RunConfig
from phi3lora.data.conversation import Detected
from phi3lora.data.hub_rows import Tell
from phi3lora.data.plan import HeldOut, held_out
from phi3lora.data.preferences import Answers, JudgedTally, read_rows, tally_for
from phi3lora.data.reading import Kept, recipe_for
from phi3lora.data.rendering import Segment, segments
from phi3lora.data.sources import Count, not_applicable, open_source

MOST_NAMED, LONGEST_NAME = 20, 60  # columns that are named, and characters of a name


@dataclass(frozen=True)
class Inspection:
    """What is in the data and what becomes of it.

    Attributes:
        format: how rows hold conversations.
        columns: our name → the rows' column.
        rows: rows read; all of the source unless a limit was given. Of a tree, its threads.
        read: rows of the source that they were made of.
        kept: rows that can be used.
        dropped: reason → rows; `rows == kept + sum(dropped.values())`.
        tokens: p50, p95 and max of the kept rows' lengths, as they are trained (after the cut).
        total_tokens: of the kept rows.
        supervised_tokens: those that carry loss.
        truncated: kept rows that are cut at `max_length`.
        preview: the first kept rows, each as segments that join to the rendered conversation.
        reason: why this format, in a sentence.
        changes: what was joined or left out in kept rows → rows.
        unread: columns that exist and are not read.
        notices: what to know before one trains on this, a sentence each.
        lengths: tokens of each kept row before the cut, in order.
        expected: rows of the whole source, "about" where that was extrapolated; None if unknown.
        held_out: what is kept out of training: `nothing`, `rows` or a `split`.
        complete: False when a limit ended the reading, so that there may be more rows.
        detected: format, columns, roles and reason.
        rejected_preview: of the rows of `preview`, the worse answers, as segments; empty where a
            row has none. Only where answers are judged.
        answers: what there is to compare, where answers are judged.
    """

    format: str
    columns: dict[str, str]
    rows: int
    kept: int
    dropped: dict[str, int]
    tokens: dict[str, int]
    total_tokens: int
    supervised_tokens: int
    truncated: int
    preview: list[list[Segment]]
    detected: Detected
    reason: str = ""
    changes: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    lengths: array[int] = field(default_factory=lambda: array("I"), repr=False)
    complete: bool = True
    expected: Count | None = None
    read: int = 0
    held_out: HeldOut = "rows"
    rejected_preview: list[list[Segment]] = field(default_factory=list)
    answers: Answers | None = None

    @property
    def unread_in_words(self) -> str:
        """The columns that are not read, by name, or `none`; a table may have thousands."""
        names = [name[:LONGEST_NAME] or "(without a name)" for name in self.unread[:MOST_NAMED]]
        if len(self.unread) > MOST_NAMED:
            names.append(f"and {len(self.unread) - MOST_NAMED:,} more")
        return ", ".join(names) or "none"

    @property
    def longest(self) -> int:
        """Tokens of the longest kept row before the cut: a limit that would cut nothing."""
        return max(self.lengths, default=self.tokens["max"])

    @property
    def median(self) -> float:
        """Tokens of the median kept row before the cut."""
        return percentiles(self.lengths)["p50"] if self.lengths else self.tokens["p50"]

    def to_json(self) -> dict[str, Any]:
        """What `phi3lora inspect --json` prints."""
        names = (
            "format",
            "columns",
            "unread",
            "rows",
            "kept",
            "dropped",
            "changes",
            "notices",
            "tokens",
            "total_tokens",
            "supervised_tokens",
            "truncated",
            "preview",
        )
        found = {name: getattr(self, name) for name in names}
        if self.answers is not None:
            found |= {"answers": asdict(self.answers), "rejected_preview": self.rejected_preview}
        return found


def inspect(
    config: RunConfig,
    tokenizer: Any,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    cache_folder: Path | None = None,
    preview: int = 3,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
    tell: Tell | None = None,
) -> Inspection:
    """Read the data as training would, and count.

    Args:
        config: its `data` section and `training_config.max_length`.
        tokenizer: of the base that will be trained.
        token: the caller's own, for the Hub.
        endpoint: the Hub's address, None for the environment's.
        cache_folder: the caller's own, for downloads.
        preview: how many conversations to show.
        limit: read this many rows at most; a Hub dataset is then streamed, not downloaded.
        progress: told the share that has been read, 0 to 1.
        tell: told when a busy Hub is waited for.

    Raises:
        DataError: unreadable, no format fits, or no row can be used.
        HubError: the Hub said no, or nothing.
    """
    source = open_source(
        config.data, token=token, endpoint=endpoint, cache_folder=cache_folder, tell=tell
    )
    recipe = recipe_for(config, source)
    tally, shown = tally_for(recipe), list[Kept]()
    place: list[tuple[int, float | None]] = []

    def told(share: float) -> None:
        place[:] = [(tally.read, share)]
        if progress:
            progress(share)

    for batch in read_rows(source.rows(told, limit), recipe, tokenizer, tally):
        shown += batch[: preview - len(shown)]
    if not tally.kept:
        raise tally.nothing_kept(source.label, recipe.detected)
    complete = limit is None or tally.read < limit
    at, share = place[0] if place and place[0][0] else (tally.read, None)
    return Inspection(
        format=recipe.detected.format,
        columns=recipe.detected.columns,
        rows=tally.rows,
        kept=tally.kept,
        dropped=dict(tally.dropped.most_common()),
        tokens=percentiles(tally.cut_lengths),
        total_tokens=tally.total_tokens,
        supervised_tokens=tally.supervised_tokens,
        truncated=tally.truncated,
        preview=[segments(tokenizer, kept.rendered, kept.messages) for kept in shown],
        detected=recipe.detected,
        reason=recipe.detected.reason,
        changes=dict(tally.changes),
        unread=recipe.detected.unread,
        notices=[*source.notices, *recipe.detected.notices, *not_applicable(config.data)],
        lengths=tally.lengths,
        complete=complete,
        expected=Count(tally.read) if complete else source.expected(at, share),
        read=tally.read,
        held_out=held_out(config.data),
        rejected_preview=[_rejected(tokenizer, kept) for kept in shown]
        if isinstance(tally, JudgedTally)
        else [],
        answers=tally.answers() if isinstance(tally, JudgedTally) else None,
    )


def _rejected(tokenizer: Any, kept: Kept) -> list[Segment]:
    """The worse answer as segments; none where the row has one answer."""
    if kept.rejected is None or kept.rejected_rendered is None:
        return []
    return segments(tokenizer, kept.rejected_rendered, kept.rejected)


def percentiles(lengths: Iterable[int]) -> dict[str, int]:
    """Median, 95th percentile (interpolated, rounded) and maximum, in tokens."""
    import numpy

    p50, p95, largest = numpy.percentile(list(lengths), [50, 95, 100])
    return {"p50": round(p50), "p95": round(p95), "max": round(largest)}
