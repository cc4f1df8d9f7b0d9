"""Which bases are taken, which are refused and why, and how they are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from phi3lora.chat.serving import Serving
from phi3lora.config import PHI3_MINI, POCKET, ModelConfig, RunConfig
from phi3lora.errors import HubError, ModelError
from phi3lora.lora.targets import count_parameters
from phi3lora.models.base import check_base, fetch, portable_name, resolve_path
from phi3lora.models.fetching import telling
from phi3lora.models.hardware import GIB, Hardware
from phi3lora.models.loading import load_model, load_tokenizer
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.training.trainer import train
from tests.bases import logits, make_base
from tests.hub import LoopbackHub

GPU = Hardware("cuda", "NVIDIA A10G", 22 * GIB, 21 * GIB, True, 4)
CPU = Hardware("cpu", "CPU", 16 * GIB, 12 * GIB, True, 2)
REAL = {
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "phi")


def write(folder: Path, config: dict[str, Any] | str | None, *files: str) -> Path:
    """A folder with a config and empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
    for name in files:
        (folder / name).touch()
    return folder


def test_auto_and_pocket_stand_for_something() -> None:
    assert resolve_path("auto", GPU) == PHI3_MINI
    assert resolve_path("auto", CPU) == str(CHECKPOINT) == resolve_path(POCKET, GPU)
    assert resolve_path("a/b", CPU) == "a/b"
    assert portable_name(str(CHECKPOINT)) == POCKET
    assert portable_name(PHI3_MINI) == PHI3_MINI


def test_auto_is_a_base_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_base("auto") == check_base(POCKET)
    assert len(load_tokenizer("auto")) == len(load_tokenizer(POCKET))


def test_facts_of_the_pocket_agree_with_its_weights() -> None:
    base = check_base(POCKET)
    model = load_model(ModelConfig(path=POCKET), for_training=False)
    assert base.name == model.name_or_path == POCKET
    assert (base.heads, base.key_value_heads) == (4, 2)
    assert base.parameters == count_parameters(model)[1]
    layer = model.get_submodule("model.layers.0")
    for name, (inputs, outputs) in base.shapes.items():
        module: Any = next(m for path, m in layer.named_modules() if path.endswith(name))
        assert (module.in_features, module.out_features) == (inputs, outputs)


def test_facts_of_phi3_mini(tmp_path: Path) -> None:
    base = check_base(str(write(tmp_path / "mini", REAL, "model.safetensors")))
    assert base.parameters == 3_821_079_552
    assert base.max_length == 4096


def test_longrope_models_read_all_their_positions(tmp_path: Path) -> None:
    long = REAL | {"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope"}}
    base = check_base(str(write(tmp_path / "long", long, "m.safetensors")))
    assert (base.max_length, base.switch) == (131072, 4096)
    plain = REAL | {"max_position_embeddings": 16384}
    base = check_base(str(write(tmp_path / "plain", plain, "m.safetensors")))
    assert (base.max_length, base.switch) == (16384, None)


def with_rope(folder: Path, kind: str, **changes: Any) -> Path:
    """A base whose factors change after 64 tokens, its LongRoPE under some name."""
    make_base(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config |= {
        "rope_theta": 10000.0,
        "rope_scaling": {"type": kind, **factors, **changes},
        "original_max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_old_longrope_is_read_under_its_new_name(tmp_path: Path) -> None:
    """Phi-3-mini-128k before July 2024 said `su`, which ended in a KeyError."""
    tokens = torch.arange(3, 100)[None]
    folders = [with_rope(tmp_path / kind, kind) for kind in ("su", "longrope")]
    assert [check_base(str(folder)).switch for folder in folders] == [64, 64]
    old, new = (
        logits(load_model(ModelConfig(path=str(folder)), for_training=False), tokens)
        for folder in folders
    )
    assert torch.equal(old, new)


@pytest.mark.parametrize("changes", [{"long_factor": "x"}, {"short_factor": [1.0]}])
def test_whatever_loading_raises_is_said_in_words(tmp_path: Path, changes: Any) -> None:
    folder = with_rope(tmp_path / "odd", "longrope", **changes)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelConfig(path=str(folder)), for_training=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1_000_000},
        {"vocab_size": 10**12},
        {"hidden_size": -1},
        {"num_attention_heads": 0},
        {"intermediate_size": "9" * 1000},
        {"max_position_embeddings": 1e300},
        {"num_key_value_heads": True},
    ],
)
def test_sizes_out_of_bounds_are_refused_before_anything_is_built(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(changes))} .*expected a whole number") as e:
        check_base(str(write(tmp_path / "huge", REAL | changes, "m.safetensors")))
    assert len(str(e.value)) < 500


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, '{"model_type": "phi3"}', " " * 2**21])
def test_a_config_that_holds_something_else(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        check_base(str(write(tmp_path / "odd", text, "m.safetensors")))


def test_a_tokenizer_of_an_absurd_size_is_not_read(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "phi")
    with (folder / "chat_template.jinja").open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    with pytest.raises(ModelError, match=r"chat_template\.jinja has 3,221,225,472 bytes"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        (REAL | {"model_type": "phi3_v"}, ["m.safetensors"], "text half is microsoft/Phi-3.5"),
        (REAL | {"model_type": "phi4mm"}, ["m.safetensors"], "text half is microsoft/Phi-4-mini"),
        (REAL | {"quantization": {"bits": 4}}, ["m.safetensors"], "a copy for MLX"),
        (None, ["openvino_model.xml", "openvino_model.bin"], "OpenVINO files"),
        (REAL | {"model_type": "phi3small"}, ["m.safetensors"], "Phi-3-small is built differently"),
        (REAL | {"model_type": "phimoe"}, ["m.safetensors"], "mixture of experts"),
        (REAL | {"model_type": "gpt2"}, ["m.safetensors"], "model_type 'phi3', got 'gpt2'"),
        (REAL | {"model_type": "mistral"}, ["m.safetensors"], "split q_proj"),
        (REAL | {"model_type": "llama"}, ["m.safetensors"], "split q_proj"),
        (REAL, ["model.onnx", "model.onnx.data"], "ONNX"),
        (None, ["Phi-3-mini-q4.gguf"], "GGUF"),
        (REAL, ["pytorch_model.bin"], "pickled weights only"),
        (None, ["adapter_config.json", "adapter_model.safetensors"], "is an adapter, not a base"),
        (REAL, ["m.safetensors", "adapter_config.json"], "is an adapter, not a base"),
        (None, ["m.safetensors"], "no config.json"),
        (None, [], "holds no weights"),
        ("{", ["m.safetensors"], "cannot be read"),
        ({"model_type": "phi3"}, ["m.safetensors"], "incomplete: 'num_attention_heads'"),
        (
            REAL | {"quantization_config": {"quant_method": "awq"}},
            ["m.safetensors"],
            r"already quantized \(awq\)",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(
    tmp_path: Path, config: dict[str, Any] | str | None, files: list[str], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        check_base(str(write(tmp_path / "x", config, *files)))
    assert "adapter is asked for" in str(caught.value) or PHI3_MINI in str(caught.value)


def test_a_gguf_file_is_refused_like_a_folder_of_them(tmp_path: Path) -> None:
    file = write(tmp_path, None, "phi.gguf") / "phi.gguf"
    with pytest.raises(ModelError, match="GGUF"):
        check_base(str(file))


def test_what_is_neither_a_folder_nor_a_hub_id() -> None:
    with pytest.raises(ModelError, match="expected a folder on this machine, a Hub id"):
        check_base("./no/such/folder")


def test_missing_weights_are_named(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing.*layers\.1\.mlp\.down_proj"):
        load_model(ModelConfig(path=str(broken)), for_training=False)


def test_damaged_weights_are_an_error_of_ours(base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelConfig(path=str(broken)), for_training=False)


def test_the_cache_is_off_in_training_and_on_in_chat(base: Path) -> None:
    training = load_model(ModelConfig(path=str(base)), for_training=True)
    chat = load_model(ModelConfig(path=str(base)), for_training=False)
    assert (training.config.use_cache, training.training) == (False, True)
    assert (chat.config.use_cache, chat.training) == (True, False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_precision_asked_for(base: Path, dtype: Any) -> None:
    model = load_model(ModelConfig(path=str(base), dtype=dtype), for_training=False)
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}


def test_float16_is_not_trained_on_a_cpu(base: Path) -> None:
    notices: list[str] = []
    wanted = ModelConfig(path=str(base), dtype="float16", device="cpu")
    model = load_model(wanted, for_training=True, notices=notices)
    assert (model.dtype, len(notices)) == (torch.float32, 1)
    assert "float32" in notices[0]


def test_float16_is_for_chat_alone_on_a_cpu(base: Path) -> None:
    notices: list[str] = []
    wanted = ModelConfig(path=str(base), dtype="float16", device="cpu")
    assert load_model(wanted, for_training=True, notices=notices).dtype == torch.float32
    assert notices == ["float16 cannot be trained on a CPU: the base is loaded in float32."]
    assert load_model(wanted, for_training=False).dtype == torch.float16


def test_attention_falls_back_with_a_notice(base: Path) -> None:
    notices: list[str] = []
    wanted = ModelConfig(path=str(base), attention="flash_attention_2", device="cpu")
    model = load_model(wanted, for_training=True, notices=notices)
    assert model.config._attn_implementation == "sdpa"
    assert [notice.split(",")[0] for notice in notices] == ["flash_attention_2 cannot be used here"]


@pytest.mark.parametrize(("quantization", "bits"), [("nf4", 4), ("fp4", 4), ("int8", 8)])
def test_quantized_linear_layers_and_nothing_else(base: Path, quantization: Any, bits: int) -> None:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    exact = load_model(ModelConfig(path=str(base)), for_training=False)
    model = load_model(ModelConfig(path=str(base), quantization=quantization), for_training=True)
    kind = Linear4bit if bits == 4 else Linear8bitLt
    quantized = [path for path, module in model.named_modules() if isinstance(module, kind)]
    assert len(quantized) == 8
    assert type(model.get_submodule("lm_head")) is torch.nn.Linear
    assert not any(weight.requires_grad for weight in model.parameters())
    assert count_parameters(model)[1] == count_parameters(exact)[1]
    difference = (logits(model) - logits(exact)).abs().max()
    assert 0 < difference < 0.3


def test_the_kind_of_four_bits_is_what_was_asked_for(base: Path) -> None:
    wanted = ModelConfig(
        path=str(base), quantization="fp4", double_quantization=False, compute_dtype="bfloat16"
    )
    module: Any = load_model(wanted, for_training=True).get_submodule(
        "model.layers.0.mlp.down_proj"
    )
    state = module.weight.quant_state
    assert (state.quant_type, state.nested, module.compute_dtype) == ("fp4", False, torch.bfloat16)


def test_an_evaluation_leaves_four_bit_weights_as_they_are(base: Path) -> None:
    """bitsandbytes would repack them on some CPUs, and block the gradient from then on."""
    model = load_model(ModelConfig(path=str(base), quantization="nf4"), for_training=True)
    module: Any = model.get_submodule("model.layers.0.self_attn.qkv_proj")
    before = module.weight.data.clone()
    logits(model)
    assert torch.equal(module.weight.data, before)
    assert not getattr(module.weight.quant_state, "packing_format_for_cpu", False)


def test_tied_embeddings_are_counted_once(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "tied", tied=True)
    model = load_model(ModelConfig(path=str(folder)), for_training=False)
    assert check_base(str(folder)).parameters == count_parameters(model)[1]


def test_padding_is_never_a_token_that_must_be_learnt() -> None:
    tokenizer = load_tokenizer(POCKET)
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.padding_side == "right"


# The Hub


def files_of(base: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in base.iterdir()}


def test_a_hub_base_is_pinned_to_its_commit(hub: LoopbackHub, base: Path, tmp_path: Path) -> None:
    hub.add_repo("model", "ann/phi", files_of(base))
    info = check_base("ann/phi", cache_folder=tmp_path)
    assert info.commit == hub.commits("model", "ann/phi")[0].oid
    hub.commit("model", "ann/phi", {"config.json": json.dumps({"model_type": "gpt2"})})
    model = load_model(
        ModelConfig(path=str(fetch(info, cache_folder=tmp_path))), for_training=False
    )
    assert model.config.hidden_size == 64
    with pytest.raises(ModelError, match="gpt2"):
        check_base("ann/phi", cache_folder=tmp_path)
    assert check_base("ann/phi", revision=info.commit, cache_folder=tmp_path) == info


def test_only_config_and_weights_come_from_the_hub(
    hub: LoopbackHub, base: Path, tmp_path: Path
) -> None:
    extra = {"modeling_phi3.py": b"raise SystemExit", "pytorch_model.bin": b"x", "m.onnx": b"x"}
    hub.add_repo("model", "ann/phi", files_of(base) | extra)
    wanted = ModelConfig(path="ann/phi")
    model = load_model(wanted, for_training=False, cache_folder=tmp_path)
    assert model.name_or_path == "ann/phi"
    names = {file.name for file in Path(str(model.files_folder)).iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}


def test_a_download_tells_its_share_once(
    hub: LoopbackHub, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as a worker has it
    weights = (base / "model.safetensors").stat().st_size
    hub.add_repo("model", "ann/phi", files_of(base))
    info = check_base("ann/phi", cache_folder=tmp_path)
    assert info.stored == pytest.approx(weights / 2, rel=0.05), "16 bits on the Hub, 32 in this"
    shares: list[float] = []
    fetch(info, cache_folder=tmp_path, tell=shares.append)
    assert (shares[-1], shares) == (1.0, sorted(shares))
    shares.clear()
    fetch(info, cache_folder=tmp_path, tell=shares.append)
    assert shares == [], "it is here"


def test_chat_and_training_tell_how_far_their_download_is(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.add_repo("model", "ann/phi", files_of(CHECKPOINT))
    said: list[str] = []
    Serving.open(ModelConfig(path="ann/phi", device="cpu"), said.append)
    assert (said[0], said[-1]) == ("reading the tokenizer", "loading the model")
    assert said[-2] == "downloading the base: 100%"
    hub.add_repo("model", "ann/other", files_of(CHECKPOINT))
    changes = {"model.path": "ann/other", "model.device": "cpu", "data.max_rows": 8}
    steps = {"training_config.max_steps": 1, "training_config.max_length": 64}
    events: list[Any] = []
    train(RunConfig().with_values({**changes, **steps}), tmp_path / "run", events.append)
    told = [(e.name, e.fraction) for e in events if e.kind == "stage"]
    at = told.index(("downloading the base", 1.0))
    assert told[at + 1] == ("loading the model", None)


def test_a_small_file_is_no_whole_download() -> None:
    shares: list[float] = []
    bars = telling(shares.append, 1000)
    with bars(unit="B", total=0) as disk, bars(unit="B", total=0) as network, bars(total=2) as all_:
        disk.total = 10  # `config.json` is here before the weights say how large they are
        disk.update(10)
        all_.update(1)  # files, which are not counted
        disk.total = 1210
        network.update(600)
        disk.update(None)
        disk.update(1200)
    assert shares == [0.01, 0.6, 10 / 1210, 1.0]


def test_a_tokenizer_comes_without_the_weights(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("model", "ann/phi", files_of(CHECKPOINT))
    assert load_tokenizer("ann/phi", cache_folder=tmp_path).pad_token == "<unk>"
    assert not [request for request in hub.requests if request.path.endswith(".safetensors")]


def test_a_gguf_repository_is_refused_before_anything_is_fetched(hub: LoopbackHub) -> None:
    hub.add_repo("model", "ann/phi-gguf", {"phi-q4.gguf": b"GGUF", "config.json": "{}"})
    with pytest.raises(ModelError, match="GGUF"):
        check_base("ann/phi-gguf")
    assert not [request for request in hub.requests if "/resolve/" in request.path]


def test_private_and_gated_bases_need_the_callers_own_token(
    hub: LoopbackHub, base: Path, tmp_path: Path
) -> None:
    hub.add_user("ann", token="hf_ann")
    hub.add_user("bob", token="hf_bob")
    hub.add_repo("model", "ann/private", files_of(base), private=True)
    hub.add_repo("model", "ann/gated", files_of(base), gated=True, allowed=["ann"])
    for name in ["ann/private", "ann/gated"]:
        fetch(check_base(name, token="hf_ann", cache_folder=tmp_path), "hf_ann", tmp_path)
    # What the cache has by now must not be served to somebody else.
    with pytest.raises(HubError, match="no model ann/private that your account may read"):
        check_base("ann/private", token="hf_bob", cache_folder=tmp_path)
    with pytest.raises(HubError, match=f"is gated: ask for access at {hub.url}/ann/gated"):
        check_base("ann/gated", token="hf_bob", cache_folder=tmp_path)
    hub.stop()  # who may read what cannot be asked any more
    try:
        for name in ["ann/private", "ann/gated"]:
            kept = check_base(name, token="hf_ann", cache_folder=tmp_path)
            assert fetch(kept, "hf_ann", tmp_path).name == kept.commit
            with pytest.raises(HubError, match="was not downloaded before"):
                check_base(name, token="hf_bob", cache_folder=tmp_path)
    finally:
        hub.start()


def test_a_missing_repository_and_a_missing_revision(hub: LoopbackHub, base: Path) -> None:
    hub.add_repo("model", "ann/phi", files_of(base))
    with pytest.raises(HubError, match="no public model ann/nothing"):
        check_base("ann/nothing")
    with pytest.raises(HubError, match="has no revision 'v9'"):
        check_base("ann/phi", revision="v9")


def test_what_was_fetched_serves_while_the_hub_is_down(
    hub: LoopbackHub, base: Path, tmp_path: Path
) -> None:
    hub.add_repo("model", "ann/phi", files_of(base))
    info = check_base("ann/phi", cache_folder=tmp_path)
    fetch(info, cache_folder=tmp_path)
    hub.fail(".*", status=501)
    assert check_base("ann/phi", cache_folder=tmp_path) == info
    assert fetch(info, cache_folder=tmp_path).name == info.commit
    with pytest.raises(HubError, match=r"is down \(501\) and ann/other was not downloaded"):
        check_base("ann/other", cache_folder=tmp_path)


def test_offline_says_what_to_do() -> None:
    with pytest.raises(HubError, match="set to work offline"):
        check_base(PHI3_MINI)
