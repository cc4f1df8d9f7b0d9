"""Rows of any common shape → conversations: lists of messages.

    detected = detect(columns, rows)                # which shape, and why
    messages = to_messages(row, detected)           # or Unusable, with the reason

Six shapes are known: `messages` (role/content), ShareGPT `conversations` (from/value),
`instruction` (Alpaca), `prompt_completion`, `question_answer` and `text`. What detection gets
wrong is put right by naming columns and roles: `columns={"prompt": "Question"}`,
`roles={"Bot": "assistant"}`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypedDict, cast, get_args

from phi3lora.errors import DataError

Role = Literal["system", "user", "assistant"]
Row = Mapping[str, Any]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


class Unusable(Exception):
    """A row that cannot be trained on; `str(error)` is the reason that is counted."""


@dataclass(frozen=True)
class Detected:
    """How rows hold conversations.

    Attributes:
        format: one of the six shapes.
        columns: our name → the rows' column.
        roles: the rows' role names → ours; empty where the shape has none.
        reason: one sentence that says why.
    """

    format: str
    columns: dict[str, str]
    roles: dict[str, str]
    reason: str


@dataclass(frozen=True)
class Conversation:
    """A usable row; `trimmed` counts the turns after its last answer, which teach nothing."""

    messages: list[Message]
    trimmed: int = 0


@dataclass(frozen=True)
class Shape:
    """Names under which a format's parts are found, most usual first."""

    required: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]
    meaning: str


_SYSTEM = {"system": ("system", "system_prompt", "system_message")}
_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_TURNS = Shape({"messages": _LISTS}, _SYSTEM, "a list of turns a row")
SHAPES: dict[str, Shape] = {
    "messages": _TURNS,
    "conversations": _TURNS,
    "instruction": Shape(
        {
            "instruction": ("instruction", "instructions"),
            "output": ("output", "response", "completion", "answer", "target"),
        },
        {"input": ("input", "context"), **_SYSTEM},
        "an instruction and its answer a row",
    ),
    "prompt_completion": Shape(
        {
            "prompt": ("prompt", "input", "user", "human"),
            "completion": ("completion", "response", "output", "answer", "assistant", "target"),
        },
        _SYSTEM,
        "a prompt and its answer a row",
    ),
    "question_answer": Shape(
        {
            "question": ("question", "query", "problem", "q"),
            "answer": ("answer", "response", "solution", "reply", "output", "answers", "a"),
        },
        _SYSTEM,
        "a question and its answer a row",
    ),
    "text": Shape({"text": ("text", "content", "document", "transcript")}, _SYSTEM, "plain text"),
}
FIELDS = tuple(dict.fromkeys(key for s in SHAPES.values() for key in (*s.required, *s.optional)))

_NAMES: dict[Role, str] = {
    "system": "system developer system_prompt",
    "user": "user human prompter customer question instruction",
    "assistant": "assistant gpt chatgpt gpt4 gpt-4 bing bard claude model bot chatbot ai agent "
    "answer response",
}
ROLES: dict[str, Role] = {name: role for role, names in _NAMES.items() for name in names.split()}
_ROLE_KEYS = ("role", "from", "speaker", "author")
_CONTENT_KEYS = ("content", "value", "text", "message")


# Detection


def detect(
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
) -> Detected:
    """Say how rows hold conversations, from their columns and the first few of them.

    Args:
        columns: the columns that exist.
        rows: a handful of rows; a look at their values settles what names cannot.
        format: one of the six shapes, or `auto`.
        mapping: our name → column, where detection is wrong.
        roles: the rows' role names → ours, where they are not in use elsewhere.

    Raises:
        DataError: nothing fits, or the mapping names a column that does not exist.
    """
    mapping = dict(mapping or {})
    _check_mapping(mapping, columns)
    for name in _candidates(format, mapping):
        found = _match(name, columns, rows, mapping, chosen=format == name)
        if found:
            chosen = _turn_format(name, rows, found) if format == "auto" else name
            heard = _roles_in(rows, found.get("messages"), roles or {})
            return Detected(chosen, found, heard, _reason(chosen, found, rows, mapping, format))
    raise DataError(_nothing_fits(columns, rows, format, mapping))


def _check_mapping(mapping: Mapping[str, str], columns: Sequence[str]) -> None:
    for name, column in mapping.items():
        if name not in FIELDS:
            raise DataError(
                f"data.columns: {name!r} is not a part of any format; expected one of "
                f"{', '.join(FIELDS)}."
            )
        if column not in columns:
            raise DataError(
                f"data.columns: {name} should be read from the column {column!r}, which does not "
                f"exist; the columns are {_names(columns)}."
            )


def _candidates(format: str, mapping: Mapping[str, str]) -> list[str]:
    """Formats to try, in order: all, the chosen one, or those that have what the mapping names."""
    if format != "auto":
        return [format]
    names = [name for name in SHAPES if name != "conversations"]
    if not mapping:
        return names
    return [n for n in names if set(mapping) <= {*SHAPES[n].required, *SHAPES[n].optional}]


def _match(
    name: str, columns: Sequence[str], rows: Sequence[Row], mapping: Mapping[str, str], chosen: bool
) -> dict[str, str] | None:
    """Our names → columns, or None where a required part is missing."""
    shape = SHAPES[name]
    by_name = {column.strip().lower(): column for column in columns}
    found = dict(mapping)
    for part, aliases in {**shape.required, **shape.optional}.items():
        named = (by_name[alias] for alias in aliases if alias in by_name)
        column = next((column for column in named if column not in found.values()), None)
        if part not in found and column:
            found[part] = column
    if "messages" in shape.required and "messages" not in mapping:
        found = _with_turns(found, columns, rows, chosen)
    if name == "text" and "text" not in found and len(columns) == 1:
        found["text"] = columns[0]
    return found if set(shape.required) <= set(found) else None


def _with_turns(
    found: dict[str, str], columns: Sequence[str], rows: Sequence[Row], chosen: bool
) -> dict[str, str]:
    """`found` with the column that holds turns; values decide, the name only breaks a tie."""
    holding = [column for column in columns if any(turns_in(row.get(column)) for row in rows)]
    named = found.pop("messages", None)
    if named in holding or (chosen and named):
        return {"messages": str(named), **found}
    return {"messages": holding[0], **found} if len(holding) == 1 else found


def turns_in(value: Any) -> list[Any] | None:
    """The turns in a cell: a list of objects that have a role, or the same written as text."""
    turns = _parsed(value) if isinstance(value, str) else value
    if not isinstance(turns, list | tuple) or not turns or not isinstance(turns[0], Mapping):
        return None
    return list(turns) if _key(turns[0], _ROLE_KEYS) else None


def _parsed(text: str) -> Any:
    """A list written into a cell, as JSON or as Python prints it; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _key(turn: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of the names that the turn has a value for, else the first that it has."""
    names = [name for name in names if name in turn]
    return next((name for name in names if turn[name] is not None), names[0] if names else None)


def keys_of(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Under which names a turn has its role and its content: `("from", "value")`."""
    role, content = _key(turn, _ROLE_KEYS), _key(turn, _CONTENT_KEYS)
    return role or _ROLE_KEYS[0], content or _CONTENT_KEYS[0]


def _turn_format(name: str, rows: Sequence[Row], found: Mapping[str, str]) -> str:
    """`conversations` where turns are from/value, `messages` where they are role/content."""
    if name != "messages":
        return name
    turn = _first_turn(rows, found["messages"])
    return "conversations" if _key(turn, _ROLE_KEYS) == "from" else "messages"


def _first_turn(rows: Sequence[Row], column: str) -> Mapping[str, Any]:
    """The first turn there is; an empty one where no row has any."""
    return next((turns[0] for row in rows if (turns := turns_in(row.get(column)))), {})


def _roles_in(rows: Sequence[Row], column: str | None, chosen: Mapping[str, str]) -> dict[str, str]:
    """The role names seen in the first rows and what each means, with the chosen ones."""
    heard: dict[str, str] = {}
    for row in rows if column else ():
        for turn in turns_in(row.get(str(column))) or ():
            name = str(turn.get(_key(turn, _ROLE_KEYS))) if isinstance(turn, Mapping) else ""
            if (known := ROLES.get(name.lower())) is not None:
                heard[name] = known
    return {**heard, **chosen}


def _reason(
    name: str, found: dict[str, str], rows: Sequence[Row], mapping: Mapping[str, str], format: str
) -> str:
    """One sentence for people: what was seen, and what it is taken for."""
    columns = _names(found.values())
    said = "You chose this format: " if format != "auto" else ""
    said = "You chose the columns: " if mapping and not said else said
    if name in ("messages", "conversations"):
        turn = _first_turn(rows, found["messages"])
        keys = keys_of(turn)
        return f"{said}{found['messages']!r} holds lists of turns with {keys[0]} and {keys[1]}."
    if name == "text":
        return f"{said}{found['text']!r} is plain text: {_text_meaning(rows, found['text'])}."
    return f"{said}{columns} hold {SHAPES[name].meaning}."


def _text_meaning(rows: Sequence[Row], column: str) -> str:
    texts = [value for row in rows if isinstance(value := row.get(column), str)]
    if any(_transcript(text) for text in texts):
        return "transcripts with marked turns are read as conversations"
    return "each row is learnt as one answer that no prompt precedes"


def _nothing_fits(
    columns: Sequence[str], rows: Sequence[Row], format: str, mapping: Mapping[str, str]
) -> str:
    shapes = [format] if format != "auto" else [n for n in SHAPES if n != "conversations"]
    wanted = ", or ".join(" and ".join(SHAPES[name].required) for name in shapes)
    asked = "" if format == "auto" else f" for the format {format!r}"
    asked += f" with {_names(mapping)} given" if mapping else ""
    return (
        f"No conversation found{asked}: the columns are {_names(columns)}. Expected {wanted}. "
        "Say which column holds what with data.columns, such as "
        f"`prompt: {columns[0] if columns else 'Question'}`."
    )


def _names(names: Iterable[str]) -> str:
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:30]) + (", …" if len(quoted) > 30 else "") if quoted else "none"


# One row


def to_messages(row: Row, detected: Detected, system_prompt: str | None = None) -> list[Message]:
    """The messages of a row; it ends with an answer.

    Args:
        row: column → value.
        detected: how to read it.
        system_prompt: put first where the row has no system message.

    Raises:
        Unusable: with the reason, in words that can be counted.
    """
    return read_row(row, detected, system_prompt).messages


def read_row(row: Row, detected: Detected, system_prompt: str | None = None) -> Conversation:
    """As `to_messages`, and how many turns after the last answer were left out."""
    messages = _READERS[detected.format](row, detected)
    has_system = any(message["role"] == "system" for message in messages)
    system = _text(row.get(detected.columns.get("system", ""))) or system_prompt
    if system and not has_system:
        messages.insert(0, {"role": "system", "content": system})
    return _checked(messages)


def _read_turns(row: Row, detected: Detected) -> list[Message]:
    return _from_turns(row.get(detected.columns["messages"]), detected.roles)


def _from_turns(value: Any, roles: Mapping[str, str]) -> list[Message]:
    turns = _parsed(value) if isinstance(value, str) else value
    if not isinstance(turns, list | tuple):
        raise Unusable("not a list of messages")
    messages = [_from_turn(turn, roles) for turn in turns]
    # An empty system message is how many datasets say that there is none.
    return [m for m in messages if m["role"] != "system" or m["content"].strip()]


def _from_turn(turn: Any, roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, Mapping):
        raise Unusable("a message is not an object")
    role_key, content_key = _key(turn, _ROLE_KEYS), _key(turn, _CONTENT_KEYS)
    if role_key is None:
        raise Unusable("a message without a role")
    name = str(turn[role_key])
    role = roles.get(name) or roles.get(name.lower()) or ROLES.get(name.strip().lower())
    if role not in get_args(Role):
        raise Unusable(f"unknown role {name[:40]!r}")
    content = turn[content_key] if content_key else None
    return {"role": cast(Role, role), "content": _text(content)}


def _read_instruction(row: Row, detected: Detected) -> list[Message]:
    """Alpaca: the input, where there is one, follows the instruction after an empty line."""
    columns = detected.columns
    instruction, given = _cell(row, columns, "instruction"), _cell(row, columns, "input")
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return _pair(prompt, _cell(row, columns, "output"))


def _read_prompt(row: Row, detected: Detected) -> list[Message]:
    """Both sides may be text, or lists of messages as TRL has them."""
    columns = detected.columns
    sides = {"prompt": "user", "completion": "assistant"}
    messages: list[Message] = []
    for side, role in sides.items():
        value = row.get(columns[side])
        turns = turns_in(value)
        if turns:
            messages += _from_turns(turns, detected.roles)
        else:
            messages.append({"role": cast(Role, role), "content": _text(value)})
    return messages


def _read_question(row: Row, detected: Detected) -> list[Message]:
    columns = detected.columns
    return _pair(_cell(row, columns, "question"), _cell(row, columns, "answer"))


def _read_text(row: Row, detected: Detected) -> list[Message]:
    """A transcript's turns; any other text is one answer that nothing precedes."""
    text = _cell(row, detected.columns, "text")
    if not text.strip():
        raise Unusable("empty text")
    return _transcript(text) or [{"role": "assistant", "content": text}]


_READERS = {
    "messages": _read_turns,
    "conversations": _read_turns,
    "instruction": _read_instruction,
    "prompt_completion": _read_prompt,
    "question_answer": _read_question,
    "text": _read_text,
}


def _pair(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _cell(row: Row, columns: Mapping[str, str], part: str) -> str:
    return _text(row.get(columns[part])) if part in columns else ""


def _text(value: Any) -> str:
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
        return _text(part)
    if not isinstance(part, Mapping):
        raise Unusable(f"content is not text but a list of {type(part).__name__}")
    kind = part.get("type", "text")
    if kind != "text":
        raise Unusable(f"content has a part of type {str(kind)[:40]!r}")
    return _text(part.get("text"))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(messages: list[Message]) -> Conversation:
    """Whole conversations only: turns alternate, none is empty, the last one is an answer."""
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise Unusable("no assistant answer")
    kept = messages[: answers[-1] + 1]
    for message in kept:
        if not message["content"].strip():
            raise Unusable("empty answer" if message["role"] == "assistant" else "empty prompt")
    for left, right in pairwise(kept):
        if left["role"] == right["role"]:
            raise Unusable(f"two {left['role']} messages in a row")
    return Conversation(kept, trimmed=len(messages) - len(kept))


# Transcripts in plain text

PHI3_MARKS = re.compile(r"<\|(system|user|assistant)\|>\s*(.*?)<\|end\|>", re.DOTALL)
CHATML_MARKS = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>", re.DOTALL)
HEADINGS = re.compile(r"### ?(System|Human|User|Instruction|Input|Assistant|Response) ?:\s*")


def _transcript(text: str) -> list[Message] | None:
    """The turns of a text that was rendered for Phi-3, as ChatML, or with `### Human:` headings."""
    for marks in (PHI3_MARKS, CHATML_MARKS):
        turns = [
            Message(role=cast(Role, role), content=said)
            for role, said in marks.findall(text)
            if role != "system" or said.strip()
        ]
        if any(turn["role"] == "assistant" for turn in turns):
            return turns
    return _headed(text)


def _headed(text: str) -> list[Message] | None:
    """Turns under headings; what stands before the first one is the system's message."""
    preamble, *parts = HEADINGS.split(text)
    headings = [heading.lower() for heading in parts[::2]]
    if not {"assistant", "response"} & set(headings) or len(headings) < 2:
        return None
    turns: list[Message] = []
    if preamble.strip():
        turns.append({"role": "system", "content": preamble.strip()})
    for heading, said in zip(headings, parts[1::2], strict=True):
        if heading == "input" and turns and turns[-1]["role"] == "user":
            turns[-1]["content"] += f"\n\n{said.strip()}"
        else:
            role = "user" if heading == "input" else ROLES[heading]
            turns.append({"role": role, "content": said.strip()})
    return turns
