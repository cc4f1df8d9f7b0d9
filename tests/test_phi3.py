"""The table of the family's shape: equal to what transformers builds, and the only one."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import SliceConfig
from phi3lora.models.base import check_base
from phi3lora.models.phi3 import EMBEDDING, GATE_UP, HEAD, PHI3, QKV, Widths

PACKAGE = Path(__file__).parent.parent / "phi3lora"
# The table itself, the quicker forward of the very classes that it names, what of transformers
# that forward was tested with, and the exported script, which stands without this package.
MAY_NAME = {
    PACKAGE / "models" / "phi3.py",
    PACKAGE / "training" / "fast" / "layers.py",
    PACKAGE / "training" / "fast" / "tested.py",
    PACKAGE / "training" / "templates" / "train.py",
}


def model(**changes: Any) -> Any:
    """A Phi-3 by its numbers, on no device."""
    import torch
    from transformers import Phi3Config

    numbers = {
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    with torch.device("meta"):
        return PHI3.load_class()(Phi3Config(**(numbers | changes)))


@pytest.mark.parametrize("keys", [6, 2, 1])
def test_the_table_is_what_transformers_builds(keys: int) -> None:
    built = model(num_key_value_heads=keys)
    widths = Widths.of(built.config)
    modules = dict(built.named_modules())
    for name, (inputs, outputs) in PHI3.linear(widths).items():
        for layer in range(2):
            module = modules[PHI3.path(layer, name)]
            assert (module.in_features, module.out_features) == (inputs, outputs)
    rows = PHI3.slice_rows(widths)
    assert rows[QKV] == {"q": 48, "k": 8 * keys, "v": 8 * keys}
    assert rows[GATE_UP] == {"gate": 80, "up": 80}
    assert type(modules["model.layers.0.self_attn"]).__name__ == PHI3.attention_class
    assert {EMBEDDING, HEAD} <= {path.rpartition(".")[2] for path in modules}


def test_every_linear_layer_is_in_the_table() -> None:
    from torch import nn

    found = {
        path.rpartition(".")[2]
        for path, module in model().named_modules()
        if isinstance(module, nn.Linear)
    }
    assert found == {*PHI3.blocks, HEAD}


def test_a_checked_base_has_the_same_widths() -> None:
    base = check_base("pocket")
    assert base.shapes == PHI3.linear(base)
    assert base.shapes[QKV][1] == sum(PHI3.slice_rows(base)[QKV].values())


def test_the_config_has_a_switch_for_each_slice() -> None:
    assert [part for parts in PHI3.fused.values() for part in parts] == list(
        SliceConfig.model_fields
    )


def names_in(file: Path) -> set[str]:
    """Strings and attributes in the code of a file; docstrings and comments are prose."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and id(node) not in prose:
            found.add(str(node.value))
    return found


def test_nothing_else_names_a_fused_projection() -> None:
    named = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if file not in MAY_NAME and any(QKV in n or GATE_UP in n for n in names_in(file))
    }
    assert not named, "ask phi3lora.models.phi3"
