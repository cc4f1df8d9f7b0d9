"""Events: written whole, read back, and robust to what a crash leaves."""

from __future__ import annotations

from pathlib import Path

from phi3lora.events import Ended, EventLog, Stage, Step, read_events


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    written = [
        Stage(name="loading"),
        Step(step=1, total_steps=2, loss=0.5, tokens=7),
        Ended(outcome="finished", step=2),
    ]
    with EventLog(file) as log:
        for event in written:
            log.emit(event)
    assert read_events(file) == (written, file.stat().st_size)


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventLog(file) as log:
        log.emit(Stage(name="one"))
        _, offset = read_events(file)
        log.emit(Stage(name="two"))
    events, _ = read_events(file, offset)
    assert [event.name for event in events if isinstance(event, Stage)] == ["two"]


def test_a_line_cut_short_is_not_read_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventLog(file) as log:
        log.emit(Stage(name="one"))
    with file.open("ab") as raw:
        raw.write(b'{"kind": "step", "ste')
    events, offset = read_events(file)
    assert len(events) == 1
    with EventLog(file) as log:
        log.emit(Stage(name="two"))
    events, _ = read_events(file, offset)
    assert [event.name for event in events if isinstance(event, Stage)] == ["two"]


def test_unknown_kinds_and_garbage_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"kind": "dance"}\n[1]\nnot json\n{"kind": "stage", "name": "x", "new": 1}\n')
    events, _ = read_events(file)
    assert [type(event) for event in events] == [Stage]


def test_a_loss_that_is_no_number_is_written_as_null(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with EventLog(file) as log:
        log.emit(Step(step=1, total_steps=2, loss=float("nan"), grad_norm=float("inf")))
    assert "NaN" not in file.read_text()
    (event,), _ = read_events(file)
    assert isinstance(event, Step)
    assert event.loss is None
    assert event.grad_norm is None


def test_no_file_is_no_event(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none.jsonl") == ([], 0)
