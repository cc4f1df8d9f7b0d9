"""Which format rows have, and reading them with it: rows of any common shape → conversations.

    detected = detect(columns, rows)                # which format, and why
    conversation = read_row(row, detected)          # or Unusable, with the reason

What detection gets wrong is put right by naming columns and roles:
`columns={"prompt": "Question"}`, `roles={"Bot": "assistant"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from phi3lora.data.cells import ROLE_KEYS, ROLES, first_key, has_thoughts, text_of, turns_in
from phi3lora.data.conversation import (
    PLAIN,
    UNTHOUGHT,
    Conversation,
    Detected,
    Judgement,
    Message,
    Role,
    Row,
    Unusable,
    Writes,
    whole,
)
from phi3lora.data.formats import FORMATS, PARTS
from phi3lora.data.shape import Columns, Format, Seen
from phi3lora.errors import DataError
from phi3lora.methods import JUDGED, PAIRED
from phi3lora.strict_yaml import write_yaml

MOST_COLUMNS = 2_000
_LABELLED = ("label", "labels")
_BAD = ("false", "False", "FALSE")
# How answers are called good and bad where they are judged.
_GOOD_WORDS = {"true", "1", "good", "desirable", "thumbs_up", "up"}
_BAD_WORDS = {"false", "0", "-1", "bad", "undesirable", "thumbs_down", "down"}
_WANTED = {
    "dpo": "a better and a worse answer (such as columns `chosen` and `rejected`)",
    "orpo": "a better and a worse answer (such as columns `chosen` and `rejected`)",
    "kto": "answers with a `label` that is true or false, or a better and a worse answer",
}
# In a column's name, in the languages that tables come in; the first that is found decides.
ASKS = (
    *("question", "frage", "prompt", "pregunta", "domanda", "kérdés", "質問", "問題", "问题"),
    *("instruction", "input", "query", "user", "customer", "ticket"),
)
SAYS = (
    *("answer", "antwort", "completion", "réponse", "reponse", "respuesta", "risposta", "válasz"),
    *("回答", "答案", "答え", "response", "reply", "output", "assistant", "agent"),
)


# Detection


def detect(
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    format: str = "auto",
    mapping: Mapping[str, str] | None = None,
    roles: Mapping[str, Role] | None = None,
    method: str = "sft",
) -> Detected:
    """Say how rows hold conversations, from their columns and the first few of them.

    Args:
        columns: the columns that exist.
        rows: a handful of rows; a look at their values settles what names cannot.
        format: one of the formats, or `auto`.
        mapping: our name → column, where detection is wrong.
        roles: the rows' role names → ours, where they are not in use elsewhere.
        method: of the training; those that learn from preferences want rows that hold some.

    Raises:
        DataError: nothing fits, or the mapping names a column that does not exist.
    """
    mapping = dict(mapping or {})
    _check_columns(columns, mapping)
    for candidate in _candidates(format, mapping):
        seen = Seen(columns, rows, mapping, format == candidate.name, method in JUDGED)
        found = candidate.match(seen)
        if found is not None:
            described = _described(candidate, seen, found, roles or {}, format)
            if _is_judged(candidate, described, method):
                return described
    raise DataError(_nothing_fits(columns, format, mapping, method))


def _is_judged(format: Format, detected: Detected, method: str) -> bool:
    """Whether rows say what the method learns from."""
    if method not in JUDGED or format.sides:
        return True
    return method not in PAIRED and "label" in detected.columns


def _check_columns(columns: Sequence[str], mapping: Mapping[str, str]) -> None:
    if len(columns) > MOST_COLUMNS:
        raise DataError(
            f"There are {len(columns):,} columns, expected {MOST_COLUMNS:,} at most: one for each "
            "part of a conversation. Check what separates the cells, or leave columns out."
        )
    for name, column in mapping.items():
        if name not in (*PARTS, _LABELLED[0]):
            raise DataError(
                f"data.columns: {name!r} is not a part of any format; expected one of "
                f"{', '.join(PARTS)}."
            )
        if column not in columns:
            raise DataError(
                f"data.columns: {name} should be read from the column {column!r}, which does not "
                f"exist; the columns are {_names(columns)}."
            )


def _candidates(format: str, mapping: Mapping[str, str]) -> list[Format]:
    """Formats to try, in order: all, the chosen one, or those that have what the mapping names."""
    if format != "auto":
        return [FORMATS[format]]
    named = set(mapping) - {_LABELLED[0]}
    return [candidate for candidate in FORMATS.values() if named <= set(candidate.parts)]


def _described(
    format: Format, seen: Seen, found: Columns, roles: Mapping[str, Role], asked: str
) -> Detected:
    """The match, with the roles, what is not read, and what to know about it."""
    found = {**found, **_label(seen, found)}
    used = set(found.values())
    return Detected(
        format.name,
        found,
        {**_roles_in(seen, found.get("messages")), **roles},
        _reason(format, seen, found, asked),
        [column for column in seen.columns if column not in used],
        [*(format.notices(seen, found) if format.notices else ()), *_choices(format, seen, found)],
        any(has_thoughts(value) for value in seen.values(found.get("messages", ""))),
    )


def _label(seen: Seen, found: Columns) -> Columns:
    """The column that says of each row whether it is a good answer, as KTO's sets have it."""
    column = seen.mapping.get("label") or seen.named(*_LABELLED)
    if column is None or ("label" not in found and column in found.values()):
        return {}
    values = {str(value).lower() for value in seen.values(column) if value is not None}
    known = _GOOD_WORDS | _BAD_WORDS if seen.judged else {"true", "false"}
    return {"label": column} if values and values <= known else {}


def _roles_in(seen: Seen, column: str | None) -> dict[str, str]:
    """The role names seen in the first rows and what each means."""
    heard: dict[str, str] = {}
    for value in seen.values(column) if column else ():
        for turn in turns_in(value) or ():
            name = str(turn.get(first_key(turn, ROLE_KEYS))) if isinstance(turn, Mapping) else ""
            if (known := ROLES.get(name.lower())) is not None:
                heard[name] = known
    return heard


def _reason(format: Format, seen: Seen, found: Columns, asked: str) -> str:
    """One sentence for people: what was seen, and what it is taken for."""
    said = "You chose this format: " if asked != "auto" else ""
    said = "You chose the columns: " if seen.mapping and not said else said
    if format.reason:
        return said + format.reason(seen, found)
    return f"{said}{_names(found.values())} hold {format.meaning}."


def _choices(format: Format, seen: Seen, found: Columns) -> list[str]:
    """A notice for each part that another column could be as well: `solution` beside `answer`."""
    notices = []
    for part, aliases in format.required.items():
        others = [
            column
            for column in seen.columns
            if column.strip().lower() in aliases and column not in found.values()
        ]
        if others and part not in seen.mapping and found[part].strip().lower() in aliases:
            notices.append(
                f"{found[part]!r} is read as the {part}; {_names(others)} could be it too. "
                f"Choose with data.columns, such as `{part}: {others[0]}`."
            )
    return notices


def _nothing_fits(
    columns: Sequence[str], format: str, mapping: Mapping[str, str], method: str
) -> str:
    if method in _WANTED:
        return (
            f"method {method} learns from {_WANTED[method]}; the columns are {_names(columns)}. "
            "Say which column holds what with data.columns, such as `messages: good_answer` and "
            "`rejected: bad_answer`, or set method to sft."
        )
    formats = [FORMATS[format]] if format != "auto" else list(FORMATS.values())
    wanted = ", or ".join(dict.fromkeys(" and ".join(one.required) for one in formats))
    asked = "" if format == "auto" else f" for the format {format!r}"
    asked += f" with {_names(mapping)} given" if mapping else ""
    return (
        f"No conversation found{asked}: the columns are {_names(columns)}. Expected {wanted}. "
        f"Say which column holds what with data.columns, such as `{_pair(columns)}`."
    )


def _pair(columns: Sequence[str]) -> str:
    """A mapping to begin with: by the columns' names, else the first two."""
    answer = named(columns, SAYS)
    question = named([name for name in columns if name != answer], ASKS)
    left = [name for name in columns if name not in (question, answer)] + ["Question", "Answer"]
    question = question or left.pop(0)
    pair = {"prompt": question[:80], "completion": (answer or left.pop(0))[:80]}
    return write_yaml(pair, default_flow_style=True, width=1_000).strip()


def named(names: Sequence[str], words: Sequence[str]) -> str:
    """The first name that holds one of these words, the first word deciding; empty where none."""
    lowered = {name: name.lower() for name in names}
    return next((name for word in words for name in names if word in lowered[name]), "")


def _names(names: Iterable[str]) -> str:
    quoted = [repr(name[:80]) for name in names]
    return ", ".join(quoted[:30]) + (", …" if len(quoted) > 30 else "") if quoted else "none"


# One row


def read_row(
    row: Row,
    detected: Detected,
    system_prompt: str | None = None,
    *,
    join: bool = True,
    writes: Writes = PLAIN,
) -> Conversation:
    """The messages of a row, the last of them an answer, and what was changed in it.

    Args:
        row: column → value.
        detected: how to read it.
        system_prompt: put first where the row has no system message.
        join: whether turns of one role in a row are joined; else such a row is unusable.
        writes: what the base's chat template can write beyond plain turns.

    Raises:
        Unusable: with the reason, in words that can be counted.
    """
    columns = detected.columns
    if "label" in columns and row.get(columns["label"]) in (False, *_BAD):
        raise Unusable("marked as a bad answer (label is false)")
    messages: list[Message] = FORMATS[detected.format].read(row, detected, writes)
    system = (text_of(row.get(columns["system"])) if "system" in columns else "") or system_prompt
    if system:
        _put_first(system, messages)
    found = whole(messages, join)
    left_out = detected.thoughts and not writes.thoughts
    if left_out and has_thoughts(row.get(columns.get("messages", ""))):
        return Conversation(found.messages, (*found.changes, UNTHOUGHT))
    return found


def _put_first(system: str, messages: list[Message]) -> None:
    """A system message where the row has none, or one that holds its tools alone."""
    if messages and messages[0]["role"] == "system" and not messages[0]["content"]:
        messages[0]["content"] = system
    elif not any(message["role"] == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system})


def judge_row(
    row: Row,
    detected: Detected,
    system_prompt: str | None = None,
    *,
    join: bool = True,
    writes: Writes = PLAIN,
) -> list[Judgement]:
    """What a row says of its answers, mostly one thing; arguments as for `read_row`.

    Raises:
        Unusable: with the reason, in words that can be counted.
    """
    columns = {name: column for name, column in detected.columns.items() if name != "label"}

    def answer(**side: str) -> Conversation:
        read = replace(detected, columns={**columns, **side})
        return read_row(row, read, system_prompt, join=join, writes=writes)

    if sides := FORMATS[detected.format].sides:
        return [
            Judgement(*(answer(messages=side) if side else None for side in pair))
            for pair in sides(row, detected.columns)
        ]
    said = text_of(row.get(detected.columns["label"])).strip().lower()
    if said not in _GOOD_WORDS | _BAD_WORDS:
        raise Unusable("no label that says whether the answer is good")
    found = answer()
    return [Judgement(found, None) if said in _GOOD_WORDS else Judgement(None, found)]
