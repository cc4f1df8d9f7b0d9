"""The training: its events, its end, its resumption, its failures, its options."""

from __future__ import annotations

import logging
import math
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import Phi3ForCausalLM, TrainerControl, TrainerState, TrainingArguments

from phi3lora.config import OPTIMIZERS, POCKET, SCHEDULERS, RunConfig
from phi3lora.errors import ConfigError, DataError, TrainingError
from phi3lora.events import Event, Step
from phi3lora.training.callbacks import Progress
from phi3lora.training.checkpoints import is_finished, newest_whole
from phi3lora.training.failures import is_out_of_memory
from phi3lora.training.trainer import train
from tests.small import After, Result, run, small_base, small_model, small_rows


def same(one: Result, other: Result) -> None:
    """Bit for bit."""
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


# The whole way, on pocket


def pocket_config(changes: dict[str, Any] | None = None) -> RunConfig:
    settings = {
        "model.path": POCKET,
        "model.dtype": "float32",
        "data.max_rows": 24,
        "peft_config.r": 4,
        "training_config.max_steps": 3,
        "training_config.logging_steps": 1,
        "training_config.max_length": 64,
        "training_config.eval_strategy": "steps",
        "training_config.eval_steps": 2,
    }
    return RunConfig().with_values({**settings, **(changes or {})})


@pytest.fixture(scope="module")
def pocket_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], str]:
    folder, events, lines = tmp_path_factory.mktemp("run"), [], []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("phi3lora.training.trainer")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    assert train(pocket_config(), folder, events.append) == "finished"
    logger.removeHandler(handler)
    return folder, events, "\n".join(lines)


def test_events_tell_the_whole_story_in_order(pocket_run) -> None:
    _, events, _ = pocket_run
    kinds = [event.kind for event in events]
    order = ["stage", "prepared", "loaded", "step", "evaluated", "saved", "ended"]
    assert [kind for kind in dict.fromkeys(kinds) if kind != "notice"] == order
    by_kind = {event.kind: event for event in events}
    assert by_kind["prepared"].train_rows + by_kind["prepared"].test_rows == 24
    assert by_kind["prepared"].supervised_tokens < by_kind["prepared"].train_tokens
    assert by_kind["loaded"].dtype == "float32"
    assert 0 < by_kind["loaded"].trainable_parameters < by_kind["loaded"].total_parameters
    steps = [event for event in events if event.kind == "step"]
    last = steps[-1]
    assert (last.step, last.total_steps, last.seconds_left) == (3, 3, 0.0)
    assert steps[0].seconds_left is None, "after one step it would be a guess"
    assert last.tokens > 0
    assert last.tokens_per_second > 0
    assert 0 <= last.token_accuracy <= 1
    assert last.grad_norm > 0
    ended = events[-1]
    assert (ended.outcome, ended.step) == ("finished", 3)
    assert ended.peak_memory > 2**20


def test_adapter_folder_is_loaded_by_plain_peft(pocket_run) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer

    from phi3lora.models.pocket import CHECKPOINT

    folder = pocket_run[0]
    base = Phi3ForCausalLM.from_pretrained(CHECKPOINT)
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits
    tuned = PeftModel.from_pretrained(base, folder / "adapter")
    assert not torch.allclose(tuned(ids).logits, before)
    trained = {n: p for n, p in tuned.named_parameters() if "lora_B" in n}
    assert all(bool(p.any()) for p in trained.values())
    assert AutoTokenizer.from_pretrained(folder / "adapter").chat_template


def test_log_begins_with_configuration_and_versions(pocket_run) -> None:
    text = pocket_run[2]
    assert f"torch {version('torch')}" in text  # `torch.__version__` may name its build, too
    assert "max_steps: 3" in text


def test_run_ends_with_its_error_as_an_event(tmp_path: Path) -> None:
    events: list[Event] = []
    config = pocket_config({"data.max_rows": 3, "data.test_size": 0})
    with pytest.raises(DataError, match="batch"):
        train(config, tmp_path, events.append)
    assert (events[-1].kind, events[-1].outcome) == ("ended", "failed")
    assert "batch" in events[-1].message


def test_the_time_left_is_told_once_it_is_no_guess(tmp_path: Path) -> None:
    events: list[Event] = []
    progress = Progress(events.append)
    args, control = TrainingArguments(str(tmp_path)), TrainerControl()
    progress.on_train_begin(args, TrainerState(global_step=20, max_steps=40), control)
    for step in (21, 29, 30, 40):
        progress.on_log(args, TrainerState(global_step=step, max_steps=40), control, {"loss": 1.0})
    told = [event for event in events if isinstance(event, Step)]
    known = [step.seconds_left is not None for step in told]
    assert known == [False, False, True, True], "ten updates after it went on"
    assert told[-1].seconds_left == 0


# Stop, pause and resume

RESUMED = {
    "in mid-epoch": ({}, 5),
    "at the end of an epoch": ({}, 9),
    "while accumulating": ({"training_config.gradient_accumulation_steps": 2}, 3),
    "packed": ({"training_config.packing": True, "training_config.save_strategy": "no"}, 3),
    "between two logs": ({"training_config.logging_steps": 4}, 6),
    "as TRL computes": ({"training_config.fast": False}, 5),
    "with checkpointing": ({"training_config.gradient_checkpointing": True}, 2),
}


@pytest.mark.parametrize(("changes", "stop_after"), RESUMED.values(), ids=RESUMED)
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, changes: dict[str, Any], stop_after: int
) -> None:
    whole = run(tmp_path / "whole", changes)
    # The end of an epoch is asked at the epoch's end; the ninth question is the ninth step's.
    first = run(tmp_path / "parts", changes, should_stop=After(stop_after))
    second = run(tmp_path / "parts", changes)
    assert (first.outcome, second.outcome) == ("stopped", "finished")
    assert first.kinds()[-1] == "saved"
    assert second.kinds().count("resumed") == 1
    same(whole, second)
    assert first.figures + second.figures == whole.figures


def test_deadline_pauses_and_slices_add_up_to_the_whole(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    slices = []
    while not slices or slices[-1].outcome == "paused":
        # Just gone: one step is made, and the next one is not begun.
        slices.append(
            run(tmp_path / "parts", deadline=time.monotonic() if len(slices) < 3 else None)
        )
    assert [part.outcome for part in slices] == ["paused"] * 3 + ["finished"]
    same(whole, slices[-1])


def test_a_stop_at_the_last_step_finishes(tmp_path: Path) -> None:
    asked = run(tmp_path, {"training_config.max_steps": 2}, should_stop=After(2))
    assert asked.outcome == "finished"


def test_half_written_checkpoint_is_skipped_and_removed(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", should_stop=After(3))
    good = tmp_path / "parts" / "checkpoints" / "checkpoint-3"
    for step, cut in ((7, "trainer_state.json"), (8, "optimizer.pt")):
        broken = good.with_name(f"checkpoint-{step}")
        shutil.copytree(good, broken)
        (broken / "manifest.json").unlink()
        state = (broken / "trainer_state.json").read_text()
        state = state.replace('"global_step": 3', f'"global_step": {step}')
        (broken / "trainer_state.json").write_text(state)
        assert not is_finished(broken), "a manifest was to follow"
        state = state.replace('"sealed": true', '"sealed": false')  # as older versions left it
        (broken / "trainer_state.json").write_text(state)
        assert is_finished(broken)
        if cut == "optimizer.pt":
            (broken / cut).unlink()
        else:
            (broken / cut).write_text(state[: len(state) // 2])
        assert not is_finished(broken)
    assert newest_whole(good.parent, pytest.fail) == good
    second = run(tmp_path / "parts")
    assert [event.step for event in second.events if event.kind == "resumed"] == [3]
    assert not good.with_name("checkpoint-8").exists()
    same(whole, second)


KILLED = """
    import os, signal, sys, torch
    from pathlib import Path
    from tests.small import run
    saved, save = [], torch.save

    def killed_while_saving(value, path, *args, **kwargs):
        saved.append(path)
        if len(saved) == 5:  # the second checkpoint's optimizer and scheduler are written
            Path(path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, path, *args, **kwargs)

    torch.save = killed_while_saving
    run(Path(sys.argv[1]), {"training_config.save_strategy": "steps",
                            "training_config.save_steps": 3})
"""


@pytest.mark.slow
def test_killed_while_saving_resumes_from_the_checkpoint_before(tmp_path: Path) -> None:
    changes = {"training_config.save_strategy": "steps", "training_config.save_steps": 3}
    whole = run(tmp_path / "whole", changes)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "parts")]
    ended = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    second = run(tmp_path / "parts", changes)
    assert [event.step for event in second.events if event.kind == "resumed"] == [3]
    same(whole, second)


def test_patience_survives_a_resume(tmp_path: Path) -> None:
    changes = {
        "training_config.early_stopping_patience": 3,
        "training_config.load_best_model_at_end": True,
        "training_config.eval_strategy": "steps",
        "training_config.save_strategy": "steps",
        "training_config.eval_steps": 1,
        "training_config.save_steps": 1,
        "training_config.learning_rate": 0.02,  # by heart, so that held-out rows get worse
        "training_config.max_grad_norm": 0,
        "training_config.warmup_steps": 0,
    }
    whole = run(tmp_path / "whole", changes)
    scores = [event for event in whole.events if event.kind == "evaluated"]
    best = min(scores, key=lambda event: event.loss)
    assert len(scores) == best.step + 3  # ended three evaluations after the best
    run(tmp_path / "parts", changes, should_stop=After(best.step + 1))
    second = run(tmp_path / "parts", changes)
    assert second.events[-1].step == scores[-1].step
    same(whole, second)
    from safetensors.torch import load_file

    kept = load_file(
        tmp_path / "whole" / "checkpoints" / f"checkpoint-{best.step}" / "adapter_model.safetensors"
    )
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A"
    assert torch.equal(kept[f"{name}.weight"], whole.weights[f"{name}.default.weight"])


def test_checkpoints_kept_are_limited(tmp_path: Path) -> None:
    changes = {
        "training_config.save_strategy": "steps",
        "training_config.save_steps": 2,
        "training_config.save_total_limit": 2,
        "training_config.max_steps": 8,
    }
    run(tmp_path, changes)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-6", "checkpoint-8"]


# Failures


def at_step(number: int, act: Any) -> Any:
    """An `emit` that does something when a step is reported."""

    def emit(event: Event) -> None:
        if event.kind == "step" and event.step == number:
            act()

    return emit


def test_loss_that_is_no_number_ends_the_run_and_names_the_step(tmp_path: Path) -> None:
    model = small_model()

    def poison() -> None:
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(math.nan)

    with pytest.raises(TrainingError, match=r"step 4: .*finite.*learning_rate \(now 0.01"):
        run(tmp_path, model=model, emit=at_step(3, poison))


def test_last_update_that_breaks_the_weights_is_noticed(tmp_path: Path) -> None:
    model = small_model()

    def poison() -> None:
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(math.inf)

    changes = {"training_config.max_steps": 3, "training_config.eval_strategy": "no"}
    with pytest.raises(TrainingError, match="finite"):
        run(tmp_path, changes, model=model, emit=at_step(3, poison))


@pytest.mark.parametrize("ask", [lambda: torch.empty(2**50), lambda: bytearray(2**60)])
def test_out_of_memory_says_what_to_lower(tmp_path: Path, ask: Any) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    assert is_out_of_memory(caught.value)
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        at_step(1, ask)(event)

    with pytest.raises(TrainingError, match=r"memory.*a batch of 2 instead of 4.*--batch-size 2"):
        train(pocket_config(), tmp_path, emit)
    assert events[-1].outcome == "failed"


def test_full_disk_keeps_the_last_whole_checkpoint(tmp_path: Path) -> None:
    changes = {"training_config.save_strategy": "steps", "training_config.save_steps": 1}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if event.kind == "saved" and event.step == 2:
            fill()

    config = pocket_config(changes)
    try:
        with pytest.raises(TrainingError, match=r"step 3: the disk is full.*save_total_limit"):
            train(config, tmp_path, emit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    names = [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")]
    assert sorted(names) == ["checkpoint-1", "checkpoint-2"]
    assert train(config, tmp_path, events.append) == "finished"


def test_too_few_packed_rows_for_a_batch(tmp_path: Path) -> None:
    rows = small_rows(6, longest=8)
    with pytest.raises(DataError, match=r"6 rows, packed into 1.*batch_size to 1"):
        run(tmp_path, {"training_config.packing": True}, rows=rows)


# Options


@pytest.mark.parametrize("name", get_args(SCHEDULERS))
def test_every_schedule_runs(tmp_path: Path, name: str) -> None:
    extra = {
        "cosine_with_min_lr": {"min_lr": 1e-4},
        "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
        "warmup_stable_decay": {"num_decay_steps": 1},
    }
    changes = {
        "training_config.lr_scheduler_type": name,
        "training_config.lr_scheduler_kwargs": extra.get(name),
        "training_config.max_steps": 2,
    }
    result = run(tmp_path, changes)
    assert result.outcome == "finished"
    assert all(event.learning_rate >= 0 for event in result.events if event.kind == "step")


@pytest.mark.parametrize("name", get_args(OPTIMIZERS))
def test_every_optimizer_runs(tmp_path: Path, name: str) -> None:
    model = small_model()
    before = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad}
    changes = {
        "training_config.optim": name,
        "training_config.max_steps": 2,
        "training_config.eval_strategy": "no",
        "training_config.warmup_steps": 0,
    }
    result = run(tmp_path, changes, model=model)
    assert any(not torch.equal(before[n], p) for n, p in result.weights.items())


def test_lora_plus_gives_b_its_own_rate(tmp_path: Path) -> None:
    changes = {
        "training_config.loraplus_lr_ratio": 4.0,
        "training_config.optim": "sgd",
        "training_config.max_steps": 1,
        "training_config.warmup_steps": 0,
        "training_config.max_grad_norm": 0,
        "training_config.lr_scheduler_type": "constant",
    }
    moved = run(tmp_path / "plus", changes)
    plain = run(tmp_path / "plain", {**changes, "training_config.loraplus_lr_ratio": None})
    for name, start in small_model().named_parameters():
        if start.requires_grad:
            ratio = 4.0 if "lora_B" in name else 1.0
            step = plain.weights[name] - start
            torch.testing.assert_close(moved.weights[name] - start, ratio * step)
    assert any(bool((plain.weights[n]).any()) for n in plain.weights if "lora_B" in n)


@pytest.mark.parametrize("adapter", ["peft", "loralib", "none"])
def test_each_kind_of_layers_is_trained_stopped_and_resumed(tmp_path: Path, adapter: str) -> None:
    from phi3lora.lora.adapters import attach_adapter
    from tests.small import small_config

    changes = {"adapter": adapter, "training_config.max_steps": 4}
    config = small_config(changes)

    def fresh() -> Any:
        return attach_adapter(small_base(), config)

    whole = run(tmp_path / "whole", changes, model=fresh())
    run(tmp_path / "parts", changes, model=fresh(), should_stop=After(2))
    second = run(tmp_path / "parts", changes, model=fresh())
    assert [event.step for event in second.events if event.kind == "resumed"] == [2]
    assert whole.losses[-1] != whole.losses[0]
    same(whole, second)


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    base = {"training_config.max_steps": 3}
    large = {**base, "training_config.per_device_train_batch_size": 8}
    parts = {**base, "training_config.gradient_accumulation_steps": 2}
    one = run(tmp_path / "large", large, model=small_model(dropout=0))
    other = run(tmp_path / "parts", parts, model=small_model(dropout=0))
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, other.weights[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_resumed_with_a_smaller_batch_it_trains_the_same(tmp_path: Path, packing: bool) -> None:
    """In the middle of an epoch whose last update is not full."""
    changes = {"training_config.packing": packing}
    smaller = {
        **changes,
        "training_config.per_device_train_batch_size": 2,
        "training_config.gradient_accumulation_steps": 2,
    }
    models = [small_model(dropout=0) for _ in range(3)]
    whole = run(tmp_path / "whole", changes, model=models[0], rows=small_rows(34))
    stopped = After(2)
    run(tmp_path / "parts", changes, model=models[1], rows=small_rows(34), should_stop=stopped)
    rest = run(tmp_path / "parts", smaller, model=models[2], rows=small_rows(34))
    losses = [{e.step: e.loss for e in one.events if isinstance(e, Step)} for one in (whole, rest)]
    assert list(losses[1]) == list(losses[0])[2:]
    for step, loss in losses[1].items():
        assert loss == pytest.approx(losses[0][step], abs=1e-5)
    for name, weight in whole.weights.items():
        torch.testing.assert_close(weight, rest.weights[name], rtol=1e-4, atol=1e-6)


def test_each_step_says_how_fast_it_was_and_what_is_held(
    pocket_run: tuple[Path, list[Event], str],
) -> None:
    steps = [event for event in pocket_run[1] if isinstance(event, Step)]
    assert steps[0].speed == pytest.approx(
        steps[0].tokens_per_second
    )  # of the first it is the mean
    slowest, fastest = (pick(step.speed or 0.0 for step in steps) for pick in (min, max))
    assert slowest <= (steps[-1].tokens_per_second or 0.0) <= fastest
    assert all(50e6 < (step.memory or 0) < 100e9 for step in steps)


def test_tensorboard_writes_into_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path, {"training_config.report_to": "tensorboard", "training_config.max_steps": 1})
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_no_token_reaches_the_checkpoints(tmp_path: Path) -> None:
    config = pocket_config({"training_config.max_steps": 1})
    train(config, tmp_path, lambda event: None, token="hf_secret_of_a_user")
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert texts
    assert not any(b"hf_secret" in text for text in texts)


def test_a_training_shows_what_its_model_answers_by_now(pocket_run, tmp_path: Path) -> None:
    """And is the same to the bit as the one that asks nothing."""
    folder, events, _ = pocket_run
    asking, told = pocket_config({"training_config.sample_answers": 2}), []
    assert train(asking, tmp_path, told.append) == "finished"
    answers = [event for event in told if event.kind == "answered"]
    assert [event.step for event in answers] == [
        event.step for event in told if event.kind == "evaluated"
    ]
    assert all(len(event.rows) == 2 and event.rows[0].prompt for event in answers)
    assert any(row.answer for event in answers for row in event.rows)
    plain, asked = (
        (run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (folder, tmp_path)
    )
    assert plain == asked
    assert [event for event in events if event.kind == "answered"] == []


def test_what_a_training_goes_on_from_is_told_and_is_no_warning(pocket_run, tmp_path: Path) -> None:
    told: list[Event] = []
    further = pocket_config({"model.adapter": str(pocket_run[0] / "adapter")})
    train(further.with_values({"training_config.max_steps": 1}), tmp_path, told.append)
    (notice,) = [one for one in told if one.kind == "notice" and "goes on from" in one.message]
    assert (notice.level, "adapter" in notice.message) == ("info", True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training_config.eval_strategy": "no"}, "there is none"),
        ({"devices": 2, "distributed": "fsdp2"}, "spreads the weights"),
    ],
)
def test_answers_that_nobody_could_give_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pocket_config({"training_config.sample_answers": 2, **changes})
