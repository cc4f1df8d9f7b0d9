"""Learning from preferences: TRL's losses on our rows, stop and resume, references."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError
from tests.small import After, Result, run, small_base, small_model, small_tokenizer

METHODS = ["dpo", "kto", "orpo"]


def pairs(number: int = 24, seed: int = 0) -> Dataset:
    """Prompts with a better answer of low tokens and a worse one of high tokens."""
    chance = random.Random(seed)

    def answer(low: int, high: int) -> list[int]:
        return [*(chance.randrange(low, high) for _ in range(chance.randint(1, 12))), 63]

    rows = []
    for _ in range(number):
        prompt = [chance.randrange(62) for _ in range(chance.randint(2, 12))]
        sides = answer(0, 31), answer(31, 62)
        rows.append(
            {
                "input_ids": prompt + sides[0],
                "labels": [-100] * len(prompt) + sides[0],
                "rejected_input_ids": prompt + sides[1],
                "rejected_labels": [-100] * len(prompt) + sides[1],
                "good": True,
            }
        )
    return Dataset.from_list(rows)


def learn(folder: Path, method: str, changes: dict[str, Any] | None = None, **more: Any) -> Result:
    """Two epochs of six steps of a method on random pairs."""
    settings = {"method": method, **(changes or {})}
    return run(folder, settings, rows=pairs(), test_rows=pairs(6, seed=1), **more)


def prompt_of(row: dict[str, Any]) -> int:
    return next(place for place, label in enumerate(row["labels"]) if label != -100)


def as_trl(method: str, rows: Dataset, batch: int) -> Dataset:
    """The rows as TRL's own collators have them, in the order in which ours are read."""
    from phi3lora.training.preferences import Unpaired

    if method != "kto":
        return Dataset.from_list(
            [
                {
                    "prompt_ids": row["input_ids"][: prompt_of(row)],
                    "chosen_ids": row["input_ids"][prompt_of(row) :],
                    "rejected_ids": row["rejected_input_ids"][prompt_of(row) :],
                }
                for row in rows
            ]
        )
    answers = [Unpaired(rows, 0, 64, 42)[place] for place in range(2 * len(rows))]
    found = [
        {
            "prompt_ids": row["input_ids"][: prompt_of(row)],
            "completion_ids": row["input_ids"][prompt_of(row) :],
            "label": row["label"],
        }
        for row in answers
    ]
    for start in range(0, len(found), batch):
        part = found[start : start + batch]
        others = [row["completion_ids"] for row in (part[-1], *part[:-1])]
        for row, other in zip(part, others, strict=True):
            row["KL_completion_ids"] = other
    return Dataset.from_list(found)


def trl_losses(folder: Path, method: str) -> list[float]:
    """What TRL's own trainer logs on the same tokens, with none of our code in it."""
    arguments: dict[str, Any] = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_length": 64,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "beta": 0.1,
    }
    kinds: dict[str, tuple[Any, Any]] = {
        "dpo": (DPOTrainer, DPOConfig),
        "kto": (KTOTrainer, KTOConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
    }
    trainer_class, config = kinds[method]

    class Rendered(trainer_class):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def tokenize_row(self, feature: Any, model: Any = None) -> Any:
            return orpo_row(feature)

    collators = {
        "dpo": DataCollatorForPreference(62),
        "kto": DataCollatorForUnpairedPreference(62, max_length=64),
    }
    trainer = Rendered(
        model=small_model(),
        args=config(str(folder), **arguments),
        processing_class=small_tokenizer(),
        train_dataset=as_trl(method, pairs(), 4),
        **({"data_collator": collators[method]} if method in collators else {}),
    )
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def orpo_row(row: dict[str, Any]) -> dict[str, Any]:
    """A pair as ORPO's trainer has it."""
    found: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        ids = row["prompt_ids"] + row[f"{side}_ids"]
        found |= {f"{side}_input_ids": ids, f"{side}_attention_mask": [1] * len(ids)}
        found[f"{side}_labels"] = [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_trl(tmp_path: Path, method: str) -> None:
    own = {"training_config.num_train_epochs": 1}
    theirs = trl_losses(tmp_path / "trl", method)
    plain = learn(tmp_path / "plain", method, {**own, "training_config.fast": False})
    fast = learn(tmp_path / "fast", method, own)
    steps = len(theirs)
    assert steps == (12 if method == "kto" else 6)
    logged = [e.loss for e in plain.events if e.kind == "step"]
    assert logged == theirs
    assert [e.loss for e in fast.events if e.kind == "step"] == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_stop_and_resume_is_the_same_to_the_bit(tmp_path: Path, method: str) -> None:
    changes = {"training_config.logging_steps": 3, "training_config.save_strategy": "no"}
    whole = learn(tmp_path / "whole", method, changes)
    stopped = learn(tmp_path / "two", method, changes, should_stop=After(4))
    resumed = learn(tmp_path / "two", method, changes)
    assert (stopped.outcome, resumed.outcome) == ("stopped", "finished")
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)
    assert whole.figures == [*stopped.figures, *resumed.figures]


@pytest.mark.parametrize("method", METHODS)
def test_the_better_answer_becomes_likelier_than_the_worse(tmp_path: Path, method: str) -> None:
    result = learn(tmp_path, method)
    margins = [e.reward_margin for e in result.events if e.kind == "evaluated"]
    assert margins[-1] > margins[0] > 0


def test_what_training_starts_from_is_the_reference(tmp_path: Path) -> None:
    """With an adapter that was trained before, TRL's copy of it; by option the base."""
    from safetensors.torch import load_file

    trained = learn(tmp_path / "first", "dpo")
    start = {name: weight.clone() for name, weight in trained.weights.items()}

    def first_margin(folder: str, changes: dict[str, Any]) -> float:
        model = small_model()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(start[name])
        one = {"model.adapter": "earlier", "training_config.max_steps": 1, **changes}
        result = learn(tmp_path / folder, "dpo", one, model=model)
        saved = [path.name for path in (tmp_path / folder).rglob("*.safetensors")]
        assert saved == ["adapter_model.safetensors"], "the copy is not saved"
        weights = load_file(next((tmp_path / folder).rglob("*.safetensors")))
        assert not any("ref" in name for name in weights)
        return next(e.reward_margin for e in result.events if e.kind == "step")

    assert first_margin("start", {}) == 0
    assert first_margin("base", {"dpo_config.reference": "base"}) > 0


def test_kto_learns_from_single_answers_too(tmp_path: Path) -> None:
    rows = [
        {**row, "good": place % 2 == 0, "rejected_input_ids": [], "rejected_labels": []}
        for place, row in enumerate(pairs())
    ]
    result = run(
        tmp_path, {"method": "kto"}, rows=Dataset.from_list(rows), test_rows=pairs(6, seed=1)
    )
    assert result.outcome == "finished"
    assert next(e.total_steps for e in result.events if e.kind == "step") == 12


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": "dpo", "training_config.packing": True}, "training_config.packing"),
        (
            {"method": "dpo", "training_config.label_smoothing_factor": 0.1},
            "training_config.label_smoothing_factor",
        ),
        ({"method": "dpo", "adapter": "none"}, "adapter"),
        ({"method": "kto", "adapter": "loralib"}, "adapter"),
        (
            {"method": "dpo", "peft_config.target_modules": ["lm_head"]},
            "peft_config.target_modules",
        ),
        ({"method": "dpo", "dpo_config.loss_type": "exo_pair"}, "dpo_config.label_smoothing"),
        ({"method": "dpo", "devices": 2, "distributed": "fsdp2"}, "distributed"),
        (
            {"method": "sft", "training_config.metric_for_best_model": "rewards/margins"},
            "training_config.metric_for_best_model",
        ),
    ],
)
def test_what_does_not_go_with_a_method_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RunConfig().with_values(changes)
    assert [problem.field for problem in raised.value.problems] == [field]


def test_orpo_trains_every_weight(tmp_path: Path) -> None:
    """Its head is trained too, so its gradient is TRL's own."""
    base = small_base()
    before = base.get_output_embeddings().weight.clone()
    result = learn(tmp_path, "orpo", {"adapter": "none"}, model=base)
    assert result.outcome == "finished"
    assert not torch.equal(before, base.get_output_embeddings().weight)
