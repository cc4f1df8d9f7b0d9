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
from phi3lora.data.conversation import Unusable
from phi3lora.data.detection import detect, read_row
from phi3lora.data.preparation import prepare
from phi3lora.data.rendering import render
from phi3lora.errors import DataError
from phi3lora.models.loading import load_tokenizer
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.recipes import load_recipe, recipes
from phi3lora.training import script_data
from phi3lora.training.script import notebook, script
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
    (folder / "train.py").write_text(script(chosen), encoding="utf-8")
    monkeypatch.chdir(folder)
    state = runpy.run_path("train.py")
    history = state["trainer"].state.log_history
    return [entry[name] for entry in history for name in ("loss", "eval_loss") if name in entry]


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
    text = script(config({"training_config.max_steps": 1}))
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
    rows.write_text((Path(script_data.EXAMPLES["pirate"])).read_text())
    chosen = config({"data.path": str(rows)})
    for text in (script(chosen, portable=True), notebook(chosen, portable=True)):
        assert str(tmp_path) not in text
        assert str(CHECKPOINT.parent) not in text
        assert "my rows.jsonl" in text
    assert str(rows) in script(chosen)


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


def conversation_of(rows: list[dict[str, Any]], **data: Any) -> Any:
    """`conversation` as the script has it, and as the run has it, for rows of one shape."""
    chosen = RunConfig.from_values({"data": data})[0].data
    columns = list(dict.fromkeys(name for row in rows for name in row))
    detected = detect(
        columns, rows, format=chosen.format, mapping=chosen.columns, roles=chosen.roles
    )
    names: dict[str, Any] = {"json": json, "re": re, "ast": __import__("ast")}
    exec(script_data.messages(chosen, detected, rows), names)

    def expected(row: dict[str, Any]) -> list[Any]:
        try:
            return read_row(row, detected, chosen.system_prompt, join=False).messages
        except Unusable:
            return []

    return [names["conversation"](row) for row in rows], [expected(row) for row in rows]


TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "left over"},
]
ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "messages": (
        [
            {"messages": TURNS},
            {"messages": TURNS[1:]},
            {"messages": []},
            {"messages": None},
            {"messages": [TURNS[0], TURNS[0], TURNS[1]]},
            {"messages": [{"role": "system", "content": " "}, *TURNS]},
            {"messages": [{"role": "narrator", "content": "Once"}, *TURNS]},
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "A"}, "B"]},
                    TURNS[1],
                ]
            },
            {"messages": [{"role": "user", "content": ""}, TURNS[1]]},
        ],
        {"system_prompt": "Be brief."},
    ),
    "turns written into cells": (
        [
            {
                "conversations": json.dumps(
                    [{"from": "Human", "value": "a"}, {"from": "gpt", "value": "b"}]
                )
            },
            {"conversations": ""},
        ],
        {},
    ),
    "turns as Python prints them": (
        [{"chat": "[{'from': 'Klant', 'value': 'a'}, {'from': 'Bot', 'value': 'b'}]"}],
        {"roles": {"Klant": "user"}},
    ),
    "instruction": (
        [
            {"instruction": "Add", "input": "1 2", "output": 3},
            {"instruction": "Add", "input": "", "output": "3"},
            {"instruction": "Add", "input": None, "output": None},
            {"output": "x"},
        ],
        {},
    ),
    "question_answer": (
        [
            {"Question": "a?", "Reply": "b", "system": "Be kind."},
            {"Question": "a?", "Reply": "b", "system": None},
            {"Question": "a?", "Reply": float("nan"), "system": ""},
        ],
        {"columns": {"question": "Question", "answer": "Reply"}, "system_prompt": "Else."},
    ),
    "text": ([{"text": "Once upon a time."}, {"text": " "}, {"text": None}], {}),
    "a transcript": (
        [
            {"text": "<|system|>\n <|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHo\nho<|end|>"},
            {"text": "<|user|>\nHi<|end|>"},
        ],
        {},
    ),
}


@pytest.mark.parametrize(("rows", "data"), ROWS.values(), ids=ROWS)
def test_rows_are_read_as_the_run_reads_them(
    rows: list[dict[str, Any]], data: dict[str, Any]
) -> None:
    found, expected = conversation_of(rows, **data)
    assert found == expected
    assert any(expected), "at least one row is used"


TRICKY = [
    [{"role": "system", "content": "Be <|end|> brief."}, *TURNS[:2]],
    [{"role": "user", "content": "  \n spaces  \n"}, {"role": "assistant", "content": "\ttabs\t "}],
    [
        {"role": "user", "content": "<|assistant|></s><s><unk>"},
        {"role": "assistant", "content": "Größe 🎯 <|endoftext|>"},
        *TURNS[:2],
    ],
    [{"role": "assistant", "content": "nothing before"}],
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

    names = {
        "json": json,
        "Tokenizer": Tokenizer,
        "tokenizer": tokenizer,
        "train_conf": SimpleNamespace(max_length=max_length),
    }
    exec(script_data.tokens(script_data.marks_of(tokenizer)), names)
    return names["tokenize"](messages)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("template", [None, PHI35, WITH_START], ids=["phi3", "phi3.5", "<s>"])
@pytest.mark.parametrize("messages", TRICKY, ids=["end", "spaces", "marks", "alone"])
def test_tokens_are_those_of_the_run(messages: Any, template: str | None) -> None:
    tokenizer = load_tokenizer(str(CHECKPOINT))
    tokenizer.chat_template = template or tokenizer.chat_template
    for limit in (1024, 9):
        expected = render(tokenizer, messages, limit)
        found = tokenized(tokenizer, messages, limit)
        assert found == {"input_ids": expected.input_ids, "labels": expected.labels}


@pytest.mark.parametrize("messages", TRICKY, ids=["end", "spaces", "marks", "alone"])
def test_tokens_of_the_real_vocabulary(messages: Any, real_vocabulary: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_vocabulary)
    expected = render(tokenizer, messages, 64)
    assert tokenized(tokenizer, messages, 64)["labels"] == expected.labels


FILES = {
    "lines.jsonl": '{"prompt": "a", "completion": "b"}\n\n{"prompt": "c", "completion": "d"}\n',
    "list.json": '[{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]',
    "named.json": '{"data": [{"prompt": "a", "completion": "b"}, {"prompt": "c", '
    '"completion": "d"}]}',
    "table.csv": 'prompt; completion\n"a";"b"\n\nc;d\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_row_by_row(name: str, tmp_path: Path) -> None:
    import csv

    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    chosen = RunConfig.from_values({"data": {"path": str(tmp_path / name), "max_rows": 9}})[0]
    names: dict[str, Any] = {"json": json, "csv": csv, "DATA": str(tmp_path / name)}
    exec(script_data.reading(chosen.data), names)
    assert names["rows"] == [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def test_a_dataset_of_the_hub_is_loaded_by_name() -> None:
    chosen = RunConfig.from_values(
        {
            "data": {
                "path": "ann/chat",
                "name": "en",
                "split": "train_sft",
                "test_split": "test_sft",
                "revision": "v2",
                "max_rows": 50,
            }
        }
    )[0]
    source = script_data.reading(chosen.data)
    assert 'load_dataset(DATA, name="en", split="train_sft", revision="v2")' in source
    assert "select(range(min(50, len(rows))))" in source
    held_out = script_data.split(chosen)
    assert 'split="test_sft"' in held_out
    assert "permutation" not in held_out


@pytest.mark.parametrize(("size", "number"), [(0.25, "round(len(rows) * 0.25), 1"), (7, "= 7")])
def test_the_split_is_the_runs(size: float, number: str, tmp_path: Path) -> None:
    import numpy as np

    pairs = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(41)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    chosen = RunConfig.from_values({"data": {"path": str(file), "test_size": size, "seed": 7}})[0]
    tokenizer = load_tokenizer(str(CHECKPOINT))
    expected = prepare(chosen, tokenizer)
    source = script_data.split(chosen)
    assert number in source
    names: dict[str, Any] = {"np": np, "rows": list(range(41))}
    exec(source.replace("rows = prepared(rows)", ""), names)
    assert names["test_rows"] == expected.test_rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": ["a"], "completion": ["b"]}', "Save it as JSONL"),
        ('[{"text": "### Human: a ### Assistant: b"}]', "### headings"),
        (
            '[{"prompt": [{"role": "user", "content": "a"}],'
            ' "completion": [{"role": "assistant", "content": "b"}]}]',
            "one list of",
        ),
    ],
)
def test_what_a_plain_script_cannot_read_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match=words):
        script(config({"data.path": str(tmp_path / "rows.json"), "data.max_rows": None}))


def test_a_token_of_the_caller_is_not_written() -> None:
    assert "hf_secret" not in script(config(), token="hf_secret_of_a_user")
