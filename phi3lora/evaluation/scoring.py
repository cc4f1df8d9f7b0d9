"""Scoring: one model on the held-out rows, its likelihoods and its own answers.

scores = score_rows(model, tokenizer, rows, max_new_tokens=128, batch_size=8)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phi3lora.data.conversation import Message
from phi3lora.data.rendering import (
    decode_answer,
    pad_token,
    render,
    render_prompt,
    stop_tokens,
)
from phi3lora.evaluation.metrics import RowScore, rouge_scores

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class HeldOutRow:
    """One row as it is scored: the dialogue up to the last answer, and that answer."""

    messages: list[Message]
    input_ids: list[int]
    supervised: list[bool]
    prompt_ids: list[int]

    @property
    def reference(self) -> str:
        """The answer that the data gives."""
        return self.messages[-1]["content"]


Progress = Callable[[float], None]


def held_out_rows(
    tokenizer: Any, conversations: Sequence[list[Message]], max_length: int
) -> list[HeldOutRow]:
    """Conversations that end in an answer, rendered for both kinds of scoring."""
    rows = []
    for messages in conversations:
        rendered = render(tokenizer, messages, max_length)
        if len(messages) > 1:
            prompt = render_prompt(tokenizer, messages[:-1])[-max_length:]
        else:  # an answer that nothing precedes: the mark of the answer is all there is
            prompt = rendered.input_ids[: rendered.supervised.index(True)]
        rows.append(HeldOutRow(messages, rendered.input_ids, rendered.supervised, prompt))
    return rows


def score_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[HeldOutRow],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress = lambda fraction: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[RowScore]:
    """Score each row; rows that are left when `should_stop` turns true are not in the result."""
    scores: list[RowScore] = []
    model.eval()
    for batch in _batches(rows, batch_size):
        if should_stop():
            break
        likelihoods = _likelihoods(model, batch, pad_token(tokenizer))
        answers = _answers(model, tokenizer, batch, max_new_tokens)
        for row, (nll, tokens, correct), (answer, length, stopped) in zip(
            batch, likelihoods, answers, strict=True
        ):
            rouge = rouge_scores(answer, row.reference)
            scores.append(RowScore(nll, tokens, correct, answer, stopped, length, rouge))
        progress(len(scores) / len(rows))
    return scores


def likelihoods(
    model: Any, tokenizer: Any, rows: Sequence[HeldOutRow], batch_size: int
) -> Iterator[float]:
    """Nats for each supervised token of a row, row by row."""
    model.eval()
    for batch in _batches(rows, batch_size):
        for nll, tokens, _ in _likelihoods(model, batch, pad_token(tokenizer)):
            yield nll / max(tokens, 1)


def _batches(rows: Sequence[HeldOutRow], size: int) -> Iterator[Sequence[HeldOutRow]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _likelihoods(model: Any, rows: Sequence[HeldOutRow], pad: int) -> list[tuple[float, int, int]]:
    """(nll in nats, tokens, correct) of each row's supervised tokens."""
    import torch

    ids, attention = _padded([row.input_ids for row in rows], pad, left=False)
    supervised, _ = _padded([row.supervised for row in rows], 0, left=False)
    ids, attention = ids.to(model.device), attention.to(model.device)
    with torch.inference_mode():
        hidden = model.get_decoder()(input_ids=ids, attention_mask=attention, use_cache=False)[0]
        results = []
        for row, labels, mask in zip(hidden, ids, supervised.to(ids.device).bool(), strict=True):
            # Token i is foretold at position i - 1; only supervised ones meet the vocabulary.
            logits = model.get_output_embeddings()(row[:-1][mask[1:]]).float()  # (tokens, vocab)
            labels = labels[1:][mask[1:]]
            nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(-1) == labels).sum()
            results.append((float(nll), int(mask[1:].sum()), int(correct)))
    return results


def _answers(
    model: Any, tokenizer: Any, rows: Sequence[HeldOutRow], max_new_tokens: int
) -> list[tuple[str, int, bool]]:
    """(text, tokens, ended by itself) of each row's greedy answer."""
    import torch

    stops = stop_tokens(tokenizer, model.generation_config)
    pad = pad_token(tokenizer)
    ids, attention = _padded([row.prompt_ids for row in rows], pad, left=True)
    with torch.inference_mode():
        generated = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=attention.to(model.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stops,
            pad_token_id=pad,
            use_cache=True,
        )[:, ids.shape[1] :]
    return [_answer(tokenizer, row.tolist(), set(stops)) for row in generated]


def _answer(tokenizer: Any, tokens: list[int], stops: set[int]) -> tuple[str, int, bool]:
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    kept = tokens[:end]
    return decode_answer(tokenizer, kept).strip(), len(kept), end is not None


def _padded(
    rows: Sequence[Sequence[int]], pad: int, *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, longest) of the rows and of their attention mask, padded on one side."""
    import torch

    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        gap = longest - len(row)
        ids.append([pad] * gap + list(row) if left else list(row) + [pad] * gap)
        mask.append([0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap)
    return torch.tensor(ids), torch.tensor(mask)
