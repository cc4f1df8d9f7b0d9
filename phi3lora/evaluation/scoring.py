"""Scoring: one model on the held-out rows, its likelihoods and its own answers.

scores = score_rows(model, tokenizer, rows, max_new_tokens=128, batch_size=8)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from phi3lora.data.conversation import Message
from phi3lora.data.rendering import pad_token, render, render_prompt
from phi3lora.evaluation.metrics import RowScore, rouge_scores
from phi3lora.models.generating import greedy_answers, padded

IGNORED = -100  # the label of a token that carries no loss


@dataclass(frozen=True)
class HeldOutRow:
    """One row as it is scored: the dialogue up to the last answer, and that answer.

    Where answers are judged, `rejected_ids` are those of the worse one with its prompt; a row that
    has a bad answer alone has no supervised token otherwise.
    """

    messages: list[Message]
    input_ids: list[int]
    supervised: list[bool]
    prompt_ids: list[int]
    rejected_ids: list[int] = field(default_factory=list)
    rejected_supervised: list[bool] = field(default_factory=list)

    @property
    def reference(self) -> str:
        """The answer that the data gives; empty where it gives a bad one alone."""
        return self.messages[-1]["content"] if any(self.supervised) else ""


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


def judged_rows(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], max_length: int
) -> list[HeldOutRow]:
    """Rows of preferences as `prepare` has them: `messages`, `rejected`, tokens, and `good`."""
    found = held_out_rows(tokenizer, [row["messages"] for row in rows], max_length)
    return [
        _judged(row, values) if values["good"] else _bad(row, values["input_ids"], values["labels"])
        for row, values in zip(found, rows, strict=True)
    ]


def _judged(row: HeldOutRow, values: Mapping[str, Any]) -> HeldOutRow:
    """A better answer, with the worse one where there is one; what is compared carries loss."""
    return replace(
        row,
        input_ids=values["input_ids"],
        supervised=[label != IGNORED for label in values["labels"]],
        rejected_ids=values["rejected_input_ids"],
        rejected_supervised=[label != IGNORED for label in values["rejected_labels"]],
    )


def _bad(row: HeldOutRow, ids: list[int], labels: list[int]) -> HeldOutRow:
    """A bad answer alone."""
    learnt = [label != IGNORED for label in labels]
    silent = [False] * len(row.supervised)
    return replace(row, supervised=silent, rejected_ids=ids, rejected_supervised=learnt)


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
        pad = pad_token(tokenizer)
        likelihoods = _likelihoods(model, [(row.input_ids, row.supervised) for row in batch], pad)
        worse = _rejected(model, batch, pad)
        prompts = [row.prompt_ids for row in batch]
        answers = greedy_answers(model, tokenizer, prompts, max_new_tokens)
        for row, (nll, tokens, correct), (answer, length, stopped), bad in zip(
            batch, likelihoods, answers, worse, strict=True
        ):
            rouge = rouge_scores(answer, row.reference)
            score = RowScore(nll, tokens, correct, answer, stopped, length, rouge)
            scores.append(replace(score, rejected_nll=bad[0], rejected_tokens=bad[1]))
        progress(len(scores) / len(rows))
    return scores


def likelihoods(
    model: Any, tokenizer: Any, rows: Sequence[HeldOutRow], batch_size: int
) -> Iterator[float]:
    """Nats for each supervised token of a row, row by row."""
    model.eval()
    for batch in _batches(rows, batch_size):
        texts = [(row.input_ids, row.supervised) for row in batch]
        for nll, tokens, _ in _likelihoods(model, texts, pad_token(tokenizer)):
            yield nll / max(tokens, 1)


def _batches(rows: Sequence[HeldOutRow], size: int) -> Iterator[Sequence[HeldOutRow]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _rejected(model: Any, rows: Sequence[HeldOutRow], pad: int) -> list[tuple[float, int]]:
    """(nll in nats, tokens) of each row's worse answer; nothing where it has none."""
    have = [row for row in rows if row.rejected_ids]
    texts = [(row.rejected_ids, row.rejected_supervised) for row in have]
    found = iter(_likelihoods(model, texts, pad) if texts else ())
    return [next(found)[:2] if row.rejected_ids else (0.0, 0) for row in rows]


def _likelihoods(
    model: Any, rows: Sequence[tuple[list[int], list[bool]]], pad: int
) -> list[tuple[float, int, int]]:
    """(nll in nats, tokens, correct) of the supervised tokens of each row: (ids, supervised)."""
    import torch

    ids, attention = padded([ids for ids, _ in rows], pad, left=False)
    # Token i is foretold at position i - 1; only supervised ones meet the vocabulary.
    places = [[i for i, learns in enumerate(learnt[1:]) if learns] for _, learnt in rows]
    counts = [len(found) for found in places]
    ids, attention = ids.to(model.device), attention.to(model.device)
    chosen = torch.tensor(list(itertools.chain(*places)), dtype=torch.int64, device=model.device)
    with torch.inference_mode():
        hidden = model.get_decoder()(input_ids=ids, attention_mask=attention, use_cache=False)[0]
        sums = []
        for row, tokens, before in zip(hidden, ids, chosen.split(counts), strict=True):
            logits = model.get_output_embeddings()(row[before]).float()  # (supervised, vocab)
            labels = tokens[before + 1]
            nll = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(-1) == labels).sum()
            sums.append(torch.stack((nll.double(), correct.double())))
        figures = torch.stack(sums).tolist()  # a GPU is waited for once, not three times a row
    return [(nll, count, int(right)) for (nll, right), count in zip(figures, counts, strict=True)]
