"""The free arguments that transformers takes: our tables against the libraries themselves."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.trainer_utils import SchedulerType

from phi3lora import arguments
from phi3lora.config import OPTIMIZERS, SCHEDULERS, RunConfig
from phi3lora.errors import ConfigError
from tests.small import run

STEPS = 40


def problems(**training: Any) -> dict[str, str]:
    try:
        RunConfig.from_values({"training_config": training})
    except ConfigError as error:
        return {problem.field.rpartition(".")[2]: problem.message for problem in error.problems}
    return {}


def rates(schedule: str, options: dict[str, Any] | None) -> list[float]:
    """The learning rate of each step, by transformers' own schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    follow: Any = get_scheduler(schedule, optimizer, 4, STEPS, options)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        follow.step(*([1.0] if schedule == "reduce_lr_on_plateau" else []))
    return found


@pytest.mark.parametrize("schedule", get_args(SCHEDULERS))
def test_every_schedule_runs_with_what_it_is_given_by_default(schedule: str) -> None:
    values = {"lr_scheduler_type": schedule, "max_steps": STEPS, "eval_strategy": "epoch"}
    config, _ = RunConfig.from_values({"training_config": values})
    assert len(rates(schedule, config.training_config.arguments()["lr_scheduler_kwargs"])) == STEPS


@pytest.mark.parametrize("schedule", get_args(SCHEDULERS))
def test_schedules_have_the_options_of_their_functions(schedule: str) -> None:
    function = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(schedule)]
    if schedule == "reduce_lr_on_plateau":
        function = torch.optim.lr_scheduler.ReduceLROnPlateau
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs"}
    existing = set(inspect.signature(function).parameters) - given
    assert arguments.SCHEDULES[schedule] == existing


def test_the_rate_falls_to_a_tenth_where_nothing_else_is_said() -> None:
    for schedule in arguments.NEED_LOWEST:
        options = arguments.schedule_options(schedule, None, 0)
        assert rates(schedule, options)[-1] == pytest.approx(0.1, abs=0.01)
    falling = rates(
        "warmup_stable_decay", arguments.schedule_options("warmup_stable_decay", {}, 40)
    )
    assert falling[35] == 1.0 > falling[37]


@pytest.mark.parametrize("optimizer", get_args(OPTIMIZERS))
def test_optimizers_have_the_options_that_reach_them(optimizer: str) -> None:
    from transformers import Trainer, TrainingArguments

    def built(options: str | None) -> Any:
        args = TrainingArguments("unused", optim=optimizer, optim_args=options, use_cpu=True)
        return Trainer.get_optimizer_cls_and_kwargs(args)

    plain = built(None)
    for name in [*arguments._optimizer_options("ademamix"), *arguments._PLAIN["sgd"], "centered"]:
        text = f"{name}={'true' if name in ('nesterov', 'centered') else 7}"
        reaches = built(text) != plain and "rmsprop_bnb" not in optimizer  # which takes text only
        assert (arguments.optimizer_problem(optimizer, text) is None) == reaches, text


def test_checkpointing_has_the_options_of_torch() -> None:
    from torch.utils.checkpoint import checkpoint

    existing = set(inspect.signature(checkpoint).parameters) - {"function", "args", "kwargs"}
    assert existing - {"context_fn"} | {"preserve_rng_state"} == arguments.CHECKPOINTING


@pytest.mark.parametrize(
    ("values", "field", "says"),
    [
        ({"lr_scheduler_kwargs": {"nun_cycles": 2}}, "lr_scheduler_kwargs", "no option"),
        ({"lr_scheduler_kwargs": {"num_cycles": "2"}}, "lr_scheduler_kwargs", "a number"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1}},
            "lr_scheduler_kwargs",
            "it takes none",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs", "num_decay_steps"),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 1e-6, "min_lr_rate": 0.1},
            },
            "lr_scheduler_kwargs",
            "set one",
        ),
        (
            {"lr_scheduler_type": "polynomial", "learning_rate": 1e-8},
            "lr_scheduler_kwargs",
            "below learning_rate",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 2}},
            "lr_scheduler_kwargs",
            "less than 1",
        ),
        ({"optim": "sgd", "optim_args": "momentum 0.9"}, "optim_args", "name=value"),
        ({"optim": "sgd", "optim_args": "momentum=fast"}, "optim_args", "a number"),
        ({"optim_args": "momentum=0.9"}, "optim_args", "it takes none"),
        (
            {"gradient_checkpointing_kwargs": {"reentrant": False}},
            "gradient_checkpointing_kwargs",
            "no option",
        ),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": "off"}},
            "gradient_checkpointing_kwargs",
            "true or false",
        ),
        ({"metric_for_best_model": "eval_rouge"}, "metric_for_best_model", "never measured"),
        ({"max_steps": 0}, "max_steps", "train nothing"),
        ({"eval_steps": 2.5}, "eval_steps", "whole number"),
        ({"warmup_steps": float("inf")}, "warmup_steps", "finite"),
        (
            {
                **{"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 30},
                **{"save_strategy": "steps", "save_steps": 100},
            },
            "save_steps",
            "a multiple of eval_steps (30)",
        ),
        (
            {
                **{"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1},
                **{"save_strategy": "steps", "save_steps": 100},
            },
            "save_steps",
            "a share",
        ),
    ],
)
def test_what_would_always_fail_is_refused_with_the_reason(
    values: dict[str, Any], field: str, says: str
) -> None:
    assert says in problems(**values)[field]


def test_shares_that_divide_are_accepted() -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    assert problems(**best, eval_steps=0.1, save_steps=0.3) == {}
    assert problems(**best, eval_steps=25, save_steps=100) == {}


@pytest.mark.parametrize("name", ["loss", "eval_mean_token_accuracy", "entropy"])
def test_what_may_choose_the_best_is_measured(name: str, tmp_path: Path) -> None:
    changes = {"metric_for_best_model": name, "load_best_model_at_end": True, "max_steps": 9}
    result = run(tmp_path, {f"training_config.{key}": value for key, value in changes.items()})
    assert result.outcome == "finished"


def test_all_checkpointing_options_train(tmp_path: Path) -> None:
    options = {"use_reentrant": False, "preserve_rng_state": True, "determinism_check": "none"}
    options |= {"early_stop": True}
    changes = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": options,
        "max_steps": 2,
        "eval_strategy": "no",
    }
    result = run(tmp_path, {f"training_config.{key}": value for key, value in changes.items()})
    assert result.outcome == "finished"
