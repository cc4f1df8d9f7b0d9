"""Greedy answers to rendered prompts, several at once, by `generate`.

    greedy_answers(model, tokenizer, [prompt_ids], max_new_tokens=64)    [("Arr!", 3, True)]

The proof at a run's end asks base and tuned by it, and so does a training that shows what its model
says by now. The chat has a decoding of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from phi3lora.data.rendering import decode_answer, pad_token, stop_tokens

if TYPE_CHECKING:
    import torch


def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[tuple[str, int, bool]]:
    """(text, tokens, ended by itself) of the answer to each prompt."""
    import torch

    stops = stop_tokens(tokenizer, model.generation_config)
    pad = pad_token(tokenizer)
    ids, attention = padded(prompts, pad, left=True)
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
    return [_answer(tokenizer, row, set(stops)) for row in generated.tolist()]


def _answer(tokenizer: Any, tokens: list[int], stops: set[int]) -> tuple[str, int, bool]:
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    kept = tokens[:end]
    return decode_answer(tokenizer, kept).strip(), len(kept), end is not None


def padded(
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
