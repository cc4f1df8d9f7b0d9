"""What an inspection counts adds up, and what it shows is what is trained."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from phi3lora.config import RunConfig
from phi3lora.data import rendering
from phi3lora.data.conversation import BEYOND, TRIMMED
from phi3lora.data.inspection import inspect, percentiles
from phi3lora.data.rendering import render
from phi3lora.errors import DataError
from phi3lora.models.pocket import CHECKPOINT

FIELDS = [
    "format",
    "columns",
    "unread",
    "rows",
    "kept",
    "dropped",
    "changes",
    "notices",
    "tokens",
    "total_tokens",
    "supervised_tokens",
    "truncated",
    "preview",
]


@pytest.fixture(scope="module")
def pocket() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def config(path: object, max_length: int = 1024, **data: Any) -> RunConfig:
    values = {"data": {"path": str(path), **data}, "training_config": {"max_length": max_length}}
    return RunConfig.from_values(values)[0]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(prompt: str, completion: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def test_counts_are_those_of_the_rendered_rows(pocket: Any, tmp_path: Path) -> None:
    rows = [pair(f"Question {i}", "word " * (i + 1)) for i in range(40)]
    path = write(tmp_path / "a.jsonl", [*rows, pair("x", ""), pair("", "y"), pair("x", None)])
    inspection = inspect(config(path, max_length=30), pocket)
    whole = [
        render(
            pocket,
            [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": str(row["completion"])},
            ],
            30,
        )
        for row in rows
    ]
    assert (inspection.rows, inspection.kept) == (43, 40)
    assert inspection.dropped == {"empty answer": 2, "empty prompt": 1}
    assert inspection.total_tokens == sum(len(one.input_ids) for one in whole)
    assert inspection.supervised_tokens == sum(sum(one.supervised) for one in whole)
    assert inspection.truncated == sum(one.truncated for one in whole) > 0
    assert list(inspection.lengths) == [one.whole for one in whole]
    assert inspection.tokens["max"] == 30
    assert inspection.complete


def test_json_has_the_fields_that_were_promised(pocket: Any) -> None:
    found = inspect(config("example:pirate"), pocket).to_json()
    assert list(found) == FIELDS
    assert json.loads(json.dumps(found)) == found
    assert list(found["tokens"]) == ["p50", "p95", "max"]
    assert found["columns"] == {"messages": "messages"}
    assert (found["rows"], found["kept"], found["dropped"]) == (400, 400, {})


def test_previews_join_to_the_first_kept_conversations(pocket: Any, tmp_path: Path) -> None:
    rows = [pair("", "dropped"), pair("a", "b"), pair("c", "d"), pair("e", "f"), pair("g", "h")]
    found = inspect(config(write(tmp_path / "a.jsonl", rows)), pocket)
    texts = ["".join(part["text"] for part in preview) for preview in found.preview]
    assert texts == [
        f"<|user|>\n{p}<|end|>\n<|assistant|>\n{c}<|end|>\n<|endoftext|>"
        for p, c in (("a", "b"), ("c", "d"), ("e", "f"))
    ]
    learnt = [part["text"] for part in found.preview[0] if part["supervised"]]
    assert learnt == ["b<|end|>"]
    assert len(inspect(config(tmp_path / "a.jsonl"), pocket, preview=1).preview) == 1


def test_every_shape_of_the_example_is_the_same_data(pocket: Any) -> None:
    names = ("pirate", "pirate_sharegpt", "pirate_instructions", "pirate_prompts")
    found = [inspect(config(f"example:{name}"), pocket).to_json() for name in names]
    assert [one.pop("format") for one in found] == [
        "messages",
        "conversations",
        "instruction",
        "prompt_completion",
    ]
    for one in found:
        one.pop("columns")
    assert found[0] == found[1] == found[2] == found[3]


def test_a_row_with_nothing_left_after_the_cut_is_dropped(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair("long " * 50, "answer"), pair("short", "answer")])
    found = inspect(config(path, max_length=16), pocket)
    assert found.kept == 1
    assert found.dropped == {"nothing left to learn after the length limit": 1}


def test_when_nothing_is_left_the_error_says_what_was_found(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair("x", ""), pair("y", None), pair("", "z")])
    with pytest.raises(DataError) as told:
        inspect(config(path), pocket)
    for words in (
        "None of the 3 rows of a.jsonl",
        "empty answer: 2",
        "empty prompt: 1",
        "'prompt_completion'",
        "data.columns",
    ):
        assert words in str(told.value)


def test_mapping_roles_and_system_prompt_come_from_the_config(pocket: Any, tmp_path: Path) -> None:
    turns = [{"from": "Me", "value": "a"}, {"from": "Bot", "value": "b"}]
    path = write(tmp_path / "a.jsonl", [{"log": turns, "messages": "no"}])
    chosen = config(
        path,
        columns={"messages": "log"},
        roles={"Me": "user", "Bot": "assistant"},
        system_prompt="S",
    )
    found = inspect(chosen, pocket)
    assert "".join(part["text"] for part in found.preview[0]).startswith("<|system|>\nS<|end|>\n")
    assert found.unread == ["messages"]
    assert found.detected.roles == {"Me": "user", "Bot": "assistant"}


def test_limits(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair(str(i), "x") for i in range(5000)])
    limited = inspect(config(path), pocket, limit=1500)
    assert (limited.rows, limited.kept, limited.complete) == (1500, 1500, False)
    few = inspect(config(path, max_rows=7), pocket)
    assert (few.rows, few.complete) == (7, True)


def test_turns_after_the_last_answer_are_counted(pocket: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": [*turns, turns[0]]}, {"messages": turns}]
    found = inspect(config(write(tmp_path / "a.jsonl", rows)), pocket)
    assert (found.kept, found.changes) == (2, {TRIMMED: 1})
    assert found.preview[0] == found.preview[1]


def test_memory_does_not_grow_with_the_rows(pocket: Any, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = write(tmp_path / f"{rows}.jsonl", [pair("q " * 20, "a " * 20)] * rows)
        inspect(config(path), pocket, limit=1)
        tracemalloc.start()
        inspect(config(path), pocket)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    # Eight times the rows; how far reading is ahead of tokenizing differs a little each time.
    assert peak(16_000) < 2 * peak(2_000)


def test_progress(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [pair(str(i), "x") for i in range(3000)])
    seen: list[float] = []
    inspect(config(path), pocket, progress=seen.append)
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert seen[-1] == 1.0


def test_percentiles() -> None:
    assert percentiles(range(1, 102)) == {"p50": 51, "p95": 96, "max": 101}
    assert percentiles([7]) == {"p50": 7, "p95": 7, "max": 7}


@pytest.mark.parametrize("vocabulary", ["pocket", "real"])
def test_real_instruction_rows_are_all_accounted_for(
    alpaca_rows: Path, vocabulary: str, request: pytest.FixtureRequest
) -> None:
    folder = CHECKPOINT if vocabulary == "pocket" else request.getfixturevalue("real_vocabulary")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads(alpaca_rows.read_text(encoding="utf-8"))
    found = inspect(config(alpaca_rows, max_length=4096), tokenizer)
    assert found.format == "instruction"
    assert found.rows == len(rows) == found.kept + sum(found.dropped.values())
    assert found.dropped == {}
    assert found.truncated == 0
    expected = 0
    for row in rows:
        prompt = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
        turns = [("user", prompt), ("assistant", row["output"])]
        messages = [{"role": role, "content": content} for role, content in turns]
        expected += len(tokenizer.apply_chat_template(messages)["input_ids"])
    assert found.total_tokens == expected


def test_endless_conversations_lay_out_few_templates(pocket: Any, tmp_path: Path) -> None:
    """A pattern of roles costs as much as it is long: those beyond the limit are not laid out."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(1500)]
    rows = [{"messages": turns[:length]} for length in range(2, 1500, 2)]
    path = write(tmp_path / "a.jsonl", rows)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    chosen = config(path, 64)
    found = inspect(chosen, tokenizer)
    most = 64 // 2 + 2
    assert (found.kept, found.changes) == (749, {BEYOND: 749 - most // 2})
    assert len(rendering._renderer(tokenizer).patterns) == most // 2
    whole = render(tokenizer, turns, 64)
    assert found.tokens["max"] == len(whole.input_ids) == 64
    assert found.supervised_tokens >= sum(whole.supervised) * (749 - most // 2)
