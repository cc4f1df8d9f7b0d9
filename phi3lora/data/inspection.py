"""See the data before any of it is trained.

    inspection = inspect(config, tokenizer)
    inspection.to_json()

Reads rows one batch at a time, and renders each as training will: what is shown is what happens.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phi3lora.config import DataConfig, RunConfig
from phi3lora.data.conversation import Detected, Message
from phi3lora.data.edits import open_edited
from phi3lora.data.findings import KINDS, Finding, Why, find, found_row
from phi3lora.data.hub_rows import Tell
from phi3lora.data.mixing import Share, leave_out, nothing_left, shares_in_words, used_of
from phi3lora.data.plan import HeldOut, held_out, parts_of, split_of
from phi3lora.data.preferences import Answers, JudgedTally, answers_of, read_rows, tally_for
from phi3lora.data.reading import Kept, Recipe, Tally, recipe_for
from phi3lora.data.rendering import Segment, pieces, segments
from phi3lora.data.similar import signatures, text_of
from phi3lora.data.sources import Count, Source, not_applicable

Progress = Callable[[float], None]

TOKENS_SHOWN = 600  # of a previewed conversation, one by one
MOST_TRIED = 50  # first rows of which the previewed ones are taken, where some are left out
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
        preview: the first rows that are used, each as segments that join to the rendered
            conversation.
        places: of the rows of `preview`, the source's place in the config and the row's number;
            and `preview_lengths`, their tokens before the cut.
        preview_tokens: the same rows token by token, the first TOKENS_SHOWN of each.
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
        shares: what each source gives to an epoch, where there are several.
        drawn: rows that an epoch uses for each that is kept, by the weights of the sources; and
            `drawn_tokens`, likewise.
        findings: kinds of rows that one may want to leave out, where they were looked for.
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
    shares: list[Share] = field(default_factory=list)
    drawn: float = 1.0
    drawn_tokens: float = 1.0
    findings: list[Finding] = field(default_factory=list)
    preview_tokens: list[list[Segment]] = field(default_factory=list, repr=False)
    places: list[tuple[int, int]] = field(default_factory=list)
    preview_lengths: list[int] = field(default_factory=list)

    @property
    def unread_in_words(self) -> str:
        """The columns that are not read, by name, or `none`; a table may have thousands."""
        names = [name[:LONGEST_NAME] or "(without a name)" for name in self.unread[:MOST_NAMED]]
        if len(self.unread) > MOST_NAMED:
            names.append(f"and {len(self.unread) - MOST_NAMED:,} more")
        return ", ".join(names) or "none"

    @property
    def mix(self) -> str:
        """What each source gives to an epoch, in a sentence; nothing where there is one."""
        return shares_in_words(self.shares) if self.shares else ""

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
        if self.shares:
            found["sources"] = [asdict(share) for share in self.shares]
        if self.findings:
            found["findings"] = [asdict(finding) for finding in self.findings]
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
    progress: Progress | None = None,
    tell: Tell | None = None,
    findings: bool = False,
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
        findings: also look for rows that one may want to leave out.

    Raises:
        DataError: unreadable, no format fits, or no row can be used.
        HubError: the Hub said no, or nothing.
    """
    parts, kinds = parts_of(config.data), KINDS if findings else config.data.leave_out
    split = split_of(config.data) if "held_out" in kinds else None
    read = [*parts, split] if split else parts
    looks, held = [], None
    for number, part in enumerate(read):
        one = config.model_copy(update={"data": part})
        source = open_edited(
            part, token=token, endpoint=endpoint, cache_folder=cache_folder, tell=tell
        )
        told, shown = _share(progress, number, len(read)), preview if number == 0 else 1
        if part is split:
            held = _signed(one, source, tokenizer, limit, told)
        else:
            looks.append(_look(one, source, tokenizer, shown, limit, told, findings))
    return _together(config, tokenizer, looks, findings, held)


def _signed(
    config: RunConfig, source: Source, tokenizer: Any, limit: int | None, progress: Progress
) -> Any:
    """`signatures` of the rows of a split that is held out."""
    recipe = recipe_for(config, source)
    rows = source.rows(progress, limit)
    batches = read_rows(rows, recipe, tokenizer, tally_for(recipe))
    return signatures(text_of(kept.messages) for batch in batches for kept in batch)


def _share(progress: Progress | None, part: int, parts: int) -> Progress:
    """Progress of one source as progress of the whole."""

    def told(share: float) -> None:
        if progress:
            progress((part + share) / parts)

    return told


@dataclass(frozen=True)
class _Look:
    """What was read of one source; `rows` and `supervised` are of its kept rows, in order.

    `first` are the first of these, of which `preview` are shown.
    """

    part: DataConfig
    source: Source
    recipe: Recipe
    tally: Tally
    first: list[Kept]
    preview: int
    rows: array[int]
    supervised: array[int]
    conversations: list[list[Message]]
    complete: bool
    expected: Count | None


def _look(
    config: RunConfig,
    source: Source,
    tokenizer: Any,
    preview: int,
    limit: int | None,
    progress: Progress,
    keep: bool,
) -> _Look:
    """Read one source; `keep` its conversations. Raises DataError where none can be used."""
    recipe = recipe_for(config, source)
    tally, first = tally_for(recipe), list[Kept]()
    some = config.data.leave_out or config.data.leave_out_rows
    tried = max(preview, MOST_TRIED) if some else preview
    rows, supervised = array("Q"), array("I")
    conversations: list[list[Message]] = []
    place: list[tuple[int, float | None]] = []

    def told(share: float) -> None:
        place[:] = [(tally.read, share)]
        progress(share)

    for batch in read_rows(source.rows(told, limit), recipe, tokenizer, tally):
        first += batch[: tried - len(first)]
        rows.extend(kept.row for kept in batch)
        supervised.extend(kept.supervised for kept in batch)
        if keep or config.data.leave_out:
            conversations += [kept.messages for kept in batch]
    if not tally.kept:
        raise tally.nothing_kept(source.label, recipe.detected)
    complete = limit is None or tally.read < limit
    at, share = place[0] if place and place[0][0] else (tally.read, None)
    expected = Count(tally.read) if complete else source.expected(at, share)
    return _Look(
        config.data,
        source,
        recipe,
        tally,
        first,
        preview,
        rows,
        supervised,
        conversations,
        complete,
        expected,
    )


def _together(
    config: RunConfig, tokenizer: Any, looks: list[_Look], findings: bool, held: Any
) -> Inspection:
    """What was read of all sources, without the rows that are left out.

    Args:
        held: `signatures` of a held-out split of its own, where they were asked for.
    """
    import numpy as np

    first, tallies = looks[0].recipe.detected, [look.tally for look in looks]
    whole, cut, supervised = (
        np.concatenate([np.asarray(column) for column in columns])
        for columns in (
            [tally.lengths for tally in tallies],
            [tally.cut_lengths for tally in tallies],
            [look.supervised for look in looks],
        )
    )
    found = _find(looks, cut, KINDS if findings else config.data.leave_out, held)
    named = np.concatenate(
        [np.isin(np.asarray(look.rows), look.part.leave_out_rows) for look in looks]
    )
    left, reasons = leave_out(named, {name: found[name] for name in config.data.leave_out})
    used = ~left
    if not used.any():
        raise nothing_left(len(left), config.data)
    dropped = Counter(reasons)
    changes: Counter[str] = Counter()
    for tally in tallies:
        dropped.update(tally.dropped)
        changes.update(tally.changes)
    of_each = np.split(used, np.cumsum([len(look.rows) for look in looks])[:-1])
    shares = _shares(looks, of_each, cut)
    shown = [
        (number, look, kept)
        for number, (look, mask) in enumerate(zip(looks, of_each, strict=True))
        for kept in _shown(look, mask)
    ]
    complete, kept, tokens = all(look.complete for look in looks), int(used.sum()), cut[used]
    return Inspection(
        format=first.format,
        columns=first.columns,
        rows=sum(tally.rows for tally in tallies),
        kept=kept,
        dropped=dict(dropped.most_common()),
        tokens=percentiles(tokens),
        total_tokens=int(tokens.sum()),
        supervised_tokens=int(supervised[used].sum()),
        truncated=int((whole > cut)[used].sum()),
        preview=[segments(tokenizer, kept.rendered, kept.messages) for _, _, kept in shown],
        places=[(number, kept.row) for number, _, kept in shown],
        preview_lengths=[kept.rendered.whole for _, _, kept in shown],
        reason=first.reason,
        changes=dict(changes),
        unread=_unread(looks),
        notices=[notice for look in looks for notice in _notices(look)],
        detected=first,
        lengths=array("I", whole[used].tolist()),
        complete=complete,
        expected=_expected(looks),
        read=sum(tally.read for tally in tallies),
        held_out=held_out(config.data),
        shares=shares if looks[1:] else [],
        drawn=sum(share.used for share in shares) / kept,
        drawn_tokens=sum(share.tokens for share in shares) / int(tokens.sum()),
        findings=_findings(looks, found) if findings else [],
        rejected_preview=[
            _rejected(tokenizer, kept)
            for _, look, kept in shown
            if isinstance(look.tally, JudgedTally)
        ],
        answers=answers_of(tallies),
        preview_tokens=[pieces(tokenizer, kept.rendered, TOKENS_SHOWN) for _, _, kept in shown],
    )


def _shown(look: _Look, used: Any) -> list[Kept]:
    """The first rows of a source that are used."""
    return [kept for kept, is_used in zip(look.first, used, strict=False) if is_used][
        : look.preview
    ]


def _unread(looks: list[_Look]) -> list[str]:
    """Columns that were not read; of which source, where there are several."""
    return [
        f"{look.source.label}: {name}" if looks[1:] else name
        for look in looks
        for name in look.recipe.detected.unread
    ]


def _notices(look: _Look) -> tuple[str, ...]:
    """What to know of one source."""
    detected = look.recipe.detected
    return (*look.source.notices, *detected.notices, *not_applicable(look.part))


def _rejected(tokenizer: Any, kept: Kept) -> list[Segment]:
    """The worse answer as segments; none where the row has one answer."""
    if kept.rejected is None or kept.rejected_rendered is None:
        return []
    return segments(tokenizer, kept.rejected_rendered, kept.rejected)


def _expected(looks: list[_Look]) -> Count | None:
    """Rows of all sources; None where that of one is not known."""
    counts = [look.expected for look in looks if look.expected is not None]
    if len(counts) < len(looks):
        return None
    return Count(sum(one.rows for one in counts), all(one.exact for one in counts))


def _shares(looks: list[_Look], used: list[Any], cut: Any) -> list[Share]:
    """What each source gives to an epoch, before any row is held out."""
    given, start = [], 0
    for look, mask in zip(looks, used, strict=True):
        kept, tokens = int(mask.sum()), cut[start : start + len(mask)][mask]
        start += len(mask)
        number = used_of(kept, look.part)
        given.append((look.source.label, kept, number, int(tokens.sum() * number / max(kept, 1))))
    total = max(sum(tokens for *_, tokens in given), 1)
    return [Share(*one, one[-1] / total) for one in given]


def _find(looks: list[_Look], lengths: Any, kinds: Collection[str], held: Any) -> dict[str, Why]:
    """Positions among the kept rows of all sources → why, for each kind."""
    if not kinds:
        return {}
    conversations = [messages for look in looks for messages in look.conversations]
    near = "near_duplicates" in kinds or ("held_out" in kinds and held is not None)
    signed = signatures(map(text_of, conversations)) if near else None
    return find(conversations, lengths, kinds, signed, held, _names(looks))


def _names(looks: list[_Look]) -> Callable[[int], str]:
    """What to call a row by its position."""
    places = [(look, row) for look in looks for row in look.rows]
    of = (lambda look: f" of {look.source.label}") if looks[1:] else (lambda look: "")
    return lambda position: f"row {places[position][1]}{of(places[position][0])}"


def _findings(looks: list[_Look], found: dict[str, Why]) -> list[Finding]:
    """What was found, with the rows to see."""
    places = [
        (number, row, messages)
        for number, look in enumerate(looks)
        for row, messages in zip(look.rows, look.conversations, strict=True)
    ]
    return [
        Finding(
            name,
            KINDS[name].title,
            KINDS[name].meaning,
            len(why),
            [found_row(*places[position], reason) for position, reason in why.items()],
        )
        for name, why in found.items()
        if why
    ]


def percentiles(lengths: Iterable[int]) -> dict[str, int]:
    """Median, 95th percentile (interpolated, rounded) and maximum, in tokens."""
    import numpy

    p50, p95, largest = numpy.percentile(list(lengths), [50, 95, 100])
    return {"p50": round(p50), "p95": round(p95), "max": round(largest)}
