"""Prepared sets hold what was rendered, are split by seed, and are made once."""

from __future__ import annotations

import errno
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from phi3lora.config import RunConfig
from phi3lora.data import preparation, reading
from phi3lora.data.mixing import split_indices
from phi3lora.data.preparation import prepare, prompt_hash
from phi3lora.data.rendering import render
from phi3lora.errors import DataError
from phi3lora.models.pocket import CHECKPOINT
from tests.hub import LoopbackHub


@pytest.fixture(scope="module")
def pocket() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def config(path: object, training: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    values = {"data": {"path": str(path), **data}, "training_config": training or {}}
    return RunConfig.from_values(values)[0]


def turns(prompt: str, answer: str) -> list[Any]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def plain(messages: list[Any]) -> list[Any]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


PAIRS = [(f"What is {i}?", f"It is {i}.") for i in range(50)]


def test_rows_are_what_rendering_makes_of_them(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [("x", ""), *PAIRS])
    found = prepare(config(path, test_size=0.2), pocket, cache_folder=tmp_path / "cache")
    assert found.train.column_names == ["input_ids", "labels"]
    assert found.test is not None
    assert found.test.column_names == ["input_ids", "labels", "messages"]
    assert (len(found.train), len(found.test), found.rows) == (40, 10, 51)
    assert found.dropped == {"empty answer": 1}
    expected = {tuple(render(pocket, turns(*pair)).input_ids): pair for pair in PAIRS}
    for row in [*found.train, *found.test]:
        rendered = render(pocket, turns(*expected.pop(tuple(row["input_ids"]))))
        assert row["labels"] == rendered.labels
    assert not expected
    assert plain(found.test[0]["messages"]) == turns(*PAIRS[found.test_rows[0] - 1])
    assert found.train_tokens == sum(len(row["input_ids"]) for row in found.train)
    learnt = sum(label != -100 for row in found.train for label in row["labels"])
    assert found.supervised_tokens == learnt


def test_the_split_is_by_seed_and_by_nothing_else(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)

    def held_out(cache: str, seed: int = 42, max_length: int = 1024) -> list[int]:
        chosen = config(path, {"max_length": max_length}, seed=seed, test_size=0.2)
        return prepare(chosen, pocket, cache_folder=tmp_path / cache).test_rows

    assert held_out("one") == held_out("two") == held_out("one", max_length=512)
    assert held_out("one", seed=7) != held_out("one")


def test_split_indices() -> None:
    train, test = split_indices(10, 0.25, seed=1)
    assert sorted([*train, *test]) == list(range(10))
    assert (len(test), list(test)) == (2, sorted(test))
    assert len(split_indices(10, 3, seed=1)[1]) == 3
    assert len(split_indices(10, 0.01, seed=1)[1]) == 1
    assert len(split_indices(10, 0, seed=1)[1]) == 0
    for size in (10, 50, 0.99):
        with pytest.raises(DataError, match="leaves none to train on"):
            split_indices(10, size, seed=1)


def test_leakage_is_counted(pocket: Any, tmp_path: Path) -> None:
    same = [("What is  THIS?", f"Answer {i}") for i in range(10)]
    found = prepare(config(write(tmp_path / "a.jsonl", [*same, *PAIRS]), test_size=30), pocket)
    expected = sum(row < 10 for row in found.test_rows)
    assert 0 < expected < 10
    assert found.leaked == expected
    clean = prepare(config(write(tmp_path / "b.jsonl", PAIRS), test_size=25), pocket)
    assert clean.leaked == 0


def test_what_counts_as_the_same_prompt() -> None:
    same = prompt_hash(turns("What is it?", "a"))
    assert same == prompt_hash(turns(" what IS\nit? ", "b"))
    assert same == prompt_hash([{"role": "system", "content": "S"}, *turns("What is it?", "c")])
    assert same != prompt_hash(turns("What was it?", "a"))
    assert same != prompt_hash(turns("What is it?", "a") + turns("And?", "b"))
    alone: list[Any] = [{"role": "assistant", "content": "a"}]
    assert prompt_hash(alone) != prompt_hash([{**alone[0], "content": "b"}])


def test_nothing_is_prepared_twice(
    pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    first = prepare(config(path), pocket, cache_folder=tmp_path)

    def never(*_: Any) -> Any:
        raise AssertionError("rendered again")

    monkeypatch.setattr(reading, "render_many", never)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    for chosen in (config(path), config(copy), config(path, {"learning_rate": 1e-5}, seed=3)):
        assert prepare(chosen, pocket, cache_folder=tmp_path).fingerprint == first.fingerprint
    changed = [
        config(path, {"max_length": 64}),
        config(path, system_prompt="S"),
        config(path, max_rows=9),
        config(path, columns={"prompt": "completion", "completion": "prompt"}),
        config(write(tmp_path / "edited.jsonl", [*PAIRS[:-1], ("What is 49?", "It is 48.")])),
    ]
    for chosen in changed:
        with pytest.raises(AssertionError, match="rendered again"):
            prepare(chosen, pocket, cache_folder=tmp_path)
    assert not list((tmp_path / "prepared").glob("*.part"))


def test_another_vocabulary_or_template_is_prepared_anew(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    first = prepare(config(path), pocket, cache_folder=tmp_path)
    other = AutoTokenizer.from_pretrained(CHECKPOINT)
    other.chat_template = other.chat_template.replace("<|user|>", "<|placeholder1|>")
    second = prepare(config(path), other, cache_folder=tmp_path)
    assert second.fingerprint != first.fingerprint
    assert second.train[0]["input_ids"] != first.train[0]["input_ids"]


def test_an_interrupted_preparation_leaves_nothing_behind(
    pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "rows.arrow")

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_write_table", full)
        with pytest.raises(DataError, match=r"No space left on device .* Free some space"):
            prepare(config(path), pocket, cache_folder=tmp_path)
    assert [p.suffix for p in (tmp_path / "prepared").iterdir()] == [".lock"]
    assert len(prepare(config(path), pocket, cache_folder=tmp_path).train) == 45


def _prepare_elsewhere(path: str, cache: str) -> list[int]:
    chosen = RunConfig.from_values({"data": {"path": path}})[0]
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    return prepare(chosen, tokenizer, cache_folder=Path(cache)).test_rows


def test_two_processes_share_one_preparation(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS * 50)
    arguments = [(str(path), str(tmp_path))] * 2
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.starmap(_prepare_elsewhere, arguments)
    assert first == second
    assert len(list((tmp_path / "prepared").glob("*/info.json"))) == 1


def test_the_cache_forgets_what_was_unused_for_longest(
    pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "KEPT_SETS", 2)
    path = write(tmp_path / "a.jsonl", PAIRS)
    first = [
        prepare(config(path, {"max_length": n}), pocket, cache_folder=tmp_path) for n in (64, 65)
    ]
    again = prepare(config(path, {"max_length": 64}), pocket, cache_folder=tmp_path)
    third = prepare(config(path, {"max_length": 66}), pocket, cache_folder=tmp_path)
    kept = {info.parent.name for info in (tmp_path / "prepared").glob("*/info.json")}
    assert kept == {again.fingerprint, third.fingerprint}
    assert len(first[1].train[0]["input_ids"]) > 0  # still mapped by who holds it


def test_without_a_cache_folder_the_files_go_with_the_result(pocket: Any, tmp_path: Path) -> None:
    found = prepare(config(write(tmp_path / "a.jsonl", PAIRS)), pocket)
    place = Path(found.train.cache_files[0]["filename"])
    assert place.exists()
    del found
    assert not place.exists()


@pytest.mark.parametrize(
    ("pairs", "training", "data", "words"),
    [
        (PAIRS[:3], {}, {}, "There are 2 rows to train on, less than one batch of 4; lower"),
        (PAIRS[:1], {}, {}, "leaves none to train on"),
        ([("a", "")] * 9, {}, {}, "None of the 9 rows"),
    ],
)
def test_too_little_data_is_said_before_training(
    pocket: Any, tmp_path: Path, pairs: Any, training: Any, data: Any, words: str
) -> None:
    path = write(tmp_path / "a.jsonl", pairs)
    with pytest.raises(DataError) as told:
        prepare(config(path, training, **data), pocket, cache_folder=tmp_path)
    assert words in str(told.value)


def test_what_only_the_hub_has_is_left_aside_with_a_notice(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    told = {"split": "train_sft", "test_split": "test_sft", "name": "default", "test_size": 0.2}
    found = prepare(config(path, **told), pocket)
    assert len(found.test or []) == 10
    assert [notice.partition(" is left aside")[0] for notice in found.notices] == [
        "data.test_split (test_sft)",
        "data.name (default)",
        "data.split (train_sft)",
    ]
    assert prepare(config(path), pocket).notices == []


def test_a_list_of_a_json_file_is_a_split(pocket: Any, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in PAIRS]
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"first": rows[:20], "second": rows}), encoding="utf-8")
    found = prepare(config(path, split="second", test_size=0), pocket)
    assert (len(found.train), found.notices) == (50, [])


def test_nothing_held_out(pocket: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    found = prepare(config(path, test_size=0), pocket)
    assert (found.test, found.test_rows, len(found.train)) == (None, [], 50)


def test_a_held_out_split_of_the_hub(pocket: Any, tmp_path: Path, hub: LoopbackHub) -> None:
    def lines(pairs: list[tuple[str, str]]) -> str:
        return write(tmp_path / "rows.jsonl", pairs).read_text()

    files = {"train.jsonl": lines(PAIRS[:40]), "test.jsonl": lines([*PAIRS[38:], ("x", "")])}
    hub.add_repo("dataset", "ann/chat", files)
    chosen = config("ann/chat", test_split="test", max_rows=39)
    seen: list[float] = []
    found = prepare(chosen, pocket, cache_folder=tmp_path / "cache", progress=seen.append)
    assert found.test is not None
    assert (len(found.train), len(found.test), found.leaked) == (39, 12, 1)
    assert (found.rows, found.dropped) == (39 + 13, {"empty answer": 1})
    assert plain(found.test["messages"][0]) == turns(*PAIRS[38])
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_batches_of_any_size_give_the_same_tokens(
    pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    whole = prepare(config(path), pocket)
    monkeypatch.setattr(reading, "_ROWS", 7)
    small = prepare(config(path), pocket)
    assert small.train[:] == whole.train[:]
    assert np.array_equal(small.test_rows, whole.test_rows)
