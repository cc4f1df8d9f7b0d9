"""The list of the family: true sizes, what fits where, and the table in the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from phi3lora.app.models import bases
from phi3lora.config import ModelConfig
from phi3lora.data.rendering import writes_system
from phi3lora.errors import ModelError
from phi3lora.lora.adapters import attach_adapter
from phi3lora.models.base import check_base
from phi3lora.models.family import FAMILY, PRECISIONS, Member, fit, table
from phi3lora.models.hardware import GIB, Hardware
from phi3lora.models.loading import load_model
from phi3lora.models.phi3 import PHI3
from tests import family
from tests.bases import config_for, logits, train
from tests.conftest import REPOSITORY

# As the Hub counts them in the published weights.
PUBLISHED = {
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
}


def gpu(gib: int) -> Hardware:
    return Hardware("cuda", f"{gib} GiB", gib * GIB, gib * GIB, True, 8)


def member(path: str) -> Member:
    return next(one for one in FAMILY if one.path == path)


@pytest.mark.parametrize("path", PUBLISHED)
def test_sizes_are_the_published_ones(path: str) -> None:
    assert member(path).parameters == PUBLISHED[path]


def test_pocket_is_as_long_as_it_says() -> None:
    pocket = member("pocket")
    assert pocket.base.max_length == pocket.context


@pytest.mark.parametrize(
    ("path", "gib", "expected"),
    [
        ("microsoft/Phi-3-mini-4k-instruct", 16, "fits"),
        ("microsoft/Phi-3-mini-4k-instruct", 8, "tight"),
        ("microsoft/Phi-3-mini-4k-instruct", 4, "no"),
        ("microsoft/phi-4", 80, "fits"),
        ("microsoft/phi-4", 24, "tight"),
        ("microsoft/phi-4", 8, "no"),
        ("pocket", 1, "fits"),
    ],
)
def test_what_fits_on_a_card(path: str, gib: int, expected: str) -> None:
    assert fit(member(path), gpu(gib)) == expected


def test_the_list_of_bases_says_what_fits_and_why_not() -> None:
    listed = {base.name: base for base in bases(gpu(12))}
    assert [base.path for base in listed.values()] == [one.path for one in FAMILY]
    assert listed["Phi-3.5-mini-instruct"].title == (
        "Phi-3.5-mini-instruct · 3.8 B · 131,072 tokens · MIT · fits here"
    )
    assert listed["pocket"].title.startswith("pocket · 3.8 M · 2,048 tokens · MIT · fits here")
    assert listed["Phi-3-medium-4k-instruct"].here == (
        "tight here: in 4 bits (model.quantization: nf4)"
    )
    assert listed["phi-4"].here == "does not fit here: it needs 14 GiB of a GPU's memory"


def test_without_a_gpu_only_pocket_fits() -> None:
    cpu = Hardware("cpu", "CPU", 512 * GIB, 512 * GIB, True, 64)
    listed = bases(cpu)
    assert [base.path for base in listed if base.fit != "no"] == ["pocket"]
    assert listed[1].here == "does not fit here: it needs a GPU"


def test_the_documentation_has_the_table() -> None:
    text = (REPOSITORY / "docs" / "loading.md").read_text(encoding="utf-8")
    assert table() in text, "put what phi3lora.models.family.table() returns into docs/loading.md"


@pytest.mark.parametrize("path", [one.path for one in FAMILY])
def test_templates_write_system_messages_where_the_table_says(path: str) -> None:
    kind = family.FAMILY[member(path).template]
    assert writes_system(family.tokenizer_of(kind)) is member(path).system


BUILDS = {  # (heads for each key/value head, tied, LongRoPE): each way that a member is built
    (one.base.heads // one.base.key_value_heads, one.base.tied, one.context > 32_768): one
    for one in FAMILY[1:]
}


@pytest.fixture(scope="module", params=list(BUILDS.values()), ids=lambda one: one.path)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few thousand random weights in the shape of a member."""
    from transformers import Phi3Config, Phi3ForCausalLM

    base, context = request.param.base, request.param.context
    partial = 0.75 if base.tied else 1.0  # Phi-4-mini turns three quarters of a head
    rope: dict[str, Any] = {"rope_theta": 10_000.0, "rope_type": "default"}
    if context > 32_768:
        factors = [1.0] * int(8 * partial)
        rope |= {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
        rope["original_max_position_embeddings"] = 64
    config = Phi3Config(
        vocab_size=320,
        hidden_size=16 * base.heads,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=base.heads,
        num_key_value_heads=base.key_value_heads,
        max_position_embeddings=context,
        original_max_position_embeddings=64,
        rope_parameters=rope | {"partial_rotary_factor": partial},
        tie_word_embeddings=base.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("built") / "base"
    Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_member_is_trained_and_answers_in_each_precision(built: Path, precision: Any) -> None:
    held = {"quantization": precision} if precision in ("int8", "nf4", "fp4") else {}
    wanted = ModelConfig(path=str(built), **(held or {"dtype": precision}), device="cpu")
    config = config_for(built).model_copy(update={"model": wanted})
    model = attach_adapter(load_model(wanted, for_training=True), config)
    before = logits(model)
    train(model)
    assert (logits(model) - before).abs().max() > 0
    asked = torch.arange(3, 12)[None]
    answers = load_model(wanted, for_training=False).generate(asked, max_new_tokens=2, min_length=2)
    assert answers.shape == (1, 11)


def test_a_mixture_of_experts_is_refused_for_what_it_is(tmp_path: Path) -> None:
    """The day that one of these no longer holds, the refusal is to be thought over."""
    from transformers import BitsAndBytesConfig, PhimoeConfig, PhimoeForCausalLM

    config = PhimoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path / "moe"
    PhimoeForCausalLM(config).save_pretrained(folder)
    small = BitsAndBytesConfig(load_in_4bit=True)
    model: Any = PhimoeForCausalLM.from_pretrained(folder, quantization_config=small)
    sizes = {name: weight.dtype for name, weight in model.named_parameters()}
    assert sizes["model.layers.0.self_attn.q_proj.weight"] == torch.uint8
    experts = [kind for name, kind in sizes.items() if ".experts." in name]
    assert set(experts) == {model.dtype}
    linear = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
    reached = {name for name in PHI3.blocks if any(path.endswith(name) for path in linear)}
    assert reached == {"o_proj"}
    with pytest.raises(ModelError, match=r"experts, which are no linear layers.*Phi-3.5-mini"):
        check_base(str(folder))
