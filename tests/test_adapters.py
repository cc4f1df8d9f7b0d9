"""Attach, train, save, load: what the folder holds, and that the base stays the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from phi3lora.config import POCKET, RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import attach_adapter, load_adapter, save_adapter
from phi3lora.lora.folder import CONFIG, WEIGHTS
from phi3lora.models.loading import load_model
from tests.bases import TOKENS, config_for, logits, make_base, train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "phi")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter of `base`."""
    return trained(config_for(base), tmp_path_factory.mktemp("adapter") / "adapter")[0]


def trained(config: RunConfig, folder: Path, steps: int = 3) -> tuple[Path, Any]:
    model = attach_adapter(load_model(config.model, for_training=True), config)
    train(model, steps)
    save_adapter(model, folder, config)
    return folder, model


def chat_model(config: RunConfig) -> Any:
    return load_model(config.model, for_training=False)


VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({}, "none"),
    "qlora": ({}, "nf4"),
    "fp4": ({}, "fp4"),
    "int8": ({}, "int8"),
    "rslora": ({"use_rslora": True}, "none"),
    "dora": ({"use_dora": True}, "none"),
    "dora nf4": ({"use_dora": True}, "nf4"),
    "gaussian": ({"init_lora_weights": "gaussian"}, "none"),
    "pissa": ({"init_lora_weights": "pissa"}, "none"),
    "pissa niter": ({"init_lora_weights": "pissa_niter_16"}, "none"),
    "olora": ({"init_lora_weights": "olora"}, "none"),
    "pissa rslora patterns": (
        {
            "init_lora_weights": "pissa",
            "use_rslora": True,
            "rank_pattern": {"o_proj": 2},
            "alpha_pattern": {"o_proj": 7},
        },
        "none",
    ),
    "pissa dora": ({"init_lora_weights": "pissa", "use_dora": True}, "none"),
    "loftq": ({"init_lora_weights": "loftq"}, "nf4"),
    "embedding": ({"target_modules": "embedding"}, "none"),
    "lm_head saved": ({"modules_to_save": ["lm_head"]}, "none"),
    "embeddings saved nf4": ({"modules_to_save": ["embed_tokens"]}, "nf4"),
    "one layer": ({"layers_to_transform": [1]}, "none"),
    "patterns": ({"rank_pattern": {"qkv_proj": 2}, "alpha_pattern": {"down_proj": 3}}, "none"),
    "slices": ({"slices": {"k": False}}, "none"),
    "slices nf4": ({"slices": {"k": False}}, "nf4"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_survives_the_folder(base: Path, tmp_path: Path, variant: str) -> None:
    """Trained, saved, loaded: the same outputs, by us and by plain PEFT; and an untouched base."""
    from peft import PeftModel

    peft, quantization = VARIANTS[variant]
    config = config_for(base, peft, model={"quantization": quantization})
    untouched = logits(chat_model(config))
    folder, model = trained(config, tmp_path / "adapter")
    moved = logits(model)
    assert (moved - untouched).abs().max() > 0.05

    loaded = load_adapter(chat_model(config), folder)
    torch.testing.assert_close(logits(loaded), moved, atol=2e-6, rtol=0)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), untouched)
    by_peft = PeftModel.from_pretrained(chat_model(config), str(folder))
    assert torch.equal(logits(by_peft), logits(loaded))


@pytest.mark.parametrize("initial", [True, "gaussian", "pissa", "pissa_niter_16", "olora"])
def test_an_adapter_starts_as_the_base(base: Path, initial: Any) -> None:
    config = config_for(base, {"init_lora_weights": initial})
    before = logits(chat_model(config))
    model = attach_adapter(load_model(config.model, for_training=True), config)
    torch.testing.assert_close(logits(model), before, atol=1e-6, rtol=0)


def test_pissa_starts_from_the_main_directions(base: Path) -> None:
    config = config_for(base, {"init_lora_weights": "pissa"})
    weight = load_model(config.model, for_training=True).model.layers[0].mlp.down_proj.weight
    model: Any = attach_adapter(load_model(config.model, for_training=True), config)
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    update = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # alpha / r
    u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
    torch.testing.assert_close(update, u[:, :4] * s[:4] @ v[:4], atol=1e-5, rtol=0)


def test_loftq_repairs_what_quantization_lost(base: Path) -> None:
    """The start is as close to the exact base as rank 4 can bring it, layer by layer."""
    config = config_for(base, {"init_lora_weights": "loftq"}, model={"quantization": "nf4"})
    exact: Any = chat_model(config_for(base))
    model: Any = attach_adapter(load_model(config.model, for_training=True), config)
    for number in range(2):
        layer = model.base_model.model.model.layers[number].self_attn.qkv_proj
        wanted = exact.model.layers[number].self_attn.qkv_proj.weight
        with torch.no_grad():
            inputs = torch.eye(64)
            tuned = layer(inputs).T
            rounded = layer.base_layer(inputs).T
        lost = torch.linalg.svdvals(wanted - rounded)
        torch.testing.assert_close((tuned - wanted).norm(), lost[4:].norm())  # the best of rank 4


def test_initial_weights_depend_on_the_seed_alone(base: Path) -> None:
    def start(seed: int) -> torch.Tensor:
        config = config_for(base, training_config={"seed": seed})
        torch.rand(seed + 7)  # what came before must not matter
        model: Any = attach_adapter(load_model(config.model, for_training=True), config)
        return model.base_model.model.model.layers[1].mlp.down_proj.lora_A["default"].weight

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_sixteen_bit_bases_get_adapters_in_float32(base: Path) -> None:
    config = config_for(base, model={"dtype": "bfloat16"})
    model = attach_adapter(load_model(config.model, for_training=True), config)
    assert {w.dtype for w in model.parameters() if w.requires_grad} == {torch.float32}


def test_the_folder_of_a_pocket_adapter(tmp_path: Path) -> None:
    config = config_for(POCKET)
    folder, model = trained(config, tmp_path / "adapter", steps=1)
    assert sorted(file.name for file in folder.iterdir()) == [CONFIG, WEIGHTS]
    settings = json.loads((folder / CONFIG).read_text())
    assert settings["base_model_name_or_path"] == POCKET
    assert settings["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    assert str(tmp_path.parent) not in (folder / CONFIG).read_text()
    loaded = load_adapter(chat_model(config), folder)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)


def test_checkpoints_hold_the_adapter_alone(base: Path, tmp_path: Path) -> None:
    """`save_pretrained`, which the Trainer calls, asks no Hub and saves no embedding."""
    config = config_for(base, {"target_modules": "embedding"})
    model = attach_adapter(load_model(config.model, for_training=True), config)
    model.save_pretrained(tmp_path / "checkpoint")
    assert {name.split(".")[-1] for name in load_file(tmp_path / "checkpoint" / WEIGHTS)} == {
        "lora_embedding_A",
        "lora_embedding_B",
    }


def test_none_trains_and_saves_the_whole_model(base: Path, tmp_path: Path) -> None:
    config = config_for(base, adapter="none")
    folder, model = trained(config, tmp_path / "adapter")
    assert all(weight.requires_grad for weight in model.parameters())
    whole = load_model(config_for(folder).model, for_training=False)
    assert torch.equal(logits(whole), logits(model))
    with pytest.raises(AdapterError, match="a whole model, not an adapter"):
        load_adapter(chat_model(config), folder)


def test_biases_that_do_not_exist_are_mentioned(base: Path, tmp_path: Path) -> None:
    notices: list[str] = []
    config = config_for(base, {"bias": "all"})
    model = attach_adapter(load_model(config.model, for_training=True), config, notices)
    assert notices == [
        "peft_config.bias is 'all', but no layer of this model has a bias: nothing more is trained."
    ]
    save_adapter(model, tmp_path, config)
    assert json.loads((tmp_path / CONFIG).read_text())["bias"] == "none"


@pytest.mark.parametrize(
    ("peft", "quantization", "reason"),
    [
        ({"use_dora": True}, "int8", "cannot do in 8 bits on a CPU"),
        ({"init_lora_weights": "pissa", "r": 100}, "none", "100 directions are asked for"),
        ({"target_modules": "embedding", "layers_to_transform": [0]}, "none", "does not fit"),
        ({"target_modules": "nothing"}, "none", "which the model has not"),
    ],
)
def test_combinations_that_cannot_work(
    base: Path, peft: dict[str, Any], quantization: str, reason: str
) -> None:
    config = config_for(base, peft, model={"quantization": quantization})
    with pytest.raises(AdapterError, match=reason):
        attach_adapter(load_model(config.model, for_training=True), config)


# Loading what somebody else made


def copy(adapter: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(adapter, target)
    settings = json.loads((target / CONFIG).read_text()) | changes
    (target / CONFIG).write_text(json.dumps(settings))
    return target


def test_another_base_is_refused_with_every_mismatch(base: Path, adapter: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(load_model(config_for(POCKET).model, for_training=False), adapter)
    message = str(caught.value)
    assert f"trained on {base}" in message
    assert "down_proj.lora_A.weight: expected" in message
    assert message.count("\n  ") == 9  # eight of them, and how many more
    assert "and 8 more" in message


def test_an_adapter_for_split_projections_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    split = copy(adapter, tmp_path / "split", target_modules=["q_proj"])
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {key.format("A"): torch.zeros(4, 64), key.format("B"): torch.zeros(64, 4)}, split / WEIGHTS
    )
    with pytest.raises(AdapterError, match=r"self_attn\.q_proj: the base has no such module"):
        load_adapter(chat_model(config_for(base)), split)


def test_the_same_shapes_under_another_name_are_mentioned(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = copy(adapter, tmp_path / "other", base_model_name_or_path="ann/phi")
    notices: list[str] = []
    load_adapter(chat_model(config_for(base)), other, notices)
    assert len(notices) == 1
    assert notices[0].startswith(
        f"The adapter says that it was trained on ann/phi, the base is {base}"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "expected peft_type LORA, got 'IA3'"),
        ({"init_lora_weights": "pissa"}, "fits a changed copy of its base only"),
    ],
)
def test_settings_that_do_not_belong_to_the_weights(
    base: Path, adapter: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        load_adapter(chat_model(config_for(base)), copy(adapter, tmp_path / "x", **changes))


def test_targets_and_ranks_are_the_tensors_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    """What the settings say of them is a stranger's word, and a pattern to PEFT."""
    expected = logits(load_adapter(chat_model(config_for(base)), adapter))
    told = copy(adapter, tmp_path / "x", r=2, target_modules=["lm_head"], rank_pattern={"x": 9})
    assert torch.equal(logits(load_adapter(chat_model(config_for(base)), told)), expected)


def test_files_that_are_missing_or_damaged(base: Path, adapter: Path, tmp_path: Path) -> None:
    model = chat_model(config_for(base))
    with pytest.raises(AdapterError, match="is no adapter: expected a folder with"):
        load_adapter(model, tmp_path)
    broken = copy(adapter, tmp_path / "broken")
    (broken / WEIGHTS).write_bytes(b"\x10")
    with pytest.raises(AdapterError, match="is damaged"):
        load_adapter(model, broken)
    (broken / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match="its training may not have ended"):
        load_adapter(model, broken)
    (broken / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterError, match="a pickle that can run code"):
        load_adapter(model, broken)
    (broken / WEIGHTS).touch()
    (broken / CONFIG).write_text("{")
    with pytest.raises(AdapterError, match="cannot be read"):
        load_adapter(model, broken)


def test_a_refused_adapter_leaves_the_base_as_it_was(base: Path, adapter: Path) -> None:
    model = load_model(config_for(POCKET).model, for_training=False)
    names = [name for name, _ in model.named_modules()]
    before = logits(model, TOKENS)
    with pytest.raises(AdapterError):
        load_adapter(model, adapter)
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(logits(model, TOKENS), before)
