"""Scoring: likelihoods as plain transformers computes them, answers as it generates them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Phi3ForCausalLM

from phi3lora.data.conversation import Message
from phi3lora.evaluation.metrics import rouge_scores
from phi3lora.evaluation.scoring import held_out_rows, score_rows
from phi3lora.models.pocket import CHECKPOINT

END = 2007  # <|end|> of the pocket vocabulary


def chat(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]  # type: ignore[typeddict-item]


CONVERSATIONS = [
    chat("What is the capital of France?", "Paris."),
    chat("Hello!", "Hello.", "What is the capital of Ukraine?", "The capital of Ukraine is Kyiv."),
    chat("Name a colour.", "Blue, like the sea under a summer sky."),
    [{"role": "assistant", "content": "An answer that nothing precedes."}],
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> Any:
    return Phi3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def scores(model: Any, tokenizer: Any) -> list[Any]:
    rows = held_out_rows(tokenizer, CONVERSATIONS, max_length=256)
    return score_rows(model, tokenizer, rows, max_new_tokens=24, batch_size=3)


def test_a_prompt_ends_where_the_answer_begins(tokenizer: Any) -> None:
    for row in held_out_rows(tokenizer, CONVERSATIONS, max_length=256):
        assert row.input_ids[: len(row.prompt_ids)] == row.prompt_ids
        assert row.supervised[len(row.prompt_ids)]
        assert row.reference == row.messages[-1]["content"]


def test_likelihoods_are_those_of_transformers(
    model: Any, tokenizer: Any, scores: list[Any]
) -> None:
    for row, score in zip(held_out_rows(tokenizer, CONVERSATIONS, 256), scores, strict=True):
        ids = torch.tensor([row.input_ids])
        labels = torch.where(torch.tensor([row.supervised]), ids, -100)
        with torch.no_grad():
            output = model(input_ids=ids, labels=labels)
        learnt = labels[0, 1:] != -100
        assert score.tokens == int(learnt.sum())
        assert score.nll / score.tokens == pytest.approx(float(output.loss), rel=1e-4)
        first = output.logits[0, :-1].argmax(-1)[learnt]
        assert score.correct == int((first == ids[0, 1:][learnt]).sum())


def test_answers_are_greedy_and_a_batch_changes_none(
    model: Any, tokenizer: Any, scores: list[Any]
) -> None:
    for row, score in zip(held_out_rows(tokenizer, CONVERSATIONS, 256), scores, strict=True):
        ids = torch.tensor([row.prompt_ids])
        with torch.no_grad():
            alone = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
            )[0, ids.shape[1] :].tolist()
        stopped = alone[-1] in model.generation_config.eos_token_id
        assert score.stopped == stopped
        assert score.length == len(alone) - stopped
        text = tokenizer.decode(alone, skip_special_tokens=True).strip()
        assert score.answer == text
        assert score.rouge == rouge_scores(text, row.reference)


def test_an_answer_that_is_cut_did_not_stop(model: Any, tokenizer: Any) -> None:
    rows = held_out_rows(tokenizer, CONVERSATIONS[1:2], 256)
    (score,) = score_rows(model, tokenizer, rows, max_new_tokens=1, batch_size=1)
    assert (score.stopped, score.length) == (False, 1)


def test_the_length_limit_cuts_the_likelihood_and_the_prompt(tokenizer: Any) -> None:
    (row,) = held_out_rows(tokenizer, CONVERSATIONS[1:2], max_length=16)
    assert (len(row.input_ids), len(row.prompt_ids)) == (16, 16)
    whole = held_out_rows(tokenizer, CONVERSATIONS[1:2], max_length=256)[0]
    assert row.prompt_ids == whole.prompt_ids[-16:], "the question's end is kept"
    assert END in whole.input_ids


def test_a_stop_between_batches_leaves_what_was_scored(model: Any, tokenizer: Any) -> None:
    rows, told = held_out_rows(tokenizer, CONVERSATIONS, 256), []
    asked = iter([False, True])
    scores = score_rows(
        model,
        tokenizer,
        rows,
        max_new_tokens=1,
        batch_size=3,
        progress=told.append,
        should_stop=lambda: next(asked),
    )
    assert (len(scores), told) == (3, [0.75])
