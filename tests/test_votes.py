"""The blind mode's votes: who won, once for each pair, whatever is in the file."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from phi3lora.chat import votes
from phi3lora.chat.votes import Tally, Vote, VoteBook
from phi3lora.errors import RunError


@pytest.fixture
def book(tmp_path: Path) -> VoteBook:
    return VoteBook(tmp_path / "new" / "votes.jsonl")


def test_a_side_wins_by_who_stood_there(book: VoteBook) -> None:
    book.record(Vote("pirate", "1", "left", left="tuned"))
    book.record(Vote("pirate", "2", "right", left="tuned"))
    book.record(Vote("pirate", "3", "right", left="base"))
    book.record(Vote("pirate", "4", "left", left="base"))
    book.record(Vote("pirate", "5", "right", left="base"))
    book.record(Vote("pirate", "6", "tie", left="base"))
    book.record(Vote("pirate", "7", "both bad", left="tuned"))
    assert book.tally("pirate") == Tally(tuned=3, base=2, ties=1, both_bad=1)
    assert book.tally("pirate").win_rate == 0.6
    assert book.tally("pirate").votes == 7


def test_adapters_are_counted_apart(book: VoteBook) -> None:
    book.record(Vote("pirate", "1", "left", left="tuned"))
    book.record(Vote("poet", "1", "left", left="base"))
    assert book.tally("pirate").win_rate == 1
    assert book.tally("poet").win_rate == 0
    assert book.tally("nobody") == Tally()
    assert book.tally("nobody").win_rate is None


def test_a_pair_has_one_vote(book: VoteBook) -> None:
    book.record(Vote("pirate", "1", "left", left="tuned"))
    with pytest.raises(RunError, match="voted on already"):
        book.record(Vote("pirate", "1", "right", left="tuned"))
    assert book.tally("pirate") == Tally(tuned=1)


def test_a_choice_that_there_is_not_is_refused(book: VoteBook) -> None:
    with pytest.raises(RunError, match="expected left, right, tie, both bad, got 'up'"):
        book.record(Vote("pirate", "1", "up", left="tuned"))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="left 'me'"):
        book.record(Vote("pirate", "1", "left", left="me"))  # type: ignore[arg-type]
    assert book.tally("pirate").votes == 0


def test_broken_lines_cost_nothing_but_themselves(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    good = {"adapter": "pirate", "pair": "1", "choice": "left", "left": "tuned"}
    lines = [
        json.dumps(good),
        "no json",
        "[1, 2]",
        '{"adapter": "pirate"}',
        json.dumps({**good, "pair": "2", "choice": "up"}),
        json.dumps(good),  # a second vote on the same pair
        "\xff\xfe",
        json.dumps({**good, "pair": "3"})[:-4],  # a crash cut it short: no newline
    ]
    path.write_bytes("\n".join(lines).encode("latin-1"))
    book = VoteBook(path)
    assert book.tally("pirate") == Tally(tuned=1)
    book.record(Vote("pirate", "4", "right", left="tuned", prompt="Größe?"))
    assert book.tally("pirate") == Tally(tuned=1, base=1)
    assert json.loads(path.read_bytes().splitlines()[-1])["prompt"] == "Größe?"
    again = VoteBook(path)
    assert again.tally("pirate") == Tally(tuned=1, base=1)


def test_a_vote_costs_what_was_written_since(
    book: VoteBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        book.record(Vote("pirate", str(number), "left", left="tuned"))
    other = VoteBook(book._path)  # another process
    assert other.tally("pirate").tuned == 50
    book.record(Vote("pirate", "new", "tie", left="tuned"))
    parsed: list[bytes] = []
    known = votes._parse
    monkeypatch.setattr(votes, "_parse", lambda line: parsed.append(line) or known(line))
    assert other.tally("pirate") == Tally(tuned=50, ties=1)
    assert len(parsed) == 1
    with pytest.raises(RunError, match="voted on already"):
        other.record(Vote("pirate", "new", "left", left="tuned"))


def test_many_voters_at_once(book: VoteBook) -> None:
    def vote(number: int) -> None:
        try:
            book.record(Vote("pirate", str(number % 10), "left", left="tuned"))
        except RunError:
            refused.append(number)

    refused: list[int] = []
    voters = [threading.Thread(target=vote, args=(number,)) for number in range(30)]
    for voter in voters:
        voter.start()
    for voter in voters:
        voter.join()
    assert book.tally("pirate") == Tally(tuned=10)
    assert len(refused) == 20
