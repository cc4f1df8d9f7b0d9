"""What watches a training: progress as events, stopping between two steps, whole checkpoints.

progress = Progress(emit, should_stop, deadline)
trainer = FastTrainer(..., callbacks=[progress])
progress.outcome        # finished, stopped or paused
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy

from phi3lora.events import Emit, Evaluated, Resumed, Saved, Step
from phi3lora.training import processes
from phi3lora.training.memory import held_memory

Outcome = Literal["finished", "stopped", "paused"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

# Between two logs, progress is reported no more often than this many seconds.
QUIET_SECONDS = 1.0
ETA_AFTER = 10  # updates before which the time left would be a guess


def never() -> bool:
    """Nobody asks to stop."""
    return False


class Progress(TrainerCallback, ExportableState):
    """Reports every logged step, and ends the training after the step in which it must end.

    Attributes:
        outcome: why the training ended.
        step: updates made so far, in all slices of the run.
        tokens: trained so far, in all slices of the run.
        again: whether the run was started before: it may begin anew.
        kept: what the trainer adds up between two logs; saved so that a resumed run logs the same.
    """

    def __init__(
        self,
        emit: Emit,
        should_stop: Callable[[], bool] = never,
        deadline: float | None = None,
    ) -> None:
        self.outcome: Outcome = "finished"
        self.step = 0
        self.tokens = 0
        self.kept: dict[str, Any] = {}
        self.again = False
        self.emit = emit
        self._save_late = False
        self._should_stop = should_stop
        self._deadline = deadline
        self._first_step = 0
        self._started = self._last_report = self._last_step = time.monotonic()
        self._longest_step = 0.0
        self._training_seconds = 0.0
        self._tokens_at_start = 0
        self._told = (0, 0.0)  # tokens and seconds of training when a step was told last

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback; read back by `FastTrainer`."""
        return {
            "args": {"outcome": self.outcome, "sealed": True},
            "attributes": {"tokens": self.tokens, "kept": self.kept},
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started = self._last_report = self._last_step = time.monotonic()
        self.step = self._first_step = state.global_step
        self._tokens_at_start = self.tokens
        self._told = (self.tokens, self._training_seconds)
        if state.global_step or self.again:
            self.emit(Resumed(step=state.global_step))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # What lies between the end of a step and the next one's begin (evaluation, saving) is
        # not training, so it stays out of the speed.
        self._last_step = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now = time.monotonic()
        self.step = state.global_step
        self._longest_step = max(self._longest_step, now - self._last_step)
        self._training_seconds += now - self._last_step
        if not control.should_log and now - self._last_report >= QUIET_SECONDS:
            self._report(state)
        if control.should_save and _evaluates_later(args, state):
            # A checkpoint is the last thing of its step, or a kill would lose the evaluation.
            control.should_save, self._save_late = False, True
        # The last step of an epoch is left to `on_epoch_end`, so that a resumed run does not
        # miss the evaluation that is due there.
        if not _ends_epoch(state) and state.global_step < state.max_steps:
            self._maybe_end(control, now)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.outcome != "finished":  # ended in mid-epoch: its end is yet to come
            control.should_evaluate = control.should_save = control.should_log = False
        elif state.global_step < state.max_steps and not control.should_training_stop:
            self._maybe_end(control, time.monotonic())
        control.should_save = control.should_save or self._save_late
        self._save_late = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._report(state, logs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        metrics = metrics or {}
        # In `FastTrainer.log` the averages have been put beside the loss.
        self.emit(
            Evaluated(
                step=state.global_step,
                loss=metrics.get("eval_loss", float("nan")),
                token_accuracy=metrics.get("eval_mean_token_accuracy"),
                reward_margin=metrics.get("eval_rewards/margins"),
                reward_accuracy=metrics.get("eval_rewards/accuracies"),
                reward=metrics.get("eval_reward"),
            )
        )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        path = f"{Path(str(args.output_dir)).name}/checkpoint-{state.global_step}"
        self.emit(Saved(step=state.global_step, path=path))

    def _maybe_end(self, control: TrainerControl, now: float) -> None:
        """Save and end here if somebody asked for it, or if the next step might not fit.

        Of several processes the main one decides, and all end after the same step.
        """
        wanted: Outcome = "finished"
        if self._should_stop():
            wanted = "stopped"
        elif self._deadline is not None and now + self._longest_step >= self._deadline:
            wanted = "paused"
        self.outcome = OUTCOMES[processes.agree(OUTCOMES.index(wanted))]
        if self.outcome != "finished":
            control.should_save = control.should_training_stop = True

    def _report(self, state: TrainerState, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        now = time.monotonic()
        self._last_report = now
        trained = self.tokens - self._tokens_at_start
        self.emit(
            Step(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=round(state.epoch or 0.0, 4),
                loss=logs.get("loss"),
                learning_rate=logs.get("learning_rate"),
                grad_norm=logs.get("grad_norm"),
                token_accuracy=logs.get("mean_token_accuracy"),
                reward_margin=logs.get("rewards/margins"),
                reward_accuracy=logs.get("rewards/accuracies"),
                reward=logs.get("reward"),
                tokens=self.tokens,
                tokens_per_second=trained / max(self._training_seconds, 1e-9),
                speed=self._speed(),
                memory=held_memory(),
                seconds_left=self._seconds_left(state, now),
            )
        )

    def _seconds_left(self, state: TrainerState, now: float) -> float | None:
        """By the mean of the steps so far; None while that would be a guess."""
        steps, left = state.global_step - self._first_step, state.max_steps - state.global_step
        if steps < ETA_AFTER and left > 0:
            return None
        return left * (now - self._started) / max(steps, 1)

    def _speed(self) -> float | None:
        """Tokens a second since the step that was told before; None where there was none since."""
        (tokens, seconds), self._told = self._told, (self.tokens, self._training_seconds)
        lasted = self._training_seconds - seconds
        return (self.tokens - tokens) / lasted if lasted > 0 else None


def _evaluates_later(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the held-out rows are scored at the end of the epoch that this step ends."""
    ends = _ends_epoch(state) or state.global_step >= state.max_steps
    return ends and args.eval_strategy == IntervalStrategy.EPOCH


def _ends_epoch(state: TrainerState) -> bool:
    epoch = state.epoch or 0.0
    return abs(epoch - round(epoch)) < 1e-9
