"""A Phi-3 of a few thousand weights and random rows, for tests of the training that need no sense.

result = run(folder, {"training_config.packing": True})
result.losses, result.weights
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from phi3lora.config import RunConfig
from phi3lora.events import Event
from phi3lora.training.callbacks import Progress, never
from phi3lora.training.trainer import fit

VOCABULARY = 64


def small_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(62)} | {"<unk>": 62, "<|end|>": 63}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<unk>",
        unk_token="<unk>",
        eos_token="<|end|>",
    )


def small_base(dtype: torch.dtype = torch.float32, **changes: Any) -> Phi3ForCausalLM:
    """Two layers, four heads on two keys and values; the same weights every time."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 62,
        "eos_token_id": 63,
        "bos_token_id": 1,
        "attn_implementation": "sdpa",
    }
    base: Any = Phi3ForCausalLM(Phi3Config(**{**settings, **changes})).to(dtype)
    base.files_folder = ""  # as the loader sets it
    return base


def small_model(base: Any = None, dropout: float = 0.05, **arguments: Any) -> Any:
    """The base with a LoRA of rank 4 on all linear layers."""
    base = small_base() if base is None else base
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(base, LoraConfig(lora_dropout=dropout, **{**settings, **arguments}))


def small_rows(number: int = 36, seed: int = 0, longest: int = 40) -> Dataset:
    """Random tokens; the first part of each row carries no loss."""
    chance = random.Random(seed)
    rows = []
    for _ in range(number):
        ids = [chance.randrange(62) for _ in range(chance.randint(4, longest))]
        silent = chance.randint(1, len(ids) - 1)
        rows.append({"input_ids": ids, "labels": [-100] * silent + ids[silent:]})
    return Dataset.from_list(rows)


def small_config(changes: dict[str, Any] | None = None) -> RunConfig:
    """Nine steps an epoch, two epochs, each step logged."""
    settings = {
        "training_config.num_train_epochs": 2,
        "training_config.per_device_train_batch_size": 4,
        "training_config.max_length": 64,
        "training_config.logging_steps": 1,
        "training_config.learning_rate": 1e-2,
        "training_config.log_level": "warning",
    }
    return RunConfig().with_values({**settings, **(changes or {})})


@dataclass
class Result:
    """What a run left behind."""

    outcome: str
    events: list[Event]
    model: Any

    @property
    def losses(self) -> list[float]:
        """Logged and evaluated losses, in order."""
        return [e.loss for e in self.events if getattr(e, "loss", None) is not None]

    @property
    def figures(self) -> list[tuple[Any, ...]]:
        """All that is logged and does not depend on the clock."""
        names = ("step", "loss", "learning_rate", "grad_norm", "token_accuracy", "tokens")
        return [
            tuple(getattr(event, name, None) for name in names)
            for event in self.events
            if getattr(event, "loss", None) is not None
        ]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def run(
    folder: Path,
    changes: dict[str, Any] | None = None,
    *,
    model: Any = None,
    rows: Dataset | None = None,
    test_rows: Dataset | None = None,
    emit: Callable[[Event], None] | None = None,
    should_stop: Callable[[], bool] = never,
    deadline: float | None = None,
) -> Result:
    """Train the small model in a folder; a later call with the same folder resumes."""
    model = small_model() if model is None else model
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        if emit:
            emit(event)

    outcome = fit(
        small_config(changes),
        folder,
        model,
        small_tokenizer(),
        small_rows() if rows is None else rows,
        small_rows(9, seed=1) if test_rows is None else test_rows,
        Progress(tell, should_stop, deadline),
    )
    return Result(outcome, events, model)


class After:
    """Asks to stop at the n-th time of asking."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self) -> bool:
        self.times -= 1
        return self.times == 0
