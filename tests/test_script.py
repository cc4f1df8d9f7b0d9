"""The exported script: on its own it trains what the run trains, to the same losses."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3lora.config import RunConfig
from phi3lora.data.preparation import prepare
from phi3lora.data.rendering import render
from phi3lora.data.sources import EXAMPLES
from phi3lora.errors import DataError
from phi3lora.models.loading import load_tokenizer
from phi3lora.models.pocket import CHECKPOINT, PIRATE
from phi3lora.recipes import load_recipe, recipes
from phi3lora.training.script import TEMPLATE, notebook, script, write_code
from phi3lora.training.script_marks import marks_of
from phi3lora.training.script_rows import write_rows
from phi3lora.training.script_values import code, facts
from phi3lora.training.template import blocks, fill
from phi3lora.training.trainer import train

SHORT = {
    "model.path": "pocket",
    "model.dtype": "float32",
    "model.device": "cpu",
    "data.max_rows": 24,
    "peft_config.r": 4,
    "training_config.max_steps": 3,
    "training_config.per_device_train_batch_size": 4,
    "training_config.logging_steps": 1,
    "training_config.max_length": 64,
    "training_config.eval_strategy": "no",
    "training_config.save_strategy": "no",
    "training_config.log_level": "warning",
    "training_config.learning_rate": 1e-3,
}


def config(changes: dict[str, Any] | None = None) -> RunConfig:
    return RunConfig().with_values({**SHORT, **(changes or {})})


def losses_of_the_run(chosen: RunConfig, folder: Path, fast: bool = False) -> list[float]:
    events: list[Any] = []
    train(chosen.with_values({"training_config.fast": fast}), folder, events.append)
    return [event.loss for event in events if getattr(event, "loss", None) is not None]


def losses_of_the_script(chosen: RunConfig, folder: Path, monkeypatch: Any) -> list[float]:
    """Run in this process: importing the libraries again takes longer than the training."""
    folder.mkdir()
    write_code(chosen, "script", folder / "train.py")
    monkeypatch.chdir(folder)
    state = runpy.run_path("train.py")
    history = state["trainer"].state.log_history
    # What follows the summary of the training is the script's own evaluation.
    end = next(i for i, entry in enumerate(history) if "train_runtime" in entry)
    return [e[name] for e in history[:end] for name in ("loss", "eval_loss") if name in e]


CASES: dict[str, dict[str, Any]] = {
    "a LoRA, evaluated": {
        "training_config.eval_strategy": "steps",
        "training_config.eval_steps": 2,
        "data.system_prompt": "You are a pirate.",
    },
    "packed slices, with LoRA+": {
        "data.path": "example:pirate_instructions",
        "training_config.packing": True,
        "peft_config.slices": {"q": True, "k": False, "v": True, "gate": True, "up": False},
        "training_config.loraplus_lr_ratio": 4,
        "training_config.per_device_train_batch_size": 2,
    },
    "QLoRA, with checkpointing": {
        "data.path": "example:pirate_prompts",
        "model.quantization": "nf4",
        "training_config.gradient_checkpointing": True,
        "peft_config.use_rslora": True,
        "training_config.optim": "paged_adamw_8bit",
        "training_config.max_steps": 2,
    },
    "DPO, held near the base": {
        "data.path": "example:pirate_preferences",
        "method": "dpo",
        "training_config.eval_strategy": "steps",
        "training_config.eval_steps": 2,
    },
    "KTO of pairs": {"data.path": "example:pirate_preferences", "method": "kto"},
    "GRPO, by what can be checked": {
        "data.path": "example:sums",
        "method": "grpo",
        "grpo_config.pattern": r"\d \+ \d = \d+\.",
        "grpo_config.length": 12,
        "grpo_config.beta": 0.1,
        "grpo_config.max_completion_length": 8,
        "training_config.eval_strategy": "steps",
        "training_config.eval_steps": 2,
    },
    "GRPO from an adapter, held near it": {
        "data.path": "example:sums",
        "method": "grpo",
        "model.adapter": str(PIRATE),
        "peft_config.lora_alpha": 8,
        "peft_config.lora_dropout": 0.0,
        "grpo_config.length": 20,
        "grpo_config.beta": 0.1,
        "grpo_config.max_completion_length": 8,
        "training_config.max_steps": 2,
    },
    "GRPO of every weight, at another temperature": {
        "data.path": "example:sums",
        "method": "grpo",
        "adapter": "none",
        "grpo_config.exact_after": "=",
        "grpo_config.json_reward": 0.5,
        "grpo_config.temperature": 0.7,
        "grpo_config.max_completion_length": 8,
        "training_config.learning_rate": 1e-4,
        "training_config.max_steps": 2,
    },
    "ORPO with every weight": {
        "data.path": "example:pirate_preferences",
        "method": "orpo",
        "adapter": "none",
        "training_config.learning_rate": 1e-4,
    },
    "every weight": {
        "data.path": "example:pirate_sharegpt",
        "adapter": "none",
        "data.test_size": 0,
        "training_config.learning_rate": 1e-4,
        "training_config.warmup_steps": 2,
    },
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_script_trains_what_the_run_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    from safetensors.torch import load_file

    chosen = config(changes)
    ours = losses_of_the_run(chosen, tmp_path / "run")
    theirs = losses_of_the_script(chosen, tmp_path / "script", monkeypatch)
    assert len(ours) >= chosen.training_config.max_steps
    assert theirs == pytest.approx(ours, abs=1e-6)
    (saved,) = (tmp_path / "run" / chosen.result).glob("*model.safetensors")
    weights = load_file(tmp_path / "script" / "checkpoint_dir" / saved.name)
    for name, expected in load_file(saved).items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=1e-6)


def test_the_fast_path_has_the_scripts_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without padding there are fewer numbers to drop, so dropout is another one.
    chosen = config({"peft_config.lora_dropout": 0})
    ours = losses_of_the_run(chosen, tmp_path / "run", fast=True)
    theirs = losses_of_the_script(chosen, tmp_path / "script", monkeypatch)
    assert theirs == pytest.approx(ours, abs=1e-3)


@pytest.mark.parametrize("initial", ["pissa", "olora"])
def test_weights_taken_out_of_the_base_are_saved_for_the_base_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initial: str
) -> None:
    from peft import PeftModel
    from transformers import Phi3ForCausalLM

    chosen = config({"peft_config.init_lora_weights": initial, "training_config.max_steps": 2})
    ours = losses_of_the_run(chosen, tmp_path / "run")
    theirs = losses_of_the_script(chosen, tmp_path / "script", monkeypatch)
    assert theirs == pytest.approx(ours, abs=1e-4)
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits(folder: Path) -> torch.Tensor:
        base = Phi3ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
        with torch.no_grad():
            return PeftModel.from_pretrained(base, folder).eval()(ids).logits

    expected = logits(tmp_path / "run" / "adapter")
    found = logits(tmp_path / "script" / "checkpoint_dir")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_loftq_begins_where_the_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(
        {
            "model.quantization": "nf4",
            "peft_config.init_lora_weights": "loftq",
            "training_config.max_steps": 1,
        }
    )
    ours = losses_of_the_run(chosen, tmp_path / "run")
    theirs = losses_of_the_script(chosen, tmp_path / "script", monkeypatch)
    assert theirs == pytest.approx(ours, abs=1e-4)


def test_the_script_stands_alone(tmp_path: Path) -> None:
    """In a process of its own, which cannot import phi3lora."""
    write_code(config({"training_config.max_steps": 1}), "script", tmp_path / "train.py")
    text = (tmp_path / "train.py").read_text(encoding="utf-8")
    assert "import phi3lora" not in text
    assert "from phi3lora" not in text
    refuse = "import sys\nsys.modules['phi3lora'] = None\n"
    (tmp_path / "train.py").write_text(refuse + text, encoding="utf-8")
    command = [sys.executable, "train.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "checkpoint_dir" / "adapter_config.json").is_file()
    state = json.loads((tmp_path / "checkpoint_dir" / "trainer_state.json").read_text())
    assert state["global_step"] == 1


def test_two_dictionaries_on_top() -> None:
    text = script(load_recipe("pocket")[0])
    assert re.search(r"^training_config = \{\n    \"output_dir\": OUTPUT,$", text, re.MULTILINE)
    assert re.search(r"^peft_config = \{\n    \"r\": 16,$", text, re.MULTILINE)
    order = [
        "MODEL =",
        "training_config =",
        "peft_config =",
        "logger =",
        "from_pretrained(",
        "get_peft_model(",
        "rows =",
        "trainer =",
        "save_pretrained(",
    ]
    places = [text.index(part, text.index("MODEL =")) for part in order]
    assert places == sorted(places)
    assert "LoraPlus" not in text and "SLICES" not in text  # noqa: PT018 - only what is used


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_exported_before_it_is_trained(name: str) -> None:
    chosen, _ = load_recipe(name)
    here = {"model.path": "pocket", "data.path": "example:pirate"}
    text = script(chosen.with_values(here))
    compile(text, name, "exec")
    assert f'"learning_rate": {chosen.training_config.learning_rate!r}' in text
    assert ("peft_config" in text) == (chosen.adapter != "none")


# Published


def test_a_portable_script_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    rows = tmp_path / "my rows.jsonl"
    rows.write_text(Path(EXAMPLES["pirate"]).read_text())
    chosen = config({"data.path": str(rows)})
    for text in (script(chosen, portable=True), notebook(chosen, portable=True)):
        assert str(tmp_path) not in text
        assert str(CHECKPOINT.parent) not in text
    assert str(CHECKPOINT) in script(chosen)


def test_a_notebook_is_the_script_in_cells() -> None:
    import nbformat

    text = notebook(config())
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    compile(code, "notebook", "exec")
    lines = [line for line in script(config()).splitlines() if line and not line.startswith("#")]
    missing = [line for line in lines if line not in text and json.dumps(line)[1:-1] not in text]
    assert [line for line in missing if line != '"""'] == [lines[0]], "the title has no quotes"
    assert [cell.source for cell in book.cells if cell.source.startswith("## ")][:2] == [
        "## Hyper-parameters",
        "## Logging",
    ]


# Rows

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
]
TRICKY = [
    [{"role": "system", "content": "Be <|end|> brief."}, *TURNS],
    [{"role": "user", "content": "  \n spaces  \n"}, {"role": "assistant", "content": "\ttabs\t "}],
    [
        {"role": "user", "content": "<|assistant|></s><s><unk>"},
        {"role": "assistant", "content": "Größe 🎯 <|endoftext|>"},
        *TURNS,
    ],
    [{"role": "assistant", "content": "nothing before"}],
    [TURNS[0], {"role": "assistant", "content": "not learnt", "weight": 0}, *TURNS],
]
PHI35 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% else %}"
    "{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{{ eos_token }}"
)
WITH_START = "{{ bos_token }}" + PHI35


def tokenized(tokenizer: Any, messages: Any, max_length: int) -> dict[str, list[int]]:
    from types import SimpleNamespace

    from tokenizers import Tokenizer

    marks = marks_of(tokenizer)
    values = {
        "START": code(marks.start),
        "OPEN": code(marks.open),
        "CLOSE, LAST": f"{code(marks.close)}, {code(marks.last)}",
    }
    text = fill(TEMPLATE.read_text(), values, {"sft", "strip"} if marks.strip else {"sft"})
    names = {
        "json": json,
        "Tokenizer": Tokenizer,
        "tokenizer": tokenizer,
        "train_conf": SimpleNamespace(max_length=max_length),
    }
    exec(text[text.index("# How this base") : text.index("def read(")], names)
    return names["tokenize"](messages)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("template", [None, PHI35, WITH_START], ids=["phi3", "phi3.5", "<s>"])
@pytest.mark.parametrize("messages", TRICKY, ids=["end", "spaces", "marks", "alone", "weight"])
def test_tokens_are_those_of_the_run(messages: Any, template: str | None) -> None:
    tokenizer = load_tokenizer(str(CHECKPOINT))
    tokenizer.chat_template = template or tokenizer.chat_template
    for limit in (1024, 9):
        expected = render(tokenizer, messages, limit)
        found = tokenized(tokenizer, messages, limit)
        assert found == {"input_ids": expected.input_ids, "labels": expected.labels}


@pytest.mark.parametrize("messages", TRICKY, ids=["end", "spaces", "marks", "alone", "weight"])
def test_tokens_of_the_real_vocabulary(messages: Any, real_vocabulary: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_vocabulary)
    expected = render(tokenizer, messages, 64)
    assert tokenized(tokenizer, messages, 64)["labels"] == expected.labels


SHAPES: dict[str, tuple[str, str]] = {
    "named.json": ('{"data": [{"prompt": "a", "completion": "b"}, {"prompt": "c"}]}', "b"),
    "columns.json": ('{"prompt": ["a"], "completion": ["b"]}', "b"),
    "table.csv": ('prompt; completion\n"a";"b"\n\nc;\n', "b"),
    "headings.jsonl": ('{"text": "### Human: a ### Assistant: b"}\n', "b"),
    "sides.json": (
        '[{"prompt": [{"role": "user", "content": "a"}],'
        ' "completion": [{"role": "assistant", "content": "b"}]}]',
        "b",
    ),
}


@pytest.mark.parametrize(("name", "answer"), [(n, shape[1]) for n, shape in SHAPES.items()])
def test_rows_of_any_shape_are_written_as_messages(name: str, answer: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SHAPES[name][0], encoding="utf-8")
    chosen = config(
        {
            "data.path": str(tmp_path / name),
            "data.max_rows": None,
            "data.test_size": 0,
            "data.system_prompt": "Be brief.",
            "training_config.per_device_train_batch_size": 1,
        }
    )
    (file,) = write_rows(chosen, tmp_path, load_tokenizer(str(CHECKPOINT)))
    (line,) = file.read_text(encoding="utf-8").splitlines()  # what cannot be used is not there
    system, prompt, said = json.loads(line)["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert (prompt["content"], said["content"]) == ("a", answer)


@pytest.mark.parametrize("size", [0.25, 7])
def test_the_split_is_the_runs(size: float, tmp_path: Path) -> None:
    pairs = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(41)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    chosen = RunConfig.from_values({"data": {"path": str(file), "test_size": size, "seed": 7}})[0]
    tokenizer = load_tokenizer(str(CHECKPOINT))
    expected = prepare(chosen, tokenizer)
    assert expected.test is not None
    files = write_rows(chosen, tmp_path, tokenizer)
    train, test = ([json.loads(line)["messages"] for line in f.open()] for f in files)
    held_out = [
        [{name: value for name, value in turn.items() if value is not None} for turn in turns]
        for turns in expected.test["messages"]
    ]
    assert test == held_out
    assert len(train) == len(expected.train) == 41 - len(test)
    assert not [row for row in train if row in test]


def test_without_its_rows_a_script_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text(script(config()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train.jsonl is not here.*--to script"):
        runpy.run_path("train.py")


def test_publishing_a_script_does_not_read_the_rows(tmp_path: Path) -> None:
    # A format that nobody knows, or data that is gone, must not end a publication half-way.
    file = tmp_path / "gone.jsonl"
    file.write_text('{"anything": 1}\n')
    chosen = config({"data.path": str(file)})
    file.unlink()
    assert "train.jsonl" in script(chosen, portable=True)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"anything": 1, "else": 2}\n')
    chosen = config({"data.path": str(tmp_path / "rows.jsonl")})
    with pytest.raises(DataError, match="No conversation found"):
        write_code(chosen, "script", tmp_path / "out" / "train.py")
    assert list((tmp_path / "out").iterdir()) == []


# The template


EVERYTHING: list[dict[str, Any]] = [
    {},
    {"adapter": "none", "data.test_size": 0},
    {"adapter": "loralib", "peft_config.slices": {"k": False}, "model.revision": "main"},
    {
        "model.quantization": "nf4",
        "peft_config.init_lora_weights": "loftq",
        "training_config.report_to": "wandb",
        "training_config.optim": "paged_adamw_8bit",
        "training_config.loraplus_lr_ratio": 8,
        "training_config.early_stopping_patience": 2,
        "training_config.eval_strategy": "steps",
        "training_config.eval_steps": 2,
        "training_config.save_strategy": "steps",
        "training_config.save_steps": 2,
        "training_config.load_best_model_at_end": True,
    },
    {"peft_config.init_lora_weights": "pissa", "training_config.tf32": True},
    {"peft_config.init_lora_weights": "gaussian", "peft_config.slices": {"k": False}},
    {"model.adapter": "ann/pirate"},
    {"method": "dpo"},
    {"method": "kto", "data.test_size": 0},
    {"method": "orpo"},
    {"method": "grpo"},
    {
        "method": "grpo",
        "grpo_config.exact_reward": 0,
        "grpo_config.json_reward": 1,
        "grpo_config.pattern": "a+",
        "grpo_config.length": 9,
        "grpo_config.function": "own.py:score",
        "training_config.loraplus_lr_ratio": 8,
    },
]


@pytest.mark.parametrize("changes", EVERYTHING, ids=range(len(EVERYTHING)))
def test_nothing_is_missing_and_nothing_is_left_over(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """ruff finds names that are used and not defined, and imports that nothing uses."""
    file = tmp_path / "train.py"
    file.write_text(script(config(changes)), encoding="utf-8")
    ruff = Path(sys.executable).with_name("ruff")
    command = [str(ruff), "check", "--isolated", "--select", "E9,F", str(file)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    text = file.read_text()
    assert not re.search(r"# (if: .*|end)$", text, re.MULTILINE)


def test_every_block_of_the_template_is_known() -> None:
    known = {name for changes in EVERYTHING for name in _facts(changes)}
    assert blocks(TEMPLATE.read_text()) == known  # none that no config asks for


def _facts(changes: dict[str, Any]) -> set[str]:
    return facts(config(changes), marks_of(load_tokenizer(str(CHECKPOINT))))


def test_a_template_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="# end"):
        fill("# if: x\na = 1\n", {}, {"x"})


def test_values_and_blocks() -> None:
    text = '''"""Doc."""
import json
import os
from a import b, c

# if: x
A = 1  # kept
# end
# if: not x
B = (
    2
)
# end
def f():
    # if: y
    return c
    # end
    return os
'''
    assert fill(text, {"A": "{\n    3\n}"}, {"x"}) == (
        '"""Doc."""\nimport os\n\nA = {\n    3\n}  # kept\ndef f():\n    return os\n'
    )
    with pytest.raises(KeyError):
        fill(text, {"UNKNOWN": "1"}, {"x"})


# What an export needs, and what it leaves


def test_a_loralib_run_is_exported_with_loralib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(
        {
            "adapter": "loralib",
            "peft_config.target_modules": ["gate_up_proj", "o_proj"],
            "peft_config.slices": {"up": False},
            "training_config.learning_rate": 1e-2,
        }
    )
    ours = losses_of_the_run(chosen, tmp_path / "run")
    theirs = losses_of_the_script(chosen, tmp_path / "script", monkeypatch)
    assert theirs == pytest.approx(ours, abs=1e-6)
    (saved,) = (tmp_path / "run" / "adapter").glob("*.pt")
    expected = torch.load(saved, weights_only=True)
    found = torch.load(tmp_path / "script" / "checkpoint_dir" / "lora.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    text = script(chosen)
    assert "loralib==" in text
    for call in ("lora.Linear", "mark_only_lora_as_trainable", "lora_state_dict"):
        assert call in text


def test_held_out_rows_are_evaluated_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config({"training_config.max_steps": 1})
    losses_of_the_script(chosen, tmp_path / "script", monkeypatch)
    folder = tmp_path / "script" / "checkpoint_dir"
    metrics = json.loads((folder / "eval_results.json").read_text())
    held_out = (tmp_path / "script" / "test.jsonl").read_text().splitlines()
    assert metrics["eval_samples"] == len(held_out) > 0
    assert 0 < metrics["eval_loss"] < 20


def test_an_adapter_of_the_embedding_saves_no_base_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import safe_open

    chosen = config(
        {
            "peft_config.target_modules": "embedding",
            "training_config.max_steps": 1,
            "training_config.save_strategy": "steps",
            "training_config.save_steps": 1,
        }
    )
    losses_of_the_script(chosen, tmp_path / "script", monkeypatch)
    saved = list((tmp_path / "script").rglob("adapter_model.safetensors"))
    assert len(saved) == 2  # the checkpoint's, and the last
    for file in saved:
        with safe_open(file, framework="pt") as tensors:
            assert all("lora_" in name for name in tensors.keys())  # noqa: SIM118


def test_what_is_not_installed_is_replaced_as_a_run_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    chosen = config(
        {
            "training_config.report_to": "wandb",
            "training_config.optim": "paged_adamw_8bit",
            "training_config.max_steps": 1,
        }
    )
    find = importlib.util.find_spec
    lacking = {"wandb", "bitsandbytes"}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name in lacking else find(name, *a)
    )
    write_code(chosen, "script", tmp_path / "train.py")
    monkeypatch.chdir(tmp_path)
    state = runpy.run_path("train.py")
    assert state["train_conf"].report_to == []
    assert state["train_conf"].optim == "adamw_torch"
    head = (tmp_path / "train.py").read_text().split('"""')[1]
    assert re.search(r"bitsandbytes==[\d.]+ wandb", head)


def test_one_of_several_processes_saves() -> None:
    text = script(config())
    saving = text[text.index("# Saving #") :]
    assert saving.index("if trainer.is_world_process_zero():") < saving.index("save_pretrained")


def test_a_token_of_the_caller_is_not_written() -> None:
    assert "hf_secret" not in script(config(), token="hf_secret_of_a_user")
