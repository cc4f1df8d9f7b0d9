"""The terminal's export, import, evaluate and chat, on runs that have ended."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from phi3lora.cli.training import end_as
from phi3lora.config import RunConfig
from phi3lora.lora import smaller
from phi3lora.lora.adapters import attach_adapter, load_adapter, save_adapter
from phi3lora.models.loading import load_model, load_tokenizer
from phi3lora.runs.backends.local import devices
from phi3lora.runs.export import default_output
from phi3lora.runs.forms import Kind
from phi3lora.runs.store import Run, RunStore, changed
from phi3lora.runs.worker import lock_one
from phi3lora.settings import Settings
from tests.bases import logits
from tests.test_cli import call

BASE = {
    "model.path": "pocket",
    "model.dtype": "float32",
    "model.device": "cpu",
    "data.max_rows": 40,
    "peft_config.r": 4,
    "evaluation.rows": 3,
    "evaluation.max_new_tokens": 4,
}

PAGE = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
EXPORTS = re.findall(r"^phi3lora export .*$", PAGE, re.MULTILINE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Settings:
    monkeypatch.setenv("PHI3LORA_HOME", str(settings.home))
    monkeypatch.chdir(tmp_path)
    return settings


def ended(settings: Settings, **changes: Any) -> Run:
    """A finished run with weights far from its base's."""
    config = RunConfig().with_values({**BASE, **changes})
    run = RunStore(settings).create(config)
    model = attach_adapter(load_model(config.model, for_training=True), config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name or config.adapter == "none":
            nn.init.normal_(weight, std=0.2)
            if hasattr(weight, "slice_mask"):
                weight.data *= weight.slice_mask
    save_adapter(model, run.folder / config.result, config)
    if config.adapter == "none":
        load_tokenizer("pocket").save_pretrained(run.folder / config.result)
    return changed(run, status="finished")


def test_merged_from_the_terminal(home: Settings, tmp_path: Path) -> None:
    run = ended(home)
    said = call("export", run.id, "--to", "merged").stderr
    target = tmp_path / f"{run.id}-merged"
    assert f"Written: {target}" in said
    base = load_model(run.config.model, for_training=False)
    found = logits(
        load_model(run.config.model.model_copy(update={"path": str(target)}), for_training=False)
    )
    torch.testing.assert_close(
        found, logits(load_adapter(base, run.folder / "adapter")), rtol=1e-3, atol=1e-3
    )
    assert "not empty" in call("export", run.id, "--to", "merged", status=2).stderr


def test_to_loralib_and_back(home: Settings, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = ended(home, **{"peft_config.slices": {"k": False}})
    call("export", run.folder, "--to", "loralib", "--output", "there.pt")
    names = torch.load(tmp_path / "there.pt", weights_only=True)
    assert all("lora_" in name for name in names)
    assert (
        "exists already"
        in call("export", run.id, "--to", "loralib", "--output", "there.pt", status=2).stderr
    )
    assert "Adapter: " in call("import", "there.pt").stderr
    back = load_file(tmp_path / "there-adapter" / "adapter_model.safetensors")
    for name, weight in load_file(run.folder / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(back[name], weight), name
    assert "name another folder" in call("import", "there.pt", status=2).stderr


def test_a_checkpoint_that_says_nothing_of_itself(home: Settings, tmp_path: Path) -> None:
    # The pocket's q, k and v differ in size, which loralib's MergedLinear cannot express.
    run = ended(
        home,
        **{"peft_config.target_modules": ["gate_up_proj"], "peft_config.slices": {"up": False}},
    )
    call("export", run.id, "--to", "loralib", "--output", "there.pt")
    (tmp_path / "there.json").unlink()
    assert "--base" in call("import", "there.pt", status=2).stderr
    told = ["--base", "pocket", "--output", "back"]
    assert "say which" in call("import", "there.pt", *told, status=2).stderr
    assert (
        "expected on or off"
        in call(
            "import", "there.pt", *told, "--enable-lora", "gate_up_proj=on,perhaps", status=2
        ).stderr
    )
    call("import", "there.pt", *told, "--enable-lora", "gate_up_proj=on,off", "--alpha", "32")
    settings = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "pocket"
    base = load_model(run.config.model, for_training=False)
    expected = logits(load_adapter(base, run.folder / "adapter"))
    base = load_model(run.config.model, for_training=False)
    torch.testing.assert_close(
        logits(load_adapter(base, tmp_path / "back")), expected, rtol=1e-4, atol=1e-4
    )


def test_code_of_a_run_and_of_a_recipe(home: Settings, tmp_path: Path) -> None:
    run = ended(home)
    call("export", run.id, "--to", "script")
    compile((tmp_path / "train.py").read_text(), "train.py", "exec")
    assert '"r": 4,' in (tmp_path / "train.py").read_text()
    assert json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["messages"]
    notebook = ["export", "pocket", "--to", "notebook", "--set", "peft_config.r=6", "--portable"]
    refused = call(*notebook, status=2).stderr  # the rows of another script lie here
    assert "train.jsonl exists already" in refused
    assert not (tmp_path / "train.ipynb").exists()
    call(*notebook, "--output", "book/train.ipynb")
    book = nbformat.read(tmp_path / "book" / "train.ipynb", as_version=4)
    nbformat.validate(book)
    text = "".join(cell.source for cell in book.cells)
    assert '"r": 6,' in text
    assert 'MODEL = "checkpoint"' in text
    assert "exists already" in call("export", run.id, "--to", "script", status=2).stderr
    more = call(
        "export", run.id, "--to", "script", "--output", "x.py", "--set", "title=a", status=2
    )
    assert "not a run" in more.stderr


def test_a_run_that_has_not_what_is_asked_for(home: Settings) -> None:
    begun = RunStore(home).create(RunConfig().with_values(BASE))
    for kind in ("merged", "loralib"):
        said = call("export", begun.id, "--to", kind, status=2).stderr
        assert "has no adapter yet; let it finish, or resume it, first" in said
    call("export", begun.id, "--to", "script")
    whole = RunStore(home).create(RunConfig().with_values({**BASE, "adapter": "none"}))
    for kind, word in (("merged", "merge"), ("loralib", "convert")):
        said = call("export", whole.id, "--to", kind, status=2).stderr
        assert f"with no adapter to {word}." in said
    assert "no run 'nowhere'" in call("export", "nowhere", "--to", "merged", status=2).stderr
    call("export", begun.id, "--to", "gguf", status=2)


def test_each_kind_has_a_name_of_its_own() -> None:
    names = [str(default_output(kind, "x")) for kind in ("loralib", "merged", "script", "notebook")]  # type: ignore[arg-type]
    assert names == ["x.pt", "x-merged", "train.py", "train.ipynb"]


# Proof and chat


def test_evaluate_in_words_and_for_programs(home: Settings) -> None:
    run = ended(home)
    said = call("evaluate", run.id, "--rows", "2").stdout
    assert said.splitlines()[-1].startswith("Too few held-out rows to tell")
    assert "rougeLsum" in said
    values = json.loads(call("evaluate", run.folder, "--json").stdout)
    assert (values["rows"], values["verdict"]) == (3, "cannot tell")
    assert (run.folder / "report.json").is_file()


def test_an_evaluation_waits_for_nobody_and_says_who_computes(home: Settings) -> None:
    run = ended(home)
    home.home.mkdir(exist_ok=True)
    held = lock_one(home, devices("cpu"))
    assert held is not None
    said = call("evaluate", run.id, status=2).stderr
    assert "The device is in use by another run; wait for its end, or stop it, first." in said
    os.close(held[1])
    call("evaluate", run.id, "--rows", "1")
    assert lock_one(home, devices("cpu")) is not None, "given back"


def test_chat_with_a_model_that_was_trained_whole(home: Settings) -> None:
    run = ended(home, adapter="none")
    arguments = ["chat", "--adapter", run.id, "--prompt", "What is the capital of France?"]
    answers = json.loads(call(*arguments, "--max-new-tokens", "6", "--json").stdout)
    assert answers["base"].startswith("The capital of France") or "Paris" in answers["base"]
    assert answers["tuned"] != answers["base"]
    assert answers["tokens_tuned"] <= 6
    begun = RunStore(home).create(RunConfig().with_values({**BASE, "adapter": "none"}))
    said = call("chat", "--adapter", begun.id, "--prompt", "Hello", status=2).stderr
    assert "has no model yet; let it finish, or resume it, first" in said


def test_the_end_of_a_run_names_what_it_left(
    home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    end_as(ended(home))
    assert "Adapter: " in capsys.readouterr().err
    end_as(ended(home, adapter="none"))
    assert f"Model: {home.home}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Path]]:
    """A run, and a folder in which every command of docs/export.md was run on it."""
    folder = tmp_path_factory.mktemp("exported")
    settings = Settings(home=folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHI3LORA_HOME", str(settings.home))
        patch.chdir(folder)
        Path("notebook").mkdir()
        run = ended(settings)
        for line in EXPORTS:
            call(*line.replace("RUN", run.id).split()[1:])
        yield run, folder


def test_everything_that_is_written_down_is_exported(exported: tuple[Run, Path]) -> None:
    run, folder = exported
    assert {line.split("--to ")[1].split()[0] for line in EXPORTS} == {*get_args(Kind)}
    for line in EXPORTS:
        output = line.split("--output ")[1]
        assert (folder / output).exists()
        told = call("export", run.id, *line.split()[3:], status=2).stderr
        assert "exists already" in told or "is not empty" in told
    hidden = [path for path in folder.rglob(".*") if home_of(path) != folder / "home"]
    assert not hidden
    assert not list(run.folder.glob(".merged-*"))


def home_of(path: Path) -> Path:
    return next((one for one in path.parents if one.name == "home"), path)


def test_a_gguf_of_a_run_says_the_tokens_of_its_merged_model(exported: tuple[Run, Path]) -> None:
    from transformers import AutoModelForCausalLM

    _, folder = exported
    merged = AutoModelForCausalLM.from_pretrained(folder / "pirate", dtype=torch.float32)
    read = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="pirate.gguf", dtype=torch.float32
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2047}
    assert torch.equal(read.generate(ids, **settings), merged.generate(ids, **settings))
    assert (folder / "pirate.Modelfile").read_text().startswith("FROM ./pirate.gguf\n")
    lines = (folder / "pirate-adapter.Modelfile").read_text().splitlines()
    assert lines[:2] == ["FROM ./base.gguf", "ADAPTER ./pirate-adapter.gguf"]


def test_llama_cpp_says_the_tokens_of_the_merged_model(exported: tuple[Run, Path]) -> None:
    """Whole, and as the base's own file with the adapter beside it."""
    llama = pytest.importorskip("llama_cpp")
    from transformers import AutoModelForCausalLM

    from phi3lora.lora.gguf import write_model
    from phi3lora.models.pocket import CHECKPOINT

    _, folder = exported
    if not (folder / "base.gguf").exists():
        write_model(CHECKPOINT, folder / "base.gguf", "f16")
    merged = AutoModelForCausalLM.from_pretrained(folder / "pirate", dtype=torch.float32)
    ids = [5, 6, 7, 8]
    expected = merged.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, 4:]
    for more in (
        {"model_path": str(folder / "pirate.gguf")},
        {
            "model_path": str(folder / "base.gguf"),
            "lora_path": str(folder / "pirate-adapter.gguf"),
        },
    ):
        model = llama.Llama(n_ctx=128, n_gpu_layers=0, verbose=False, **more)
        said = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            said.append(int(token))
            if len(said) == len(expected):
                break
        assert said == expected.tolist()


def test_onnx_of_a_run_says_the_tokens_of_its_merged_model(exported: tuple[Run, Path]) -> None:
    """Opened by Microsoft's own reader, tokenizer included."""
    genai = pytest.importorskip("onnxruntime_genai")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder = exported
    merged = AutoModelForCausalLM.from_pretrained(folder / "pirate", dtype=torch.float32)
    model = genai.Model(str(folder / "pirate-onnx"))
    for text in ("Name the color of a cherry.", "Arr! 你好"):
        ids = AutoTokenizer.from_pretrained(folder / "pirate")(text).input_ids
        assert genai.Tokenizer(model).encode(text).tolist() == ids
        limits = genai.GeneratorParams(model)
        limits.set_search_options(max_length=len(ids) + 12, do_sample=False)
        generator = genai.Generator(model, limits)
        generator.append_tokens(ids)
        said = []
        while not generator.is_done():
            generator.generate_next_token()
            said.append(int(generator.get_next_tokens()[0]))
        expected = merged.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
        assert said == expected[0, len(ids) :].tolist()


def test_the_python_of_the_page_on_exports_runs(
    exported: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("onnxruntime_genai")
    monkeypatch.chdir(exported[1])
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_a_smaller_gguf_is_llama_cpps_own_work(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in here only writes its arguments down: which file, which kind."""
    run = ended(home)
    wanted = ("export", run.id, "--to", "gguf", "--precision", "q4_k_m", "--output", "q4.gguf")
    monkeypatch.setenv("PATH", "bin:/usr/bin:/bin")
    assert "llama-quantize" in call(*wanted, status=2).stderr
    Path("bin").mkdir()
    tool = Path("bin/llama-quantize")
    tool.write_text('#!/bin/sh\necho "no such type" >&2\nexit 3\n')
    tool.chmod(0o755)
    assert "llama-quantize failed: no such type" in call(*wanted, status=2).stderr
    assert not list(Path().glob("*q4*"))
    tool.write_text('#!/bin/sh\ntest "$3" = Q4_K_M && head -c 4 "$1" > "$2"\n')
    call(*wanted)
    assert Path("q4.gguf").read_bytes() == b"GGUF"
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(shutil.which("llama-quantize") is None, reason="llama-quantize is absent")
@pytest.mark.parametrize("kind", smaller.SMALL)
def test_llama_quantize_itself_keeps_every_tensor(exported: tuple[Run, Path], kind: str) -> None:
    import gguf

    run, folder = exported
    call("export", run.id, "--to", "gguf", "--precision", kind, "--output", folder / f"{kind}.gguf")
    whole, small = (
        {one.name: one for one in gguf.GGUFReader(folder / name).tensors}
        for name in ("pirate.gguf", f"{kind}.gguf")
    )
    assert whole.keys() == small.keys()
    assert sum(one.n_bytes for one in small.values()) < sum(one.n_bytes for one in whole.values())
    for name, tensor in whole.items():
        values, kept = (gguf.dequantize(t.data, t.tensor_type) for t in (tensor, small[name]))
        assert np.linalg.norm(values - kept) < 0.4 * np.linalg.norm(values), name


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("gguf", ["--precision", "int4"], "not for GGUF; take f16"),
        ("onnx", ["--precision", "q8_0"], "not for ONNX on cpu; take f32"),
        ("onnx", ["--precision", "f16"], "not for ONNX on cpu; take f32"),
    ],
)
def test_a_precision_that_is_not_there_is_refused_before_merging(
    home: Settings, kind: str, more: list[str], words: str
) -> None:
    run = ended(home)
    told = call("export", run.id, "--to", kind, *more, "--output", "out", status=2).stderr
    assert words in told
    assert "Merging" not in told
    assert not Path("out").exists()
