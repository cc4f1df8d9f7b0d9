"""GGUF files, opened by other people's readers: gguf's, and transformers' own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

from phi3lora.errors import AdapterError, ModelError
from phi3lora.lora.gguf import modelfile, turn_marks, write_adapter, write_model
from phi3lora.models.pocket import CHECKPOINT

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.1.self_attn.qkv_proj.weight": "blk.1.attn_qkv.weight",
    "model.layers.1.self_attn.o_proj.weight": "blk.1.attn_output.weight",
    "model.layers.1.mlp.gate_up_proj.weight": "blk.1.ffn_up.weight",
    "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
    "model.layers.1.input_layernorm.weight": "blk.1.attn_norm.weight",
    "model.layers.1.post_attention_layernorm.weight": "blk.1.ffn_norm.weight",
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model in each precision."""
    folder = tmp_path_factory.mktemp("gguf")
    for precision in ("f16", "bf16", "q8_0"):
        write_model(CHECKPOINT, folder / f"{precision}.gguf", precision)
    return folder


def fields(file: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize(("precision", "error"), [("f16", 0.0), ("bf16", 0.0), ("q8_0", 0.02)])
def test_every_tensor_is_read_back(written: Path, precision: str, error: float) -> None:
    """The pocket's bfloat16 values are also float16's, but for the smallest."""
    ours = load_file(CHECKPOINT / "model.safetensors")
    reader = gguf.GGUFReader(written / f"{precision}.gguf")
    found = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    assert len(found) == len(ours)
    for name, theirs in NAMES.items():
        expected = ours[name].float().numpy()
        assert found[theirs].shape == expected.shape
        limit = error * np.abs(expected).max() + (1e-7 if precision == "f16" else 0)
        assert np.abs(found[theirs] - expected).max() <= limit, name


def test_the_figures_and_the_vocabulary_are_the_models(written: Path, tokenizer: Any) -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    found = fields(written / "f16.gguf")
    assert found["general.architecture"] == "phi3"
    assert "phi-3" in found["general.name"], "else llama.cpp keeps white space after control tokens"
    assert found["phi3.context_length"] == config["max_position_embeddings"]
    assert found["phi3.attention.head_count_kv"] == config["num_key_value_heads"]
    assert found["phi3.attention.sliding_window"] == config["sliding_window"]
    assert found["phi3.rope.dimension_count"] == 64
    tokens = found["tokenizer.ggml.tokens"]
    assert len(tokens) == config["vocab_size"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = found["tokenizer.ggml.token_type"]
    assert kinds[tokenizer.convert_tokens_to_ids("<|end|>")] == gguf.TokenType.CONTROL
    assert kinds[tokenizer.convert_tokens_to_ids("<0x0A>")] == gguf.TokenType.BYTE
    assert kinds[-1] == gguf.TokenType.UNUSED
    assert found["tokenizer.ggml.eot_token_id"] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert found["tokenizer.chat_template"] == tokenizer.chat_template


def test_transformers_reads_it_and_says_the_same_tokens(written: Path, tokenizer: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    read = AutoModelForCausalLM.from_pretrained(written, gguf_file="f16.gguf", dtype=torch.float32)
    for question in ("Name the capital of Brazil.", "What is the plural of shelf?"):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        answers = [
            model.generate(**inputs, max_new_tokens=16, do_sample=False, eos_token_id=2007)
            for model in (base, read)
        ]
        assert torch.equal(*answers)
        assert answers[0].shape[1] > inputs["input_ids"].shape[1] + 3


def test_transformers_reads_the_same_vocabulary(written: Path, tokenizer: Any) -> None:
    read = AutoTokenizer.from_pretrained(written, gguf_file="f16.gguf")
    for text in ("Name the capital of Brazil.", "What number comes before 24?", "Ünïcode, 你好!"):
        assert read(text, add_special_tokens=False).input_ids == tokenizer(text).input_ids


def test_longrope_and_grouped_heads_are_kept(tmp_path: Path, tokenizer: Any) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0] * 6,
        "long_factor": [2.0] * 6,
    }
    config = Phi3Config(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        original_max_position_embeddings=1024,
        rope_parameters=rope,
        tie_word_embeddings=True,
        pad_token_id=2000,
    )
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_model(tmp_path / "model", tmp_path / "long.gguf", "f16")
    reader = gguf.GGUFReader(tmp_path / "long.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert tensors["rope_factors_long.weight"].tolist() == [2.0] * 6
    assert tensors["rope_factors_short.weight"].tolist() == [1.0] * 6
    assert "output.weight" not in tensors
    found = fields(tmp_path / "long.gguf")
    assert found["phi3.rope.dimension_count"] == 12
    assert found["phi3.rope.scaling.original_context_length"] == 1024
    assert found["phi3.rope.scaling.attn_factor"] == pytest.approx((1 + 0.2) ** 0.5)


def adapter(folder: Path, **changes: Any) -> Path:
    """An adapter with values in both matrices."""
    base = Phi3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **changes}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"qkv_proj": 32, "down_proj": 1}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_an_adapter_adds_what_peft_adds(tmp_path: Path, changes: dict[str, Any]) -> None:
    """llama.cpp's rule, alpha / rows of A, over what the file holds, against PEFT's merge."""
    folder = adapter(tmp_path / "adapter", **changes)
    write_adapter(folder, tmp_path / "adapter.gguf")
    alpha = fields(tmp_path / "adapter.gguf")["adapter.lora.alpha"]
    found = {
        t.name: torch.tensor(t.data) for t in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors
    }
    base = Phi3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    for name, theirs in NAMES.items():
        if f"{theirs}.lora_a" in found:
            a, b = found[f"{theirs}.lora_a"], found[f"{theirs}.lora_b"]
            update = alpha / a.shape[0] * b @ a
            torch.testing.assert_close(update, merged[name] - before[name], atol=2e-5, rtol=1e-4)
    assert len(found) == 2 * 4 * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    ],
)
def test_what_an_adapter_file_cannot_say_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = adapter(tmp_path / "adapter", **changes)
    with pytest.raises(AdapterError, match=rf"{said}.*--to gguf"):
        write_adapter(folder, tmp_path / "adapter.gguf")
    assert not list(tmp_path.glob("*.gguf*"))
    assert not list(tmp_path.glob(".*.part"))


def test_other_models_and_occupied_places_are_refused(tmp_path: Path, written: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="'llama'"):
        write_model(tmp_path, tmp_path / "x.gguf")
    with pytest.raises(AdapterError, match="exists already"):
        write_model(CHECKPOINT, written / "f16.gguf")


def test_the_modelfile_writes_turns_as_the_template_does(tokenizer: Any) -> None:
    text = modelfile(tokenizer, ["<|end|>"], "pirate.gguf", "adapter.gguf")
    assert text.startswith("FROM ./pirate.gguf\nADAPTER ./adapter.gguf\n")
    assert 'PARAMETER stop "<|end|>"' in text
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    marks = {role: turn_marks(tokenizer, role) for role in ("system", "user", "assistant")}
    said = "".join(marks[t["role"]][0] + t["content"] + marks[t["role"]][1] for t in turns)
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert said + marks["assistant"][0] == expected
    assert f'eq .Role "user" }}}}{marks["user"][0]}{{{{ .Content }}}}{marks["user"][1]}' in text
