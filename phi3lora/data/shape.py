"""What a format is: which columns it has, how it is found, and how its rows are read.

    FORMAT = Format(name="question_answer", required={"question": ("question", "query")}, …)

A module of `data/formats/` holds one. `find` is asked with what was seen of the data; where a
format has none, the columns' names decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phi3lora.data.cells import turns_in
from phi3lora.data.conversation import Detected, Message, Row, Writes

Columns = dict[str, str]
#: Names under which the system's message of a whole row is found.
SYSTEM = {"system": ("system", "system_prompt", "system_message")}
CONTEXT = ("context", "passage", "document", "article")


@dataclass(frozen=True)
class Seen:
    """The first rows of some data, and what its owner said about them.

    Attributes:
        columns: all there are.
        rows: the first of them.
        mapping: our name → column, as chosen.
        chosen: whether this very format was.
        judged: whether a better and a worse answer are wanted, or which answers are good.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    mapping: Mapping[str, str] = field(default_factory=dict)
    chosen: bool = False
    judged: bool = False

    def values(self, column: str) -> Iterator[Any]:
        """What the first rows hold there."""
        return (row.get(column) for row in self.rows)

    def holding_turns(self) -> list[str]:
        """The columns that hold lists of turns."""
        return [c for c in self.columns if any(turns_in(value) for value in self.values(c))]

    def named(self, *aliases: str) -> str | None:
        """The first column of one of these names, in whatever letter case."""
        by_name = {column.strip().lower(): column for column in self.columns}
        return next((by_name[alias] for alias in aliases if alias in by_name), None)


Reader = Callable[[Row, Detected, Writes], list[Message]]
# Of a row, the column of its better and that of its worse answer to one prompt; None for neither.
Judged = tuple[str | None, str | None]


@dataclass(frozen=True)
class Format:
    """A way in which rows hold conversations.

    Attributes:
        name: as `data.format` has it.
        meaning: what a row is, to end the sentence "… hold …".
        learns: what is learnt of a row, for the documentation.
        example: one row, or a few where several make a conversation.
        required: our name of a part → the columns' names for it, most usual first.
        optional: the same for parts that a row may lack.
        read: a row's messages, or Unusable.
        find: our names → columns where values decide rather than names; None where it is another.
        notices: what to say about data that is read so.
        reason: why, where "… hold …" would not do.
        gather: makes one row of several that belong together.
        inferred: whether `auto` may choose it.
        sides: which columns hold a row's better and worse answers, where it has both; each pair of
            columns is read as `messages` in turn.
    """

    name: str
    meaning: str
    learns: str
    example: tuple[Row, ...]
    required: Mapping[str, tuple[str, ...]]
    read: Reader
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    find: Callable[[Seen], Columns | None] | None = None
    notices: Callable[[Seen, Columns], list[str]] | None = None
    reason: Callable[[Seen, Columns], str] | None = None
    gather: Callable[[Iterable[Row], Detected, str], Iterator[Row]] | None = None
    inferred: bool = True
    sides: Callable[[Row, Columns], list[Judged]] | None = None

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """All parts with the columns' names for them."""
        return {**self.required, **self.optional}

    def match(self, seen: Seen) -> Columns | None:
        """Our names → columns, or None where a required part is missing."""
        found = by_name(self, seen) if self.find is None else self.find(seen)
        return found if found is not None and set(self.required) <= set(found) else None


def by_name(format: Format, seen: Seen) -> Columns:
    """Columns that bear a part's name; each is taken once."""
    names = {column.strip().lower(): column for column in seen.columns}
    found = dict(seen.mapping)
    for part, aliases in format.parts.items():
        named = (names[alias] for alias in aliases if alias in names)
        column = next((column for column in named if column not in found.values()), None)
        if part not in found and column:
            found[part] = column
    return found


def question(texts: Iterable[str]) -> str:
    """What is asked, from its parts: an empty line between those that are not empty."""
    return "\n\n".join(text for text in texts if text.strip())


def pair(prompt: str, answer: str) -> list[Message]:
    """A question and its answer."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
