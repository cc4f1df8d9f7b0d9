"""Metrics: exact figures, honest intervals."""

from __future__ import annotations

import math

import pytest

from phi3lora.evaluation.metrics import (
    ENOUGH_ROWS,
    Comparison,
    RowScore,
    compare,
    gains,
    rouge_scores,
    verdict,
)

NO_ROUGE = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 0.0)


def row(
    nll: float,
    tokens: int = 10,
    correct: int = 5,
    answer: str = "yes",
    stopped: bool = True,
    rouge: float = 0.5,
) -> RowScore:
    return RowScore(nll, tokens, correct, answer, stopped, 1, dict.fromkeys(NO_ROUGE, rouge))


def by_name(comparisons: list[Comparison]) -> dict[str, Comparison]:
    return {item.name: item for item in comparisons}


def test_loss_is_weighted_by_tokens_and_perplexity_is_its_exponential() -> None:
    base = [row(nll=20.0, tokens=10), row(nll=5.0, tokens=40)]
    found = by_name(compare(base, [row(nll=10.0, tokens=10), row(nll=5.0, tokens=40)]))
    assert found["loss"].base == pytest.approx(0.5)
    assert found["loss"].tuned == pytest.approx(0.3)
    assert found["perplexity"].base == pytest.approx(math.exp(0.5))
    assert found["loss"].difference == pytest.approx(-0.2)


def test_shares_are_counted_over_rows() -> None:
    base = [row(1.0, stopped=False, answer=""), row(1.0), row(1.0), row(1.0, stopped=False)]
    found = by_name(compare(base, [row(1.0)] * 4))
    assert (found["stopped"].base, found["stopped"].tuned) == (0.5, 1.0)
    assert (found["empty"].base, found["empty"].tuned) == (0.25, 0.0)
    assert found["token_accuracy"].base == 0.5


def test_a_clear_gain_is_better_and_the_other_way_round_worse() -> None:
    base = [row(10.0 + place % 5) for place in range(40)]
    tuned = [row(6.0 + place % 5) for place in range(40)]
    assert verdict(compare(base, tuned), 40) == "better"
    assert verdict(compare(tuned, base), 40) == "worse"


def test_noise_alone_cannot_be_told_apart() -> None:
    base = [row(10.0 + place % 7) for place in range(40)]
    tuned = [row(10.0 + (place * 3 + 1) % 7) for place in range(40)]
    found = by_name(compare(base, tuned))
    assert found["loss"].low < 0 < found["loss"].high
    assert verdict(list(found.values()), 40) == "cannot tell"


def test_a_gain_in_loss_with_a_loss_in_rouge_is_no_verdict() -> None:
    base = [row(10.0, rouge=0.9)] * 20
    tuned = [row(5.0, rouge=0.1)] * 20
    assert verdict(compare(base, tuned), 20) == "cannot tell"


def test_a_handful_of_rows_proves_nothing() -> None:
    few = ENOUGH_ROWS - 1
    found = compare([row(10.0)] * few, [row(1.0)] * few)
    assert verdict(found, few) == "cannot tell"


def test_identical_models_differ_by_nothing() -> None:
    scores = [row(float(place)) for place in range(1, 20)]
    for item in compare(scores, scores):
        assert (item.difference, item.low, item.high) == (0, 0, 0)
        assert item.verdict == "cannot tell"


def test_length_is_reported_but_is_neither_better_nor_worse() -> None:
    short, long = [row(1.0)] * 9, [RowScore(1, 10, 5, "x", True, 50, NO_ROUGE)] * 9
    assert by_name(compare(short, long))["length"].verdict == "cannot tell"


def test_gains_are_nats_a_token() -> None:
    assert gains([row(20.0, tokens=10)], [row(5.0, tokens=10)]) == [1.5]


def test_rouge_stems_and_is_zero_for_silence() -> None:
    assert rouge_scores("cats running", "cat runs")["rouge1"] == 1.0
    assert rouge_scores("", "a reference")["rougeLsum"] == 0.0
