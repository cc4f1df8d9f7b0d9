"""The chat engine: what each column says, token for token, and that many can use it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from phi3lora.chat.decoding import Row, advance
from phi3lora.chat.engine import ChatEngine
from phi3lora.chat.options import Options
from phi3lora.chat.serving import Column, Serving
from phi3lora.config import ModelConfig
from phi3lora.data.rendering import render_prompt, stop_tokens
from phi3lora.models.loading import load_model, load_tokenizer
from phi3lora.settings import Settings

POCKET = ModelConfig(path="pocket", dtype="float32")
ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
SHORT = [{"role": "user", "content": "Hello"}]
LONG = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "And what is the colour of the sky on a clear day?"},
]
GREEDY = Options(max_new_tokens=24)

KINDS: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "one target": {"target_modules": ["down_proj"]},
    "rsLoRA and patterns": {
        "use_rslora": True,
        "rank_pattern": {"layers.1.mlp.down_proj": 2},
        "alpha_pattern": {"o_proj": 3},
    },
    "some layers": {"layers_to_transform": [0, 2]},
    "DoRA": {"use_dora": True},
    "bias of B": {"lora_bias": True},
    "embedding": {"target_modules": [*ALL, "embed_tokens"]},
    "DoRA embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "head": {"target_modules": ["qkv_proj", "lm_head"]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "whole norm": {"modules_to_save": ["input_layernorm"]},
}


def write_adapter(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """An adapter whose weights are random, so that it changes what is said."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"}
    tuned = get_peft_model(
        load_model(POCKET, for_training=False), LoraConfig(**{**options, **changes})
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter += torch.randn_like(parameter) * max(0.12, 0.5 * parameter.std())
            elif parameter.requires_grad:
                parameter *= 0.7 + 0.6 * torch.rand_like(parameter)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        kind: write_adapter(folder / kind.replace(" ", "-"), index, **changes)
        for index, (kind, changes) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("pocket")


@pytest.fixture(scope="module")
def serving() -> Serving:
    return Serving.open(POCKET, lambda _: None)


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    engine = ChatEngine(Settings(home=tmp_path))
    yield engine
    engine.unload()


def plain(model: Any, tokenizer: Any, messages: list[Any], new: int = 24) -> list[int]:
    """What transformers' own `generate` says, greedy: new tokens."""
    prompt = torch.tensor([render_prompt(tokenizer, messages)])
    said = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=stop_tokens(tokenizer, model.generation_config),
    )
    return said[0, prompt.shape[1] :].tolist()


def tuned_model(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(load_model(POCKET, for_training=False), folder).eval()


def run(serving: Serving, columns: list[Column]) -> list[list[int]]:
    """Answer columns together to their end; new tokens of each."""
    while open_ := [column for column in columns if not column.done]:
        serving.step(open_)
    return [column.row.tokens[-column.new :] for column in columns]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_base_alone_and_peft_alone(
    kind: str, adapters: dict[str, Path], serving: Serving, tokenizer: Any
) -> None:
    adapter = serving.adapter(adapters[kind])
    columns = [
        serving.start(messages, used, GREEDY)
        for messages in (SHORT, LONG)
        for used in (None, adapter)
    ]
    said = run(serving, columns)
    base = load_model(POCKET, for_training=False)
    tuned = tuned_model(adapters[kind])
    assert said[0] == plain(base, tokenizer, SHORT)
    assert said[1] == plain(tuned, tokenizer, SHORT)
    assert said[2] == plain(base, tokenizer, LONG)
    assert said[3] == plain(tuned, tokenizer, LONG)
    assert said[0] != said[1] or said[2] != said[3], "the adapter changes nothing"


def test_several_adapters_share_a_pass(
    adapters: dict[str, Path], serving: Serving, tokenizer: Any
) -> None:
    kinds = ["DoRA", "all-linear", "whole head", "all-linear", "embedding"]
    columns = [serving.start(LONG, serving.adapter(adapters[kind]), GREEDY) for kind in kinds]
    columns.insert(2, serving.start(LONG, None, GREEDY))
    said = run(serving, columns)
    expected = [plain(tuned_model(adapters[kind]), tokenizer, LONG) for kind in kinds]
    expected.insert(2, plain(load_model(POCKET, for_training=False), tokenizer, LONG))
    assert said == expected
    assert len({tuple(tokens) for tokens in said}) >= 4


def test_logits_are_those_of_the_model_that_never_saw_an_adapter(
    adapters: dict[str, Path], serving: Serving, tokenizer: Any
) -> None:
    tokens = render_prompt(tokenizer, LONG)
    adapter = serving.adapter(adapters["all-linear"])
    rows = [Row(list(tokens)), Row(list(tokens), adapter)]
    ready, logits = advance(serving.model, serving.router, rows)
    fresh = load_model(POCKET, for_training=False)
    with torch.inference_mode():
        expected = fresh(torch.tensor([tokens])).logits[0, -1]
        tuned = tuned_model(adapters["all-linear"])(torch.tensor([tokens])).logits[0, -1]
    by_adapter = {row.adapter: line for row, line in zip(ready, logits, strict=True)}
    assert torch.allclose(by_adapter[None], expected, atol=1e-4)
    assert torch.allclose(by_adapter[adapter], tuned, atol=1e-4)
    assert not torch.allclose(expected, tuned, atol=1e-1)
    for name, weight in fresh.state_dict().items():
        assert torch.equal(serving.model.state_dict()[name], weight), name


def test_there_is_one_copy_of_the_base(adapters: dict[str, Path], serving: Serving) -> None:
    for folder in adapters.values():
        serving.adapter(folder)
    plain_patches = serving.adapter(adapters["all-linear"]).patches
    assert {type(patch).__name__ for patch in plain_patches.values()} == {"LowRank"}
    through = serving.adapter(adapters["embedding"]).patches["model.embed_tokens"]
    shared = through.layer.base_layer.weight
    assert shared.data_ptr() == serving.model.model.embed_tokens.weight.data_ptr()
