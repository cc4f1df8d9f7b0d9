"""Train, vote by a rule, train on the votes, vote again: the commands of docs/methods.md."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from phi3lora import cli
from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.comparing import Sides
from phi3lora.chat.options import Options
from phi3lora.config import RunConfig
from phi3lora.recipes import load_recipe
from phi3lora.runs.store import Run, RunStore, changed
from phi3lora.settings import Settings
from phi3lora.training.trainer import train

ROOT = Path(__file__).parents[1]
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
LOOP = METHODS.partition("## The loop")[2]
RULE, COMMANDS = re.findall(r"```(?:python|bash)\n(.*?)```", LOOP, re.S)
QUESTIONS = 40
# What the loop needs of its runs; each ends with its last step.
QUICK = {
    "model.device": "cpu",
    "training_config.save_strategy": "no",
    "training_config.eval_strategy": "no",
    "training_config.log_level": "warning",
}


def typed(line: str) -> str:
    done = CliRunner().invoke(cli.app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    return done.output


def finished(settings: Settings, config: RunConfig) -> Run:
    """What a worker leaves behind, trained in this process."""
    run = RunStore(settings).create(config)
    assert train(config, run.folder, lambda event: None) == "finished"
    return changed(run, status="finished", outcome="finished", message="", exit_status=0)


def test_training_on_votes_wins_more_votes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    monkeypatch.chdir(tmp_path)
    Path("rule.py").write_text(RULE, encoding="utf-8")
    rows = (ROOT / "examples" / "pirate.jsonl").read_text("utf-8").splitlines()[:QUESTIONS]
    asked = [json.loads(row)["messages"][0]["content"] for row in rows]
    Path("questions.txt").write_text("\n".join(asked), encoding="utf-8")
    half, judge, votes, again, second, third, standings = COMMANDS.strip().splitlines()
    changes = {"training_config.max_steps": 44, "data.max_rows": 200}
    assert half == "phi3lora train pocket " + " ".join(f"--set {k}={v}" for k, v in changes.items())
    first = finished(settings, load_recipe("pocket")[0].with_values({**changes, **QUICK}))
    typed(judge.replace("RUN", first.id))
    typed(votes.replace("RUN", first.id))
    config = RunConfig.from_yaml(Path("votes.yaml"))[0]
    assert (config.method, config.model.adapter) == ("dpo", first.id)
    assert again == "phi3lora train votes.yaml"
    start = {"model.adapter": str(first.folder)}
    tuned = finished(settings, config.with_values({**QUICK, **start}))
    typed(second.replace("SECOND", tuned.id))
    app = Application.open(settings, helper=False)
    before, after = app.comparing.tally(first.id), app.comparing.tally(tuned.id)
    assert before.votes == after.votes == QUESTIONS
    assert before.win_rate is not None
    assert after.win_rate is not None
    assert after.win_rate > before.win_rate
    typed(third.replace("SECOND", tuned.id).replace("RUN", first.id))
    said = typed(standings.replace("SECOND", tuned.id).replace("RUN", first.id))
    assert len(said.splitlines()) == 3 + 1 + 3, "each of the three, and every two of them"
    names = {line.partition(":")[0] for line in said.splitlines()[:3]}
    assert names == {"base", first.id, tuned.id}
    both = app.comparing.tally(first.id, tuned.id)
    assert both.votes == QUESTIONS
    assert f"{first.id} against {tuned.id}: {both.tuned} to {both.base}, " in said
    learn_from_bad_answers(app, first)


def learn_from_bad_answers(app: Application, first: Run) -> None:
    """Two bad answers teach KTO what neither should have been."""
    me, said = Caller("local", None), [{"role": "user", "content": "Who are you?"}]
    left, right = ([*said, {"role": "assistant", "content": text}] for text in ("dear!", "Arr Arr"))
    app.voting.cast(first.id, Sides("base", "bad"), "both bad", left, right, Options(), me)
    config = app.voting.config(first.id, me, "kto").with_values(
        {**QUICK, "model.adapter": str(first.folder), "training_config.max_steps": 2}
    )
    events: list[Any] = []
    assert train(config, first.folder.with_name("kto"), events.append) == "finished"
    (counted,) = [event for event in events if event.kind == "prepared"]
    standing = app.voting.standing(first.id, me)
    assert counted.train_rows + counted.test_rows == standing.pairs + 2 * standing.bad
