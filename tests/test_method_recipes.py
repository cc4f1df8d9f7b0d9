"""Each recipe of a method, cut short: what it promises moves on held-out rows, for certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phi3lora.evaluation.report import Report, evaluate
from phi3lora.hub.card import write_card
from phi3lora.hub.facts import collect
from phi3lora.recipes import load_recipe
from phi3lora.training.trainer import train

SHORT: dict[str, Any] = {
    "model.device": "cpu",
    "data.max_rows": 132,
    "data.test_size": 12,
    "training_config.max_steps": 12,
    "training_config.eval_strategy": "no",
    "training_config.save_strategy": "no",
    "training_config.log_level": "warning",
    "evaluation.max_new_tokens": 8,
}


def proof(folder: Path, method: str, changes: dict[str, Any] | None = None) -> Report:
    config = load_recipe(f"pocket-{method}")[0].with_values({**SHORT, **(changes or {})})
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert train(config, folder, lambda event: None) == "finished"
    return evaluate(config, folder)


def test_the_reward_rises_with_an_interval_above_zero(tmp_path: Path) -> None:
    """Pocket learns to answer sums in a given form, from rewards of its own answers alone."""
    asked = {"data.max_rows": None, "data.test_size": 48, "evaluation.max_new_tokens": 16}
    asked["training_config.per_device_train_batch_size"] = 32
    report = proof(tmp_path, "grpo", asked)
    (reward,) = [item for item in report.comparisons if item.name == "earned"]
    assert reward.low > 0
    assert report.verdict == "better"
    assert "earn a reward of" in report.summary()
    card = write_card(collect(tmp_path), "ann/grpo")
    assert "- grpo" in card.split("---")[1]
    assert "Reward of the model's own answer" in card


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_the_margin_moves_with_an_interval_above_zero(tmp_path: Path, method: str) -> None:
    report = proof(tmp_path, method)
    margin = next(item for item in report.comparisons if item.name == "reward_margin")
    assert margin.base == 0
    assert margin.low > 0
    assert report.verdict == "better"
    assert "the better answer is the likelier one" in report.summary()
    card = write_card(collect(tmp_path), f"ann/{method}")
    assert f"- {method}" in card.split("---")[1]
    assert "Reward of better less worse answers" in card
