"""Training that goes on from an adapter: filled exactly, checked before, kept with its chain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.launching import differences
from phi3lora.config import RunConfig
from phi3lora.errors import AccessError, AdapterError, ConfigError, RunError
from phi3lora.hub.card import _chain
from phi3lora.hub.facts import collect
from phi3lora.lora.adapters import attach_adapter, load_adapter, save_adapter
from phi3lora.lora.folder import CONFIG, WEIGHTS
from phi3lora.lora.loralib import LORALIB
from phi3lora.lora.starting import START, chain_of, name_of_start
from phi3lora.models.loading import load_model
from phi3lora.runs.permission import check_paths
from phi3lora.runs.starting import find, with_start
from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings
from tests import stage
from tests.bases import config_for, logits, make_base, train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Equal slices, which loralib needs."""
    return make_base(tmp_path_factory.mktemp("base") / "phi", key_value_heads=4)


def made(config: RunConfig, folder: Path, steps: int = 3) -> Any:
    """A model that was trained for a moment, its adapter in a folder."""
    model = attach_adapter(load_model(config.model, for_training=True), config)
    train(model, steps)
    save_adapter(model, folder, config)
    return model


def going_on(config: RunConfig, start: Path | str) -> RunConfig:
    return config.with_values({"model.adapter": str(start)})


KINDS: list[dict[str, Any]] = [
    {"peft": {}},
    {"peft": {"use_dora": True}},
    {"peft": {"use_rslora": True, "r": 3}},
    {"peft": {"slices": {"k": False}}},
    {"peft": {"target_modules": "embedding"}},
    {"peft": {"modules_to_save": ["lm_head"]}},
    {"peft": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"o_proj": 5}}},
    {"peft": {}, "adapter": "loralib"},
    {"peft": {"slices": {"q": False}}, "adapter": "loralib"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_training_goes_on_where_it_ended(base: Path, tmp_path: Path, kind: dict[str, Any]) -> None:
    values = dict(kind)
    config = config_for(base, values.pop("peft"), **values)
    before = made(config, tmp_path / "one")
    notices: list[str] = []
    model = load_model(config.model, for_training=True)
    model = attach_adapter(model, going_on(config, tmp_path / "one"), notices)
    assert name_of_start(going_on(config, tmp_path / "one")) == "one"
    assert torch.allclose(logits(model), logits(before), atol=1e-6)
    trainable = {n for n, weight in model.named_parameters() if weight.requires_grad}
    fresh = attach_adapter(load_model(config.model, for_training=True), config)
    assert trainable == {n for n, weight in fresh.named_parameters() if weight.requires_grad}
    first = logits(model).clone()
    train(model)
    assert not torch.allclose(logits(model), first)


def test_from_one_library_to_the_other(base: Path, tmp_path: Path) -> None:
    """A loralib checkpoint goes on under PEFT, and a PEFT adapter under loralib."""
    loralib = config_for(base, {}, adapter="loralib")
    expected = logits(made(loralib, tmp_path / "lib"))
    peft = config_for(base, {})
    model = attach_adapter(
        load_model(peft.model, for_training=True), going_on(peft, tmp_path / "lib" / LORALIB)
    )
    assert torch.allclose(logits(model), expected, atol=1e-6)
    expected = logits(made(peft, tmp_path / "peft"))
    model = attach_adapter(
        load_model(peft.model, for_training=True), going_on(loralib, tmp_path / "peft")
    )
    assert torch.allclose(logits(model), expected, atol=1e-6)


@pytest.mark.parametrize("adapter", ["peft", "loralib"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"r": 8}, r"expected \(8, 64\), got \(4, 64\)"),
        ({"lora_alpha": 16}, "lora_alpha"),
        ({"target_modules": "attention"}, "no place here|in vain: model"),
        ({"target_modules": "embedding"}, "is missing in it|Missing: model"),
    ],
)
def test_another_adapter_is_refused_with_what_differs(
    base: Path, tmp_path: Path, adapter: str, changes: dict[str, Any], reason: str
) -> None:
    made(config_for(base, {}, adapter=adapter), tmp_path / "one")
    other = going_on(config_for(base, changes, adapter=adapter), tmp_path / "one")
    with pytest.raises(AdapterError, match=reason):
        attach_adapter(load_model(other.model, for_training=True), other)


def test_what_was_trained_outside_the_slices_is_refused(base: Path, tmp_path: Path) -> None:
    fused = {"target_modules": ["qkv_proj"]}
    made(config_for(base, {"r": 12, "lora_alpha": 24, **fused}), tmp_path / "whole")
    config = going_on(config_for(base, {**fused, "slices": {}}), tmp_path / "whole")
    model = load_model(config.model, for_training=True)
    with pytest.raises(AdapterError, match="trained outside the slices"):
        attach_adapter(model, config)


def test_what_cannot_be_begun_from(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = going_on(config_for(base, {}), tmp_path / "empty")
    with pytest.raises(AdapterError, match="holds no adapter"):
        attach_adapter(load_model(config.model, for_training=True), config)
    with pytest.raises(ConfigError, match=r"model\.adapter: `adapter: none` trains every weight"):
        going_on(config_for(base, {}, adapter="none"), "a/b")
    with pytest.raises(ConfigError, match="whose weights are the initial ones"):
        going_on(config_for(base, {"init_lora_weights": "pissa"}), "a/b")


# In runs


def test_a_run_keeps_what_it_goes_on_from_and_tells_the_chain(
    base: Path, tmp_path: Path, settings: Settings
) -> None:
    store = RunStore(settings)
    config = config_for(base, {})
    first = store.create(config, owner="ann")
    made(config, first.folder / "adapter")
    second = store.create(going_on(config, first.id), owner="ann")
    resolved = with_start(second, settings, None)
    assert resolved.model.adapter == str(second.folder / START)
    shutil.rmtree(first.folder)
    assert with_start(second, settings, None) == resolved  # a resume needs the first no more
    attach_adapter(load_model(config.model, for_training=True), resolved)
    assert name_of_start(resolved) == first.id
    made(resolved, second.folder / "adapter")
    third = store.create(going_on(config, second.id), owner="ann")
    with_start(third, settings, None)
    assert chain_of(third.folder) == [first.id, second.id]
    said = _chain(collect(third.folder))
    assert f"`{first.id}` → `{second.id}` → this one" in said
    with pytest.raises(RunError):
        find(second.id, "eve", settings, None)
    with pytest.raises(AdapterError, match="none of them"):
        find("no such thing", "ann", settings, None)


def test_a_run_that_goes_on_has_the_options_of_the_first(
    base: Path, tmp_path: Path, settings: Settings
) -> None:
    """Such as `train further` on a run's page makes: nothing to fill in, and it fits."""
    launching = Application.open(settings, helper=False).launching
    config = config_for(base, {"slices": {"k": False}}, hub={"backup": True, "repo": "ann/one"})
    first = launching.store.create(config, title="Galleon")
    with pytest.raises(RunError, match="let it finish"):
        launching.further(first)
    made(config, first.folder / "adapter")
    more = launching.further(first)
    assert differences(config, more) == ["title", "model.adapter", "hub.repo"]
    assert (more.title, more.model.adapter) == ("Galleon, further", first.id)
    second = launching.store.create(more)
    attach_adapter(load_model(config.model, for_training=True), with_start(second, settings, None))
    made(config, second.folder / "adapter")
    assert launching.further(second).title == "Galleon, further"
    elsewhere = launching.store.create(config, title="x" * 100, folder=tmp_path / "elsewhere")
    made(config, elsewhere.folder / "adapter")
    assert launching.further(launching.find(str(tmp_path / "elsewhere"), Caller())).model.adapter


def test_directions_of_the_base_go_on_as_plain_lora_of_twice_the_rank(
    base: Path, settings: Settings
) -> None:
    launching = Application.open(settings, helper=False).launching
    config = config_for(base, {"init_lora_weights": "pissa", "rank_pattern": {"o_proj": 2}})
    first = launching.store.create(config)
    expected = logits(made(config, first.folder / "adapter"))
    more = launching.further(first)
    assert (more.peft_config.r, more.peft_config.rank_pattern) == (8, {"o_proj": 4})
    resolved = with_start(launching.store.create(more), settings, None)
    model = attach_adapter(load_model(config.model, for_training=True), resolved)
    assert torch.allclose(logits(model), expected, atol=1e-4)
    scaled = launching.store.create(config.with_values({"peft_config.use_rslora": True}))
    made(scaled.config, scaled.folder / "adapter", 1)
    with pytest.raises(AdapterError, match="no whole number"):
        launching.further(scaled)


def test_a_whole_model_goes_on_as_the_base_of_the_next(tmp_path: Path) -> None:
    """On a Space, too: its owner may name it, nobody else."""
    space = Settings(home=tmp_path / "home", space_id="ann/space", who_may_train="signed-in")
    launching = Application.open(space, helper=False).launching
    first = launching.store.create(config_for("pocket", {}, adapter="none"), owner="ann")
    stage.empty_result(first)
    more = launching.further(first)
    assert more.model.path == str(first.folder / "model")
    assert more.model.adapter is None
    check_paths(more, "ann", space)
    with pytest.raises(AccessError, match=r"model\.path"):
        check_paths(more, "eve", space)
    with pytest.raises(AccessError, match=r"model\.path"):
        check_paths(more.with_values({"model.path": str(first.folder)}), "ann", space)


def test_on_a_space_only_ones_own_is_begun_from(base: Path, tmp_path: Path) -> None:
    space = Settings(home=tmp_path / "home", space_id="ann/space", who_may_train="signed-in")
    config = RunConfig()
    for name in ("20261121-093000-4f1a2b", "ann/pirate"):
        check_paths(going_on(config, name), "eve", space)
    for name in (str(base), "/proc/1/environ", "../../x.pt", str(tmp_path / "home" / "runs")):
        (tmp_path / "home" / "runs").mkdir(parents=True, exist_ok=True)
        with pytest.raises(AccessError, match=r"model\.adapter"):
            check_paths(going_on(config, name), "eve", space)


# Strangers' adapters


def changed(folder: Path, copy: Path, **changes: Any) -> Path:
    """A copy with other settings."""
    shutil.copytree(folder, copy)
    settings = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(settings | changes))
    return copy


EVIL = "(.*a){40}b|" + "(x+x+)+y" * 5


def test_patterns_of_a_strangers_adapter_are_never_matched(base: Path, tmp_path: Path) -> None:
    """PEFT would match them for ever while it holds the interpreter."""
    config = config_for(base, {"rank_pattern": {"o_proj": 2}})
    expected = logits(made(config, tmp_path / "one"))
    evil = changed(
        tmp_path / "one",
        tmp_path / "evil",
        target_modules=EVIL,
        exclude_modules=EVIL,
        layers_pattern=EVIL,
        rank_pattern={EVIL: 8},
        modules_to_save=[EVIL],
        layers_to_transform=[0],
        init_lora_weights=True,
        megatron_config={"x": 1},
        r=999_999_999,
    )
    model = load_adapter(load_model(config.model, for_training=False), evil)
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha_pattern": {EVIL: 8}},
        {"alpha_pattern": [1]},
        {"lora_alpha": "8"},
        {"lora_alpha": 1e999},
        {"bias": EVIL},
    ],
    ids=str,
)
def test_what_is_taken_over_must_be_plain(
    base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = config_for(base, {})
    made(config, tmp_path / "one", 1)
    evil = changed(tmp_path / "one", tmp_path / "evil", **changes)
    with pytest.raises(AdapterError, match="The adapter evil"):
        load_adapter(load_model(config.model, for_training=False), evil)


def test_a_rank_beyond_all_bounds_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = config_for(base, {})
    made(config, tmp_path / "one", 1)
    path = "base_model.model.model.layers.0.mlp.down_proj"
    wide = {f"{path}.lora_A.weight": torch.zeros(5000, 128)}
    wide[f"{path}.lora_B.weight"] = torch.zeros(64, 5000)
    save_file(wide, tmp_path / "one" / WEIGHTS)
    with pytest.raises(AdapterError, match="expected a rank from 1 to 2048"):
        load_adapter(load_model(config.model, for_training=False), tmp_path / "one")


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["(a+)+b"]},
        {"target_modules": "(a+)+b"},
        {"rank_pattern": {"(a+)+b": 1}},
        {"alpha_pattern": {"a|b": 1}},
        {"modules_to_save": ["lm_head$"]},
    ],
    ids=str,
)
def test_our_own_configs_take_no_patterns_either(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected names of letters, digits"):
        RunConfig.from_values({"peft_config": changes})


def test_the_terminal_names_it_with_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no adapter is said before there is a run."""
    from typer.testing import CliRunner

    from phi3lora.cli import app

    monkeypatch.setenv("PHI3LORA_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(app, ["train", "pocket", "--force", "--from", "nowhere at all"])
    assert result.exit_code == 2
    assert not list((tmp_path / "home").glob("runs/*/config.yaml"))


def test_the_terminal_takes_a_runs_own_options(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train --from RUN` names no config: it is the run's."""
    from typer.testing import CliRunner

    from phi3lora.cli import app

    monkeypatch.setenv("PHI3LORA_HOME", str(tmp_path / "home"))
    launching = Application.open(Settings.from_environment(), helper=False).launching
    few = {"max_steps": 1, "eval_strategy": "no", "max_length": 64}
    values = {"data": {"max_rows": 8}, "training_config": few, "evaluation": {"enabled": False}}
    first = launching.store.create(config_for("pocket", {"r": 3}, **values), title="Galleon")
    made(first.config, first.folder / "adapter", 1)
    done = CliRunner().invoke(app, ["train", "--from", first.id, "--set", "title=Frigate"])
    assert done.exit_code == 0, done.output
    newest = launching.runs(Caller())[0]
    assert (newest.title, newest.status) == ("Frigate", "finished")
    assert newest.config.peft_config.r == 3
    assert chain_of(newest.folder) == [first.id]
    for nothing in (["train"], ["train", "--from", "ann/pirate"]):
        assert CliRunner().invoke(app, nothing).exit_code == 2


def test_a_run_that_went_on_shares_the_base_of_the_others(base: Path, settings: Settings) -> None:
    """Compare loads a base once: what an adapter went on from is no part of it."""
    from phi3lora.app.comparing import subject_of

    store = RunStore(settings)
    config = config_for(base, {})
    one = store.create(config, owner="ann")
    made(config, one.folder / "adapter", 1)
    two = store.create(going_on(config, one.id), owner="ann")
    made(with_start(two, settings, None), two.folder / "adapter", 1)
    assert subject_of(two).base == subject_of(one).base


@pytest.mark.parametrize("adapter", ["peft", "loralib"])
def test_an_exported_script_begins_where_the_run_does(
    base: Path, tmp_path: Path, adapter: str
) -> None:
    """With the folder that the run keeps; and it cuts rows where the base ends."""
    from phi3lora.training.script import script

    config = going_on(config_for("pocket", {}, adapter=adapter), "ann/pirate")
    config = config.with_values({"training_config.max_length": 4096})
    source = script(config)
    compile(source, "train.py", "exec")
    assert 'ADAPTER = "ann/pirate"' in source
    loads = {"peft": "set_peft_model_state_dict(model, load_file(", "loralib": "/loralib.pt"}
    assert loads[adapter] in source
    assert '"max_length": 2048' in source
    plain = script(config_for("pocket", {}, adapter=adapter))
    assert "ADAPTER" not in plain
    assert loads[adapter] not in plain


@pytest.mark.parametrize("name", ["nowhere/at/all", "\0", "x" * 5000, "~nobody/there"])
def test_a_name_that_is_no_place_is_refused_in_words(settings: Settings, name: str) -> None:
    with pytest.raises(AdapterError, match=r"model\.adapter: expected a run"):
        find(name, "local", settings, None)
