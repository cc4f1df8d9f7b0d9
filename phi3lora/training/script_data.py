"""The part of an exported script that turns rows into tokens: reading, messages, ids and labels.

    reading(config.data)                          # rows = …
    messages(config.data, detected, first_rows)   # def conversation(row): …
    tokens(marks_of(tokenizer))                   # def tokenize(messages): …
    split(config)                                 # train_rows, test_rows = …

Only what the run's own data needs is written: its kind of file, its format, its columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from phi3lora.config import DataConfig, RunConfig
from phi3lora.data.cells import ROLES, keys_of, turns_in
from phi3lora.data.conversation import Detected, Message, Role
from phi3lora.data.sources import EXAMPLES, is_local
from phi3lora.errors import DataError, ModelError


def code(value: Any) -> str:
    """A plain value as Python source, text in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{code(k)}: {code(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(code(item) for item in value) + "]"
    return repr(value)


def dictionary(name: str, values: Mapping[str, str]) -> str:
    """`name = {…}`, a line for each key; values are source already."""
    lines = [f"    {code(key)}: {value}," for key, value in values.items()]
    return "\n".join([f"{name} = {{", *lines, "}"])


def local_file(path: str) -> Path | None:
    """The file behind `data.path`; None for a dataset of the Hub."""
    if not is_local(path):
        return None
    name = path.removeprefix("example:")
    if name != path:
        return EXAMPLES.get(name) or next(p for p in EXAMPLES.values() if p.name == name)
    return Path(path).expanduser().resolve()


# Reading


def reading(data: DataConfig) -> str:
    """`rows = …`, a list of dictionaries, by the kind of the source."""
    file = local_file(data.path)
    if file is None:
        return _from_hub(data)
    source = _from_file(file, data.split)
    return source if data.max_rows is None else f"{source}\nrows = rows[:{data.max_rows}]"


def _from_hub(data: DataConfig) -> str:
    options = [f"split={code(data.split)}"]
    if data.name:
        options.insert(0, f"name={code(data.name)}")
    if data.revision:
        options.append(f"revision={code(data.revision)}")
    rows = f"rows = datasets.load_dataset(DATA, {', '.join(options)})"
    return rows + (
        f"\nrows = rows.select(range(min({data.max_rows}, len(rows))))" if data.max_rows else ""
    )


def _from_file(file: Path, split: str) -> str:
    from phi3lora.data.files import delimiter_of, is_lines, kind_of

    kind = kind_of(file)
    if kind == "parquet":
        return "rows = datasets.Dataset.from_parquet(DATA).to_list()"
    if kind == "csv":
        return dedent(f"""\
            with open(DATA, encoding="utf-8-sig", newline="") as file:
                csv.field_size_limit(1 << 30)
                header, *cells = csv.reader(file, delimiter={code(delimiter_of(file))})
                names = [name.strip() for name in header]
                rows = [dict(zip(names, row)) for row in cells if row]""")
    if is_lines(file):
        return dedent("""\
            with open(DATA, encoding="utf-8-sig") as file:
                rows = [json.loads(line) for line in file if line.strip()]""")
    return dedent(f"""\
        with open(DATA, encoding="utf-8-sig") as file:
            rows = json.load(file){_list_in(file, split)}""")


def _list_in(file: Path, split: str) -> str:
    """`["data"]` where the rows of a JSON file stand under a name; DataError for other shapes."""
    from phi3lora.data.files import LISTS

    with file.open(encoding="utf-8-sig") as opened:
        try:
            value = json.load(opened)
        except ValueError:
            value = None
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ""
    for name in (split, *LISTS):
        if isinstance(value, dict) and isinstance(value.get(name), list):
            return f"[{code(name)}]"
    raise DataError(
        f"data.path: an exported script reads a list of objects, and {file.name} holds rows in "
        "another shape. Save it as JSONL, one object a line, and export again."
    )


# Messages


TURNS = '''
def conversation(row):
    """The messages of a row; an empty list where it cannot be used."""
    turns = {cell}
    messages = []
    for turn in turns:
        role = ROLES.get(str(turn.get({role})).strip().lower())
        content = text(turn.get({content}))
        if role != "system" or content.strip():
            messages.append({{"role": role, "content": content}})
    return usable({system})
'''
PAIR = '''
def conversation(row):
    """The messages of a row; an empty list where it cannot be used."""
    prompt, answer = text(row.get({prompt})), text(row.get({answer}))
{given}    messages = [
        {{"role": "user", "content": prompt}},
        {{"role": "assistant", "content": answer}},
    ]
    return usable({system})
'''
GIVEN = """\
    if text(row.get({given})).strip():
        prompt += "\\n\\n" + text(row.get({given}))
"""
PLAIN = '''
def conversation(row):
    """The messages of a row; an empty list where it cannot be used."""
    messages = [{{"role": "assistant", "content": text(row.get({text}))}}]
    return usable({system})
'''
TRANSCRIPT = '''
MARKED = re.compile(r"{pattern}", re.DOTALL)


def conversation(row):
    """The messages of a row; an empty list where it cannot be used."""
    turns = MARKED.findall(text(row.get({text})))
    messages = [
        {{"role": role, "content": content}}
        for role, content in turns
        if role != "system" or content.strip()
    ]
    if not any(message["role"] == "assistant" for message in messages):  # plain text
        messages = [{{"role": "assistant", "content": text(row.get({text}))}}]
    return usable({system})
'''
HELPERS = '''
def text(value):
    """A cell as text: empty where there is none, numbers as they are written."""
    if value is None or value != value:  # NaN is the one value unlike itself
        return ""
    if isinstance(value, (list, tuple)):  # content in parts
        return "".join(part if isinstance(part, str) else text(part.get("text")) for part in value)
    return str(value)


def usable(messages):
    """Whole conversations only: roles alternate, no message is empty, an answer is the last."""
    known = {message["role"] for message in messages} <= {"system", "user", "assistant"}
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    roles = [message["role"] for message in messages]
    alternate = all(left != right for left, right in zip(roles, roles[1:]))
    filled = all(message["content"].strip() for message in messages)
    return messages if known and alternate and filled else []
'''
SYSTEM = '''
def with_system(messages, prompt):
    """A system message first, where there is one to add and none yet."""
    if not prompt or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": prompt}, *messages]
'''


def messages(data: DataConfig, detected: Detected, head: list[dict[str, Any]]) -> str:
    """`conversation(row)` for the detected format, and the helpers it calls."""
    columns = detected.columns
    system = _system(data, columns)
    helpers = HELPERS + (SYSTEM if system != "messages" else "")
    names = {name: code(column) for name, column in columns.items()} | {"system": system}
    if detected.format in ("messages", "conversations"):
        return helpers + _turns(columns["messages"], detected, head, system)
    if detected.format == "text":
        pattern = _marks_of(columns["text"], head)
        if pattern:
            return helpers + TRANSCRIPT.format(pattern=pattern, text=names["text"], system=system)
        return helpers + PLAIN.format(text=names["text"], system=system)
    prompt, answer = {
        "instruction": ("instruction", "output"),
        "prompt_completion": ("prompt", "completion"),
        "question_answer": ("question", "answer"),
    }.get(detected.format, ("", ""))
    if not prompt:
        raise DataError(
            f"data.format: an exported script does not read rows of the format "
            f"{detected.format!r}. Save the rows as messages, and export again."
        )
    _check_sides(columns[prompt], head)
    given = GIVEN.format(given=names["input"]) if "input" in columns else ""
    return helpers + PAIR.format(
        prompt=names[prompt], answer=names[answer], given=given, system=system
    )


def _system(data: DataConfig, columns: Mapping[str, str]) -> str:
    """The expression for the messages with their system message."""
    own = f"text(row.get({code(columns['system'])}))" if "system" in columns else ""
    said = code(data.system_prompt) if data.system_prompt else ""
    prompt = " or ".join(part for part in (own, said) if part)
    return f"with_system(messages, {prompt})" if prompt else "messages"


def _turns(column: str, detected: Detected, head: list[dict[str, Any]], system: str) -> str:
    cells = [row.get(column) for row in head]
    first = next((cell for cell in cells if turns_in(cell)), None)
    turn = (turns_in(first) or [{}])[0]
    cell = f"row.get({code(column)}) or []"
    if isinstance(first, str):
        cell = f"{_reader_of(first)}(row.get({code(column)}) or '[]')"
    known = {**ROLES, **{name.lower(): role for name, role in detected.roles.items()}}
    by_role: dict[str, list[str]] = {}
    for name, role in known.items():
        by_role.setdefault(role, []).append(name)
    named = {role: f"{code(' '.join(names))}.split()" for role, names in by_role.items()}
    flat = "ROLES = {name: role for role, names in NAMES.items() for name in names}"
    role_key, content_key = keys_of(turn)
    reader = TURNS.format(cell=cell, role=code(role_key), content=code(content_key), system=system)
    names = dictionary("NAMES", named)
    return f"\n\n# What rows call the roles, in small letters.\n{names}\n{flat}\n\n{reader}"


def _reader_of(cell: str) -> str:
    """What reads a list that is written into a cell: JSON, or as Python prints it."""
    try:
        json.loads(cell)
    except ValueError:
        return "ast.literal_eval"
    return "json.loads"


PHI3_MARKS = re.compile(r"<\|(system|user|assistant)\|>\s*(.*?)<\|end\|>", re.DOTALL)
CHATML_MARKS = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>", re.DOTALL)
HEADINGS = re.compile(r"### ?(System|Human|User|Instruction|Input|Assistant|Response) ?:\s*")


def _marks_of(column: str, head: list[dict[str, Any]]) -> str:
    """The pattern of turns in plain text; empty where texts are no transcripts."""
    texts = [str(row.get(column)) for row in head]
    for marks in (PHI3_MARKS, CHATML_MARKS):
        if any(marks.search(text) for text in texts):
            return marks.pattern
    if any(HEADINGS.search(text) for text in texts):
        raise DataError(
            "data.format: an exported script does not read transcripts with ### headings. Save "
            "the rows as messages, and export again."
        )
    return ""


def _check_sides(column: str, head: list[dict[str, Any]]) -> None:
    if any(turns_in(row.get(column)) for row in head):
        raise DataError(
            f"data.columns: {column!r} holds lists of messages beside their completions, which an "
            "exported script does not read. Save each row as one list of messages."
        )


# Tokens


TOKENS = '''
# How this base writes a conversation. {end} closes each turn, and {last} the whole.
OPEN = {open}
CLOSE, LAST = {close}, {last_code}


def without_control_tokens(tokenizer):
    """The same vocabulary, in which {end} inside a message is text and ends nothing."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"][0] != "<"]
    values["post_processor"] = None
    return Tokenizer.from_str(json.dumps(values))


plain = without_control_tokens(tokenizer)


def tokenize(messages):
    """Ids and labels: loss is on each answer and the {end} that closes it, on nothing else."""
    ids, labels = {start}, {start_labels}
    for message in messages:
        opening = tokenizer.encode(OPEN[message["role"]], add_special_tokens=False)
        content = plain.encode(message["content"]{strip}, add_special_tokens=False).ids
        closing = tokenizer.encode(CLOSE, add_special_tokens=False)
        learnt = [*content, closing[0]] if message["role"] == "assistant" else []
        ids += [*opening, *content, *closing]
        labels += [-100] * len(opening) + learnt
        labels += [-100] * (len(ids) - len(labels))
    last = tokenizer.encode(LAST, add_special_tokens=False)
    ids, labels = ids + last, labels + [-100] * len(last)
    return {{"input_ids": ids[: train_conf.max_length], "labels": labels[: train_conf.max_length]}}
'''


UNLIKE = (
    "The base's chat template cannot be written into a script: expected every turn to be opened "
    "and closed alike, as Phi-3's are."
)


@dataclass(frozen=True)
class Marks:
    """How a chat template writes a conversation, role by role.

    Attributes:
        start: before everything else, such as `<s>`; mostly empty.
        open: before a message, by its role.
        close: after each message; its first token ends an answer.
        last: after everything.
        end: the name of the token that ends an answer.
        strip: whether white space before a content is swallowed.
    """

    start: str
    open: dict[str, str]
    close: str
    last: str
    end: str
    strip: bool


def marks_of(tokenizer: Any) -> Marks:
    """Take the template apart. ModelError for one that does not write turn after turn alike."""
    roles: list[Role] = ["system", "user", "assistant", "user", "assistant"]
    texts, strip, end = _literals(tokenizer, roles)
    first_user = _literals(tokenizer, ["user", "assistant"])[0][0]
    start = tokenizer.bos_token or ""
    start = start if start and first_user.startswith(start) else ""
    opening = {"user": first_user.removeprefix(start), "system": texts[0].removeprefix(start)}
    close = texts[1].removesuffix(opening["user"])
    opening["assistant"] = texts[2].removeprefix(close)
    last = texts[5].removeprefix(close)
    # Names of tokens stand in comments: what could leave one is no name.
    named = all(text.isprintable() and '"' not in text for text in (end, last.strip()))
    again = [start + opening["system"], *(close + opening[role] for role in roles[1:])]
    alike = [*again, close + last] == texts and close.startswith(end)
    if not (alike and end and named):
        raise ModelError(UNLIKE)
    return Marks(start, opening, close, last, end, strip)


def _literals(tokenizer: Any, roles: list[Role]) -> tuple[list[str], bool, str]:
    """What the template writes around contents; whether they are stripped; what ends an answer."""
    from phi3lora.data.rendering import template_parts

    parts = template_parts(tokenizer, [Message(role=role, content="x") for role in roles])
    if parts.strips[1]:
        raise ModelError(UNLIKE)
    return parts.texts, parts.strips[0], parts.end


def tokens(marks: Marks) -> str:
    """`tokenize(messages)` for a base's template."""
    start = "tokenizer.encode(START, add_special_tokens=False)" if marks.start else "[]"
    source = TOKENS.format(
        end=marks.end,
        last=marks.last.strip() or "nothing",
        open=code(marks.open),
        close=code(marks.close),
        last_code=code(marks.last),
        start=start,
        start_labels="[-100] * len(ids)" if marks.start else "[]",
        strip=".lstrip()" if marks.strip else "",
    )
    if marks.start:
        source = source.replace("ids, labels = tok", "ids = tok", 1).replace(
            ", [-100] * len(ids)\n", "\n    labels = [-100] * len(ids)\n", 1
        )
        source = source.replace("\nOPEN = ", f"\nSTART = {code(marks.start)}\nOPEN = ", 1)
    return source


# The split


def holds_out(data: DataConfig) -> bool:
    """Whether rows are kept from training."""
    return data.test_size > 0 or (bool(data.test_split) and not is_local(data.path))


def split(config: RunConfig) -> str:
    """`train_rows` and `test_rows`, held out as the run holds them out."""
    data = config.data
    made = dedent("""\
        def prepared(rows):
            \"\"\"Rows in tokens, without those that cannot be used or leave nothing to learn.\"\"\"
            conversations = filter(None, map(conversation, rows))
            tokenized = map(tokenize, conversations)
            return [row for row in tokenized if set(row["labels"]) != {-100}]


        rows = prepared(rows)
        """)
    if data.test_split and not is_local(data.path):
        held_out = _from_hub(data.model_copy(update={"split": data.test_split, "max_rows": None}))
        return made + f"train_rows = rows\n{held_out}\ntest_rows = prepared(rows)\n"
    if data.test_size == 0:
        return made + "train_rows, test_rows = rows, []\n"
    number = (
        str(round(data.test_size))
        if data.test_size >= 1
        else f"max(round(len(rows) * {data.test_size!r}), 1)"
    )
    return made + dedent(f"""\
        # The same rows are held out each time: the seed alone decides which.
        order = np.random.default_rng({data.seed}).permutation(len(rows))
        held_out = {number}
        train_rows = [rows[i] for i in sorted(order[held_out:])]
        test_rows = [rows[i] for i in sorted(order[:held_out])]
        """)
