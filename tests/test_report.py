"""The report of a run: base and tuned on rows that were held out, measured and in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3lora.config import RunConfig
from phi3lora.errors import DataError, RunError
from phi3lora.evaluation import report as module
from phi3lora.evaluation.report import Report, evaluate
from phi3lora.events import Event
from phi3lora.training.trainer import train


def config(**changes: Any) -> RunConfig:
    settings = {
        "model.path": "pocket",
        "model.dtype": "float32",
        "data.max_rows": 120,
        "peft_config.r": 8,
        "peft_config.lora_dropout": 0.0,
        "training_config.max_steps": 24,
        "training_config.per_device_train_batch_size": 8,
        "training_config.learning_rate": 5e-3,
        "training_config.max_length": 128,
        "training_config.eval_strategy": "no",
        "training_config.save_strategy": "no",
        "training_config.log_level": "warning",
        "evaluation.rows": 10,
        "evaluation.max_new_tokens": 24,
    }
    return RunConfig().with_values({**settings, **changes})


@pytest.fixture(scope="module")
def pirate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose adapter has learnt to talk like a pirate."""
    folder = tmp_path_factory.mktemp("pirate")
    assert train(config(), folder, lambda event: None, cache_folder=folder / "cache") == "finished"
    return folder


@pytest.fixture(scope="module")
def proof(pirate: Path) -> tuple[Report, list[Event]]:
    events: list[Event] = []
    return evaluate(config(), pirate, emit=events.append, cache_folder=pirate / "cache"), events


def test_a_pirate_is_better_than_its_base(proof: tuple[Report, list[Event]]) -> None:
    report, _ = proof
    assert (report.verdict, report.rows, report.held_out) == ("better", 10, 12)
    figures = {item.name: item for item in report.comparisons}
    assert figures["loss"].tuned < figures["loss"].base
    assert figures["loss"].high < 0, "the whole interval is below no difference"
    assert figures["rougeL"].verdict == "better"
    assert figures["length"].verdict == "cannot tell", "a length is neither better nor worse"
    assert (len(report.gained), report.lost) == (3, []), "no row lost anything"
    gains = [sample.gain for sample in (*report.gained, *reversed(report.lost))]
    assert gains == sorted(gains, reverse=True)
    best = report.gained[0]
    assert best.reference.startswith("Arr") and "Arr" in best.tuned  # noqa: PT018
    assert "Arr" not in best.base
    assert best.prompt and "assistant" not in best.prompt  # noqa: PT018


def test_its_figures_are_those_of_base_and_adapter(
    pirate: Path, proof: tuple[Report, list[Event]]
) -> None:
    """Computed again from the adapter's folder by plain transformers and peft."""
    from peft import PeftModel
    from transformers import AutoTokenizer, Phi3ForCausalLM

    from phi3lora.data.preparation import prepare
    from phi3lora.models.pocket import CHECKPOINT

    rows = prepare(config(), AutoTokenizer.from_pretrained(CHECKPOINT)).test
    assert rows is not None
    model: Any = Phi3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()

    def loss() -> float:
        total = count = 0.0
        for row in rows.select(range(10)):
            labels = torch.tensor([row["labels"]])
            with torch.no_grad():
                out = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels)
            learnt = int((labels != -100).sum())
            total, count = total + float(out.loss) * learnt, count + learnt
        return total / count

    figure = next(item for item in proof[0].comparisons if item.name == "loss")
    assert figure.base == pytest.approx(loss(), rel=1e-4)
    model = PeftModel.from_pretrained(model, pirate / "adapter").eval()
    assert figure.tuned == pytest.approx(loss(), rel=1e-4)


def test_report_json_is_the_report(pirate: Path, proof: tuple[Report, list[Event]]) -> None:
    values = json.loads((pirate / "report.json").read_text("utf-8"))
    assert values == json.loads(json.dumps(proof[0].to_json()))
    assert values["verdict"] == "better"
    assert {item["name"]: item["verdict"] for item in values["comparisons"]}["loss"] == "better"


def test_progress_is_told(proof: tuple[Report, list[Event]]) -> None:
    names = list(dict.fromkeys(event.name for event in proof[1]))
    assert names == [
        "preparing the held-out rows",
        "loading the base",
        "the base answers",
        "the tuned model answers",
    ]
    assert [e.fraction for e in proof[1] if e.name == "the base answers"] == [0.8, 1.0]


def test_the_base_is_scored_once(
    pirate: Path, proof: tuple[Report, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    whole = module._Scorer.__call__
    monkeypatch.setattr(
        module._Scorer,
        "__call__",
        lambda self, model, stage: scored.append(stage) or whole(self, model, stage),
    )
    again = evaluate(config(), pirate, cache_folder=pirate / "cache")
    assert (scored, again) == (["the tuned model answers"], proof[0])
    scored.clear()
    fewer = evaluate(config(), pirate, 4, cache_folder=pirate / "cache")
    assert scored == ["the base answers", "the tuned model answers"], "other rows, other scores"
    assert (fewer.rows, fewer.verdict) == (4, "cannot tell")


def test_the_verdict_in_words(proof: tuple[Report, list[Event]]) -> None:
    report, _ = proof
    said = report.summary()
    assert said.startswith("The tuned model is better than its base: on 10 held-out rows its loss")
    assert "95 % interval -" in said
    worse = replace(report, verdict="worse").summary()
    assert worse.startswith("The tuned model is worse than its base")
    unsure = replace(report, verdict="cannot tell").summary()
    assert unsure.startswith("These rows cannot tell the tuned model from its base")


def test_too_few_rows_are_called_too_few(proof: tuple[Report, list[Event]]) -> None:
    few = replace(proof[0], verdict="cannot tell", rows=3).summary()
    assert few.startswith("Too few held-out rows to tell the tuned model from its base: its loss")
    assert "at least 8 are needed" in few
    assert "interval" not in few, "an interval from three rows would look like proof"


def test_a_model_trained_whole_is_compared_too(tmp_path: Path) -> None:
    whole = config(
        adapter="none",
        **{"training_config.max_steps": 2, "evaluation.rows": 3, "evaluation.max_new_tokens": 4},
    )
    assert train(whole, tmp_path, lambda event: None) == "finished"
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "adapter").exists()
    report = evaluate(whole, tmp_path)
    loss = next(item for item in report.comparisons if item.name == "loss")
    assert loss.tuned < loss.base - 0.1


def test_a_dialogue_of_several_turns_names_who_speaks(tmp_path: Path) -> None:
    row: Any = type("Row", (), {})()
    row.messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."},
    ]
    assert module._prompt(row) == "user: Hello\nassistant: Hi.\nuser: Bye"
    row.messages = row.messages[-2:]
    assert module._prompt(row) == "Bye"
    row.messages = row.messages[-1:]
    assert module._prompt(row) == ""


def test_a_run_that_cannot_be_evaluated_says_why(pirate: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no adapter yet; let it finish"):
        evaluate(config(), tmp_path)
    with pytest.raises(RunError, match="no model yet"):
        evaluate(config(adapter="none"), tmp_path)
    with pytest.raises(DataError, match=r"set data\.test_size"):
        evaluate(config(**{"data.test_size": 0}), pirate)
    with pytest.raises(RunError, match="evaluate the run again"):
        evaluate(config(), pirate, should_stop=lambda: True)
