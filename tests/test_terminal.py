"""What a terminal shows: events in words, figures with units, the progress bar, two answers."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from phi3lora import words
from phi3lora.chat.options import Pair
from phi3lora.cli import terminal
from phi3lora.events import (
    Ended,
    Evaluated,
    Event,
    Loaded,
    Notice,
    Prepared,
    Resumed,
    Saved,
    Stage,
    Step,
)
from phi3lora.wording import describe
from phi3lora.words import duration

LOADED = Loaded(
    device="cuda",
    dtype="bfloat16",
    attention="sdpa",
    quantization="nf4",
    trainable_parameters=25_165_824,
    total_parameters=3_846_245_376,
)
PREPARED = Prepared(
    train_rows=1200,
    test_rows=60,
    dropped={"empty answer": 3},
    train_tokens=90_000,
    supervised_tokens=40_000,
    truncated=2,
    leaked=1,
)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Stage(name="loading the model"), "loading the model"),
        (Stage(name="tokenizing", fraction=0.256), "tokenizing (26%)"),
        (Notice(message="No GPU.", level="warning"), "warning: No GPU."),
        (
            PREPARED,
            "1,200 rows to train on, 60 held out; 90,000 tokens (40,000 supervised); 2 cut at the "
            "length limit; 3 dropped: empty answer; 1 held-out prompts are also trained on",
        ),
        (
            LOADED,
            "training 25,165,824 of 3,846,245,376 parameters (0.65%) on cuda in bfloat16, nf4, "
            "attention sdpa",
        ),
        (Step(step=3, total_steps=9), "step 3/9"),
        (
            Step(
                step=3,
                total_steps=9,
                loss=1.23456,
                learning_rate=2e-4,
                grad_norm=0.5,
                tokens_per_second=1234.5,
                seconds_left=61.2,
            ),
            "step 3/9, loss 1.2346, learning rate 2.00e-04, gradient 0.500, 1,234 tokens/s, "
            "1 min 01 s left",
        ),
        (Evaluated(step=4, loss=1.5), "Held-out loss, mean of batches, at step 4: 1.5000"),
        (
            Saved(step=4, path="checkpoints/checkpoint-4"),
            "saved step 4 in checkpoints/checkpoint-4",
        ),
        (Resumed(step=4), "resumed from step 4"),
        (Ended(outcome="finished", step=9), "finished at step 9"),
        (Ended(outcome="failed", step=9, message="No room."), "failed at step 9: No room."),
    ],
)
def test_events_in_words(event: Event, said: str) -> None:
    assert describe(event) == said


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 3599, 7500)] == [
        "0 s",
        "1 min 00 s",
        "59 min 59 s",
        "2 h 05 min",
    ]


def test_figures_with_units() -> None:
    figures = {"memory_bytes": 3 * 2**29, "seconds": 61.0, "steps": 1000, "total_bytes": None}
    said = terminal.with_units(figures)
    assert said == {"memory": "1.5 GB", "time": "1 min 01 s", "steps": 1000, "total_bytes": None}
    assert words.size(1023) == "1023 B"
    assert words.size(2048) == "2 KB"
    assert terminal.plain({"p50": 1200, "share": 0.123456789, "ok": True}) == (
        "p50 1,200, share 0.123457, ok True"
    )


def screen(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def test_a_progress_bar() -> None:
    console = screen()
    with terminal._bar(console) as show:
        show(Stage(name="loading"))
        show(LOADED)
        show(Step(step=5, total_steps=9, loss=2.5, seconds_left=61))
        show(Step(step=6, total_steps=9))
    shown = console.file.getvalue()
    assert "25,165,824" in shown
    assert "6/9" in shown
    assert "loss 2.5000" in shown, "the last known loss stays"


def test_two_answers_grow_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    console = screen(60)
    monkeypatch.setattr(terminal, "Console", lambda: console)
    pairs = [Pair(base="Hel", tuned="Arr"), Pair(base="Hello.", tuned="Arr [bold]matey!")]
    assert terminal.print_pair(iter(pairs)) == pairs[-1]
    last = next(line for line in console.file.getvalue().splitlines() if "Hello." in line)
    assert "Arr [bold]matey!" in last, "what a model says is text, never markup"
