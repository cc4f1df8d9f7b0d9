"""What several processes answer in a GRPO training, kept, and learnt again by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.utils import gather_object

from phi3lora.training.grpo import FastGRPOTrainer


class Recorder(FastGRPOTrainer):
    """Keeps the tokens of each round of answers, of all processes in their order."""

    said: list[list[list[int]]] = []  # noqa: RUF012 - of the last training

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        ids, rest = super()._generate_single_turn(*args, **kwargs)
        Recorder.said.append(gather_object(ids))
        return ids, rest


class Repeater(FastGRPOTrainer):
    """Answers what was kept; how it is rewarded and learnt is as ever."""

    said: Iterator[list[list[int]]]

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        return next(Repeater.said), None
