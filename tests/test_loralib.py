"""loralib's own layers in existing models, its checkpoints, and its traps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import loralib
import pytest
import torch
from torch import nn

from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError
from phi3lora.lora.adapters import attach_adapter
from phi3lora.lora.loralib.layers import (
    load_in_two_steps,
    loralib_entries,
    read_loralib,
    replace_layers,
    save_loralib,
    to_loralib,
)
from phi3lora.models.loading import load_model
from tests.bases import config_for, logits, make_base, train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "phi", key_value_heads=4)


class Network(nn.Module):
    """A small convolutional network with an embedding, on images of ids (batch, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4, padding_idx=0)
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False)
        self.head = nn.Linear(72, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids).movedim(-1, 1)  # (batch, 4, 8, 8)
        x = self.second(torch.relu(self.first(x)))  # (batch, 8, 3, 3)
        return self.head(x.flatten(1))  # (batch, 6)


EVERYWHERE = ["embedding", "first", "second", "head"]
IMAGES = torch.arange(128).remainder(10).view(2, 8, 8)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network()


def adapted(bias: str = "none", **options: Any) -> Network:
    """A network with loralib everywhere, trained for some steps."""
    model = network()
    options = {"enable_lora": {"head": [True, False, True]}} | options
    replace_layers(model, EVERYWHERE, r=2, lora_alpha=4, **options)
    loralib.mark_only_lora_as_trainable(model, bias)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    for _ in range(5):
        model(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_layers_are_loralibs_own_and_hold_the_very_same_weights() -> None:
    model = network()
    before = dict(model.named_parameters())
    output = model(IMAGES)
    replaced = replace_layers(
        model, EVERYWHERE, r=2, lora_alpha=4, enable_lora={"head": [True, False, True]}
    )
    assert replaced == EVERYWHERE
    kinds = [type(model.get_submodule(name)) for name in EVERYWHERE]
    assert kinds == [loralib.Embedding, loralib.Conv2d, loralib.Conv2d, loralib.MergedLinear]
    assert model.embedding.weight is before["embedding.weight"]
    assert model.first.conv.weight is before["first.weight"]
    assert model.first.conv.bias is before["first.bias"]
    assert model.head.weight is before["head.weight"]
    assert torch.equal(model(IMAGES), output)  # the update starts at zero


def test_shapes_of_a_and_b() -> None:
    entries = {name: tuple(tensor.shape) for name, tensor in loralib_entries(adapted()).items()}
    assert entries == {
        "embedding.lora_A": (2, 10),
        "embedding.lora_B": (4, 2),
        "first.lora_A": (6, 12),  # r·k, in·k
        "first.lora_B": (24, 6),  # out·k, r·k
        "second.lora_A": (6, 24),
        "second.lora_B": (12, 6),  # out / groups · k
        "head.lora_A": (4, 72),  # two of three slices are on
        "head.lora_B": (4, 2),
    }


def test_every_kind_of_layer_learns_and_the_base_does_not() -> None:
    model, fresh = adapted(), network()
    for name in EVERYWHERE:
        layer = model.get_submodule(name)
        moved = "lora_A" if name == "embedding" else "lora_B"  # the one that starts at zero
        assert getattr(layer, moved).abs().max() > 0
    assert torch.equal(model.first.conv.weight, fresh.first.weight)
    assert torch.equal(model.head.weight, fresh.head.weight)


def test_a_convolution_adds_its_update_to_the_kernel() -> None:
    model = adapted()
    x = torch.randn(1, 4, 8, 8)
    layer = model.first
    kernel = layer.conv.weight + 2 * (layer.lora_B @ layer.lora_A).view(8, 4, 3, 3)  # alpha / r
    expected = nn.functional.conv2d(x, kernel, layer.conv.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("bias", "trainable"),
    [
        ("none", set()),
        ("all", {"first.conv.bias", "head.bias"}),
        ("lora_only", {"head.bias"}),  # loralib looks for a convolution's bias one level too high
    ],
)
def test_bias_modes(bias: Any, trainable: set[str], tmp_path: Path) -> None:
    model = adapted(bias)
    learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in learns if "lora_" not in name} == trainable
    save_loralib(model, tmp_path / "a.pt", bias)
    saved = {name for name in read_loralib(tmp_path / "a.pt") if "lora_" not in name}
    assert saved == trainable


def test_the_checkpoint_is_small_beside_the_model(tmp_path: Path) -> None:
    model = adapted()
    sizes = save_loralib(model, tmp_path / "a.pt")
    assert sizes.lora == 4 * sum(t.numel() for t in loralib.lora_state_dict(model).values())
    assert sizes.full == 4 * sum(weight.numel() for weight in model.parameters())
    assert all("lora_" in name for name in torch.load(tmp_path / "a.pt", weights_only=True))


def test_two_steps_bring_back_the_trained_network(tmp_path: Path) -> None:
    trained = adapted()
    save_loralib(trained, tmp_path / "a.pt")
    again = network(seed=9)
    pretrained = network().state_dict()
    replace_layers(again, EVERYWHERE, r=2, lora_alpha=4, enable_lora={"head": [True, False, True]})
    report = load_in_two_steps(again, pretrained, tmp_path / "a.pt")
    assert report.complete
    assert torch.equal(again(IMAGES), trained(IMAGES))


def test_missing_and_unexpected_names_are_reported(tmp_path: Path) -> None:
    entries = loralib_entries(adapted())
    entries["tail.lora_A"] = entries.pop("first.lora_A")
    torch.save(entries, tmp_path / "a.pt")
    pretrained = network().state_dict()
    pretrained["old.weight"] = pretrained.pop("head.bias")
    report = load_in_two_steps(adapted(), pretrained, tmp_path / "a.pt")
    assert report.missing == ["first.lora_A", "head.bias"]
    assert report.unexpected == ["old.weight", "tail.lora_A"]
    assert not report.complete


def test_the_second_step_alone_asks_for_lora_entries_only(tmp_path: Path) -> None:
    save_loralib(adapted(), tmp_path / "a.pt")
    assert load_in_two_steps(adapted(), None, tmp_path / "a.pt").complete


def test_entries_of_another_rank_are_refused(tmp_path: Path) -> None:
    model = network()
    replace_layers(model, ["head"], r=3)
    save_loralib(model, tmp_path / "a.pt")
    other = network()
    replace_layers(other, ["head"], r=2)
    with pytest.raises(AdapterError, match=r"head\.lora_A: expected \(2, 72\), got \(3, 72\)"):
        load_in_two_steps(other, None, tmp_path / "a.pt")


def test_nothing_is_loaded_or_saved_while_merged(tmp_path: Path) -> None:
    model = adapted(merge_weights=True)
    save_loralib(model, tmp_path / "a.pt")
    model.eval()
    assert model.head.merged
    with pytest.raises(AdapterError, match=r"Nothing can be saved.*Call model\.train\(\) first"):
        save_loralib(model, tmp_path / "b.pt")
    with pytest.raises(AdapterError, match="Nothing can be loaded"):
        load_in_two_steps(model, None, tmp_path / "a.pt")
    assert not (tmp_path / "b.pt").exists()
    model.train()
    assert load_in_two_steps(model, None, tmp_path / "a.pt").complete


def test_by_default_an_evaluation_changes_no_weight() -> None:
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    model(IMAGES)
    model.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_pickle_with_code_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "boom",)

    torch.save({"x.lora_A": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="cannot be read as tensors alone"):
        read_loralib(tmp_path / "a.pt")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot be read"), (b"text", "cannot be read"), (None, "not there")],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(AdapterError, match=reason):
        read_loralib(tmp_path / "a.pt")


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="expected names and tensors"):
        read_loralib(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("module", "enable_lora", "reason"),
    [
        (nn.LayerNorm(4), None, "none for LayerNorm"),
        (nn.Conv2d(1, 1, (3, 5)), None, "square kernels, got 3×5"),
        (nn.Linear(4, 7), [True, True], "7 rows cannot be cut into 2 equal parts"),
    ],
)
def test_what_loralib_cannot_do(module: nn.Module, enable_lora: Any, reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        to_loralib(module, r=2, enable_lora=enable_lora)


def test_a_name_that_matches_nothing() -> None:
    with pytest.raises(AdapterError, match="nothing in the model is called body"):
        replace_layers(network(), ["body"], r=2)


# In a run: adapter: loralib


def attach(config: RunConfig, notices: list[str] | None = None) -> Any:
    return attach_adapter(load_model(config.model, for_training=True), config, notices)


@pytest.mark.parametrize(
    ("peft", "kind", "count"),
    [
        ({}, loralib.Linear, 8),
        ({"target_modules": "embedding"}, loralib.Embedding, 1),
        ({"slices": {"k": False}}, loralib.MergedLinear, 4),
        ({"slices": {"gate": False, "up": False}}, loralib.MergedLinear, 2),
        ({"layers_to_transform": [1]}, loralib.Linear, 4),
    ],
)
def test_a_run_gets_loralibs_layers(base: Path, peft: Any, kind: type, count: int) -> None:
    config = config_for(base, peft, adapter="loralib")
    before = logits(load_model(config.model, for_training=False))
    model = attach(config)
    assert sum(type(module) is kind for module in model.modules()) == count
    assert torch.equal(logits(model), before)
    assert all("lora_" in n for n, weight in model.named_parameters() if weight.requires_grad)
    train(model)
    assert (logits(model) - before).abs().max() > 0.05


def test_the_trainers_checkpoint_holds_lora_entries_alone(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = attach(config_for(base, adapter="loralib"))
    train(model)
    model.save_pretrained(tmp_path, state_dict=model.state_dict(), is_main_process=True)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == loralib.lora_state_dict(model).keys()
    again = attach(config_for(base, adapter="loralib"))
    again.load_state_dict(saved, strict=False)
    assert torch.equal(logits(again), logits(model))


def test_unequal_slices_are_refused(tmp_path: Path) -> None:
    grouped = make_base(tmp_path / "grouped")
    with pytest.raises(AdapterError, match=r"here they are q 64, k 32, v 32 rows \(grouped"):
        attach(config_for(grouped, {"slices": {}}, adapter="loralib"))
    allowed = {"slices": {}, "target_modules": ["gate_up_proj"]}
    attach(config_for(grouped, allowed, adapter="loralib"))


def test_precision_is_the_bases(base: Path) -> None:
    config = config_for(base, adapter="loralib")
    with pytest.raises(AdapterError, match="float16 is too coarse"):
        attach_adapter(load_model(config.model, for_training=True).half(), config)
    notices: list[str] = []
    attach(config_for(base, adapter="loralib", model={"dtype": "bfloat16"}), notices)
    assert notices == [
        "loralib trains A and B in the base's bfloat16; adapter: peft trains them in float32."
    ]
