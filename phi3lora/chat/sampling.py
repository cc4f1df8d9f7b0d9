"""Choose the next token of each row, and turn tokens into text as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from phi3lora.chat.options import Options
from phi3lora.data.rendering import decode_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIKELY = 256  # tokens that are looked at first; nearly always the nucleus lies within
UNFINISHED = "\ufffd"  # what bytes decode to that make no character


def generator(options: Options) -> torch.Generator | None:
    """A column's own sequence of random numbers; None when it is greedy."""
    if options.temperature == 0:
        return None
    return torch.Generator().manual_seed(options.seed)


def choose(
    logits: torch.Tensor,
    options: list[Options],
    generators: list[torch.Generator | None],
    read: list[list[int]],
) -> list[int]:
    """One token for each row of `logits` (rows, vocabulary).

    Args:
        read: each row's prompt and answer so far, for the repetition penalty.
    """
    tokens = []
    likeliest: list[int] = []  # asked of a GPU once for all rows, if one wants it
    for row, (option, draw) in enumerate(zip(options, generators, strict=True)):
        if option.repetition_penalty != 1:
            scores = _penalized(logits[row], option, read[row])
            tokens.append(int(scores.argmax()) if draw is None else _sample(scores, option, draw))
        elif draw is not None:
            tokens.append(_sample(logits[row], option, draw))
        else:
            likeliest = likeliest or logits.argmax(dim=-1).tolist()
            tokens.append(likeliest[row])
    return tokens


def _penalized(logits: torch.Tensor, options: Options, read: list[int]) -> torch.Tensor:
    """Tokens that were read or said become less likely (arXiv 1909.05858, section 4.1)."""
    from transformers import RepetitionPenaltyLogitsProcessor

    penalty = RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))
    before = torch.tensor([read], device=logits.device)
    return torch.as_tensor(penalty(before, logits[None]))[0]


def _sample(logits: torch.Tensor, options: Options, draw: torch.Generator) -> int:
    """Nucleus sampling (arXiv 1904.09751): the smallest set of tokens that holds `top_p`."""
    if options.filters:
        return _sample_filtered(logits, options, draw)
    probabilities = torch.softmax(logits / options.temperature, dim=-1)
    if options.top_p == 1:
        return int(torch.multinomial(probabilities.cpu(), 1, generator=draw))
    values, tokens = (found.cpu() for found in probabilities.topk(min(LIKELY, len(probabilities))))
    if values.sum() < options.top_p:
        values, tokens = (found.cpu() for found in probabilities.sort(descending=True))
    before = values.cumsum(0) - values  # what is likelier than each token
    nucleus = values[before < options.top_p]
    return int(tokens[int(torch.multinomial(nucleus, 1, generator=draw))])


def _sample_filtered(logits: torch.Tensor, options: Options, draw: torch.Generator) -> int:
    """Top-k and min-p, by transformers' own filters in the order in which `generate` has them."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores: torch.Tensor = logits[None] / options.temperature
    nothing: Any = None  # the filters look at the scores alone
    if options.top_k:
        scores = TopKLogitsWarper(options.top_k)(nothing, scores)
    if options.top_p < 1:
        scores = TopPLogitsWarper(options.top_p)(nothing, scores)
    if options.min_p:
        scores = MinPLogitsWarper(options.min_p)(nothing, scores)
    return int(torch.multinomial(torch.softmax(scores[0], dim=-1).cpu(), 1, generator=draw))


class TextStream:
    """Text of an answer as its tokens come; a character is shown when all its bytes are there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = 0  # tokens whose text is shown
        self._before = 0  # tokens before these do not change how the next ones are written
        self.text = ""

    def add(self, token: int) -> None:
        """Take the next token in.

        Tokens are decoded behind those shown last, for a word is written with its space only
        where another one stands before it.
        """
        self._tokens.append(token)
        shown = self._decode(self._tokens[self._before : self._shown])
        longer = self._decode(self._tokens[self._before :])
        if longer.endswith(UNFINISHED):
            return
        self.text += longer[len(shown) :]
        self._before, self._shown = self._shown, len(self._tokens)

    def finish(self) -> None:
        """Show what is left, whole characters or not: the text is the decoded answer."""
        self.text = self._decode(self._tokens)

    def _decode(self, tokens: list[int]) -> str:
        return decode_answer(self._tokenizer, tokens)
