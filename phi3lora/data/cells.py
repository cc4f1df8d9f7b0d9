"""What stands in a cell: text, turns, earlier turns, or a list that was written as text.

text_of(3), text_of([{"type": "text", "text": "Hi"}])
turns_in(row["messages"])                # the turns, or None where the cell holds none
messages_from(row["messages"], roles)    # the same as messages, or Unusable
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from typing import Any, cast, get_args

from phi3lora.data.conversation import PLAIN, TOOLS, Message, Role, Unusable, Writes
from phi3lora.data.tools import CALL_ROLES, RESULT_ROLES, calls, definitions, result
from phi3lora.thoughts import join_thoughts

LONGEST_LITERAL = 1 << 20  # characters of a list as Python prints it; ast needs 100 times as many

_NAMES: dict[Role, str] = {
    "system": "system developer system_prompt",
    "user": "user human prompter customer question instruction",
    "assistant": "assistant gpt chatgpt gpt4 gpt-4 bing bard claude model bot chatbot ai agent "
    "answer response",
}
ROLES: dict[str, Role] = {name: role for role, names in _NAMES.items() for name in names.split()}
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")


# Text


def text_of(value: Any) -> str:
    """A cell or a message's content as text: empty for None and NaN, numbers as written."""
    if isinstance(value, str):
        if not value.isascii() and not _encodable(value):
            raise Unusable("broken characters (half of a surrogate pair)")
        return value
    if value is None or value != value:  # NaN is the one value unlike itself
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "".join(_part(part) for part in value)
    raise Unusable(f"content is not text but {type(value).__name__}")


def _part(part: Any) -> str:
    """One part of `content: [{"type": "text", "text": …}]`; pictures and sounds have no place."""
    if isinstance(part, str):
        return text_of(part)
    if not isinstance(part, Mapping):
        raise Unusable(f"content is not text but a list of {type(part).__name__}")
    kind = part.get("type", "text")
    if kind != "text":
        raise Unusable(f"content has a part of type {str(kind)[:40]!r}")
    key = first_key(part, ("text", "value", "content"))
    return text_of(part[key]) if key else ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cell(row: Mapping[str, Any], columns: Mapping[str, str], part: str) -> str:
    """The text of one of our parts; empty where no column has it."""
    return text_of(row.get(columns[part])) if part in columns else ""


def list_in(value: Any) -> list[Any] | None:
    """A list, or one that is written into a cell, as JSON or as Python prints it."""
    if isinstance(value, str):
        value = _parsed(value)
    return list(value) if isinstance(value, list | tuple) else None


def _parsed(text: str) -> Any:
    if not text.lstrip().startswith("["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > LONGEST_LITERAL:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


# Turns

_SIDES = ("user", "assistant")


def turns_in(value: Any) -> list[Any] | None:
    """The turns in a cell: a list of objects that have a role, or the same written as text.

    A list of questions with their answers (`[{"input": …, "output": …}]`, Capybara's) is written
    out as turns.
    """
    turns = list_in(value)
    if not turns or not isinstance(turns[0], Mapping):
        return None
    if first_key(turns[0], ROLE_KEYS):
        return turns
    return _written_out(turns)


_PAIRS = (
    ("input", "output"),
    ("question", "answer"),
    ("prompt", "response"),
    ("human", "assistant"),
)


def _written_out(pairs: list[Any]) -> list[dict[str, Any]] | None:
    """Questions with their answers as turns; None where they are neither."""
    asked = next((names for names in _PAIRS if set(names) <= set(pairs[0])), None)
    if asked is None:
        return None
    return [
        {"role": role, "content": pair.get(name) if isinstance(pair, Mapping) else None}
        for pair in pairs
        for role, name in zip(("user", "assistant"), asked, strict=True)
    ]


def first_key(values: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of the names that has a value, else the first that is there."""
    names = [name for name in names if name in values]
    return next((name for name in names if values[name] is not None), names[0] if names else None)


def keys_of(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Under which names a turn has its role and its content: `("from", "value")`."""
    role, content = first_key(turn, ROLE_KEYS), first_key(turn, CONTENT_KEYS)
    return role or ROLE_KEYS[0], content or CONTENT_KEYS[0]


def messages_from(value: Any, roles: Mapping[str, str], writes: Writes = PLAIN) -> list[Message]:
    """Messages from a list of turns.

    Raises:
        Unusable: it is no such list, or a turn has no role that is known.
    """
    turns = list_in(value)
    if turns is None:
        raise Unusable("not a list of messages")
    if turns and isinstance(turns[0], Mapping):
        turns = turns_in(turns) or turns
    elif len(turns) > 1 and all(isinstance(turn, str) for turn in turns):  # as LIMA has them
        turns = [{"role": _SIDES[i % 2], "content": text} for i, text in enumerate(turns)]
    messages = [_message(turn, roles, writes) for turn in turns]
    # An empty system message is how many datasets say that there is none.
    return [m for m in messages if m["role"] != "system" or m["content"].strip() or "tools" in m]


def _message(turn: Any, roles: Mapping[str, str], writes: Writes) -> Message:
    if not isinstance(turn, Mapping):
        raise Unusable("a message is not an object")
    role_key, content_key = first_key(turn, ROLE_KEYS), first_key(turn, CONTENT_KEYS)
    if role_key is None:
        raise Unusable("a message without a role")
    name = str(turn[role_key])
    role, said = role_of(name, roles), turn[content_key] if content_key else ""
    if role == "tool":
        message = _tool_turn(name, roles, said, writes)
    else:
        message = {"role": role, "content": text_of(said)}
    if len(turn) == 2:  # the usual case: nothing else can be said of it
        return message
    return _with_remarks(turn, message, writes)


def role_of(name: str, roles: Mapping[str, str]) -> Role:
    """Our role for a row's name of one. Unusable where there is none."""
    role = roles.get(name) or roles.get(name.lower()) or ROLES.get(name.strip().lower())
    if role in get_args(Role):
        return cast(Role, role)
    if name.strip().lower() in CALL_ROLES | RESULT_ROLES:
        return "tool"
    raise Unusable(f"unknown role {name[:40]!r}")


def _tool_turn(name: str, roles: Mapping[str, str], said: Any, writes: Writes) -> Message:
    """A turn that calls a tool, which is the assistant's, or what a tool answered."""
    if not writes.tools:
        raise Unusable(TOOLS)
    if name not in roles and name.strip().lower() in CALL_ROLES:
        return {"role": "assistant", "content": calls(said)}
    return {"role": "tool", "content": result(said) if isinstance(said, Mapping) else text_of(said)}


def _with_remarks(turn: Mapping[str, Any], message: Message, writes: Writes) -> Message:
    """What a turn says about itself: calls of tools, reasoning before the answer, a weight."""
    called = next((turn[name] for name in _CALLS if turn.get(name)), None)
    tools = definitions(turn.get("tools")) if message["role"] == "system" else ""
    if (called is not None or tools) and not writes.tools:
        raise Unusable(TOOLS)
    if tools:
        message["tools"] = tools
    if message["role"] != "assistant":
        return message
    if called is not None:
        message["content"] += calls(called)
    thoughts = next((turn[name] for name in THOUGHTS if turn.get(name)), None)
    if thoughts is not None and writes.thoughts:
        message["content"] = join_thoughts(text_of(thoughts), message["content"])
    if is_zero(turn.get("weight")):
        message["weight"] = 0
    return message


def is_zero(weight: Any) -> bool:
    """`weight: 0`, which marks a turn that is not learnt, however it was written."""
    return not isinstance(weight, bool) and weight in (0, "0", "0.0")


def has_thoughts(value: Any) -> bool:
    """Whether a turn of this cell holds reasoning apart from its answer."""
    turns = turns_in(value) or ()
    return any(turn.get(name) for turn in turns if isinstance(turn, Mapping) for name in THOUGHTS)


def earlier_turns(value: Any, roles: Mapping[str, str]) -> list[Message]:
    """Turns before a question: `[["question", "answer"], …]`, or a list of messages.

    Raises:
        Unusable: it is neither.
    """
    if isinstance(value, str) and not value.strip():
        return []
    pairs = list_in(value)
    if value is None or value != value or pairs == []:
        return []
    if turns_in(pairs):
        return messages_from(pairs, roles)
    messages: list[Message] = []
    for pair in pairs or [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unusable("the history is not a list of questions and answers")
        messages.append({"role": "user", "content": text_of(pair[0])})
        messages.append({"role": "assistant", "content": text_of(pair[1])})
    return messages
