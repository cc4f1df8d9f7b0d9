"""Every shape of data that is known reads as its authors meant it, and docs/data.md says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.testing import CliRunner

from phi3lora import cli
from phi3lora.config import POCKET, DataConfig, RunConfig
from phi3lora.data import formats
from phi3lora.data.conversation import JOINED, UNTHOUGHT, Writes
from phi3lora.data.detection import MOST_COLUMNS, detect, read_row
from phi3lora.data.formats import FORMATS
from phi3lora.data.inspection import inspect
from phi3lora.data.marks import transcript
from phi3lora.errors import DataError
from phi3lora.models.loading import load_tokenizer
from phi3lora.settings import Settings
from phi3lora.training.preflight import Preflight, _data_checks
from phi3lora.ui.train_show import data_summary
from tests.shapes import FORMATS_MARK, PAGE, SHAPES, A, Q, Shape, page, read_shape, turns


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_shape_is_read_as_it_was_meant(shape: Shape) -> None:
    format, said = read_shape(shape)
    assert format == shape.format
    if isinstance(shape.said, str):
        assert shape.said in said
    else:
        assert said == shape.said


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load_tokenizer(POCKET, weights=False)


@pytest.mark.parametrize(
    "shape",
    [one for one in SHAPES if isinstance(one.said, list) and not one.base],
    ids=lambda shape: shape.name,
)
def test_page_and_terminal_say_which_columns_are_not_read(
    shape: Shape, pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    monkeypatch.setattr("phi3lora.models.loading.load_tokenizer", lambda *_, **__: pocket)
    monkeypatch.setenv("COLUMNS", "300")
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in shape.rows), encoding="utf-8")
    expected = ", ".join(name or "(without a name)" for name in shape.unread) or "none"
    columns = shape.options.get("columns", {})
    options = [f"--column={name}={column}" for name, column in columns.items()]
    done = CliRunner().invoke(cli.app, ["inspect", str(file), "--model=pocket", *options])
    (line,) = [one for one in done.output.splitlines() if one.startswith("columns not read")]
    assert line.removeprefix("columns not read").strip() == expected
    config = RunConfig().with_values({"data.path": str(file), "data.columns": columns})
    seen = inspect(config, pocket)
    page = data_summary(config, Preflight([], seen))
    said = f"Columns not read: {expected}."
    assert said in page
    (check,) = _data_checks(config, seen)
    assert check.found.endswith(said)


def test_a_format_is_a_module_and_has_its_place_in_the_config() -> None:
    choices = get_args(get_type_hints(DataConfig)["format"])
    modules = {p.stem for p in Path(str(formats.__file__)).parent.glob("[!_]*.py")}
    assert choices[0] == "auto"
    assert set(choices[1:]) == set(FORMATS) == modules


@pytest.mark.parametrize("format", FORMATS.values(), ids=lambda format: format.name)
def test_a_format_reads_its_own_example(format: Any) -> None:
    options = {"columns": {"messages": "chosen"}} if format.name == "preference" else {}
    shape = Shape(format.name, list(format.example), format.name, "", options)
    read_as, said = read_shape(shape)
    assert read_as == format.name
    assert isinstance(said, list)
    assert len(said) == 1


def test_the_page_says_what_the_tables_say() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert FORMATS_MARK in written
    assert page(written) == written, "run python -m tests.shapes"


def detected(*rows: dict[str, Any], **chosen: Any) -> Any:
    return detect(list(dict.fromkeys(name for row in rows for name in row)), rows, **chosen)


def test_columns_that_are_not_read_are_listed() -> None:
    row = {"id": "1", "question": Q, "context": "A ship.", "answer": A, "source": "x"}
    assert detected(row).unread == ["id", "source"]
    assert detected({"messages": turns(Q, A), "chosen": A, "rejected": "x"}).unread == [
        "chosen",
        "rejected",
    ]
    assert detected({"": "0", "text": "Once."}).unread == [""]


def test_of_two_answers_it_is_said_which_was_taken() -> None:
    row = {"problem": "2+3?", "solution": "5 it is", "answer": "5"}
    assert detected(row).notices == [
        "'answer' is read as the answer; 'solution' could be it too. Choose with data.columns, "
        "such as `answer: solution`."
    ]
    assert detected(row, mapping={"answer": "solution"}).notices == []


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("<|speaker1|>\nHi\n<|speaker2|>\nHello", "<|speaker1|>"),
        ("[USER] Hi [BOT] Hello", "[USER]"),
        ("Q: Hi\nA: Hello", "Q:"),
        ("### Frage: Hi", "### Frage:"),
        ("Once upon a time.", ""),
        ("Note: this is prose.", ""),
        ("12:30 was the time.", ""),
    ],
)
def test_texts_that_begin_like_a_turn_get_a_notice(text: str, mark: str) -> None:
    assert transcript(text) is None
    notices = detected({"text": text}).notices
    assert [f"begin with {mark!r}" in notice for notice in notices] == ([True] if mark else [])


def test_joined_turns_are_counted_and_can_be_refused() -> None:
    row = {"messages": [*turns(Q, A), {"role": "assistant", "content": "Aye."}]}
    conversation = read_row(row, detected(row))
    assert conversation.changes == (JOINED,)
    assert conversation.messages[-1]["content"] == f"{A}\n\nAye."
    assert row["messages"][1]["content"] == A, "the row itself stays as it is"
    with pytest.raises(Exception, match="two assistant messages in a row"):
        read_row(row, detected(row), join=False)
    row["messages"][1]["weight"] = 0
    with pytest.raises(Exception, match="one has weight 0"):
        read_row(row, detected(row))


def test_reasoning_is_written_where_the_template_has_it_and_else_counted() -> None:
    row = {"messages": [turns(Q)[0], {**turns(Q, A)[1], "reasoning_content": "Hm."}]}
    plain = read_row(row, detected(row))
    assert (plain.messages[1]["content"], plain.changes) == (A, (UNTHOUGHT,))
    thought = read_row(row, detected(row), writes=Writes(thoughts=True))
    assert thought.messages[1]["content"] == f"<think>\nHm.\n</think>\n\n{A}"
    assert thought.changes == ()


def test_a_tree_of_any_depth_and_breadth_costs_what_it_has() -> None:
    gather = FORMATS["threads"].gather
    assert gather is not None
    rows: list[dict[str, Any]] = [{"id": 0, "parent_id": None, "role": "user", "text": "0"}]
    for i in range(1, 3000):
        role = ("user", "assistant")[i % 2]
        rows.append({"id": i, "parent_id": i - 1, "role": role, "text": str(i)})
    found = detected(*rows[:50])
    (thread,) = gather(rows, found, "best")
    assert len(thread["messages"]) == 3000
    loop = [{"id": 1, "parent_id": 2, "role": "user", "text": "x"}] * 2
    assert list(gather([*rows[:2], *loop], found, "all"))


def test_too_many_columns_are_refused() -> None:
    with pytest.raises(DataError, match=f"200,000 columns, expected {MOST_COLUMNS:,} at most"):
        detect([f"c{i}" for i in range(200_000)], [{}])


def test_marks_by_the_thousand_are_read_in_one_pass() -> None:
    """Work is counted in characters that a pattern may look at: a text that no turn ends."""
    assert transcript("<|user|>" * 200_000) is None
    assert transcript("<|im_start|>user\n" * 100_000) is None
    assert transcript("[INST]" * 100_000) is None
    assert transcript("### Human:" * 100_000) is None
