"""Thoughts apart from answers: split, joined again, folded on the page."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from phi3lora.thoughts import Answer, join_thoughts, split_thoughts
from phi3lora.ui import show
from phi3lora.ui.compare_show import THOUGHTS, escaped, plain


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


@pytest.mark.parametrize(
    "said",
    [
        "Four.",
        "<think>\na < b & <i>c</i>\n</think>\n\n<b>Four</b>.",
        "<think>\nStopped in the mid",
    ],
)
def test_the_page_folds_thoughts_and_gives_the_conversation_back(said: str) -> None:
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": "<think>two?"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "Why?"},
    ]
    shown = escaped(talk)
    folds = [message for message in shown if "metadata" in message]
    assert len(folds) == ("think" in said)
    for fold in folds:
        closed = split_thoughts(said).closed
        assert fold["metadata"] == {"title": THOUGHTS, "status": "done" if closed else "pending"}
    sent = gr.Chatbot().postprocess(shown).model_dump()
    back = plain(sent)
    assert [message["content"] for message in back[::2]] == ["<think>two?", "Why?"]
    assert split_thoughts(back[1]["content"]) == split_thoughts(said)


def test_a_report_folds_thoughts_and_shows_the_answer() -> None:
    assert show.answer("a < b") == "<p>a &lt; b</p>"
    shown = show.answer("<think>\n<i>Two\n</think>\n\nFour.")
    assert shown == (
        "<details><summary>Thoughts</summary><p>&lt;i&gt;Two</p></details><p>Four.</p>"
    )
