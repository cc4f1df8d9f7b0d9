"""A conversation as HTML: a question across, the two answers beside each other under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from phi3lora import words
from phi3lora.app.comparing import Place
from phi3lora.chat.options import BOTH, Side
from phi3lora.chat.votes import Tally
from phi3lora.thoughts import split_thoughts
from phi3lora.ui import show
from phi3lora.ui.markdown import rendered
from phi3lora.ui.talk import ROUNDS, Said, Talk, Turn

HIDDEN = ("Answer A", "Answer B")


def turns_html(turns: Sequence[Turn], first: int = 0) -> str:
    """Turns that are over."""
    return "".join(turn_html(turn, first + place) for place, turn in enumerate(turns))


def turn_html(turn: Turn, place: int, *, busy: bool = False, last: bool = False) -> str:
    """One turn. While it is `busy` nothing can be done to it; the `last` one can be asked again."""
    columns = "".join(
        _column(turn, side, name, at, busy=busy, last=last)
        for at, (side, name) in enumerate(zip(turn.sides.order, _names(turn), strict=True))
        if turn.variants(side)
    )
    edit = _button("edit", "Edit the question", "✎") if last and not (busy or turn.kept) else ""
    kept = '<small class="kept-note">Kept with the run</small>' if turn.kept else ""
    voted = f'<small class="kept-note">{show.text(vote_line(turn))}</small>' if turn.vote else ""
    kind = " ".join(
        ["turn", *(["demo"] if turn.kept else []), *(["revealed"] if turn.vote else [])]
    )
    return (
        f'<article class="{kind}" data-place="{place}"><header><h2>{show.text(turn.question)}</h2>'
        f'{edit}{kept}{voted}</header><div class="answers">{columns}</div></article>'
    )


def vote_line(turn: Turn) -> str:
    """`You preferred Tuned`, `A tie`, `Both bad`."""
    if turn.vote in BOTH:
        return f"You preferred {preferred(turn)}"
    return {"tie": "A tie"}.get(turn.vote, "Both bad")


def preferred(turn: Turn) -> str:
    """The title of whom a vote was for; base and tuned are words, and no names."""
    title = turn.title("tuned" if turn.vote == "tuned" else "base")
    return title.lower() if title in ("Base", "Tuned") else title


def _names(turn: Turn) -> tuple[str, str]:
    left, right = turn.sides.order
    return HIDDEN if turn.hidden else (turn.title(left), turn.title(right))


def _column(turn: Turn, side: Side, name: str, at: int, *, busy: bool, last: bool) -> str:
    said = turn.shown(side) or Said()
    other = turn.shown("tuned" if side == "base" else "base")
    kind = f"said {'left' if at == 0 else 'right'}" + ("" if turn.hidden else f" {side}")
    tools = "" if busy else _tools(turn, side, last=last)
    is_base = side == "base" and not turn.against
    lock = LOCK if is_base and not turn.hidden else ""
    return (
        f'<div role="group" class="{kind}" data-raw="{show.text(said.text)}" '
        f'aria-label="{show.text(name)}">'
        f"<h3>{show.text(name)}{lock}</h3>{_prose(said, other, busy=busy)}"
        f'<div class="answer-facts"><span>{_facts(said, busy=busy)}</span>{tools}</div>'
        "</div>"
    )


COPY = (
    '<svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true" fill="none" '
    'stroke="currentColor" stroke-width="1.4"><path d="M10.5 3.5v-1h-8v8h1"/>'
    '<rect x="5.5" y="5.5" width="8" height="8" rx="1"/></svg>'
)
LOCK = (
    '<span class="lock" title="The untouched base: the same weights, with the adapter switched '
    'off. A test compares it with a model that never saw an adapter.">'
    '<svg viewBox="0 0 16 16" width="12" height="12" aria-hidden="true" fill="currentColor">'
    '<path d="M4 7V5a4 4 0 0 1 8 0v2h1v8H3V7zm2 0h4V5a2 2 0 0 0-4 0z"/></svg> adapter off</span>'
)


def _prose(said: Said, other: Said | None, *, busy: bool) -> str:
    """The answer in Markdown, its thoughts folded, with what the other one lacks marked."""
    if not said.text:
        return f'<div class="prose waiting">{"…" if busy else "(nothing)"}</div>'
    found = split_thoughts(said.text)
    fold = ""
    if found.thoughts or not found.closed:
        title = "Thoughts" if found.closed else "Thinking …"
        fold = f"<details><summary>{title}</summary>{rendered(found.thoughts)}</details>"
    beside = split_thoughts(other.text).said if other and not busy else ""
    return f'<div class="prose">{fold}{rendered(found.said, beside)}</div>'


def _facts(said: Said, *, busy: bool) -> str:
    if busy or not said.tokens:
        return "" if busy or said.ended else "Stopped before the first token"
    rate = f" · {said.rate:.0f} tokens/s" if said.rate else ""
    cut = "" if said.ended else ", cut"
    how = f" · {show.text(said.how)}" if said.how else ""
    return f"{words.counted(said.tokens, 'token')}{cut}{rate}{how}"


def _tools(turn: Turn, side: Side, *, last: bool) -> str:
    """Copy; of the last turn also another answer, and the ones there are."""
    side_name = "left" if turn.sides.order[0] == side else "right"
    variants = turn.variants(side)
    parts = [_button("copy", "Copy this answer", COPY, side_name)]
    if len(variants) > 1:
        at = (turn.at_base if side == "base" else turn.at_tuned) + 1
        parts += [
            _button("before", "The answer before", "‹", side_name),
            f"<span>{at}/{len(variants)}</span>",
            _button("next", "The next answer", "›", side_name),
        ]
    if last and not turn.kept:
        parts.append(_button("again", "Another answer, with a new seed", "↻", side_name))
    return f'<span class="tools">{"".join(parts)}</span>'


def _button(do: str, title: str, mark: str, side: str = "") -> str:
    return (
        f'<button type="button" data-do="{do}" data-of="{side}" title="{title}" '
        f'aria-label="{title}">{mark}</button>'
    )


def game_line(
    talk: Talk, tally: Tally | None = None, places: Sequence[tuple[str, Place]] = ()
) -> str:
    """The ring and what was voted here, then what all visitors voted; empty before a vote.

    Args:
        tally: of all visitors, on two.
        places: of three, with what to call each.
    """
    parts, voted = [], [turn for turn in talk.turns if turn.vote]
    if voted:
        parts.append(f"{ring(talk)} {mine(voted)}")
    if tally is not None and tally.votes:
        parts.append(all_visitors(tally, talk.last.titles[1] if talk.last else "Tuned"))
    if any(place.decided for _, place in places):
        parts.append(standings(places))
    return f'<p class="tally">{" ".join(parts)}</p>' if parts else ""


def mine(voted: Sequence[Turn]) -> str:
    """`You preferred tuned 4 of 5.`, or of a tournament how often each one."""
    liked = [preferred(turn) for turn in voted if turn.vote in BOTH]
    if {turn.titles for turn in voted} == {voted[0].titles}:
        names = [preferred(replace(voted[0], vote="tuned"))]
    else:
        names = sorted(set(liked), key=lambda name: -liked.count(name)) or [voted[0].titles[1]]
    counts = ", ".join(f"<b>{show.text(name)}</b> {liked.count(name)}" for name in names)
    return f"You preferred {counts} of {len(voted)}."


def ring(talk: Talk) -> str:
    """The rounds of this game as a ring: a fifth for each, in the colour of its vote."""
    votes = talk.votes[-((len(talk.votes) - 1) % ROUNDS + 1) :] if talk.votes else []
    slots = [vote.replace(" ", "-") for vote in votes] + ["open"] * (ROUNDS - len(votes))
    length, gap = 100 / ROUNDS, 3
    arcs = "".join(
        f'<circle class="{kind}" cx="18" cy="18" r="15.9155" pathLength="100" '
        f'stroke-dasharray="{length - gap} {100 - length + gap}" '
        f'stroke-dashoffset="{25 - place * length - gap / 2}"/>'
        for place, kind in enumerate(slots)
    )
    kind = "ring done" if len(votes) == ROUNDS else "ring"
    return (
        f'<svg class="{kind}" viewBox="0 0 36 36" width="34" height="34" aria-hidden="true">{arcs}'
        f'<text x="18" y="22">{len(votes)}/{ROUNDS}</text></svg>'
    )


def all_visitors(tally: Tally, tuned: str = "Tuned") -> str:
    """`All visitors preferred tuned in 71 % (58 to 82 %) of 46 blind votes.`"""
    votes = words.counted(tally.votes, "blind vote")
    if tally.win_rate is None:
        return f"All visitors: {votes}, none for one side."
    low, high = tally.interval
    name = "tuned" if tuned == "Tuned" else show.text(tuned)
    rate = f"{100 * tally.win_rate:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"
    unsure = " That cannot tell them apart yet." if tally.verdict == "cannot tell" else ""
    return f"All visitors preferred {name} in {rate} of {votes}.{unsure}"


def standings(places: Sequence[tuple[str, Place]]) -> str:
    """Who leads a tournament: rounds won, of those with a winner."""
    lines = ", ".join(
        f"<b>{show.text(called)}</b> {place.won} of {place.decided}" for called, place in places
    )
    return f"All visitors, rounds won: {lines}."


def round_line(talk: Talk) -> str:
    """Which round of the game it is."""
    number = len(talk.votes) % ROUNDS + 1
    return f"<p>Round {number} of {ROUNDS}: which answer is better?</p>"
