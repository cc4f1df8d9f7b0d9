"""GRPO: TRL's trainer on the model's own answers, with rewards that can be read.

Shao et al. 2024, https://arxiv.org/abs/2402.03300. For each prompt the model gives several answers;
those that earn more than the others of their group become likelier. Rows have `messages`: the last
one is what the data answers, and what comes before it is the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import GRPOConfig as GRPOConfig
from trl import GRPOTrainer

from phi3lora.data.rendering import render_prompt, stop_tokens
from phi3lora.training.preferences import Referred
from phi3lora.training.rewards import Answer, Reward


class FastGRPOTrainer(Referred, GRPOTrainer):
    """GRPOTrainer on conversations; prompts are written as everywhere else in this project.

    Args:
        rewards: what an answer earns for; their weights stand in `args.reward_weights`.
        prompt_limit: tokens of a prompt that are read, its last ones.
    """

    def __init__(
        self, *args: Any, rewards: Sequence[Reward], prompt_limit: int, **kwargs: Any
    ) -> None:
        self._prompt_limit = prompt_limit
        model: Any = kwargs["model"]
        # The checkpoint may have forgotten `<|end|>`: answers would run on to the longest length.
        model.generation_config.eos_token_id = stop_tokens(
            kwargs["processing_class"], model.generation_config
        )
        super().__init__(*args, reward_funcs=[as_trl(reward) for reward in rewards], **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["messages"]

    @property
    def _trained_tokens(self) -> int:
        """Prompts and answers; transformers keeps the sum of all slices in its own state."""
        return int(self.state.num_input_tokens_seen) - self._tokens_before

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._sampler: Any = super()._get_train_sampler(*args, **kwargs)
        return self._sampler

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Also draw the orders of the epochs that are over: each follows from the one before."""
        epochs, steps = super()._init_training_state(*args, **kwargs)
        for _ in range(epochs):
            torch.randperm(self._sampler.num_samples, generator=self._sampler.generator)
        return epochs, steps

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's, of conversations that end in the data's answer."""
        asked = [
            {"prompt": row["messages"][:-1], "reference": row["messages"][-1]["content"]}
            for row in inputs
        ]
        found: dict[str, Any] = super()._generate_and_score_completions(asked)
        return found

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Prompts by the base's template, in which a control token in a message is plain text."""
        ids = [render_prompt(self._tokenizer, prompt)[-self._prompt_limit :] for prompt in prompts]
        return ids, None, {}


def as_trl(reward: Reward) -> Callable[..., list[float]]:
    """A reward as TRL calls it, under its own name."""

    def score(
        prompts: list[Any], completions: list[Any], reference: list[str], **_: Any
    ) -> list[float]:
        return [
            reward.score(Answer(prompt, said[0]["content"], wanted))
            for prompt, said, wanted in zip(prompts, completions, reference, strict=True)
        ]

    score.__name__ = reward.name
    return score
