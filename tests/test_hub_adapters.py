"""Adapters from the Hub: checked before weights are fetched, and nobody's shown to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phi3lora.app.comparing import system_messages_in
from phi3lora.config import RunConfig
from phi3lora.errors import AdapterError, HubError
from phi3lora.hub.adapters import fetch_adapter
from phi3lora.models.loading import load_model
from tests.hub import LoopbackHub
from tests.published import TENSORS, adapter_files, base_files


@pytest.fixture
def ann(hub: LoopbackHub) -> LoopbackHub:
    """ann's public and private adapters, bob's base."""
    hub.add_user("ann", token="hf_ann")
    hub.add_user("bob", token="hf_bob")
    hub.add_repo("model", "bob/phi", base_files())
    hub.add_repo("model", "ann/public", adapter_for("bob/phi"))
    hub.add_repo("model", "ann/private", adapter_for("pocket"), private=True)
    return hub


def adapter_for(base: str, **changes: Any) -> dict[str, bytes]:
    """The files of an adapter; what is changed in its config."""
    files = dict(adapter_files())
    settings = json.loads(files["adapter_config.json"])
    settings |= {"base_model_name_or_path": base, **changes}
    return {**files, "adapter_config.json": json.dumps(settings).encode()}


def weights_fetched(hub: LoopbackHub) -> int:
    return len([r for r in hub.requests if r.method == "GET" and r.path.endswith(TENSORS)])


def test_an_adapter_is_fetched_once_and_loads_on_its_base(ann: LoopbackHub, tmp_path: Path) -> None:
    from phi3lora.config import ModelConfig
    from phi3lora.lora.adapters import load_adapter

    files = {**adapter_for("bob/phi"), "evil.py": b"boom", "adapter_model.bin": b"a pickle"}
    ann.commit("model", "ann/public", files)
    found = fetch_adapter("ann/public", None, tmp_path)
    assert (found.base, found.revision) == ("bob/phi", None)
    assert found.commit == ann.commits("model", "ann/public")[0].oid
    assert {path.name for path in found.folder.iterdir()} == {
        "adapter_config.json",
        TENSORS,
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert fetch_adapter("ann/public", "hf_bob", tmp_path) == found
    assert weights_fetched(ann) == 1
    load_adapter(load_model(ModelConfig(path="pocket"), for_training=False), found.folder)


def test_the_config_beside_an_adapter_says_what_became_of_system_messages(
    ann: LoopbackHub, tmp_path: Path
) -> None:
    dropped = RunConfig().with_values({"data.system_messages": "drop"}).to_yaml().encode()
    for text, expected in ((dropped, "drop"), (b"a: [", "merge"), (b"#" * (2**20 + 1), "merge")):
        ann.commit("model", "ann/public", {"config.yaml": text})
        found = fetch_adapter("ann/public", None, tmp_path)
        assert system_messages_in(found.folder) == expected
        assert (found.folder / "config.yaml").exists() is (len(text) < 2**20)


def test_a_new_commit_is_fetched_anew(ann: LoopbackHub, tmp_path: Path) -> None:
    first = fetch_adapter("ann/public", None, tmp_path)
    ann.commit("model", "ann/public", {"README.md": b"More."})
    second = fetch_adapter("ann/public", None, tmp_path)
    assert second.commit != first.commit
    assert fetch_adapter("ann/public", None, tmp_path, first.commit) == first


def test_a_private_adapter_is_for_its_owner_alone(ann: LoopbackHub, tmp_path: Path) -> None:
    own = fetch_adapter("ann/private", "hf_ann", tmp_path)
    for token in (None, "hf_bob"):
        with pytest.raises(HubError, match="ann/private"):
            fetch_adapter("ann/private", token, tmp_path)
    ann.add_token("ann", "hf_other")  # whoever holds it has a folder of its own
    assert fetch_adapter("ann/private", "hf_other", tmp_path).folder != own.folder
    assert "hf_ann" not in str(own.folder)
    ann.revoke("hf_ann")
    with pytest.raises(HubError, match="refused the token"):
        fetch_adapter("ann/private", "hf_ann", tmp_path)


def test_a_download_that_broke_leaves_nothing_that_looks_whole(
    ann: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = ann.fail(f"{TENSORS}$", status=404)
    with pytest.raises(HubError):
        fetch_adapter("ann/public", None, tmp_path)
    assert not list(tmp_path.rglob(TENSORS))
    assert not list(tmp_path.rglob(".fetching-*"))
    ann.faults.rules.remove(rule)
    assert (fetch_adapter("ann/public", None, tmp_path).folder / TENSORS).is_file()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "model.safetensors": b"1"}, "is a whole model: expected a PEFT"),
        ({"README.md": b"Soon."}, "is no adapter: expected a PEFT adapter"),
        ({"adapter_config.json": b"{}"}, "its upload may not have ended"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"1"}, "a pickle that can run code"),
        ({"adapter_config.json": b"{", TENSORS: b"1"}, "adapter_config.json cannot be read"),
        (adapter_for("pocket", peft_type="IA3"), "expected peft_type LORA, got 'IA3'"),
        (adapter_for("pocket", auto_mapping={"x": "y"}), "classes of its own"),
        (adapter_for("/home/ann/phi"), "names '/home/ann/phi' as its base; expected a model on"),
        (adapter_for("ann/llama"), "is for another kind of base. ann/llama is of type 'llama'"),
        (adapter_for("ann/gone"), "There is no public model ann/gone: check the name"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_its_weights_are_fetched(
    ann: LoopbackHub, tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    llama = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"1"}
    ann.add_repo("model", "ann/llama", llama)
    ann.add_repo("model", "ann/it", files)
    with pytest.raises((AdapterError, HubError)) as told:
        fetch_adapter("ann/it", None, tmp_path)
    assert words in str(told.value)
    assert weights_fetched(ann) == 0


@pytest.mark.parametrize("name", ["pirate", "/etc/passwd", "../../x", "a/b/c", "https://x/y"])
def test_only_names_of_the_hub_are_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="expected USER/NAME"):
        fetch_adapter(name, None, tmp_path)
