"""What is trained on and what is held out has one answer, and so has how many rows there are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from phi3lora.config import RunConfig
from phi3lora.data import files
from phi3lora.data.files import count_rows
from phi3lora.data.inspection import inspect
from phi3lora.data.plan import check_held_out, held_out, holds_out, plan_data
from phi3lora.data.preparation import prepare
from phi3lora.data.sources import Count
from phi3lora.errors import DataError
from phi3lora.models.hardware import Hardware
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.training.estimate import estimate
from tests.hub import LoopbackHub

CPU = Hardware("cpu", "a CPU", 2**36, 2**36, True, 2)


@pytest.fixture(scope="module")
def pocket() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def rows_in(path: Path, number: int) -> Path:
    rows = ({"prompt": f"What is {i:06}?", "completion": "It is."} for i in range(number))
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def config(path: Any, **data: Any) -> RunConfig:
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 8}
    values = {"model": {"path": "pocket"}, "training_config": training}
    return RunConfig.from_values({**values, "data": {"path": str(path), **data}})[0]


@pytest.mark.parametrize(
    ("path", "data", "answer"),
    [
        ("example:pirate", {}, "rows"),
        ("example:pirate", {"test_size": 0}, "nothing"),
        ("example:pirate", {"test_size": 0, "test_split": "test"}, "nothing"),
        ("example:pirate", {"test_split": "test"}, "rows"),
        ("ann/chat", {"test_split": "test"}, "split"),
        ("ann/chat", {"test_size": 0, "test_split": "test"}, "split"),
        ("ann/chat", {"test_size": 0}, "nothing"),
    ],
)
def test_what_is_held_out(path: str, data: dict[str, Any], answer: str) -> None:
    chosen = config(path, **data).data
    assert held_out(chosen) == answer
    assert holds_out(chosen) == (answer != "nothing")


def test_a_local_file_with_a_test_split_and_no_test_size_holds_nothing_out_anywhere(
    pocket: Any, tmp_path: Path
) -> None:
    chosen = config(rows_in(tmp_path / "a.jsonl", 80), test_size=0, test_split="test")
    prepared = prepare(chosen, pocket)
    assert (len(prepared.train), prepared.test) == (80, None)
    assert "nothing is held out instead" in prepared.notices[0]
    inspection = inspect(chosen, pocket)
    assert (inspection.held_out, estimate(chosen, CPU, inspection).steps) == ("nothing", 10)
    looks = chosen.with_values({"training_config.load_best_model_at_end": True})
    with pytest.raises(DataError, match="looks at held-out rows, and none are"):
        check_held_out(looks)
    with pytest.raises(DataError, match="looks at held-out rows, and none are"):
        prepare(looks, pocket)


def test_a_local_file_with_a_test_split_holds_rows_out(pocket: Any, tmp_path: Path) -> None:
    chosen = config(rows_in(tmp_path / "a.jsonl", 160), test_size=0.5, test_split="test")
    prepared = prepare(chosen, pocket)
    assert len(prepared.train) == 80
    assert estimate(chosen, CPU, inspect(chosen, pocket)).steps == 10


def test_the_rows_that_were_looked_at_are_not_taken_for_all(pocket: Any, tmp_path: Path) -> None:
    chosen = config(rows_in(tmp_path / "a.jsonl", 28_202))
    inspection = inspect(chosen, pocket, limit=5_000)
    assert inspection.expected == Count(28_202)
    need = estimate(chosen, CPU, inspection)
    assert need.steps == -(-(28_202 - round(28_202 * 0.1)) // 8)
    assert not need.exact, "whether all of them can be used is not known"
    whole = inspect(config(tmp_path / "a.jsonl", max_rows=800), pocket, limit=5_000)
    assert (whole.expected, estimate(chosen, CPU, whole).exact) == (Count(800), True)
    limited = inspect(config(tmp_path / "a.jsonl", max_rows=6_000), pocket, limit=5_000)
    assert limited.expected == Count(6_000)


def test_lines_of_a_file_too_large_to_be_counted_are_estimated_by_its_size(
    pocket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "COUNTED", 1 << 16)
    chosen = config(rows_in(tmp_path / "a.jsonl", 28_202))
    inspection = inspect(chosen, pocket, limit=5_000)
    assert inspection.expected is not None
    assert not inspection.expected.exact
    assert inspection.expected.rows == pytest.approx(28_202, rel=0.01)
    assert str(inspection.expected).startswith("about 28,")
    assert not estimate(chosen, CPU, inspection).exact


def test_lines_and_records_are_counted_as_they_are_read(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"text": "a"}\n\n  \r\n{"text": "b"}\r\n{"text": "c"}')
    table = tmp_path / "a.csv"
    table.write_text('prompt,completion\n"a\nb ""c""",d\n\n5" pipe,6" pipe\n')
    wide = tmp_path / "wide.jsonl"
    wide.write_text('{"text": "a"}\n{"text": "\u010a"}\n', encoding="utf-16")
    for file, number in ((lines, 3), (table, 2), (wide, 2)):
        assert count_rows(file) == len(list(files.read_file(file, "train"))) == number
    packed = tmp_path / "b.jsonl"  # whatever its name says
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    assert count_rows(packed) is None
    broken = tmp_path / "c.csv"
    broken.write_text("prompt,completion\na,b,c\n")
    assert count_rows(broken) is None


@pytest.mark.parametrize("kind", ["a.json", "a.csv", "a.parquet"])
def test_rows_of_other_files_are_expected_too(kind: str, pocket: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i:06}?", "completion": "It is."} for i in range(20_000)]
    file = tmp_path / kind
    if kind == "a.json":
        file.write_text(json.dumps(rows))
    elif kind == "a.csv":
        file.write_text("prompt,completion\n" + "".join(",".join(r.values()) + "\n" for r in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    found = inspect(config(file), pocket, limit=6_000).expected
    assert found is not None
    assert found.exact == (kind != "a.json")
    assert found.rows == pytest.approx(20_000, rel=0.1)


def test_rows_of_the_hub_are_known_without_reading_them(
    pocket: Any, tmp_path: Path, hub: LoopbackHub
) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": f"What is {i:06}?", "completion": "It is."} for i in range(3_000)]
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    hub.add_user("ann", token="hf_ann")
    hub.add_repo("dataset", "ann/table", {"train.parquet": table.getvalue()})
    hub.add_repo("dataset", "ann/lines", {"train.jsonl": lines})
    exact = inspect(config("ann/table"), pocket, cache_folder=tmp_path, limit=100)
    assert exact.expected == Count(3_000)
    assert estimate(config("ann/table"), CPU, exact).steps == 338
    about = inspect(config("ann/lines"), pocket, cache_folder=tmp_path, limit=100).expected
    assert about is not None
    assert (about.exact, about.rows) == (False, pytest.approx(3_000, rel=0.01))


def test_the_plan_opens_both_splits(tmp_path: Path, hub: LoopbackHub) -> None:
    line = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    hub.add_user("ann", token="hf_ann")
    hub.add_repo("dataset", "ann/chat", {"train.jsonl": line * 3, "test.jsonl": line})
    plan = plan_data(config("ann/chat", test_split="test", max_rows=2).data, cache_folder=tmp_path)
    assert [len(list(source.rows())) for source in plan.sources] == [2, 1]
    assert plan.held_out == "split"
