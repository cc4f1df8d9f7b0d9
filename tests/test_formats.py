"""Rows of each shape become the conversations that their authors meant, or say why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from phi3lora.data.conversation import TRIMMED, Detected, Message, Unusable
from phi3lora.data.detection import detect, read_row
from phi3lora.errors import DataError

HI: list[Any] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def detected(*rows: dict[str, Any], **chosen: Any) -> Detected:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return detect(columns, rows, **chosen)


def said(messages: list[Message]) -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in messages]


def read(row: dict[str, Any], system_prompt: str | None = None, **chosen: Any) -> list[str]:
    return said(read_row(row, detected(row, **chosen), system_prompt).messages)


@pytest.mark.parametrize(
    ("row", "format", "columns"),
    [
        ({"messages": HI}, "messages", {"messages": "messages"}),
        ({"messages": json.dumps(HI)}, "messages", {"messages": "messages"}),
        ({"messages": str(HI)}, "messages", {"messages": "messages"}),
        ({"my turns": HI, "id": 3}, "messages", {"messages": "my turns"}),
        ({"prompt": "Hi", "prompt_id": "0", "messages": HI}, "messages", {"messages": "messages"}),
        ({"conversations": SHARED}, "conversations", {"messages": "conversations"}),
        ({"conversations": HI}, "messages", {"messages": "conversations"}),
        (
            {"instruction": "Hi", "input": "", "output": "Hello", "prompt": "### Instruction"},
            "instruction",
            {"instruction": "instruction", "input": "input", "output": "output"},
        ),
        (
            {"instruction": "Hi", "context": "", "response": "Hello", "category": "x"},
            "instruction",
            {"instruction": "instruction", "input": "context", "output": "response"},
        ),
        (
            {"prompt": "Hi", "completion": "Hello"},
            "prompt_completion",
            {"prompt": "prompt", "completion": "completion"},
        ),
        (
            {"prompt": HI[:1], "completion": HI[1:]},
            "prompt_completion",
            {"prompt": "prompt", "completion": "completion"},
        ),
        (
            {"input": "Hi", "output": "Hello"},
            "prompt_completion",
            {"prompt": "input", "completion": "output"},
        ),
        (
            {"Question": "Hi", "Answer": "Hello", "n": 1},
            "question_answer",
            {"question": "Question", "answer": "Answer"},
        ),
        ({"text": "<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"}, "text", {"text": "text"}),
        ({"text": "### Human: Hi### Assistant: Hello"}, "text", {"text": "text"}),
        (
            {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>"},
            "text",
            {"text": "text"},
        ),
    ],
)
def test_detection(row: dict[str, Any], format: str, columns: dict[str, str]) -> None:
    found = detected(row)
    assert (found.format, found.columns) == (format, columns)
    assert said(read_row(row, found).messages) == ["user: Hi", "assistant: Hello"]
    assert all(repr(column) in found.reason for column in columns.values())
    assert found.reason.endswith(".")


def test_an_empty_first_row_does_not_hide_the_format() -> None:
    assert detected({"messages": None}, {"messages": []}, {"messages": HI}).format == "messages"


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert read(row) == ["user: Add.\n\n1 2", "assistant: 3"]
    assert read({**row, "input": " \n"}) == ["user: Add.", "assistant: 3"]
    assert read({**row, "input": None}) == ["user: Add.", "assistant: 3"]


def test_plain_text_is_an_answer_that_nothing_precedes() -> None:
    row = {"text": "Once upon a time."}
    assert read(row) == ["assistant: Once upon a time."]
    assert "no prompt precedes" in detected(row).reason
    assert read({"lines": "Once."}) == ["assistant: Once."]


def test_an_alpaca_transcript() -> None:
    text = "Below is a task.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3"
    assert read({"text": text}) == ["system: Below is a task.", "user: Add.\n\n1 2", "assistant: 3"]


@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("human", "gpt"),
        ("user", "chatgpt"),
        ("Human", "bing"),
        ("prompter", "bard"),
        ("USER", "model"),
    ],
)
def test_role_names_in_use(user: str, assistant: str) -> None:
    turns = [{"from": "system", "value": "S"}, {"from": user, "value": "Hi"}]
    row = {"conversations": [*turns, {"from": assistant, "value": "Hello"}]}
    assert read(row) == ["system: S", "user: Hi", "assistant: Hello"]
    assert detected(row).roles == {"system": "system", user: "user", assistant: "assistant"}


def test_other_role_names_are_told_and_can_be_mapped() -> None:
    row = {"chat": [{"speaker": "Guest", "text": "Hi"}, {"speaker": "Host", "text": "Hello"}]}
    with pytest.raises(Unusable, match="unknown role 'Guest'"):
        read(row)
    roles = {"Guest": "user", "Host": "assistant"}
    assert read(row, roles=roles) == ["user: Hi", "assistant: Hello"]
    assert read(row, roles={"guest": "user", "Host": "assistant", "unused": "system"} | roles)
    assert read({"messages": HI}, roles={"user": "assistant", "assistant": "user"}) == [
        "assistant: Hi"
    ]


def test_columns_can_be_chosen() -> None:
    row = {"a": "Hi", "b": "Hello", "output": "no"}
    assert read(row, mapping={"prompt": "a", "completion": "b"}) == ["user: Hi", "assistant: Hello"]
    assert read(row, mapping={"answer": "b", "question": "a"}) == ["user: Hi", "assistant: Hello"]
    assert detected(row, mapping={"prompt": "a"}).columns["completion"] == "output"
    assert read({"t": "Hi", "u": "x"}, mapping={"text": "t"}) == ["assistant: Hi"]
    assert read(
        {"x": HI, "messages": SHARED, "s": "S"}, mapping={"messages": "x", "system": "s"}
    ) == [
        "system: S",
        "user: Hi",
        "assistant: Hello",
    ]


def test_a_chosen_format_wins_over_what_detection_would_say() -> None:
    row = {"messages": HI, "prompt": "P", "completion": "C"}
    assert read(row, format="prompt_completion") == ["user: P", "assistant: C"]
    assert "You chose" in detected(row, format="prompt_completion").reason


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({}, "the columns are 'a', 'b'. Expected messages, or role and content, or quest"),
        (
            {"format": "instruction"},
            "format 'instruction': the columns are 'a', 'b'. Expected inst",
        ),
        (
            {"mapping": {"prompt": "z"}},
            "column 'z', which does not exist; the columns are 'a', 'b'",
        ),
        ({"mapping": {"foo": "a"}}, "'foo' is not a part of any format; expected one of messages,"),
        ({"mapping": {"prompt": "a"}}, "with 'prompt' given: the columns are 'a', 'b'"),
    ],
)
def test_what_does_not_fit_says_what_would(chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as told:
        detected({"a": "1", "b": "2"}, **chosen)
    assert words in str(told.value)


A: Any = {"role": "assistant", "content": "A"}
U: Any = {"role": "user", "content": "U"}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([U], "no assistant answer"),
        ([], "no assistant answer"),
        (None, "not a list of messages"),
        ("words", "not a list of messages"),
        ([3], "a message is not an object"),
        ([{"content": "x"}], "a message without a role"),
        ([U, {"role": "assistant", "content": " \n"}], "empty answer"),
        (
            [U, {"role": "assistant", "content": None, "tool_calls": [1]}],
            "uses tools, which the chat",
        ),
        ([{"role": "user", "content": ""}, A], "empty prompt"),
        ([U, {"role": "tool", "content": "x"}, A], "uses tools, which the chat"),
        ([U, U, A], "two user messages in a row"),
        ([U, A, A], "two assistant messages in a row"),
        ([U, {"role": "assistant", "content": {"x": 1}}], "content is not text but dict"),
        (
            [{"role": "user", "content": [{"type": "image"}]}, A],
            "content has a part of type 'image'",
        ),
        ([U, {"role": "assistant", "content": "\ud83d"}], "broken characters"),
    ],
)
def test_rows_that_cannot_be_used_say_why(turns: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_row({"messages": turns}, detected({"messages": HI}), join=False)


@pytest.mark.parametrize("answer", ["", None, float("nan"), "  "])
def test_pairs_without_an_answer(answer: Any) -> None:
    with pytest.raises(Unusable, match="empty answer"):
        read({"prompt": "Hi", "completion": answer})


def test_numbers_are_answers_too() -> None:
    assert read({"question": "1+1", "answer": 2}) == ["user: 1+1", "assistant: 2"]
    assert read({"question": "1/2", "answer": 0.5}) == ["user: 1/2", "assistant: 0.5"]


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"text": "lo"}, "!"]
    assert (
        read({"messages": [U, {"role": "assistant", "content": parts}]})[1] == "assistant: Hello!"
    )


def test_turns_after_the_last_answer_are_left_out_and_counted() -> None:
    row = {"messages": [U, A, U]}
    conversation = read_row(row, detected(row))
    assert said(conversation.messages) == ["user: U", "assistant: A"]
    assert conversation.changes == (TRIMMED,)


def test_system_prompts() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert read({"messages": [system, *HI]}, "Be kind.")[0] == "system: Be brief."
    assert read({"messages": HI}, "Be kind.")[0] == "system: Be kind."
    assert read({"messages": [{"role": "system", "content": ""}, *HI]})[0] == "user: Hi"
    row = {"system_prompt": "Own.", "question": "Hi", "response": "Hello"}
    assert read(row, "Be kind.") == ["system: Own.", "user: Hi", "assistant: Hello"]
    assert read({**row, "system_prompt": ""}, "Be kind.")[0] == "system: Be kind."


def test_arrow_fills_missing_keys_with_none_which_means_absent() -> None:
    turn = {"role": None, "from": "human", "content": None, "value": "Hi"}
    other = {"role": None, "from": "gpt", "content": None, "value": "Hello"}
    assert read({"turns": [turn, other]}) == ["user: Hi", "assistant: Hello"]
