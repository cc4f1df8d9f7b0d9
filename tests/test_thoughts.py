"""Thoughts apart from answers: split, joined again, folded on the page."""

from __future__ import annotations

import pytest

from phi3lora.thoughts import Answer, join_thoughts, split_thoughts
from phi3lora.ui import show


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Four.", Answer("", "Four.")),
        ("<think>\nTwo.\n</think>\n\nFour.", Answer("Two.", "Four.")),
        ("\n<think>Two</think>Four.", Answer("Two", "Four.")),
        ("<think>\nTwo and", Answer("Two and", "", closed=False)),
        ("<think>", Answer("", "", closed=False)),
        ("<think></think>Four.", Answer("", "Four.")),
        ("So: <think>Two</think>", Answer("", "So: <think>Two</think>")),
        ("", Answer("", "")),
    ],
)
def test_thoughts_are_split_from_the_answer(text: str, expected: Answer) -> None:
    assert split_thoughts(text) == expected


def test_joined_thoughts_are_what_is_split_again() -> None:
    assert split_thoughts(join_thoughts("Two.", "Four.")) == Answer("Two.", "Four.")
    assert join_thoughts("", "Four.") == "Four."


def test_a_report_folds_thoughts_and_shows_the_answer() -> None:
    assert show.answer("a < b") == "<p>a &lt; b</p>"
    shown = show.answer("<think>\n<i>Two\n</think>\n\nFour.")
    assert shown == (
        "<details><summary>Thoughts</summary><p>&lt;i&gt;Two</p></details><p>Four.</p>"
    )
