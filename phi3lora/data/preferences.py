"""Rows of preferences → a better and a worse answer in tokens, or one that is called good or bad.

    tally = tally_for(recipe)
    for batch in read_rows(rows, recipe, tokenizer, tally):     # for every method
        for kept in batch: kept.rendered, kept.rejected_rendered, kept.good

Both answers of a pair follow the very same prompt, which carries no loss; what is compared is the
last turn of each with the control token that ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from phi3lora.data.conversation import Conversation, Judgement, Message, Row, Unusable
from phi3lora.data.detection import judge_row
from phi3lora.data.reading import (
    MOVED,
    NOTHING_LEFT,
    Kept,
    Recipe,
    Tally,
    gathered,
    read,
    writes_of,
)
from phi3lora.data.rendering import Rendered, fit_system, render_many
from phi3lora.errors import DataError
from phi3lora.methods import JUDGED, PAIRED

SAME = "both answers are the same"
OTHER_PROMPT = "the two answers do not answer the same prompt"
ONE_ANSWER = "one answer alone, where two are compared"
_ROWS = 500  # of a batch


@dataclass(frozen=True)
class Answers:
    """What rows of preferences hold, counted.

    Attributes:
        pairs: rows with a better and a worse answer.
        good, bad: rows with one answer.
        longer: pairs whose better answer has more tokens.
        shorter: pairs whose better answer has fewer.
        better_tokens, worse_tokens: mean tokens of a better (good) and a worse (bad) answer.
    """

    pairs: int
    good: int
    bad: int
    longer: int
    shorter: int
    better_tokens: float
    worse_tokens: float


@dataclass
class JudgedTally(Tally):
    """A tally that also compares the answers; `sizes` are (better, worse) tokens, 0 for none."""

    sizes: list[tuple[int, int]] = field(default_factory=list)

    def answers(self) -> Answers:
        """What was counted."""
        pairs = [(a, b) for a, b in self.sizes if a and b]
        better, worse = ([size[i] for size in self.sizes if size[i]] for i in (0, 1))
        return Answers(
            pairs=len(pairs),
            good=sum(1 for a, b in self.sizes if not b),
            bad=sum(1 for a, b in self.sizes if not a),
            longer=sum(a > b for a, b in pairs),
            shorter=sum(a < b for a, b in pairs),
            better_tokens=sum(better) / max(len(better), 1),
            worse_tokens=sum(worse) / max(len(worse), 1),
        )


def answers_of(tallies: Sequence[Tally]) -> Answers | None:
    """What all sources hold together; None where answers are not judged."""
    sizes = [size for one in tallies if isinstance(one, JudgedTally) for size in one.sizes]
    return JudgedTally(sizes=sizes).answers() if sizes else None


class _Unit(NamedTuple):
    """A row's answers before they are rendered."""

    row: int
    answers: list[list[Message]]  # the better one first, where there are two
    good: bool


def tally_for(recipe: Recipe) -> Tally:
    """What counts the rows of a method."""
    return JudgedTally() if recipe.method in JUDGED else Tally()


def read_rows(
    rows: Iterable[Row], recipe: Recipe, tokenizer: Any, tally: Tally
) -> Iterator[list[Kept]]:
    """Batches of rows that can be used, as the method wants them; `tally` counts all of them."""
    if not isinstance(tally, JudgedTally):
        yield from read(rows, recipe, tokenizer, tally)
        return
    batch: list[_Unit] = []
    for unit in _units(rows, recipe, tokenizer, tally):
        batch.append(unit)
        if len(batch) == _ROWS:
            yield _rendered(batch, recipe, tokenizer, tally)
            batch = []
    if batch:
        yield _rendered(batch, recipe, tokenizer, tally)


def _units(rows: Iterable[Row], recipe: Recipe, tokenizer: Any, tally: Tally) -> Iterator[_Unit]:
    """The answers of each row, or the reason why it cannot be used."""
    writes = writes_of(tokenizer)
    for number, row in enumerate(gathered(rows, recipe, tally)):
        try:
            judged = judge_row(
                row, recipe.detected, recipe.system_prompt, join=recipe.join_turns, writes=writes
            )
        except Unusable as error:
            tally.rows += 1
            tally.dropped[str(error)] += 1
            continue
        for judgement in judged:
            tally.rows += 1
            try:
                yield _unit(number, judgement, recipe, tokenizer, tally)
            except (Unusable, DataError) as error:
                tally.dropped[str(error)] += 1


def _unit(number: int, judgement: Judgement, recipe: Recipe, tokenizer: Any, tally: Tally) -> _Unit:
    """One judgement with the prompt's own answers marked as read and not learnt.

    Raises:
        Unusable: the method cannot use it.
        DataError: the base's template does not write it.
    """
    found = [side for side in (judgement.better, judgement.worse) if side is not None]
    if len(found) < 2 and recipe.method in PAIRED:
        raise Unusable(ONE_ANSWER)
    _check_pair(*(side.messages for side in found))
    fitted = []
    for side in found:
        fitting = fit_system(tokenizer, _marked(side), recipe.system_messages)
        if len(fitting) < len(side.messages):
            tally.changes[MOVED[recipe.system_messages]] += 1
        tally.changes.update(side.changes)
        fitted.append(fitting)
    return _Unit(number, fitted, judgement.better is not None)


def _check_pair(first: list[Message], second: list[Message] | None = None) -> None:
    """Raises Unusable where two answers are the same, or follow different prompts."""
    if second is None:
        return
    if first == second:
        raise Unusable(SAME)
    if first[:-1] != second[:-1]:
        raise Unusable(OTHER_PROMPT)


def _marked(side: Conversation) -> list[Message]:
    """The conversation, of which the last answer alone is learnt."""
    *asked, last = side.messages
    marked: list[Message] = []
    for message in asked:
        copy = message.copy()
        if message["role"] == "assistant":
            copy["weight"] = 0
        marked.append(copy)
    return [*marked, last]


def _rendered(batch: list[_Unit], recipe: Recipe, tokenizer: Any, tally: JudgedTally) -> list[Kept]:
    """Those of which something is left to compare after the length limit."""
    texts = [answer for unit in batch for answer in unit.answers]
    found = map(_ended, render_many(tokenizer, texts, recipe.max_length))
    kept = []
    for unit in batch:
        sides = [next(found) for _ in unit.answers]
        if not all(any(side.supervised) for side in sides) or _are_same(sides):
            tally.dropped[NOTHING_LEFT] += 1
            continue
        tally.keep(_as_one(sides))
        worse = sides[1] if len(sides) > 1 else None
        first, last = (sum(side.supervised) for side in (sides[0], sides[-1]))
        has_bad = worse is not None or not unit.good
        tally.sizes.append((first if unit.good else 0, last if has_bad else 0))
        rejected = unit.answers[1] if worse is not None else None
        kept.append(Kept(unit.row, unit.answers[0], sides[0], rejected, worse, unit.good))
    return kept


def _as_one(sides: list[Rendered]) -> Rendered:
    """What is read of a row: both answers, each with its prompt."""
    return Rendered(
        [token for side in sides for token in side.input_ids],
        [own for side in sides for own in side.supervised],
        any(side.truncated for side in sides),
        sum(side.whole for side in sides),
    )


def _ended(rendered: Rendered) -> Rendered:
    """Without what the template writes after the last answer: ORPO would learn it."""
    learnt = [place for place, own in enumerate(rendered.supervised) if own]
    end = learnt[-1] + 1 if learnt else 0
    left = len(rendered.input_ids) - end
    return Rendered(
        rendered.input_ids[:end],
        rendered.supervised[:end],
        rendered.truncated,
        rendered.whole - left,
    )


def _are_same(sides: list[Rendered]) -> bool:
    """Whether the cut left nothing by which two answers differ."""
    return len(sides) > 1 and sides[0].input_ids == sides[1].input_ids
