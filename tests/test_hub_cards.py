"""A dataset's card names files of its own repository, and nothing else is ever asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phi3lora.config import DataConfig
from phi3lora.data.hub_cards import LARGEST_YAML, check_card
from phi3lora.data.sources import configurations, open_source
from phi3lora.errors import DataError
from tests.hub import LoopbackHub

ROWS = json.dumps({"question": "a", "answer": "b"}) + "\n"
OUT = [
    "webhdfs://127.0.0.1:1/x.jsonl",
    "ftp://127.0.0.1:1/x.jsonl",
    "http://127.0.0.1:1/x.jsonl",
    "s3://bucket/x.jsonl",
    "hf://datasets/bob/secret/x.jsonl",
    "zip://x.jsonl::http://127.0.0.1:1/x.zip",
    "simplecache::x.jsonl",
    "/etc/passwd",
    "/proc/self/environ",
    "~/x.jsonl",
    "C:\\x.jsonl",
    "../../**/x.jsonl",
    "data/../../x.jsonl",
    "a\\..\\x.jsonl",
]


def card(pattern: str, shape: str = "list") -> str:
    quoted = json.dumps(pattern)
    files = {
        "text": quoted,
        "list": f"[{{split: train, path: {quoted}}}]",
        "lists": f"[{{split: train, path: [train.jsonl, {quoted}]}}]",
        "map": f"{{train: {quoted}}}",
    }[shape]
    return f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\nText.\n"


@pytest.mark.parametrize("pattern", OUT)
@pytest.mark.parametrize("shape", ["text", "list", "lists", "map"])
def test_a_pattern_that_leads_out_is_refused(pattern: str, shape: str) -> None:
    with pytest.raises(DataError, match="outside of the repo"):
        check_card("README.md", card(pattern, shape), "eve/rows")
    folder = card("x", shape).replace("data_files", "data_dir: " + json.dumps(pattern) + "\n  x")
    with pytest.raises(DataError, match="outside of the repo"):
        check_card("README.md", folder, "eve/rows")


@pytest.mark.parametrize("pattern", ["data/train-*.parquet", "**/*.jsonl", "a..b.csv", "x.json"])
def test_a_pattern_of_the_repo_is_taken(pattern: str) -> None:
    check_card("README.md", card(pattern), "ann/rows")
    check_card("README.md", "No metadata: /etc/passwd", "ann/rows")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("---\na: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n---\n", "uses aliases"),
        ("---\na: {\n---\n", "no YAML"),
        ("---\na: " + "[" * 50_000 + "\n---\n", "no YAML"),
        ("---\na: '" + "x" * LARGEST_YAML + "'\n---\n", "characters of metadata"),
        ("---\na: !!python/object/apply:os.system [ls]\n---\n", "no YAML"),
    ],
)
def test_metadata_that_is_a_trap_is_refused(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check_card("README.md", text, "eve/rows")


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_nothing_that_such_a_card_names_is_asked_for(
    name: str, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def never(*_: object, **__: object) -> None:
        raise AssertionError("datasets was asked to resolve the card")

    monkeypatch.setattr(datasets, "load_dataset_builder", never)
    monkeypatch.setattr(datasets, "get_dataset_config_names", never)
    text = card("webhdfs://127.0.0.1:1/x.jsonl")
    text = text if name == "README.md" else text.split("---")[1]
    hub.add_user("eve", token="hf_eve")
    hub.add_repo("dataset", "eve/rows", {name: text, "train.jsonl": ROWS})
    source = open_source(DataConfig(path="eve/rows"), cache_folder=tmp_path)
    for use in (lambda: source.first(1), lambda: list(source.rows()), lambda: source.count):
        with pytest.raises(DataError, match="outside of the repo"):
            use()
    with pytest.raises(DataError, match="outside of the repo"):
        configurations("eve/rows")
