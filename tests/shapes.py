"""The shapes that data has in the wild: rows of each, true to shape, and what is learnt of them.

    python -m tests.shapes        # writes the tables of docs/data.md

`test_shapes.py` reads every one of them, and checks that docs/data.md says the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3lora.data.conversation import PLAIN, Unusable, Writes, is_learnt
from phi3lora.data.detection import detect, read_row
from phi3lora.data.findings import KINDS
from phi3lora.data.formats import FORMATS
from phi3lora.errors import DataError

PAGE = Path(__file__).parent.parent / "docs" / "data.md"
FORMATS_MARK, SHAPES_MARK = "<!-- formats -->", "<!-- shapes -->"
FINDINGS_MARK = "<!-- findings -->"
Q, A = "Who are you?", "A pirate!"


@dataclass(frozen=True)
class Shape:
    """Rows of one kind of data.

    Attributes:
        name: whose shape it is.
        rows: a few of them.
        format: how they are read; empty where they are refused.
        said: `role: content` of each message of each conversation, `~` before what is not learnt;
            or the reason for which a row or the whole is refused.
        options: of `data`, where they are needed.
        unread: columns that are not read.
        base: a base whose template writes more than plain turns, and `writes`, what that is.
    """

    name: str
    rows: list[Any]
    format: str
    said: list[list[str]] | str
    options: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    base: str = ""
    writes: Writes = PLAIN


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def text(content: str) -> list[dict[str, str]]:
    return [{"text": content}]


def oasst(name: str, parent: str | None, role: str, said: str, rank: int | None) -> dict[str, Any]:
    return {
        "message_id": name,
        "parent_id": parent,
        "text": said,
        "role": role,
        "lang": "en",
        "rank": rank,
        "deleted": False,
        "message_tree_id": "m1",
    }


TREE = [
    oasst("m1", None, "prompter", Q, None),
    oasst("m2", "m1", "assistant", "A robot.", 1),
    oasst("m3", "m1", "assistant", A, 0),
    oasst("m4", "m3", "prompter", "Really?", None),
    oasst("m5", "m4", "assistant", "Aye.", 0),
]
ASKED = [f"~user: {Q}", f"assistant: {A}"]
WITH_SYSTEM = ["~system: Be brief.", *ASKED]
TWICE = [*ASKED, "~user: Really?", "assistant: Aye."]
TOOLS = "uses tools, which the chat template does not write"
CALLS = [
    {
        "messages": [
            turns(Q)[0],
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "42"},
            turns(Q, A)[1],
        ]
    }
]
CALL = '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>'

SHAPES = [
    Shape("OpenAI, TRL: messages", [{"messages": turns(Q, A)}], "messages", [ASKED]),
    Shape(
        "OpenAI with `weight`",
        [{"messages": [*turns(Q, "Hm.")[:1], {**turns(Q, "Hm.")[1], "weight": 0}, *turns(Q, A)]}],
        "messages",
        [[f"~user: {Q}", "~assistant: Hm.", f"~user: {Q}", f"assistant: {A}"]],
    ),
    Shape(
        "OpenAI, content in parts",
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": Q}]},
                    {"role": "assistant", "content": [{"type": "text", "value": A}]},
                ]
            }
        ],
        "messages",
        [ASKED],
    ),
    Shape(
        "Reasoning beside the answer",
        [{"messages": [turns(Q)[0], {**turns(Q, A)[1], "reasoning_content": "Hm."}]}],
        "messages",
        [ASKED],
    ),
    Shape(
        "Reasoning beside the answer",
        [{"messages": [turns(Q)[0], {**turns(Q, A)[1], "reasoning_content": "Hm."}]}],
        "messages",
        [[f"~user: {Q}", f"assistant: <think>\nHm.\n</think>\n\n{A}"]],
        base="Phi-4-reasoning",
        writes=Writes(thoughts=True),
    ),
    Shape("Calls of tools", CALLS, "messages", TOOLS),
    Shape(
        "Calls of tools",
        CALLS,
        "messages",
        [[f"~user: {Q}", f"assistant: {CALL}", "~tool: 42", f"assistant: {A}"]],
        base="Phi-4-mini",
        writes=Writes(tools=True),
    ),
    Shape(
        "ShareGPT with calls (Glaive, ToolACE)",
        [
            {
                "conversations": [
                    {"from": "human", "value": Q},
                    {"from": "function_call", "value": "{}"},
                    {"from": "observation", "value": "42"},
                    {"from": "gpt", "value": A},
                ]
            }
        ],
        "conversations",
        TOOLS,
    ),
    Shape(
        "Two answers in a row",
        [{"messages": [*turns(Q, A), {"role": "assistant", "content": "Aye."}]}],
        "messages",
        [[f"~user: {Q}", f"assistant: {A}\n\nAye."]],
    ),
    Shape(
        "ShareGPT, OpenHermes",
        [
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": Q},
                    {"from": "gpt", "value": A},
                ],
                "source": "x",
            }
        ],
        "conversations",
        [WITH_SYSTEM],
        unread=("source",),
    ),
    Shape(
        "Capybara: input and output",
        [
            {
                "source": "x",
                "conversation": [{"input": Q, "output": A}, {"input": "Really?", "output": "Aye."}],
            }
        ],
        "messages",
        [TWICE],
        unread=("source",),
    ),
    Shape("LIMA: lists of texts", [{"conversations": [Q, A]}], "messages", [ASKED]),
    Shape(
        "Alpaca",
        [{"instruction": "Add.", "input": "2, 3", "output": "5", "text": "Below is …"}],
        "instruction",
        [["~user: Add.\n\n2, 3", "assistant: 5"]],
        unread=("text",),
    ),
    Shape(
        "Dolly",
        [{"instruction": Q, "context": "A ship.", "response": A, "category": "qa"}],
        "instruction",
        [[f"~user: {Q}\n\nA ship.", f"assistant: {A}"]],
        unread=("category",),
    ),
    Shape(
        "LLaMA-Factory with history",
        [{"instruction": "Really?", "input": "", "output": "Aye.", "history": [[Q, A]]}],
        "instruction",
        [TWICE],
    ),
    Shape("Prompt and completion", [{"prompt": Q, "completion": A}], "prompt_completion", [ASKED]),
    Shape(
        "KTO: prompt, completion, label",
        [
            {"prompt": Q, "completion": A, "label": True},
            {"prompt": Q, "completion": "A robot.", "label": False},
        ],
        "prompt_completion",
        [ASKED],
    ),
    Shape("GSM8K", [{"question": Q, "answer": A}], "question_answer", [ASKED]),
    Shape(
        "MATH: solution beside answer",
        [{"problem": "2+3?", "solution": "2+3=5, so 5.", "answer": "5", "level": "1"}],
        "question_answer",
        [["~user: 2+3?", "assistant: 5"]],
        unread=("solution", "level"),
    ),
    Shape(
        "MATH, the solution chosen",
        [{"problem": "2+3?", "solution": "2+3=5, so 5.", "answer": "5", "level": "1"}],
        "question_answer",
        [["~user: 2+3?", "assistant: 2+3=5, so 5."]],
        {"columns": {"answer": "solution"}},
        unread=("answer", "level"),
    ),
    Shape(
        "SQL: question, context, answer",
        [{"question": "How many?", "context": "CREATE TABLE t", "answer": "SELECT 1"}],
        "question_answer",
        [["~user: CREATE TABLE t\n\nHow many?", "assistant: SELECT 1"]],
    ),
    Shape(
        "SQuAD",
        [
            {
                "id": "5",
                "title": "Ships",
                "context": "A ship.",
                "question": "What?",
                "answers": {"text": ["A ship", "ship"], "answer_start": [0, 2]},
            }
        ],
        "question_answer",
        [["~user: A ship.\n\nWhat?", "assistant: A ship"]],
        unread=("id", "title"),
    ),
    Shape(
        "A CSV from pandas, with its index",
        [{"": "0", "question": Q, "answer": A}, {"": "1", "question": Q, "answer": A}],
        "question_answer",
        [ASKED, ASKED],
        unread=("",),
    ),
    Shape(
        "MMLU",
        [
            {
                "question": "Who flies?",
                "subject": "x",
                "choices": ["An anchor", "A parrot"],
                "answer": 1,
            }
        ],
        "multiple_choice",
        [["~user: Who flies?\n\nA. An anchor\nB. A parrot", "assistant: B. A parrot"]],
        unread=("subject",),
    ),
    Shape(
        "ARC, CommonsenseQA",
        [
            {
                "id": "7",
                "question": "Who flies?",
                "choices": {"text": ["An anchor", "A parrot"], "label": ["1", "2"]},
                "answerKey": "2",
            }
        ],
        "multiple_choice",
        [["~user: Who flies?\n\nA. An anchor\nB. A parrot", "assistant: B. A parrot"]],
        unread=("id",),
    ),
    Shape(
        "RACE",
        [
            {
                "article": "A ship.",
                "question": "What?",
                "options": ["A ship", "A sea"],
                "answer": "A",
            }
        ],
        "multiple_choice",
        [["~user: A ship.\n\nWhat?\n\nA. A ship\nB. A sea", "assistant: A. A ship"]],
    ),
    Shape("oasst1, the best thread", TREE, "threads", [TWICE], unread=("lang",)),
    Shape(
        "oasst1, all threads",
        TREE,
        "threads",
        [TWICE, [f"~user: {Q}", "assistant: A robot."]],
        {"threads": "all"},
        unread=("lang",),
    ),
    Shape(
        "A log, one turn a row",
        [
            {"conversation_id": 1, "role": "user", "content": Q},
            {"conversation_id": 1, "role": "assistant", "content": A},
            {"conversation_id": 2, "role": "user", "content": Q},
            {"conversation_id": 2, "role": "assistant", "content": A},
        ],
        "threads",
        [ASKED, ASKED],
    ),
    Shape("Turns without a conversation", turns(Q, A), "", "no column says which rows belong"),
    Shape(
        "Preferences (Orca, UltraFeedback)",
        [{"system": "Be brief.", "question": Q, "chosen": A, "rejected": "A robot."}],
        "",
        "set data.columns to `messages: chosen`",
    ),
    Shape(
        "Preferences, the better side chosen",
        [{"system": "Be brief.", "question": Q, "chosen": A, "rejected": "A robot."}],
        "preference",
        [WITH_SYSTEM],
        {"columns": {"messages": "chosen"}},
        unread=("rejected",),
    ),
    Shape(
        "UltraFeedback: lists of turns",
        [{"prompt": Q, "chosen": turns(Q, A), "rejected": turns(Q, "A robot.")}],
        "preference",
        [ASKED],
        {"columns": {"messages": "chosen"}},
        unread=("rejected",),
    ),
    Shape(
        "LLaMA-Factory: one turn chosen",
        [
            {
                "conversations": [{"from": "human", "value": Q}],
                "chosen": {"from": "gpt", "value": A},
                "rejected": {"from": "gpt", "value": "A robot."},
            }
        ],
        "preference",
        [ASKED],
        {"columns": {"messages": "chosen"}},
        unread=("rejected",),
    ),
    Shape(
        "HH-RLHF",
        [
            {
                "chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}",
                "rejected": f"\n\nHuman: {Q}\n\nAssistant: A robot.",
            }
        ],
        "preference",
        [ASKED],
        {"columns": {"messages": "chosen"}},
        unread=("rejected",),
    ),
    Shape(
        "Phi-3's marks, without the last <|end|>",
        text(f"<s><|system|>\nBe brief.<|end|>\n<|user|>\n{Q}<|end|>\n<|assistant|>\n{A}"),
        "text",
        [WITH_SYSTEM],
    ),
    Shape(
        "ChatML, without the last mark",
        text(f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}\n"),
        "text",
        [ASKED],
    ),
    Shape(
        "Phi-4's marks",
        text(
            f"<|im_start|>user<|im_sep|>{Q}<|im_end|><|im_start|>assistant<|im_sep|>{A}<|im_end|>"
        ),
        "text",
        [ASKED],
    ),
    Shape(
        "Llama 2: [INST]",
        text(f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{Q} [/INST] {A} </s>"),
        "text",
        [WITH_SYSTEM],
    ),
    Shape(
        "Mistral: [INST], two rounds",
        text(f"<s>[INST] {Q} [/INST] {A}</s><s>[INST] Really? [/INST] Aye."),
        "text",
        [TWICE],
    ),
    Shape(
        "Llama 3",
        text(
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
            f"{Q}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{A}<|eot_id|>"
        ),
        "text",
        [ASKED],
    ),
    Shape(
        "Gemma",
        text(f"<bos><start_of_turn>user\n{Q}<end_of_turn>\n<start_of_turn>model\n{A}<end_of_turn>"),
        "text",
        [ASKED],
    ),
    Shape("Zephyr", text(f"<|user|>\n{Q}</s>\n<|assistant|>\n{A}</s>"), "text", [ASKED]),
    Shape("Vicuna", text(f"Be brief. USER: {Q} ASSISTANT: {A}</s>"), "text", [WITH_SYSTEM]),
    Shape("Human: and Assistant:", text(f"Human: {Q}\n\nAssistant: {A}"), "text", [ASKED]),
    Shape("Guanaco", text(f"### Human: {Q}### Assistant: {A}"), "text", [ASKED]),
    Shape("### Question:", text(f"### Question:\n{Q}\n\n### Answer:\n{A}"), "text", [ASKED]),
    Shape(
        "Alpaca as text, ### Input: in the answer",
        text("### Instruction:\nAdd.\n\n### Input:\n2, 3\n\n### Response:\n5\n\n### Input:\nnone"),
        "text",
        [["~user: Add.\n\n2, 3", "assistant: 5\n\n### Input:\nnone"]],
    ),
    Shape("Plain text", text("Once upon a time."), "text", [["assistant: Once upon a time."]]),
]


def read_shape(shape: Shape) -> tuple[str, Any]:
    """The format, and what is learnt or why not, as a run reads it."""
    columns = list(dict.fromkeys(name for row in shape.rows for name in row))
    mapping = shape.options.get("columns")
    try:
        found = detect(columns, shape.rows, mapping=mapping)
    except DataError as error:
        return "", str(error)
    gather = FORMATS[found.format].gather
    rows: Any = shape.rows
    if gather:
        rows = gather(rows, found, shape.options.get("threads", "best"))
    said, why = [], ""
    for row in rows:
        try:
            conversation = read_row(row, found, writes=shape.writes)
        except Unusable as error:
            why = str(error)
            continue
        said.append([_said(message) for message in conversation.messages])
    return found.format, said or why


def _said(message: Any) -> str:
    mark = "" if is_learnt(message) else "~"
    return f"{mark}{message['role']}: {message['content']}"


def format_table() -> str:
    """Markdown: each format, its columns, and what is learnt."""
    lines = ["| format | columns | may have | learnt | a row |", "| --- | --- | --- | --- | --- |"]
    for one in FORMATS.values():
        rows = "<br>".join(_code(json.dumps(row, ensure_ascii=False)) for row in one.example)
        cells = [f"`{one.name}`", _parts(one.required), _parts(one.optional), one.learns, rows]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _parts(parts: Any) -> str:
    names = [f"`{part}`: {', '.join(aliases)}" for part, aliases in parts.items()]
    return "<br>".join(names)


def shape_table() -> str:
    """Markdown: each shape, how it is read, and what is learnt of its rows."""
    heads = ("shape", "read as", "options", "learnt", "columns not read")
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | --- | --- | --- |"]
    for shape in SHAPES:
        format, said = read_shape(shape)
        options = [f"`data.{k}: {json.dumps(v)}`" for k, v in shape.options.items()]
        options += [f"a base such as {shape.base}"] if shape.base else []
        learnt = "<br>".join(_learnt(one) for one in said) if isinstance(said, list) else ""
        unread = ", ".join(f"`{name}`" if name else "without a name" for name in shape.unread)
        cells = [shape.name, f"`{format}`" if format else "refused", "<br>".join(options)]
        cells = [*map(_plain, cells), learnt or _plain(str(shape.said)), unread]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _learnt(conversation: list[str]) -> str:
    said = [one.partition(": ")[2] for one in conversation if not one.startswith("~")]
    return ", ".join(_code(json.dumps(one, ensure_ascii=False)) for one in said)


def _plain(text: str) -> str:
    return text.replace("<|", "&lt;\\|").replace("|>", "\\|>").replace("<s>", "&lt;s>")


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`"


def findings_table() -> str:
    """Markdown: each kind of rows that a look finds."""
    rows = (f"| `{name}` | {kind.meaning} |" for name, kind in KINDS.items())
    return "\n".join(["| kind | found |", "| --- | --- |", *rows])


def page(written: str) -> str:
    """docs/data.md with its tables as they should be."""
    tables = {
        FORMATS_MARK: format_table(),
        SHAPES_MARK: shape_table(),
        FINDINGS_MARK: findings_table(),
    }
    for mark, table in tables.items():
        before, _, rest = written.partition(mark)
        after = rest.partition(mark)[2]
        written = f"{before}{mark}\n{table}\n{mark}{after}"
    return written


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
