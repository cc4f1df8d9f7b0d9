"""From a loralib checkpoint to a PEFT adapter and back: the same tensors, the same outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from safetensors.torch import load_file, save_file

from phi3lora.config import POCKET, RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import attach_adapter, load_adapter, save_adapter
from phi3lora.lora.folder import CONFIG, WEIGHTS
from phi3lora.lora.loralib import (
    export_loralib,
    import_loralib,
    load_in_two_steps,
    recorded_base,
    replace_layers,
)
from phi3lora.models.base import check_base
from phi3lora.models.loading import load_model
from tests.bases import config_for, logits, make_base, train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Equal slices: four heads and four key/value heads."""
    return make_base(tmp_path_factory.mktemp("base") / "phi", key_value_heads=4)


def plain(config: RunConfig) -> Any:
    return load_model(config.model, for_training=False)


def trained(config: RunConfig, folder: Path) -> Any:
    model = attach_adapter(load_model(config.model, for_training=True), config)
    train(model)
    save_adapter(model, folder, config)
    return model


def same_tensors(first: Path, second: Path) -> bool:
    a, b = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


PEFTS: list[dict[str, Any]] = [
    {},
    {"target_modules": "embedding"},
    {"target_modules": ["lm_head", "o_proj"]},
    {"layers_to_transform": [1]},
    {"use_rslora": True},
    {"rank_pattern": {"qkv_proj": 2}, "alpha_pattern": {"o_proj": 3}},
    {"slices": {}},
    {"slices": {"k": False, "up": False}},
    {"slices": {"q": False}, "rank_pattern": {"layers.0.self_attn.qkv_proj": 2}},
    {"init_lora_weights": "pissa"},
]


@pytest.mark.parametrize("peft", PEFTS, ids=str)
def test_peft_to_loralib_and_back_is_the_identity(base: Path, tmp_path: Path, peft: Any) -> None:
    trained(config_for(base, peft), tmp_path / "one")
    export_loralib(tmp_path / "one", tmp_path / "a.pt")
    assert import_loralib(tmp_path / "a.pt", tmp_path / "two", check_base(str(base))) == []
    assert same_tensors(tmp_path / "one", tmp_path / "two")
    settings = [json.loads((tmp_path / name / CONFIG).read_text()) for name in ("one", "two")]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("peft", PEFTS, ids=str)
def test_loralibs_layers_answer_like_peft(base: Path, tmp_path: Path, peft: Any) -> None:
    """The exported checkpoint, in layers that loralib makes, gives PEFT's outputs."""
    config = config_for(base, peft)
    expected = logits(trained(config, tmp_path / "one"))
    model: Any = plain(config)
    for layer in export_loralib(tmp_path / "one", tmp_path / "a.pt"):
        slices = {layer.last: layer.enable_lora} if layer.enable_lora else None
        made = replace_layers(
            model, [layer.path], r=layer.r, lora_alpha=layer.lora_alpha, enable_lora=slices
        )
        assert made == [layer.path]
    assert load_in_two_steps(model, None, tmp_path / "a.pt").complete
    torch.testing.assert_close(logits(model), expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize(
    ("peft", "kinds"),
    [
        (
            {"slices": {"k": False, "up": False}},
            {"qkv_proj": [True, False, True], "gate_up_proj": [True, False]},
        ),
        ({"slices": {}}, {"qkv_proj": [True] * 3, "gate_up_proj": [True] * 2}),
        ({}, {"qkv_proj": [], "gate_up_proj": []}),
    ],
)
def test_equal_slices_become_merged_linear(
    base: Path, tmp_path: Path, peft: Any, kinds: dict[str, list[bool]]
) -> None:
    trained(config_for(base, peft), tmp_path / "one")
    layers = export_loralib(tmp_path / "one", tmp_path / "a.pt")
    found = {layer.last: layer.enable_lora for layer in layers if layer.last in kinds}
    assert found == kinds
    assert {layer.r for layer in layers} == {4}
    assert {layer.lora_alpha for layer in layers} == {8}


def test_unequal_slices_stay_one_layer_and_stay_right(tmp_path: Path) -> None:
    """loralib cannot cut q, k, v of the pocket: the whole update goes into one Linear."""
    config = config_for(POCKET, {"slices": {"k": False}, "target_modules": ["qkv_proj"]})
    expected = logits(trained(config, tmp_path / "one"))
    layers = export_loralib(tmp_path / "one", tmp_path / "a.pt")
    assert {(layer.r, tuple(layer.enable_lora)) for layer in layers} == {(8, ())}
    import_loralib(tmp_path / "a.pt", tmp_path / "two", check_base(POCKET))
    assert same_tensors(tmp_path / "one", tmp_path / "two")
    torch.testing.assert_close(
        logits(load_adapter(plain(config), tmp_path / "two")), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "peft",
    [{}, {"slices": {"q": False}}, {"target_modules": "embedding"}, {"layers_to_transform": [1]}],
    ids=str,
)
def test_a_loralib_run_leaves_both_forms(base: Path, tmp_path: Path, peft: Any) -> None:
    config = config_for(base, peft, adapter="loralib")
    expected = logits(trained(config, tmp_path / "one"))
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == [
        CONFIG,
        WEIGHTS,
        "loralib.json",
        "loralib.pt",
    ]
    loaded = load_adapter(plain(config), tmp_path / "one")
    torch.testing.assert_close(logits(loaded), expected, atol=2e-6, rtol=0)
    import_loralib(tmp_path / "one" / "loralib.pt", tmp_path / "two", check_base(str(base)))
    assert same_tensors(tmp_path / "one", tmp_path / "two")
    export_loralib(tmp_path / "one", tmp_path / "again.pt")
    own = torch.load(tmp_path / "one" / "loralib.pt", weights_only=True)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert own.keys() == again.keys()
    assert all(torch.equal(own[name], again[name]) for name in own)


# A checkpoint from elsewhere: loralib alone, with nothing beside it


def foreign(base: Path, file: Path, enable_lora: Any = None, alpha: float = 16) -> Any:
    """What somebody with loralib alone would have: a trained model, and its checkpoint."""
    model: Any = load_model(config_for(base).model, for_training=True)
    for layer in model.model.layers:
        old = layer.self_attn.qkv_proj
        if enable_lora:
            new = loralib.MergedLinear(
                64,
                192,
                r=4,
                lora_alpha=alpha,
                enable_lora=enable_lora,
                bias=False,
                merge_weights=False,
            )
        else:
            new = loralib.Linear(64, 192, r=4, lora_alpha=alpha, bias=False, merge_weights=False)
        new.weight = old.weight
        layer.self_attn.qkv_proj = new
    loralib.mark_only_lora_as_trainable(model)
    train(model)
    torch.save(loralib.lora_state_dict(model), file)
    return model


@pytest.mark.parametrize("enable_lora", [None, [True, True, True], [True, False, True]])
def test_a_foreign_checkpoint_answers_the_same_in_peft(
    base: Path, tmp_path: Path, enable_lora: Any
) -> None:
    expected = logits(foreign(base, tmp_path / "a.pt", enable_lora))
    said = {"qkv_proj": enable_lora} if enable_lora else None
    notices = import_loralib(
        tmp_path / "a.pt", tmp_path / "two", check_base(str(base)), alpha=16, enable_lora=said
    )
    assert notices == []
    loaded = load_adapter(plain(config_for(base)), tmp_path / "two")
    torch.testing.assert_close(logits(loaded), expected, atol=3e-6, rtol=0)
    export_loralib(tmp_path / "two", tmp_path / "b.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_alpha_that_is_not_said_is_loralibs_default(base: Path, tmp_path: Path) -> None:
    foreign(base, tmp_path / "a.pt")
    notices = import_loralib(tmp_path / "a.pt", tmp_path / "two", check_base(str(base)))
    assert len(notices) == 1
    assert "default 1 is taken" in notices[0]
    assert json.loads((tmp_path / "two" / CONFIG).read_text())["lora_alpha"] == 1
    assert recorded_base(tmp_path / "a.pt") is None


def test_slices_that_are_not_said_are_asked_for(base: Path, tmp_path: Path) -> None:
    foreign(base, tmp_path / "a.pt", [True, False, True])
    with pytest.raises(AdapterError, match=r"2 of 3 slices were trained.*say enable_lora for qkv"):
        import_loralib(tmp_path / "a.pt", tmp_path / "two", check_base(str(base)))
    assert not (tmp_path / "two").exists()


def test_every_misfit_is_named_at_once(base: Path, tmp_path: Path) -> None:
    torch.save(
        {
            "model.layers.0.self_attn.q_proj.lora_A": torch.zeros(4, 64),
            "model.layers.0.self_attn.q_proj.lora_B": torch.zeros(64, 4),
            "model.layers.9.mlp.down_proj.lora_A": torch.zeros(4, 128),
            "model.layers.9.mlp.down_proj.lora_B": torch.zeros(64, 4),
            "model.layers.0.mlp.down_proj.lora_A": torch.zeros(4, 99),
            "model.layers.0.mlp.down_proj.lora_B": torch.zeros(64, 4),
            "model.layers.1.mlp.down_proj.lora_A": torch.zeros(4, 128),
            "model.layers.1.mlp.down_proj.lora_B": torch.zeros(63, 4),
        },
        tmp_path / "a.pt",
    )
    with pytest.raises(AdapterError) as caught:
        import_loralib(tmp_path / "a.pt", tmp_path / "two", check_base(str(base)))
    message = str(caught.value)
    assert "layers.0.self_attn.q_proj: the base has no such module" in message
    assert "layers.9.mlp.down_proj: the base has no such module" in message
    assert "layers.0.mlp.down_proj: lora_A takes 99 values, the base gives 128" in message
    assert "layers.1.mlp.down_proj: lora_A (4, 128) and lora_B (63, 4) fit no layer" in message


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"x.weight": 1}, r"nothing else, got x\.weight"),
        ({"x.lora_A": 1}, "got x without its other half"),
        ({}, "got nothing"),
    ],
)
def test_what_is_no_lora_checkpoint(
    base: Path, tmp_path: Path, entries: dict[str, int], reason: str
) -> None:
    torch.save({name: torch.zeros(size) for name, size in entries.items()}, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match=reason):
        import_loralib(tmp_path / "a.pt", tmp_path / "two", check_base(str(base)))


@pytest.mark.parametrize(
    ("peft", "what"),
    [
        ({"use_dora": True}, "DoRA's magnitudes"),
        ({"modules_to_save": ["lm_head"]}, "trained whole"),
    ],
)
def test_what_loralib_has_not_is_refused(base: Path, tmp_path: Path, peft: Any, what: str) -> None:
    trained(config_for(base, peft), tmp_path / "one")
    with pytest.raises(AdapterError, match=what):
        export_loralib(tmp_path / "one", tmp_path / "a.pt")
    assert not (tmp_path / "a.pt").exists()


def test_an_untrained_adapter_is_plain(base: Path, tmp_path: Path) -> None:
    """B is zero everywhere: no slices can be seen, and none are needed."""
    config = config_for(base)
    save_adapter(
        attach_adapter(load_model(config.model, for_training=True), config),
        tmp_path / "one",
        config,
    )
    layers = export_loralib(tmp_path / "one", tmp_path / "a.pt")
    assert all(not layer.enable_lora for layer in layers)


def test_a_damaged_neighbour_is_named(base: Path, tmp_path: Path) -> None:
    foreign(base, tmp_path / "a.pt")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(AdapterError, match=r"a\.json beside the checkpoint cannot be read"):
        import_loralib(tmp_path / "a.pt", tmp_path / "two", check_base(str(base)))


def test_an_adapter_with_strange_tensors_is_refused(base: Path, tmp_path: Path) -> None:
    trained(config_for(base), tmp_path / "one")
    tensors = load_file(tmp_path / "one" / WEIGHTS) | {"base_model.model.x": torch.zeros(1)}
    save_file(tensors, tmp_path / "one" / WEIGHTS)
    with pytest.raises(AdapterError, match=r"got base_model\.model\.x"):
        export_loralib(tmp_path / "one", tmp_path / "a.pt")


def test_what_is_said_overrides_what_is_recorded_field_by_field(base: Path, tmp_path: Path) -> None:
    """`--enable-lora` alone once set alpha to 1 without a word, while the file beside said 8."""
    config = config_for(base, {"slices": {"k": False}, "target_modules": ["qkv_proj"]})
    trained(config, tmp_path / "one")
    export_loralib(tmp_path / "one", tmp_path / "a.pt")
    info = check_base(str(base))
    said = {"qkv_proj": [True, False, True]}
    assert import_loralib(tmp_path / "a.pt", tmp_path / "two", info, enable_lora=said) == []
    assert same_tensors(tmp_path / "one", tmp_path / "two")
    one, two = (json.loads((tmp_path / n / CONFIG).read_text()) for n in ("one", "two"))
    alphas = [set(v["alpha_pattern"].values()) or {v["lora_alpha"]} for v in (one, two)]
    assert alphas[0] == alphas[1]
    import_loralib(tmp_path / "a.pt", tmp_path / "three", info, alpha=3)
    (tmp_path / "a.json").unlink()
    notices = import_loralib(tmp_path / "a.pt", tmp_path / "four", info, enable_lora=said)
    assert "loralib's default 1 is taken" in notices[0]
