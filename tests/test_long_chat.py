"""A conversation that crosses LongRoPE's switch: what plain transformers and peft would say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from phi3lora.chat.adapters import Router
from phi3lora.chat.decoding import Row, advance, use_rows
from phi3lora.chat.packing import pack
from phi3lora.config import ModelConfig
from phi3lora.lora.adapters import attach_adapter, load_adapter, save_adapter
from phi3lora.models.loading import load_model
from tests.bases import config_for, train
from tests.test_loading import with_rope

SWITCH = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_rope(tmp_path_factory.mktemp("long") / "base", "longrope")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_for(base, {})
    model = attach_adapter(load_model(config.model, for_training=True), config)
    train(model, 5)
    folder = tmp_path_factory.mktemp("long") / "adapter"
    save_adapter(model, folder, config)
    return folder


def plain(base: Path, adapter: Path | None, prompt: list[int], new: int) -> list[int]:
    """Greedy, by transformers' own generate."""
    model: Any = load_model(ModelConfig(path=str(base)), for_training=False)
    if adapter is not None:
        model = load_adapter(model, adapter)
    ids = torch.tensor([prompt])
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=None,
        pad_token_id=0,
    )
    return list(said[0].tolist())


def by_rows(model: Any, router: Router, rows: list[Row], new: list[int], budget: int) -> None:
    """The same in passes that all rows share."""
    left = {id(row): count for row, count in zip(rows, new, strict=True)}
    while open_rows := [row for row in rows if left[id(row)]]:
        ready, logits = advance(model, router, open_rows, budget)
        for row, token in zip(ready, logits.argmax(-1).tolist(), strict=True):
            row.tokens.append(token)
            left[id(row)] -= 1


@pytest.mark.parametrize("budget", [512, 7])
def test_rows_that_cross_the_switch_say_what_they_would_alone(
    base: Path, adapter: Path, budget: int
) -> None:
    """Short, crossing and long rows in one pass, of the base and tuned."""
    model: Any = load_model(ModelConfig(path=str(base)), for_training=False)
    model.requires_grad_(False)
    pack(model)
    use_rows(model)
    router = Router(model)
    tuned = router.read(adapter)
    draw = torch.Generator().manual_seed(3)
    lengths, new = [10, SWITCH - 6, SWITCH, SWITCH + 1, 100], [8, 12, 5, 5, 10]
    prompts = [torch.randint(3, 320, (n,), generator=draw).tolist() for n in lengths]
    rows = [Row(list(p), kind) for p in prompts for kind in (None, tuned)]
    by_rows(model, router, rows, [n for n in new for _ in range(2)], budget)
    for place, (prompt, count) in enumerate(zip(prompts, new, strict=True)):
        assert rows[2 * place].tokens == plain(base, None, prompt, count)
        assert rows[2 * place + 1].tokens == plain(base, adapter, prompt, count)


def test_a_long_row_that_is_shortened_is_read_with_the_short_factors(base: Path) -> None:
    """A conversation that was cleared goes on in the same row."""
    model: Any = load_model(ModelConfig(path=str(base)), for_training=False)
    pack(model)
    use_rows(model)
    router = Router(model)
    prompt = list(range(5, 5 + SWITCH + 10))
    row = Row(list(prompt))
    by_rows(model, router, [row], [1], 512)
    assert row.long
    row.cached, row.tokens = 20, prompt[:30]
    by_rows(model, router, [row], [6], 512)
    assert not row.long
    assert row.tokens == plain(base, None, prompt[:30], 6)
