"""Which column holds what: what is read, and what is guessed where no format fits."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from phi3lora.config import DataConfig, RunConfig, parse_setting
from phi3lora.data.columns import Columns, columns_of
from phi3lora.data.detection import detect
from phi3lora.data.sources import open_source
from phi3lora.errors import DataError

ROWS = (
    ("T-1", "Wo ist mein Paket?", "Es kommt am Freitag.", "5"),
    ("T-2", "Die Lampe ist kaputt.", "Eine neue ist auf dem Weg.", "4"),
)


def table(folder: Path, *names: str, rows: tuple[tuple[str, ...], ...] = ROWS) -> Path:
    path = folder / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def look(path: Path | str, **values: object) -> Columns:
    return columns_of(DataConfig.model_validate({"path": str(path), **values}))


def test_columns_that_no_format_has_are_guessed_by_name(tmp_path: Path) -> None:
    found = look(table(tmp_path, "Nr", "Kundenfrage", "Antwort vom Support", "Note"))
    assert (found.question, found.answer) == ("Kundenfrage", "Antwort vom Support")
    assert found.asked
    assert found.guessed
    assert found.rows[1]["Kundenfrage"] == "Die Lampe ist kaputt."


def test_the_guess_is_one_that_training_reads(tmp_path: Path) -> None:
    path = table(tmp_path, "Nr", "Kundenfrage", "Antwort vom Support", "Note")
    found = look(path)
    mapping = found.mapping(found.question, found.answer)
    source = open_source(DataConfig(path=str(path), columns=mapping))
    assert detect(source.columns, source.head, mapping=mapping).format == "prompt_completion"


@pytest.mark.parametrize("names", [("Frage", "Antwort"), ("x", "y: z, 1"), ("Antwort", "Frage")])
def test_what_the_refusal_proposes_is_read(tmp_path: Path, names: tuple[str, str]) -> None:
    source = open_source(DataConfig(path=str(table(tmp_path, *names, rows=(("Was?", "Das."),)))))
    with pytest.raises(DataError) as refusal:
        detect(source.columns, source.head)
    proposed = str(refusal.value).split("`")[1]
    _, mapping = parse_setting(f"data.columns={proposed}")
    assert set(mapping.values()) == set(names)
    assert detect(source.columns, source.head, mapping=mapping).format == "prompt_completion"


@pytest.mark.parametrize(
    ("names", "question", "answer"),
    [
        (("id", "質問", "回答", "x"), "質問", "回答"),
        (("id", "this", "that", "x"), "this", "that"),  # no name says it: the first that hold words
        (("id", "Reply", "Ticket", "x"), "Ticket", "Reply"),
    ],
)
def test_guesses(tmp_path: Path, names: tuple[str, ...], question: str, answer: str) -> None:
    found = look(table(tmp_path, *names))
    assert (found.question, found.answer) == (question, answer)


def test_what_is_recognised_is_shown_and_not_guessed(tmp_path: Path) -> None:
    found = look(table(tmp_path, "n", "question", "answer", "s"))
    assert (found.question, found.answer, found.guessed) == ("question", "answer", False)
    assert found.mapping("s", "answer") == {"question": "s", "answer": "answer"}


def test_other_parts_that_were_named_stay_and_those_of_another_file_do_not(tmp_path: Path) -> None:
    path = table(tmp_path, "n", "prompt", "completion", "rules")
    found = look(path, columns={"system": "rules", "prompt": "gone"})
    assert found.mapping("prompt", None) == {"system": "rules", "prompt": "prompt"}


def test_whole_conversations_have_nothing_to_choose() -> None:
    assert not look("example:pirate").asked
    instructions = look("example:pirate_instructions")
    assert (instructions.question, instructions.answer) == ("instruction", "output")


def test_numbers_alone_are_not_guessed(tmp_path: Path) -> None:
    found = look(table(tmp_path, "a", "b", rows=(("1", "2"), ("3", "4"))))
    assert (found.question, found.answer, found.asked, found.guessed) == ("", "", False, False)


def test_nothing_there_is_an_error_and_long_cells_are_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        look(tmp_path / "none.csv")
    found = look(table(tmp_path, "a", "b", rows=(("x " * 5000, "y z"), ("x y", "z"))))
    assert all(len(cell) <= 160 for row in found.rows for cell in row.values())
    assert RunConfig().data.columns == {}
