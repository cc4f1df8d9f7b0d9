"""GRPO: rewards that can be read, TRL's losses, stop and resume, and who may name a function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.config import RunConfig
from phi3lora.errors import AccessError, ConfigError, TrainingError
from phi3lora.evaluation.metrics import RowScore, compare, gains, verdict
from phi3lora.methods import GRPOSection
from phi3lora.runs.permission import check_paths
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import RunStore
from phi3lora.runs.worker import work
from phi3lora.settings import Settings
from phi3lora.training.rewards import Answer, earned, own_function, rewards_of
from phi3lora.training.trainer import train
from tests.small import After

QUICK: dict[str, Any] = {
    "method": "grpo",
    "model.path": "pocket",
    "model.dtype": "float32",
    "model.device": "cpu",
    "data.path": "example:sums",
    "data.max_rows": 14,
    "data.test_size": 2,
    "peft_config.r": 4,
    "peft_config.lora_dropout": 0.0,
    "training_config.num_train_epochs": 2,
    "training_config.per_device_train_batch_size": 4,
    "training_config.gradient_accumulation_steps": 2,
    "training_config.learning_rate": 1e-3,
    "training_config.logging_steps": 1,
    "training_config.max_length": 64,
    "training_config.save_strategy": "no",
    "training_config.eval_strategy": "no",
    "training_config.log_level": "warning",
    "evaluation.enabled": False,
    "grpo_config.max_completion_length": 12,
    "grpo_config.length": 12,
    "grpo_config.beta": 0.1,
    "grpo_config.pattern": r"\d \+ \d = \d+\.",
}


def config(changes: dict[str, Any] | None = None) -> RunConfig:
    return RunConfig().with_values({**QUICK, **(changes or {})})


def score(answer: str, reference: str = "", **section: Any) -> float:
    rewards = rewards_of(GRPOSection(**{"exact_reward": 0.0, **section}))
    return earned(rewards, Answer([{"role": "user", "content": "?"}], answer, reference))


# Rewards


def test_each_reward_is_what_it_says() -> None:
    assert score(" 3 + 4  = 7. ", "3 + 4 = 7.", exact_reward=2) == 2
    assert score("3 + 4 = 8.", "3 + 4 = 7.", exact_reward=2) == 0
    assert score("so #### 7", "other words #### 7", exact_reward=1, exact_after="####") == 1
    assert score("so 7", "other words #### 7", exact_reward=1, exact_after="####") == 0
    assert score("12 kg.", pattern=r"\d+ kg\.") == 1
    assert score("about 12 kg.", pattern=r"\d+ kg\.") == 0
    assert [score("a" * n, length=10) for n in (0, 10, 15, 20, 99)] == [0, 1, 0.5, 0, 0]
    assert [score(text, json_reward=1) for text in ('{"a": [1]}', "{", "NaN", "[" * 9999)] == [
        *(1, 0, 0, 0)
    ]
    both = score("12 kg.", pattern=r"\d+ kg\.", pattern_reward=0.5, length=6, length_reward=2)
    assert both == 2.5


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)*b", "(.*)*.*x", "((a{0,30}){0,30})*b"])
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    """RE2 is linear in the text: a pattern that backtracks for years elsewhere is done."""
    assert score("a" * 5000 + "!", pattern=pattern) == 0


def wrong(changes: dict[str, Any]) -> set[str]:
    with pytest.raises(ConfigError) as error:
        config(changes)
    return {problem.field for problem in error.value.problems}


@pytest.mark.parametrize("pattern", ["(", "(?:a{999}){999}", "(?=a)", "a{65535}"])
def test_a_pattern_that_is_none_is_named(pattern: str) -> None:
    assert wrong({"grpo_config.pattern": pattern}) == {"grpo_config.pattern"}


def test_what_cannot_be_is_named_with_its_field() -> None:
    assert wrong({"grpo_config.pattern": "a" * 301}) == {"grpo_config.pattern"}
    nothing = {"pattern": "", "exact_reward": 0, "length": None}
    found = wrong({f"grpo_config.{name}": value for name, value in nothing.items()})
    assert found == {"grpo_config.exact_reward"}
    assert wrong({"grpo_config.num_generations": 3}) == {"grpo_config.num_generations"}
    assert wrong({"grpo_config.function": "score"}) == {"grpo_config.function"}
    assert wrong({"training_config.packing": True}) == {"training_config.packing"}
    assert wrong({"adapter": "none"}) == {"adapter"}
    best = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    found = wrong({f"training_config.{name}": value for name, value in best.items()})
    assert found == {"training_config.metric_for_best_model"}


# A function of one's own


@pytest.fixture
def function(tmp_path: Path) -> str:
    """What scores an answer by its first letter, and says on a file that it was imported."""
    file = tmp_path / "rules.py"
    file.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\n"
        "def score(prompt, answer, reference):\n"
        "    return 1.5 if answer.startswith('A') else 'no' if answer else 1 / 0\n",
        encoding="utf-8",
    )
    return f"{file}:score"


def test_a_function_gives_a_number_or_says_why_not(function: str, tmp_path: Path) -> None:
    assert score("Arr", function=function, function_reward=2) == 3
    with pytest.raises(TrainingError, match=r"expected .* to return a number"):
        score("plain", function=function)
    with pytest.raises(TrainingError, match="ZeroDivisionError"):
        score("", function=function)
    (tmp_path / "broken.py").write_text("def (", encoding="utf-8")
    for named in ("none.py:score", f"{tmp_path}/broken.py:score", function + "s", "/etc/passwd:x"):
        with pytest.raises(ConfigError, match="expected a function of your own"):
            own_function(named)


def test_no_function_runs_on_a_space(function: str, settings: Settings, tmp_path: Path) -> None:
    """Refused at launch and before any look, at resume, and in the worker; nothing is imported."""
    space = replace(settings, space_id="ann/app", who_may_train="anyone")
    chosen, ann = config({"grpo_config.function": function}), Caller("ann", None)
    app = Application.open(space, helper=False)
    refused = pytest.raises(AccessError, match="on your own machine alone")
    with refused:
        app.launching.preflight(chosen, ann)
    with refused:
        app.launching.launch(chosen, ann, force=True)
    with refused:
        app.voting.judge("", ["?"], chosen.grpo_config, None, ann).__next__()
    run = RunStore(space).create(chosen, "ann", "as a copy on the Hub had it")
    with refused:
        app.launching.resume(run, ann)
    with refused:
        Queue(space, RunStore(space)).submit(run, None)
    assert work(run, space, lambda: False) != 0
    assert "own machine alone" in RunStore(space).get(run.id, "ann").message
    assert not (tmp_path / "ran").exists()


def test_a_look_says_where_the_function_will_not_be(function: str, tmp_path: Path) -> None:
    from phi3lora.models.hardware import Hardware
    from phi3lora.training.preflight import Elsewhere, _function_checks

    rented = Elsewhere(Hardware("cuda", "a GPU", 1, 1, True, 1))
    chosen = config({"grpo_config.function": function})
    gone = config({"grpo_config.function": "none.py:score"})
    found = [_function_checks(*asked) for asked in ((chosen, None), (chosen, rented), (gone, None))]
    assert [check.level for (check,) in found] == ["green", "red", "red"]
    assert not (tmp_path / "ran").exists()


def test_a_function_among_the_runs_is_nobodys_own(settings: Settings) -> None:
    """A run that comes back from the Hub may bring files along; they are no code of yours."""
    inside = settings.runs_folder / "20260101-000000-abcdef" / "rules.py"
    with pytest.raises(AccessError, match="lies among the runs"):
        check_paths(config({"grpo_config.function": f"{inside}:score"}), "local", settings)


# Training


def learn(folder: Path, changes: dict[str, Any] | None = None, **more: Any) -> list[Any]:
    events: list[Any] = []
    train(config(changes), folder, events.append, **more)
    return events


def figures(events: list[Any]) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "reward", "learning_rate", "grad_norm", "tokens")
    return [
        tuple(getattr(event, name) for name in names)
        for event in events
        if event.kind == "step" and event.loss is not None
    ]


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Two epochs of six updates, held near the base."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, learn(folder)


def trl_losses(folder: Path) -> list[float]:
    """What TRL's own trainer logs on the same rows, with its own template and head."""
    from trl import GRPOConfig, GRPOTrainer

    from phi3lora.data.preparation import prepare
    from phi3lora.lora.adapters import attach_adapter
    from phi3lora.models.base import resolve_path
    from phi3lora.models.hardware import detect_hardware
    from phi3lora.models.loading import load_model, load_tokenizer

    chosen = config()
    tokenizer = load_tokenizer(resolve_path("pocket", detect_hardware("cpu")))
    rows = prepare(chosen, tokenizer).conversations
    model = attach_adapter(load_model(chosen.model, for_training=True), chosen, [])

    def exact(completions: Any, reference: Any, **_: Any) -> list[float]:
        return [float(c[0]["content"] == r) for c, r in zip(completions, reference, strict=True)]

    def pattern(completions: Any, **_: Any) -> list[float]:
        import re

        found = [re.fullmatch(r"\d \+ \d = \d+\.", c[0]["content"]) for c in completions]
        return [float(match is not None) for match in found]

    def length(completions: Any, **_: Any) -> list[float]:
        sizes = [len(c[0]["content"].strip()) for c in completions]
        return [min(max(2 - size / 12, 0), 1) if size else 0 for size in sizes]

    arguments = {
        **chosen.training_config.arguments(),
        **chosen.grpo_config.arguments(),
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    del arguments["packing"], arguments["max_length"]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[exact, pattern, length],
        args=GRPOConfig(str(folder), **arguments),
        train_dataset=rows.map(
            lambda row: {
                "prompt": [{k: m[k] for k in ("role", "content")} for m in row["messages"][:-1]],
                "reference": row["messages"][-1]["content"],
            },
            remove_columns=rows.column_names,
        ),
        processing_class=tokenizer,
    )
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_losses_are_those_of_trl(tmp_path: Path) -> None:
    theirs = trl_losses(tmp_path / "trl")
    plain = learn(tmp_path / "plain", {"training_config.fast": False})
    assert [loss for _, loss, *_ in figures(plain)] == theirs
    assert all(theirs)
    # The fast path rounds otherwise, so a token may be drawn otherwise later on.
    one = {"training_config.max_steps": 1}
    fast = learn(tmp_path / "fast", one)
    assert figures(fast)[0][1] == pytest.approx(theirs[0], abs=2e-5)


@pytest.mark.parametrize("after", [3, 8])
def test_stop_and_resume_is_the_same_to_the_bit(
    after: int, whole: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    """In the first epoch and in the second, whose order follows from the first's."""
    folder, events = whole
    stopped = learn(tmp_path, should_stop=After(after))
    resumed = learn(tmp_path)
    assert stopped[-1].outcome == "stopped"
    assert figures(events) == [*figures(stopped), *figures(resumed)]
    assert len(figures(events)) == 12
    assert weights(folder) == weights(tmp_path)


def test_events_tell_the_reward_and_checkpoints_are_whole(tmp_path: Path) -> None:
    changes = {
        "training_config.max_steps": 2,
        "training_config.eval_strategy": "steps",
        "training_config.eval_steps": 1,
        "training_config.save_strategy": "steps",
        "training_config.save_steps": 1,
        "training_config.load_best_model_at_end": True,
        "training_config.metric_for_best_model": "reward",
    }
    events = learn(tmp_path, changes)
    told = [event.reward for event in events if event.kind == "evaluated"]
    assert len(told) == 2
    assert all(0 <= reward <= 3 for reward in told)
    assert all(event.reward is not None for event in events if event.kind == "step" and event.loss)
    assert [event.step for event in events if event.kind == "saved"] == [1, 2]


def test_too_few_rows_for_a_batch_of_groups_are_said(tmp_path: Path) -> None:
    from phi3lora.errors import DataError

    changes = {"data.max_rows": 6, "training_config.per_device_train_batch_size": 64}
    with pytest.raises(DataError, match="per_device_train_batch_size"):
        learn(tmp_path, changes)


# The proof


def test_the_proof_is_the_reward_with_an_interval() -> None:
    base = [RowScore(1.0, 4, 2, "a", True, 4, dict.fromkeys(("rouge1",), 0.0))]
    none = {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0, "rougeLsum": 0.0}
    base = [replace(base[0], rouge=none, earned=0.1 * (n % 2)) for n in range(20)]
    tuned = [replace(row, nll=9.0, earned=1.0) for row in base]
    found = compare(base, tuned)
    assert (found[0].name, found[0].base, found[0].tuned) == ("earned", 0.05, 1.0)
    assert found[0].low > 0
    assert verdict(found, 20) == "better", "though the data's own words are less likely"
    assert gains(base, tuned)[0] == 1.0


def test_a_published_run_names_no_folder_of_this_machine(function: str, tmp_path: Path) -> None:
    from phi3lora.hub.facts import collect
    from phi3lora.hub.upload import portable_config
    from phi3lora.runs.store import with_whole_paths

    chosen = config({"grpo_config.function": function})
    assert with_whole_paths(chosen).grpo_config.function == function
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(chosen.to_yaml(), encoding="utf-8")
    facts = collect(run)
    shown = {name: value for name, _, value in facts.options}
    assert shown["grpo_config.function"] == "rules.py:score"
    assert str(tmp_path) not in portable_config(run, facts)
