"""Rows edited by a patch in the config: what is read changes, the source does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phi3lora import cli
from phi3lora.config import RunConfig
from phi3lora.data.edits import open_edited
from phi3lora.data.inspection import inspect
from phi3lora.data.preparation import prepare
from phi3lora.errors import ConfigError, DataError
from phi3lora.events import Prepared
from phi3lora.hub.card import write_card
from phi3lora.hub.facts import Facts, Origin
from phi3lora.models.loading import load_tokenizer
from phi3lora.models.pocket import CHECKPOINT

ROWS = [{"prompt": f"Q{n}?", "completion": f"A{n}.", "n": n} for n in range(12)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(CHECKPOINT), None, None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return file


def config(rows: Path, edits: Any, **data: Any) -> RunConfig:
    values = {f"data.{name}": value for name, value in data.items()}
    return RunConfig().with_values({"data.path": str(rows), "data.edits": edits, **values})


def test_a_cell_is_replaced_in_a_look_and_in_a_run(
    rows: Path, tokenizer: Any, tmp_path: Path
) -> None:
    before = rows.read_bytes()
    wanted = config(rows, {3: {"completion": "Better."}, "5": {"n": "50"}})
    read = list(open_edited(wanted.data).rows())
    assert (read[3]["completion"], read[5]["n"], read[4]) == ("Better.", 50, ROWS[4])
    assert rows.read_bytes() == before
    assert RunConfig.from_text(wanted.to_yaml())[0] == wanted
    plain, edited = (
        prepare(one, tokenizer, cache_folder=tmp_path / "cache")
        for one in (config(rows, {}), wanted)
    )
    assert plain.fingerprint != edited.fingerprint, "what was prepared before is not taken for it"
    assert edited.test is not None
    said = [
        m[1]["content"] for side in (edited.conversations, edited.test) for m in side["messages"]
    ]
    assert sorted(said) == sorted("Better." if n == 3 else f"A{n}." for n in range(12))
    shown = inspect(config(rows, {0: {"completion": "First."}}), tokenizer).preview[0]
    assert "First." in "".join(part["text"] for part in shown)


def test_turns_are_replaced_by_json(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    file.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    better = [turns[0], {"role": "assistant", "content": "B"}]
    wanted = config(file, {0: {"messages": json.dumps(better)}})
    assert list(open_edited(wanted.data).rows()) == [{"messages": better}]
    with pytest.raises(DataError, match="expected JSON"):
        list(open_edited(config(file, {0: {"messages": "plain"}}).data).rows())


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({12: {"completion": "x"}}, "no row 12; 12 rows"),
        ({1: {"answer": "x"}}, "no column 'answer'"),
    ],
)
def test_an_edit_of_what_is_not_there_is_said(rows: Path, edits: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        list(open_edited(config(rows, edits).data).rows())


@pytest.mark.parametrize("edits", [{-1: {"a": "b"}}, {"x": {"a": "b"}}, {1: "b"}, {1: {"a": 2}}])
def test_what_is_no_edit_is_refused(rows: Path, edits: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.edits"):
        config(rows, edits)


def test_the_terminal_edits(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHI3LORA_HOME", str(tmp_path / "home"))
    typed = ["inspect", str(rows), "--model", "pocket", "--edit"]
    done = CliRunner().invoke(cli.app, [*typed, "0:completion=A = B: new."])
    assert "A = B: new." in done.output
    assert done.exit_code == 0
    wrong = CliRunner().invoke(cli.app, [*typed, "completion=x"])
    assert "expected NUMBER:COLUMN=TEXT" in wrong.output
    assert wrong.exit_code == 2


def test_the_card_says_what_was_left_out_and_edited() -> None:
    dropped = {"named in data.leave_out_rows": 2, "duplicates (data.leave_out)": 5, "no answer": 1}
    counts = Prepared(
        train_rows=9,
        test_rows=1,
        dropped=dropped,
        train_tokens=9,
        supervised_tokens=9,
        truncated=0,
        leaked=0,
    )
    card = write_card(
        Facts("", Origin("pocket"), Origin("rows.jsonl"), "peft", [], prepared=counts, edited=3),
        "ann/pirate",
    )
    assert "| Rows that could not be used | 1 |" in card
    assert "| Rows left out: named in data.leave_out_rows | 2 |" in card
    assert "| Rows left out: duplicates (data.leave_out) | 5 |" in card
    assert "| Rows edited | 3 |" in card
