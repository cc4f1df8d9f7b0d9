"""Rows from files, examples and a Hub: what is read, and what is said when nothing can be."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import DataConfig
from phi3lora.data import files
from phi3lora.data.sources import EXAMPLES, configurations, is_local, open_source, splits
from phi3lora.errors import DataError, HubError
from phi3lora.hub import client
from phi3lora.hub.client import Unreachable
from tests.hub import LoopbackHub
from tests.hub.fixtures import go_offline

ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}, é 🦜."} for i in range(7)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def rows_of(path: Path, **data: Any) -> list[dict[str, Any]]:
    return list(open_source(DataConfig(path=str(path), **data)).rows())


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def read_all(path: Path) -> None:
    """As an inspection does: the first rows, then every row."""
    source = open_source(DataConfig(path=str(path)))
    assert source.columns
    list(source.rows())


CSV = "question,answer\n" + "".join(f'{r["question"]},"{r["answer"]}"\n' for r in ROWS)
COLUMNS = {name: [row[name] for row in ROWS] for name in ("question", "answer")}


# --- files -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl", "\ufeff\n" + JSONL.replace("\n", "\r\n\r\n")),
        ("a.jsonl", JSONL.rstrip()),
        ("wrong-name.json", JSONL),
        ("wrong-name.csv", JSONL),
        ("a.json", json.dumps(ROWS)),
        ("a.json", "\n" + json.dumps(ROWS, indent=2) + "\n"),
        ("wrong-name.jsonl", json.dumps(ROWS, indent=2)),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
        ("a.json", json.dumps({"data": ROWS})),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=2)),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS[:1]})),
        ("a.json", json.dumps({"test": ROWS[:1], "train": ROWS})),
        ("a.json", json.dumps(COLUMNS)),
        ("a.json", json.dumps({k: dict(enumerate(v)) for k, v in COLUMNS.items()})),
        ("a.csv", CSV),
        ("a.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("a.csv", CSV.replace(',"', ';"').replace("question,", "question;")),
        ("a.tsv", CSV.replace(',"', '\t"').replace("question,", "question\t")),
        ("a.parquet", parquet(ROWS)),
        ("wrong-name.json", parquet(ROWS)),
    ],
)
def test_the_same_rows_in_every_shape_of_file(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    assert rows_of(write(tmp_path / name, content)) == ROWS


def test_csv_cells_hold_delimiters_quotes_and_newlines(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = write(tmp_path / "a.csv", f'q,a\n"one, ""two""\nthree",{long}\n\nonly one\n')
    assert rows_of(path) == [
        {"q": 'one, "two"\nthree', "a": long},
        {"q": "only one", "a": None},
    ]


def test_values_that_are_not_objects_get_a_column(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert rows_of(write(tmp_path / "a.json", json.dumps([turns]))) == [{"messages": turns}]
    assert rows_of(write(tmp_path / "b.json", '["x", "y"]')) == [{"text": "x"}, {"text": "y"}]
    one = {"messages": turns}
    assert rows_of(write(tmp_path / "c.json", json.dumps(one))) == [one]


def test_json_is_read_across_chunks_wherever_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.dumps(ROWS, indent=1, ensure_ascii=False)
    path = write(tmp_path / "a.json", content)
    wrapped = write(tmp_path / "b.json", '{"data": ' + content + "}")
    for chunk in (1, 2, 3, 7, 50):
        monkeypatch.setattr(files, "_CHUNK", chunk)
        assert rows_of(path) == ROWS
        assert rows_of(wrapped) == ROWS


def test_a_preview_reads_no_more_than_it_needs(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.json", "[" + JSONL.replace("\n", ",\n") * 50_000 + "THE END IS BROKEN"
    )
    source = open_source(DataConfig(path=str(path)))
    assert source.first(3) == ROWS[:3]
    with pytest.raises(DataError, match=r"a.json, line 350001: not JSON: Expecting value"):
        list(source.rows())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", JSONL + '{"question": oops}\n', "line 8: not JSON: Expecting value at"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}]' + " " * 99, "a.json, line 3: not JSON: Expecting ':'"),
        ("a.json", '[{"a": 1}', "ends too early"),
        ("a.json", '[{"a": "never closed}]', "line 1: not JSON: Unterminated string"),
        ("a.json", '[{"a": 1} {"a": 2}]', "expected a comma"),
        ("a.json", "[1, 2]", "row 1: expected an object with columns, got 1"),
        ("a.jsonl", "hello\n", "begins with 'hello"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv, line 3: expected 2 cells as in the header, got 3"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv, line 2: unexpected end of data"),
        ("a.csv", "a,b,a\n1,2,3\n", "the column 'a' is there twice"),
        ("a.csv", b"a,b\ncaf\x81,2\n", "is not UTF-8: the byte 0x81"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\x81"}\n', "is not UTF-8: the byte 0x81"),
        ("a.json", b'[{"a": "\x81"}]', "is not UTF-8: the byte 0x81"),
        ("a.json", "", "a.json is empty"),
        ("a.json", "\ufeff \n", "a.json is empty"),
        ("a.json", "[]", "a.json has no rows"),
        ("a.csv", "a,b\n", "a.csv has no rows"),
        ("a.zip", b"PK\x03\x04rest", "a.zip is a ZIP archive"),
        ("a.jsonl.gz", gzip.compress(JSONL.encode())[:-20], "a.jsonl.gz is damaged"),
        ("a.parquet", parquet(ROWS)[:-30], "broken Parquet file"),
        ("a.dat", "some words\n", "must be named .csv"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as told:
        read_all(path)
    assert words in str(told.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder without a file of rows"):
        open_source(DataConfig(path=str(tmp_path)))
    for path in (str(tmp_path / "no.json"), "no.json", "some/no.csv", "./no", "a/b/c"):
        with pytest.raises(DataError, match="There is no file"):
            open_source(DataConfig(path=path))


def test_count_columns_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", parquet([{**row, "extra": 1} for row in [*ROWS, ROWS[0]]]))
    source = open_source(DataConfig(path=str(path), max_rows=3))
    assert (source.count, source.columns) == (3, ["question", "answer", "extra"])
    assert [row["question"] for row in source.rows()] == [row["question"] for row in ROWS[:3]]
    assert open_source(DataConfig(path=str(path))).count == 8
    jsonl = write(tmp_path / "a.jsonl", JSONL + '{"late": 1}')
    assert open_source(DataConfig(path=str(jsonl))).columns == ["question", "answer", "late"]
    assert open_source(DataConfig(path=str(jsonl))).count == 8


def test_progress_goes_up_to_one(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", JSONL * 900), ("a.csv", CSV), ("a.parquet", parquet(ROWS))):
        seen: list[float] = []
        list(open_source(DataConfig(path=str(write(tmp_path / name, content)))).rows(seen.append))
        assert seen == sorted(seen)
        assert seen[-1] == 1.0


def test_the_fingerprint_is_the_content(tmp_path: Path) -> None:
    first, copy = write(tmp_path / "a.jsonl", JSONL), write(tmp_path / "b.jsonl", JSONL)
    other = write(tmp_path / "c.jsonl", JSONL.replace("7", "8").replace("é", "e"))

    def fingerprint(path: Path, **data: Any) -> str:
        return open_source(DataConfig(path=str(path), **data)).fingerprint

    assert fingerprint(first) == fingerprint(copy)
    assert len({fingerprint(first), fingerprint(other), fingerprint(first, max_rows=2)}) == 3


def test_examples_are_the_same_rows_in_four_shapes() -> None:
    def questions(name: str) -> list[str]:
        rows = open_source(DataConfig(path=f"example:{name}")).rows()
        return [json.dumps(row, ensure_ascii=False) for row in rows]

    pirates = [name for name in EXAMPLES if name.startswith("pirate")]
    assert {name: len(questions(name)) for name in pirates} == dict.fromkeys(pirates, 400)
    with pytest.raises(DataError, match="no example 'parrot'; there are pirate, orders"):
        open_source(DataConfig(path="example:parrot"))
    assert is_local("example:pirate")
    assert not is_local("user/name")


# --- the Hub ---------------------------------------------------------------

CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train-*.parquet}
  - {split: test, path: plain/test.parquet}
- config_name: short
  data_files:
  - {split: all, path: plain/test.parquet}
---
"""
SEMICOLONS = """---
configs:
- config_name: default
  sep: ";"
  data_files:
  - {split: all, path: semicolons.csv}
---
"""


@pytest.fixture
def ann(hub: LoopbackHub) -> LoopbackHub:
    """A Hub where ann has datasets and bob is somebody else."""
    hub.add_user("ann", token="hf_ann")
    hub.add_user("bob", token="hf_bob")
    hub.add_repo("dataset", "ann/chat", {"train.jsonl": JSONL, "test.jsonl": JSONL[:60]})
    hub.add_repo("dataset", "ann/secret", {"train.jsonl": JSONL}, private=True)
    hub.add_repo("dataset", "ann/gated", {"train.jsonl": JSONL}, gated=True)
    many = {
        "README.md": CARD,
        "plain/train-0.parquet": parquet(ROWS[:4]),
        "plain/train-1.parquet": parquet(ROWS[4:]),
        "plain/test.parquet": parquet(ROWS[:1]),
    }
    csv = {"README.md": SEMICOLONS, "semicolons.csv": "question;answer\nWhat, now?;This, then.\n"}
    hub.add_repo("dataset", "ann/csv", csv)
    hub.add_repo("dataset", "ann/many", many)
    return hub


def hub_source(path: str, cache: Path, token: str | None = None, **data: Any) -> Any:
    return open_source(DataConfig(path=path, **data), token=token, cache_folder=cache)


def test_rows_of_the_hub(ann: LoopbackHub, tmp_path: Path) -> None:
    source = hub_source("ann/chat", tmp_path)
    assert source.first(2) == ROWS[:2]
    assert source.columns == ["question", "answer"]
    seen: list[float] = []
    assert list(source.rows(seen.append)) == ROWS
    assert seen == [1.0]
    first = source.fingerprint
    ann.commit("dataset", "ann/chat", {"train.jsonl": JSONL[:60]})
    assert hub_source("ann/chat", tmp_path).fingerprint != first


def test_configurations_shards_and_card_options(ann: LoopbackHub, tmp_path: Path) -> None:
    assert list(hub_source("ann/many", tmp_path, name="plain").rows()) == ROWS
    csv = hub_source("ann/csv", tmp_path, split="all")
    assert list(csv.rows()) == csv.first(9) == [{"question": "What, now?", "answer": "This, then."}]
    assert configurations("ann/many") == ["plain", "short"]
    assert splits("ann/many", "plain") == ["train", "test"]
    assert configurations("example:pirate") == splits("rows.json") == []


def test_a_preview_downloads_no_file(ann: LoopbackHub, tmp_path: Path) -> None:
    big = "".join(json.dumps({"question": "x" * 1000, "answer": i}) + "\n" for i in range(40_000))
    ann.add_repo("dataset", "ann/big", {"train.jsonl": big})
    assert len(hub_source("ann/big", tmp_path).first(3)) == 3
    assert sum(request.sent for request in ann.requests) < len(big) / 3
    assert not (tmp_path / "hub" / "files").exists()


def test_nothing_is_downloaded_twice(ann: LoopbackHub, tmp_path: Path) -> None:
    list(hub_source("ann/chat", tmp_path).rows())
    ann.requests.clear()
    assert list(hub_source("ann/chat", tmp_path).rows()) == ROWS
    assert not [request for request in ann.requests if "resolve" in request.path]


@pytest.mark.parametrize(
    ("path", "token", "data", "error", "words"),
    [
        ("ann/nothing", None, {}, HubError, "no public dataset ann/nothing: check the name"),
        ("ann/nothing", "hf_bob", {}, HubError, "no dataset ann/nothing that your account may"),
        ("ann/secret", None, {}, HubError, "If it is private, sign in"),
        ("ann/secret", "hf_bob", {}, HubError, "that your account may read"),
        ("ann/gated", None, {}, HubError, "/datasets/ann/gated, then try again. Sign in first"),
        ("ann/gated", "hf_bob", {}, HubError, "ann/gated is gated: ask for access at http"),
        ("ann/chat", "hf_wrong", {}, HubError, "refused the token"),
        ("ann/chat", None, {"revision": "v9"}, HubError, "no revision 'v9'"),
        ("ann/chat", None, {"split": "dev"}, DataError, "set data.split to one of: train, test"),
        ("ann/chat", None, {"split": "train[:5]"}, DataError, "set data.max_rows"),
        ("ann/chat", None, {"name": "x"}, DataError, "no configuration 'x'; set data.name to one"),
        ("ann/many", None, {}, DataError, "several configurations; set data.name to one of"),
        ("ann/script", None, {}, DataError, "read by a script of its own (script.py)"),
        ("ann/empty", None, {}, DataError, "ann/empty is empty"),
        ("ann/off", None, {}, HubError, "was disabled"),
    ],
)
def test_every_refusal_of_the_hub_is_told_apart(
    ann: LoopbackHub,
    tmp_path: Path,
    path: str,
    token: str | None,
    data: Any,
    error: Any,
    words: str,
) -> None:
    ann.add_repo("dataset", "ann/script", {"script.py": "raise SystemExit", "a.jsonl": JSONL})
    ann.add_repo("dataset", "ann/empty", {"README.md": "Soon."})
    ann.add_repo("dataset", "ann/off", {"a.jsonl": JSONL}, disabled=True)
    with pytest.raises(error) as told:
        hub_source(path, tmp_path, token, **data).first(1)
    assert words in str(told.value)


def test_private_and_gated_rows_for_those_who_may(ann: LoopbackHub, tmp_path: Path) -> None:
    assert list(hub_source("ann/secret", tmp_path, "hf_ann").rows()) == ROWS
    ann.grant("dataset", "ann/gated", "bob")
    assert list(hub_source("ann/gated", tmp_path, "hf_bob").rows()) == ROWS


def test_what_one_user_downloaded_is_refused_to_the_next(ann: LoopbackHub, tmp_path: Path) -> None:
    """Even where both share a cache folder, which they should not."""
    list(hub_source("ann/secret", tmp_path, "hf_ann").rows())
    for token in (None, "hf_bob"):
        with pytest.raises(HubError):
            hub_source("ann/secret", tmp_path, token).first(1)
        with pytest.raises(HubError):
            list(hub_source("ann/secret", tmp_path, token).rows())


def test_a_stored_token_is_not_used_for_the_anonymous(
    ann: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    with pytest.raises(HubError, match="If it is private, sign in"):
        hub_source("ann/secret", tmp_path).first(1)
    list(hub_source("ann/chat", tmp_path).rows())
    assert {request.authorization for request in ann.requests} == {None}


def test_a_busy_hub_is_waited_for_and_it_is_said(
    ann: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    ann.fail("/api/datasets/ann/chat", status=429, times=2, retry_after=7)
    told: list[str] = []
    source = open_source(DataConfig(path="ann/chat"), cache_folder=tmp_path, tell=told.append)
    assert source.first(1) == ROWS[:1]
    assert slept[:2] == [7.0, 7.0]
    assert told == ["The Hub is busy and asks to wait; trying again in 7 s."] * 2
    ann.fail("/api/datasets/ann/many", status=429, retry_after=200)
    with pytest.raises(HubError, match="asks to wait longer"):
        hub_source("ann/many", tmp_path).first(1)


def test_a_hub_that_is_down(
    ann: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    list(hub_source("ann/chat", tmp_path).rows())
    ann.fail(".", status=503)
    assert list(hub_source("ann/chat", tmp_path).rows()) == ROWS
    with pytest.raises(Unreachable, match=r"The Hub is down \(503\) and ann/many was not"):
        hub_source("ann/many", tmp_path).first(1)


def test_offline_what_was_downloaded_still_works(ann: LoopbackHub, tmp_path: Path) -> None:
    list(hub_source("ann/csv", tmp_path, split="all").rows())
    go_offline(True)
    kept = hub_source("ann/csv", tmp_path, split="all")
    assert (
        kept.first(1) == list(kept.rows()) == [{"question": "What, now?", "answer": "This, then."}]
    )
    with pytest.raises(Unreachable, match="set to work offline"):
        hub_source("ann/chat", tmp_path).first(1)


def test_a_connection_that_is_refused(ann: LoopbackHub, tmp_path: Path) -> None:
    ann.stop()
    try:
        with pytest.raises(Unreachable, match="cannot be reached and ann/chat was not downloaded"):
            hub_source("ann/chat", tmp_path).first(1)
    finally:
        ann.start()


def test_the_token_is_written_nowhere(ann: LoopbackHub, tmp_path: Path) -> None:
    source = hub_source("ann/secret", tmp_path, "hf_ann")
    list(source.rows())
    assert "hf_ann" not in repr(source)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hf_ann" not in written
    assert b"What is 3?" in written
