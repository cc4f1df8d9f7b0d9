"""What the model that is trained answers by now: a few held-out prompts, at each evaluation.

    callbacks.append(Answering(tokenizer, test_rows, number=3, limit=2048, emit=emit))

Answers are greedy and drawn from no random numbers, and the model is as before afterwards: the
training is the same to the bit with them and without.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from phi3lora.data.rendering import render_prompt
from phi3lora.events import Answered, Emit, SampleAnswer
from phi3lora.models.generating import greedy_answers
from phi3lora.training import processes

LONGEST_ANSWER = 64  # tokens: enough to see what it is like
LONGEST_TEXT = 300  # characters of a prompt, or of what the data answers, that are kept


class Answering(TrainerCallback):
    """Emits `Answered` after each evaluation."""

    def __init__(self, tokenizer: Any, rows: Dataset, number: int, limit: int, emit: Emit) -> None:
        """The first `number` rows that ask something; `limit` tokens of a prompt are read."""
        asked = [row["messages"] for row in rows.select(range(min(len(rows), 8 * number)))]
        asked = [messages for messages in asked if len(messages) > 1][:number]
        self._tokenizer, self._emit = tokenizer, emit
        self._prompts = [render_prompt(tokenizer, said[:-1])[-limit:] for said in asked]
        self._rows = [(_short(said[-2]["content"]), _short(said[-1]["content"])) for said in asked]

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> None:
        if not (self._prompts and processes.is_main()):
            return
        training = model.training
        model.eval()
        try:
            found = greedy_answers(model, self._tokenizer, self._prompts, LONGEST_ANSWER)
        finally:
            model.train(training)
        rows = [
            SampleAnswer(prompt, expected, text)
            for (prompt, expected), (text, *_) in zip(self._rows, found, strict=True)
        ]
        self._emit(Answered(step=state.global_step, rows=rows))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
