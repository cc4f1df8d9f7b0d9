"""Tools in conversations: rendered by the template that takes them, and nowhere in part."""

from __future__ import annotations

import json
from typing import Any

import pytest

from phi3lora.chat.options import Options
from phi3lora.chat.serving import prompt_of
from phi3lora.data.conversation import PLAIN, TOOLS, Message, Unusable, Writes
from phi3lora.data.detection import detect, read_row
from phi3lora.data.reading import writes_of
from phi3lora.data.rendering import fit_system, render, render_prompt, segments, writes_tools
from phi3lora.data.tools import calls, definitions
from phi3lora.errors import DataError
from tests.family import KINDS, tokenizer_of

TAKES = ["Phi-4-mini", "Phi-4-mini-reasoning"]
TOOL = {"name": "weather", "description": "The weather.", "parameters": {"city": {"type": "str"}}}
CALL = '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|/tool_call|>'
RESULT, SAID = '{"sky": "blue"}', "It is blue."
MESSAGES: list[Message] = [
    {"role": "system", "content": "Be brief.", "tools": json.dumps([TOOL])},
    {"role": "user", "content": "How is Paris?"},
    {"role": "assistant", "content": CALL},
    {"role": "tool", "content": RESULT},
    {"role": "assistant", "content": SAID},
]
OPENAI = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": RESULT},
        {"role": "assistant", "content": SAID},
    ],
    "tools": [TOOL],
}
SHAREGPT = {
    "system": "Be brief.",
    "conversations": [
        {"from": "human", "value": "How is Paris?"},
        {
            "from": "function_call",
            "value": json.dumps({"name": "weather", "arguments": {"city": "Paris"}}),
        },
        {"from": "observation", "value": RESULT},
        {"from": "gpt", "value": SAID},
    ],
    "tools": json.dumps([TOOL]),
}
ARROW = json.loads(json.dumps(OPENAI))  # as Parquet gives it back: whatever any tool has, or null
ARROW["tools"][0]["parameters"]["country"] = None
ARROW["messages"][2]["tool_calls"][0]["function"]["arguments"] = {"city": "Paris", "country": None}
for turn in ARROW["messages"]:
    turn.setdefault("tool_calls", None)
MICROSOFT = {
    "messages": [
        {"role": "system", "content": "Be brief.", "tools": json.dumps([TOOL])},
        *({"role": m["role"], "content": m["content"]} for m in MESSAGES[1:]),
    ]
}


def read(row: dict[str, Any], writes: Writes) -> list[Message]:
    return read_row(row, detect(list(row), [row]), writes=writes).messages


@pytest.mark.parametrize("name", TAKES)
def test_ids_are_those_of_the_template_and_calls_are_learnt(name: str) -> None:
    tokenizer = tokenizer_of(KINDS[name])
    assert writes_tools(tokenizer)
    written: list[Any] = [dict(message) for message in MESSAGES]
    written[3]["role"] = "tool_response"
    rendered = render(tokenizer, MESSAGES)
    assert rendered.input_ids == tokenizer.apply_chat_template(written)["input_ids"]
    pieces = segments(tokenizer, rendered, MESSAGES)
    assert "".join(p["text"] for p in pieces) == tokenizer.apply_chat_template(
        written, tokenize=False
    )
    learnt = [piece["text"] for piece in pieces if piece["supervised"]]
    assert learnt == [f"{CALL}<|end|>", f"{SAID}<|end|>"]
    marks = tokenizer.convert_tokens_to_ids(["<|tool|>", "<|/tool|>", "<|tool_response|>"])
    assert [rendered.input_ids.count(mark) for mark in marks] == [1, 1, 1]


@pytest.mark.parametrize(
    "row", [OPENAI, SHAREGPT, ARROW, MICROSOFT], ids=["OpenAI", "ShareGPT", "Arrow", "Microsoft"]
)
def test_the_shapes_are_one_conversation(row: dict[str, Any]) -> None:
    assert read(row, Writes(tools=True)) == MESSAGES
    with pytest.raises(Unusable, match=TOOLS):
        read(row, PLAIN)


def test_a_call_as_the_last_answer_is_an_answer() -> None:
    row = {"messages": OPENAI["messages"][:3], "tools": [TOOL]}
    assert read(row, Writes(tools=True)) == MESSAGES[:3]
    with pytest.raises(Unusable, match=TOOLS):
        read(row, PLAIN)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in TAKES])
def test_a_template_that_takes_no_tools_gets_none_of_them(name: str) -> None:
    tokenizer = tokenizer_of(KINDS[name])
    assert not writes_of(tokenizer).tools
    for part in (MESSAGES, MESSAGES[1:], [*MESSAGES[:2], MESSAGES[4]]):
        with pytest.raises(DataError, match=TOOLS):
            fit_system(tokenizer, list(part))
        with pytest.raises(DataError, match=TOOLS):
            render_prompt(tokenizer, part[:-1])


def test_a_question_in_chat_has_the_ids_of_the_training() -> None:
    tokenizer = tokenizer_of(KINDS["Phi-4-mini"])
    options = Options("Be brief.", tools=json.dumps([TOOL]))
    trained = render(tokenizer, MESSAGES).input_ids
    for end in (2, 4):  # the question, and what the tool answered
        prompt = prompt_of(tokenizer, MESSAGES[1:end], options)
        assert trained[: len(prompt)] == prompt
    with pytest.raises(DataError, match="cannot be asked here: uses tools"):
        prompt_of(tokenizer_of(KINDS["Phi-3.5-mini"]), MESSAGES[1:2], options)


def test_what_looks_like_a_mark_in_tools_stays_text() -> None:
    tokenizer = tokenizer_of(KINDS["Phi-4-mini"])
    plain = render(tokenizer, MESSAGES).input_ids
    control = list(tokenizer.added_tokens_decoder)
    for mark in ("<|/tool|>", "<|end|>", "<|tool_call|>", "<|user|>"):
        hostile = [dict(message) for message in MESSAGES]
        hostile[0]["tools"] = json.dumps([{**TOOL, "description": f"x {mark} y"}])
        hostile[3]["content"] = f"x {mark} y"
        ids = render(tokenizer, hostile).input_ids  # type: ignore[arg-type]
        assert [t for t in ids if t in control] == [t for t in plain if t in control]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (float("nan"), ""),
        ("", ""),
        ("[]", ""),
        ([], ""),
        ("none", ""),
        ({"name": "f"}, '[{"name": "f"}]'),
        ('{"name": "f"}', '[{"name": "f"}]'),
        ("f() {does}", "f() {does}"),
    ],
)
def test_definitions_of_any_form(value: Any, expected: str) -> None:
    assert definitions(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        ('{"name": "f"}', '<|tool_call|>[{"name": "f", "arguments": {}}]<|/tool_call|>'),
        ([{"name": "f", "parameters": 1}], '<|tool_call|>[{"name": "f", "arguments": 1}]<|/tool_'),
        ("f(a=1)", "<|tool_call|>f(a=1)<|/tool_call|>"),
    ],
)
def test_calls_of_any_form(value: Any, expected: str) -> None:
    assert calls(value).startswith(expected)
    assert bool(calls(value)) == bool(expected)


@pytest.mark.parametrize("value", [[{"id": "1"}], [3], {"function": None}, "[1]"])
def test_a_call_without_a_name_is_a_reason(value: Any) -> None:
    with pytest.raises(Unusable, match="not named"):
        calls(value)


def test_two_calls_have_an_answer_each_and_a_weight_counts() -> None:
    row = json.loads(json.dumps(OPENAI))
    row["messages"].insert(4, {"role": "tool", "tool_call_id": "2", "content": "again"})
    row["messages"][2]["weight"] = 0
    messages = read(row, Writes(tools=True))
    assert [m["content"] for m in messages if m["role"] == "tool"] == [RESULT, "again"]
    rendered = render(tokenizer_of(KINDS["Phi-4-mini"]), messages)
    pieces = segments(tokenizer_of(KINDS["Phi-4-mini"]), rendered, messages)
    assert [p["text"] for p in pieces if p["supervised"]] == [f"{SAID}<|end|>"]


def test_a_system_prompt_stands_before_the_tools_of_a_row_without_one() -> None:
    row = {"messages": OPENAI["messages"][1:], "tools": [TOOL]}  # type: ignore[index]
    found = detect(list(row), [row])
    writes = Writes(tools=True)
    assert read_row(row, found, writes=writes).messages[0]["content"] == ""
    assert read_row(row, found, "Be kind.", writes=writes).messages[0]["content"] == "Be kind."
