"""Files as people have them: packed, in other encodings, in folders; and files that are traps."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phi3lora.config import DataConfig
from phi3lora.data import files, opening
from phi3lora.data.folders import version_of
from phi3lora.data.sources import Source, open_source
from phi3lora.errors import DataError

ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}, né."} for i in range(7)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "question,answer\n" + "".join(f'{r["question"]},"{r["answer"]}"\n' for r in ROWS)
TABLE = pa.Table.from_pylist(ROWS)


def opened(path: Path, **data: Any) -> Source:
    return open_source(DataConfig(path=str(path), **data))


def short(value: str | bytes) -> str:
    """An id that is the same in each process: packed rows hold the time."""
    return value if isinstance(value, str) and len(value) < 20 else "rows"


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def packed(codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(JSONL.encode())
    return sink.getvalue().to_pybytes()


def arrow(stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return sink.getvalue().to_pybytes()


def workbook(rows: list[list[Any]]) -> bytes:
    """A sheet as Excel writes it: texts in a table of their own, empty cells left out."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    texts: list[str] = []
    lines = []
    for r, cells in enumerate(rows, 1):
        parts = []
        for c, value in enumerate(cells):
            place = f"{chr(65 + c)}{r}"
            if isinstance(value, str):
                texts.append(value)
                parts.append(f'<c r="{place}" t="s"><v>{len(texts) - 1}</v></c>')
            elif value is not None:
                parts.append(f'<c r="{place}"><v>{value}</v></c>')
        lines.append(f'<row r="{r}">{"".join(parts)}</row>')
    sheet = f'<worksheet xmlns="{main}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
    shared = "".join(f"<si><t>{text}</t></si>" for text in texts)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", f'<workbook xmlns="{main}"/>')
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{main}">{shared}</sst>')
    return file.getvalue()


SHEET = workbook([["question", "answer"], *([r["question"], r["answer"]] for r in ROWS)])
SPLIT = {"columns": ["question", "answer"], "data": [list(r.values()) for r in ROWS]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(JSONL.encode())),
        ("a.jsonl.zst", packed("zstd")),
        ("a.jsonl.bz2", packed("bz2")),
        ("a.csv.gz", gzip.compress(CSV.encode())),
        ("a.json.gz", gzip.compress(json.dumps(ROWS, ensure_ascii=False).encode())),
        ("stream.arrow", arrow(stream=True)),
        ("file.arrow", arrow(stream=False)),
        ("a.xlsx", SHEET),
        ("a.csv", CSV.encode("cp1252")),
        ("a.jsonl", JSONL.encode("cp1252")),
        ("a.csv", CSV.encode("utf-16")),
        ("a.jsonl", JSONL.encode("utf-16")),
        ("a.json", json.dumps(ROWS, ensure_ascii=False).encode("utf-16")),
        ("a.csv", "sep=;\r\n" + CSV.replace(',"', ';"').replace("n,a", "n;a")),
        ("a.csv", CSV.replace(',"', ', "').replace("n,a", "n, a")),
        ("a.tsv", "question\tanswer\n" + "".join("\t".join(r.values()) + "\n" for r in ROWS)),
        ("a.json", json.dumps({"data": {"train": ROWS}})),
        ("a.json", json.dumps({"version": 1, "data": {"train": ROWS, "test": ROWS[:1]}})),
        ("a.json", json.dumps(SPLIT)),
        ("a.json", json.dumps({f"id-{i}": row for i, row in enumerate(ROWS)})),
        ("a.json", json.dumps({str(i): row for i, row in enumerate(ROWS)})),
    ],
    ids=short,
)
def test_the_same_rows_in_every_container(tmp_path: Path, name: str, content: str | bytes) -> None:
    source = opened(written(tmp_path / name, content))
    assert list(source.rows()) == source.first(99) == ROWS


def test_what_was_assumed_is_said(tmp_path: Path) -> None:
    wide = opened(written(tmp_path / "a.csv", CSV.encode("utf-16")))
    old = opened(written(tmp_path / "b.csv", CSV.encode("cp1252")))
    assert wide.notices == ["a.csv is read as UTF-16."]
    assert "b.csv is not UTF-8 (the byte 0xE9), and is read as Windows-1252" in old.notices[0]
    assert opened(written(tmp_path / "c.csv", CSV)).notices == []


def test_a_quote_in_a_tsv_without_quoting_is_a_quote(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", 'question\tanswer\n"Hi" he said\t"no\n')
    assert list(opened(path).rows()) == [{"question": '"Hi" he said', "answer": '"no'}]


def test_a_table_with_its_numbering(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", ",question,answer\n0,a,b\n1,c,d\n")
    assert next(opened(path).rows()) == {"Unnamed: 0": "0", "question": "a", "answer": "b"}


def test_lists_of_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '["Hi", "Ho"]\n["Who?", "Me."]\n')
    assert next(opened(path).rows()) == {"conversations": ["Hi", "Ho"]}


def test_paragraphs_of_a_text_and_files_of_a_folder_are_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "One\nmore.\n\n\nTwo.\r\n")
    assert [row["text"] for row in opened(path).rows()] == ["One\nmore.", "Two."]
    written(tmp_path / "b.txt", "[Three]\n\nmore")
    assert [row["text"] for row in opened(tmp_path).rows()] == [
        "One\nmore.\n\n\nTwo.\r\n",
        "[Three]\n\nmore",
    ]


def test_folders_of_shards_are_read_by_split(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 4), tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(TABLE.slice(4), tmp_path / "train-00001-of-00002.parquet")
    pq.write_table(TABLE.slice(0, 1), tmp_path / "test-00000-of-00001.parquet")
    written(tmp_path / "README.md", "not rows")
    source = opened(tmp_path)
    seen: list[float] = []
    assert list(source.rows(seen.append)) == ROWS
    assert (source.count, seen[-1]) == (7, 1.0)
    assert list(opened(tmp_path, split="test").rows()) == ROWS[:1]
    before = source.fingerprint
    pq.write_table(TABLE.slice(5), tmp_path / "train-00001-of-00002.parquet")
    assert opened(tmp_path).fingerprint != before


def test_a_folder_has_changed_when_a_file_in_it_has(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", JSONL)
    before = version_of(tmp_path)
    assert version_of(tmp_path) == before
    written(file, JSONL * 2)
    assert version_of(tmp_path) != before


def test_what_datasets_saves_to_disk(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "two")
    assert list(opened(tmp_path / "one").rows()) == ROWS
    assert list(opened(tmp_path / "two", split="test").rows()) == ROWS[:1]
    assert opened(tmp_path / "two").count == 7
    with pytest.raises(DataError, match="no split 'dev'"):
        list(opened(tmp_path / "two", split="dev").rows())
    state = tmp_path / "one" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../two/x.arrow"}]}))
    with pytest.raises(DataError, match="names a file elsewhere"):
        opened(tmp_path / "one")


# Traps


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "\n{}\n", "line 1: nested too deep"),
        ("a.json", '[{"a": ' + "[" * 100_000, "nested too deep"),
        ("a.jsonl", '{"a": 1}\n{"a": ' + "9" * 5000 + "}\n", "line 2: a number of too many digits"),
        ("a.json", '[{"a": ' + "9" * 5000 + "}]", "a number of too many digits"),
        ("a.csv", ",".join(f"c{i}" for i in range(200_000)) + "\n1\n", "200,000 columns, expected"),
        ("a.csv", ",".join("c" for i in range(200_000)) + "\n1\n", "200,000 columns, expected"),
        ("a.jsonl.gz", gzip.compress(b" " * 200 + b"\0" * (1 << 26)), "is no file of rows"),
        ("a.xlsx", SHEET[:-40], "ZIP archive"),
    ],
    ids=short,
)
def test_a_trap_is_refused_in_words(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DataError) as told:
        list(opened(path).rows())
    assert words in str(told.value)


def test_a_nul_in_a_path_and_in_a_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file name"):
        open_source(DataConfig(path="/tmp/a\0b.jsonl"))
    path = written(tmp_path / "a.jsonl", json.dumps({"text": "a\0b"}) + "\n")
    assert list(opened(path).rows()) == [{"text": "a\0b"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_one_endless_line_is_refused_in_bounded_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LONGEST", 1 << 20)
    monkeypatch.setattr(files, "LONGEST", 1 << 20)
    monkeypatch.setattr(opening, "_PROBED", 1 << 20)
    start = {"a.jsonl": '{"a": 1}\n{"a": "', "a.json": '[{"a": "', "a.csv": 'a,b\n1,"'}[name]
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(start.encode() + b"x" * (100 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"longer than|larger than field limit"):
        list(opened(path).rows())
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_a_parquet_file_of_a_few_kb_takes_bounded_memory(tmp_path: Path) -> None:
    value = "x" * (8 << 20)
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([value]))
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": names}), path, compression="zstd", write_statistics=False)
    assert path.stat().st_size < 1 << 16
    pool, most = pa.default_memory_pool(), 0
    before = pool.bytes_allocated()
    for number, row in enumerate(opened(path).rows()):
        assert len(row["text"]) == len(value)
        most = max(most, pool.bytes_allocated() - before)
        if number > 100:
            break
    assert most < 1 << 29


def test_a_parquet_file_that_unpacks_a_thousandfold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"text": ["x" * (64 << 20)]}), path, compression="zstd")
    with pytest.raises(DataError, match="in one column, as no text does"):
        list(opened(path).rows())
