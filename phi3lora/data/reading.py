"""Rows → rendered conversations, in batches, with an account of what was dropped and cut.

    tally = Tally()
    for batch in read(rows, recipe, tokenizer, tally):
        for kept in batch: ...

Inspection and preparation both read this way, so that what is shown is what is trained. While one
batch is put together, the next is tokenized on all cores; memory holds two batches.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from phi3lora.config import DataConfig, RunConfig
from phi3lora.data.conversation import (
    BEYOND,
    PLAIN,
    Conversation,
    Detected,
    Message,
    Row,
    Unusable,
    Writes,
    whole,
)
from phi3lora.data.detection import detect, read_row
from phi3lora.data.formats import FORMATS
from phi3lora.data.rendering import (
    Rendered,
    SystemMessages,
    fit_system,
    render_many,
    writes_tools,
)
from phi3lora.data.sources import Source
from phi3lora.errors import DataError
from phi3lora.methods import REWARDED

MOVED = {
    "merge": "the system message was put before the first question: the template has none",
    "drop": "the system message was left out: the template has none",
}
NOTHING_LEFT = "nothing left to learn after the length limit"
UNASKED = "nothing is asked, so there is nothing to answer"
_ROWS, _CHARACTERS = 1000, 1 << 21  # a batch ends with whichever comes first


class Kept(NamedTuple):
    """A row that is used; `row` is its number in the source, from 0.

    Where answers are judged, `rejected` is the worse answer to the same prompt, as a conversation;
    `good` is False where there is one answer, and that a bad one.
    """

    row: int
    messages: list[Message]
    rendered: Rendered
    rejected: list[Message] | None = None
    rejected_rendered: Rendered | None = None
    good: bool = True

    @property
    def supervised(self) -> int:
        """Tokens that carry loss, in both answers where there are two."""
        sides = (self.rendered, self.rejected_rendered)
        return sum(sum(side.supervised) for side in sides if side is not None)


@dataclass(frozen=True)
class Recipe:
    """How rows of one source are read and rendered: format, limit, system prompt."""

    detected: Detected
    max_length: int | None
    system_prompt: str | None = None
    join_turns: bool = True
    threads: str = "best"
    system_messages: SystemMessages = "merge"
    method: str = "sft"


@dataclass
class Tally:
    """What became of the rows; every row is either kept or dropped for one reason.

    `changes` counts kept rows of which something was joined or left out, by what it was; `read`
    counts the source's rows, of which several can make one conversation; `lengths` holds the tokens
    of each kept row before the cut, `cut_lengths` after it.
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    read: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    total_tokens: int = 0
    supervised_tokens: int = 0
    lengths: array[int] = field(default_factory=lambda: array("I"))
    cut_lengths: array[int] = field(default_factory=lambda: array("I"))

    def keep(self, rendered: Rendered) -> None:
        """Count one row that is used."""
        self.kept += 1
        self.truncated += rendered.truncated
        self.total_tokens += len(rendered.input_ids)
        self.supervised_tokens += sum(rendered.supervised)
        self.lengths.append(rendered.whole)
        self.cut_lengths.append(len(rendered.input_ids))

    def nothing_kept(self, label: str, detected: Detected) -> DataError:
        """The error for data of which no row can be used."""
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in self.dropped.most_common(5))
        return DataError(
            f"None of the {self.rows:,} rows of {label} can be used ({reasons}). They were read as "
            f"{detected.format!r}: {detected.reason} Say what is what with data.format, "
            "data.columns and data.roles, or raise training_config.max_length."
        )


def recipe_for(config: RunConfig, source: Source) -> Recipe:
    """Detect the format of a source, with the user's corrections.

    Raises:
        DataError: no row, or no format fits.
    """
    data: DataConfig = config.data
    detected = detect(
        source.columns,
        source.head,
        format=data.format,
        mapping=data.columns,
        roles=data.roles,
        method=config.method,
    )
    return Recipe(
        detected,
        config.training_config.max_length,
        data.system_prompt,
        data.join_turns,
        data.threads,
        data.system_messages,
        config.method,
    )


def writes_of(tokenizer: Any) -> Writes:
    """What a base's chat template can write: tools, and reasoning where `<think>` is its mark."""
    if tokenizer is None:
        return PLAIN
    thinks = "<think>" in tokenizer.get_vocab() or "<think>" in str(tokenizer.chat_template)
    return Writes(thoughts=thinks, tools=writes_tools(tokenizer))


def conversations(
    rows: Iterable[Row], recipe: Recipe, writes: Writes = PLAIN, tally: Tally | None = None
) -> Iterator[tuple[int, list[Message]]]:
    """Number and messages of each row that can be used, whatever its format; `tally` counts all.

    Nothing is rendered: a row of which nothing is left after the length limit is here too.
    """
    tally = Tally() if tally is None else tally
    for row in gathered(rows, recipe, tally):
        number, tally.rows = tally.rows, tally.rows + 1
        try:
            found = read_row(
                row, recipe.detected, recipe.system_prompt, join=recipe.join_turns, writes=writes
            )
            found = _within(found, recipe.max_length)
            if recipe.method in REWARDED and not _asks(found):
                raise Unusable(UNASKED)
        except Unusable as error:
            tally.dropped[str(error)] += 1
            continue
        if found.changes:
            tally.changes.update(found.changes)
        yield number, found.messages


def _within(found: Conversation, max_length: int | None) -> Conversation:
    """Without the turns that lie beyond the length limit in any case.

    A turn takes two tokens at least, so the tokens that are trained stay the same; what is spared
    is to lay out a template for each of a thousand lengths of endless conversations.
    """
    most = max_length // 2 + 2 if max_length else None
    if most is None or len(found.messages) <= most:
        return found
    return Conversation(whole(found.messages[:most]).messages, (*found.changes, BEYOND))


def _asks(found: Conversation) -> bool:
    """Whether somebody speaks before the last answer: what is rewarded answers a question."""
    return any(message["role"] == "user" for message in found.messages[:-1])


def gathered(rows: Iterable[Row], recipe: Recipe, tally: Tally) -> Iterator[Row]:
    """The rows as they are, or those that belong together as one."""
    gather = FORMATS[recipe.detected.format].gather
    if gather is None:
        return _counted(rows, tally)
    return gather(_counted(rows, tally), recipe.detected, recipe.threads)


def _counted(rows: Iterable[Row], tally: Tally) -> Iterator[Row]:
    for row in rows:
        tally.read += 1
        yield row


def read(rows: Iterable[Row], recipe: Recipe, tokenizer: Any, tally: Tally) -> Iterator[list[Kept]]:
    """Batches of rows that can be used; `tally` counts all of them as they pass."""
    pending: tuple[list[tuple[int, list[Message]]], Future[list[Rendered]]] | None = None
    with ThreadPoolExecutor(1, "tokenize") as pool:
        usable = conversations(rows, recipe, writes_of(tokenizer), tally)
        for batch in _batches(_fitted(usable, recipe, tokenizer, tally)):
            messages = [conversation for _, conversation in batch]
            future = pool.submit(render_many, tokenizer, messages, recipe.max_length)
            if pending:
                yield _keep(*pending, tally)
            pending = batch, future
        if pending:
            yield _keep(*pending, tally)


def _fitted(
    usable: Iterable[tuple[int, list[Message]]], recipe: Recipe, tokenizer: Any, tally: Tally
) -> Iterator[tuple[int, list[Message]]]:
    """Those that the base's template writes, a system message where it has a place."""
    for number, messages in usable:
        try:
            fitting = fit_system(tokenizer, messages, recipe.system_messages)
        except DataError as error:
            tally.dropped[str(error)] += 1
            continue
        if fitting is not messages:
            tally.changes[MOVED[recipe.system_messages]] += 1
        yield number, fitting


def _batches(
    usable: Iterable[tuple[int, list[Message]]],
) -> Iterator[list[tuple[int, list[Message]]]]:
    """Row numbers and messages, a batch at a time."""
    batch: list[tuple[int, list[Message]]] = []
    characters = 0
    for number, messages in usable:
        batch.append((number, messages))
        characters += sum(len(message["content"]) for message in messages)
        if len(batch) >= _ROWS or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _keep(
    batch: list[tuple[int, list[Message]]], future: Future[list[Rendered]], tally: Tally
) -> list[Kept]:
    """Conversations of which something is left to learn."""
    kept: list[Kept] = []
    for (row, messages), rendered in zip(batch, future.result(), strict=True):
        if any(rendered.supervised):
            tally.keep(rendered)
            kept.append(Kept(row, messages, rendered))
        else:
            tally.dropped[NOTHING_LEFT] += 1
    return kept
