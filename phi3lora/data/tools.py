"""Tools in conversations: what could be called, the calls, and what the tools answered.

    definitions(row["tools"])        # JSON, as Phi-4-mini's chat template takes it; "" for none
    calls(turn["tool_calls"])        # <|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>

A call is a part of the assistant's answer, between two marks of the model's own, in the form that
Phi-4-mini answers in (its model card, "Tool-enabled function-calling format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from phi3lora.data.conversation import Unusable

CALL, CALL_END = "<|tool_call|>", "<|/tool_call|>"
#: Names of turns that are calls, and of turns that are what a tool answered.
CALL_ROLES = frozenset(["tool_call", "tool_calls", "function_call", "function-call"])
RESULT_ROLES = frozenset(
    [
        "tool",
        "tool_response",
        "function",
        "function_response",
        "function-response",
        "observation",
        "ipython",
    ]
)


def definitions(value: Any) -> str:
    """What can be called, as JSON; empty where a row has no tools.

    A text that is no JSON is taken as it is, if it describes anything.
    """
    if isinstance(value, str):
        value = _read(value)
    if isinstance(value, str):
        return value.strip() if "{" in value else ""
    if isinstance(value, Mapping):
        value = [value]
    return _written(list(value)) if isinstance(value, list | tuple) and value else ""


def calls(value: Any) -> str:
    """Calls between the model's marks; empty where there are none.

    Raises:
        Unusable: a call does not name what it calls.
    """
    if isinstance(value, str):
        value = _read(value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list | tuple):
        value = _written([_call(one) for one in value]) if value else ""
    text = "" if value is None or value != value else str(value).strip()
    return f"{CALL}{text}{CALL_END}" if text else ""


def result(value: Mapping[str, Any]) -> str:
    """What a tool answered, as JSON."""
    return _written(value)


def _call(value: Any) -> dict[str, Any]:
    """One call as Phi-4-mini writes it, from OpenAI's form or its own."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not function.get("name"):
        raise Unusable("a call of a tool that is not named")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _read(arguments)
    return {"name": str(function["name"]), "arguments": {} if arguments is None else arguments}


def _read(text: str) -> Any:
    """JSON's value, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _written(value: Any) -> str:
    try:
        return json.dumps(_given(value), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise Unusable("tools that cannot be written as JSON") from None


def _given(value: Any) -> Any:
    """Without what is null: Arrow gives every tool the parameters of all others."""
    if isinstance(value, Mapping):
        return {str(name): _given(one) for name, one in value.items() if one is not None}
    return [_given(one) for one in value] if isinstance(value, list | tuple) else value
