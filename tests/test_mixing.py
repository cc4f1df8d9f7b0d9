"""Several sources in one run: weights, rows, seeds and shares; near-duplicates on one side."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from phi3lora import cli
from phi3lora.config import POCKET, DataConfig, RunConfig, SourceConfig
from phi3lora.data.inspection import inspect
from phi3lora.data.mixing import drawn, split_indices
from phi3lora.data.preparation import prepare
from phi3lora.errors import AccessError, ConfigError, DataError, HubError
from phi3lora.hub.backup import check_portable
from phi3lora.hub.facts import collect
from phi3lora.models.loading import load_tokenizer
from phi3lora.runs.permission import check_paths
from phi3lora.runs.store import RunStore, with_whole_paths
from phi3lora.settings import Settings
from phi3lora.training.estimate import _work
from phi3lora.training.preflight import Preflight
from phi3lora.ui.train_show import data_summary

TEMPLATE = "Dear captain, the parrot of the ship has said the word {} again and again all day long"


@pytest.fixture(scope="module")
def pocket() -> Any:
    return load_tokenizer(POCKET, weights=False)


def write(file: Path, pairs: list[tuple[str, str]]) -> Path:
    lines = (json.dumps({"prompt": a, "completion": b}) for a, b in pairs)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    one = write(tmp_path / "one.jsonl", [(f"one {n}", f"first {n}") for n in range(20)])
    other = write(tmp_path / "other.jsonl", [(f"other {n}", f"second {n}") for n in range(10)])
    return one, other


def config(path: Path, **data: Any) -> RunConfig:
    values = {f"data.{name}": value for name, value in data.items()}
    return RunConfig().with_values({"data.path": str(path), **values})


def trained(config: RunConfig, pocket: Any, cache: Path) -> tuple[Counter[str], Any]:
    found = prepare(config, pocket, cache_folder=cache)
    return Counter(row["messages"][0]["content"] for row in found.conversations), found


@pytest.mark.parametrize(
    ("source", "numbers"),
    [
        ({}, [1] * 10),
        ({"weight": 2}, [2] * 10),
        ({"weight": 1.5}, [1] * 5 + [2] * 5),
        ({"weight": 0.3}, [0] * 7 + [1] * 3),
        ({"weight": 0.0001}, [0] * 9 + [1]),
        ({"rows": 4}, [0] * 6 + [1] * 4),
        ({"rows": 23, "weight": 0.1}, [2] * 7 + [3] * 3),
    ],
)
def test_a_source_is_drawn_by_weight_or_rows(source: dict[str, Any], numbers: list[int]) -> None:
    rows = np.arange(100, 110)
    used = drawn(rows, SourceConfig(path="a/b", **source))
    counted = Counter(used.tolist())
    assert sorted(counted[row] for row in rows.tolist()) == numbers
    assert used.tolist() == sorted(used)
    assert used.tolist() == drawn(rows, SourceConfig(path="a/b", **source)).tolist()
    assert drawn(rows[:0], SourceConfig(path="a/b", **source)).tolist() == []


def test_another_seed_draws_other_rows() -> None:
    rows = np.arange(1000)
    one, other = (drawn(rows, SourceConfig(path="a/b", rows=10, seed=s)).tolist() for s in (1, 2))
    assert one != other


def test_two_sources_are_one_run(files: tuple[Path, Path], pocket: Any, tmp_path: Path) -> None:
    one, other = files
    more = [{"path": str(other), "weight": 3, "seed": 1}]
    mixed = config(one, more=more, test_size=6, rows=7)
    said, found = trained(mixed, pocket, tmp_path / "cache")
    assert found.rows == 30
    assert len(found.test) == 6
    asked = {row["messages"][0]["content"] for row in found.test}
    assert not asked & set(said)
    theirs = {name: n for name, n in said.items() if name.startswith("other")}
    held = sum(name.startswith("other") for name in asked)
    assert set(theirs.values()) == {3}
    assert len(theirs) == 10 - held
    assert sum(said.values()) - sum(theirs.values()) == 7
    assert found.train_tokens == sum(len(row["input_ids"]) for row in found.train)
    (notice,) = [one for one in found.notices if one.startswith("An epoch mixes")]
    assert notice.startswith("An epoch mixes one.jsonl 7 rows (")
    assert f"other.jsonl {3 * (10 - held)} rows (" in notice


def test_the_share_of_each_is_shown_and_counted(
    files: tuple[Path, Path], pocket: Any, tmp_path: Path
) -> None:
    one, other = files
    seen = inspect(config(one, more=[{"path": str(other), "weight": 0.5}]), pocket)
    assert (seen.rows, seen.kept) == (30, 30)
    assert [(share.label, share.rows, share.used) for share in seen.shares] == [
        ("one.jsonl", 20, 20),
        ("other.jsonl", 10, 5),
    ]
    assert sum(share.share for share in seen.shares) == pytest.approx(1)
    assert seen.drawn == 25 / 30
    mixed = config(one, more=[{"path": str(other), "weight": 0.5}])
    assert "other.jsonl 5 rows (" in data_summary(mixed, Preflight([], seen))
    assert [share["label"] for share in seen.to_json()["sources"]] == ["one.jsonl", "other.jsonl"]
    plain = config(one)
    alone = inspect(plain, pocket)
    assert (alone.shares, alone.drawn, alone.drawn_tokens) == ([], 1.0, 1.0)
    twice = config(one, weight=2, test_size=0)
    steps, tokens, _ = _work(twice, inspect(twice, pocket))
    once = config(one, test_size=0)
    assert (steps, tokens) == tuple(2 * number for number in _work(once, alone)[:2])


def test_counts_and_seeds_of_sources_at_the_terminal(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = files
    monkeypatch.setenv("PHI3LORA_HOME", str(tmp_path / "home"))
    more = json.dumps([{"path": str(other), "rows": 4, "seed": 3}])
    typed = ["inspect", str(one), "--model=pocket", "--set", f"data.more={more}"]
    said = CliRunner().invoke(cli.app, [*typed, "--set", "data.weight=0.5"])
    assert said.exit_code == 0, said.output
    shown = " ".join(said.output.split())
    assert "one.jsonl: 10 rows an epoch (" in shown
    assert "other.jsonl: 4 rows an epoch (" in shown
    wrong = CliRunner().invoke(cli.app, [*typed, "--set", "data.keep_apart=1"])
    assert wrong.exit_code == 2


def test_each_source_is_read_in_its_own_way(tmp_path: Path, pocket: Any) -> None:
    one = write(tmp_path / "one.jsonl", [("a b", "c d")] * 4)
    odd = tmp_path / "odd.csv"
    odd.write_text("Frage,Antwort\nWer?,Ich.\n", encoding="utf-8")
    columns = {"prompt": "Frage", "completion": "Antwort"}
    seen = inspect(config(one, more=[{"path": str(odd), "columns": columns}]), pocket)
    assert "Wer?" in "".join(piece["text"] for piece in seen.preview[-1])
    with pytest.raises(DataError, match="'Frage'"):
        inspect(config(one, more=[{"path": str(odd)}]), pocket)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([{"weight": 1}], "path"),
        ([{"path": "a", "weight": 0}], "weight"),
        ([{"path": "a", "rows": 0}], "rows"),
        ([{"path": "a", "test_size": 1}], "test_size"),
        ([{"path": "a"}] * 21, "more"),
        ("a", "more"),
    ],
)
def test_wrong_sources_are_refused_by_name(more: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig().with_values({"data.more": more})


def test_a_further_source_is_as_foreign_as_the_first(tmp_path: Path, settings: Settings) -> None:
    """On a Space no file of the machine may be named, and no path of it is published."""
    secret = write(tmp_path / "secret.jsonl", [("a", "b")])
    named = RunConfig().with_values({"data.more": [{"path": str(secret)}]})
    check_paths(named, "local", settings)
    with pytest.raises(AccessError, match=r"data\.more\.0\.path"):
        check_paths(named, "ann", Settings(home=settings.home, space_id="ann/space"))
    run = RunStore(settings).create(named)
    facts = collect(run.folder)
    assert [one.name for one in facts.more] == ["secret.jsonl"]


def test_a_run_that_computes_elsewhere_needs_further_sources_of_the_hub(tmp_path: Path) -> None:
    more = [{"path": "example:pirate"}, {"path": "ann/chat"}]
    check_portable(RunConfig().with_values({"data.more": more, "model.path": "pocket"}))
    more.append({"path": str(tmp_path / "b.jsonl")})
    with pytest.raises(HubError, match=r"also learns from .*b\.jsonl"):
        check_portable(RunConfig().with_values({"data.more": more, "model.path": "pocket"}))


def test_relative_files_are_named_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.jsonl", [("a", "b")])
    named = RunConfig().with_values({"data.more": [{"path": "b.jsonl", "weight": 2}]})
    (source,) = with_whole_paths(named).data.more
    assert (source.path, source.weight) == (str(tmp_path / "b.jsonl"), 2)


# Held out


def test_a_split_without_groups_is_as_it_was() -> None:
    for rows, size in ((10, 0.25), (100, 7), (5, 0)):
        plain = split_indices(rows, size, 3)
        grouped = split_indices(rows, size, 3, np.arange(rows))
        assert [side.tolist() for side in plain] == [side.tolist() for side in grouped]


def test_groups_stay_whole_and_the_number_is_as_asked() -> None:
    chance = np.random.default_rng(0)
    for seed in range(20):
        like = chance.integers(0, 40, 100)
        train, test = split_indices(100, 20, seed, like)
        assert len(test) == 20
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
        assert not set(like[train]) & set(like[test])
    one = np.zeros(10, int)
    assert len(split_indices(10, 3, 1, one)[1]) == 3  # nothing fits: as many as were asked for
    assert split_indices(10, 3, 1, one)[1].tolist() == split_indices(10, 3, 1)[1].tolist()


def test_near_duplicates_stay_on_one_side(tmp_path: Path, pocket: Any) -> None:
    pairs = [(f"{n} " + TEMPLATE.format(n), f"yes {n}") for n in range(3)]
    texts = [
        (f"{text} {tail}", said)
        for n in range(30)
        for text, said in [(" ".join(f"w{n}x{k}" for k in range(30)), f"so {n}")]
        for tail in ("", "now")
    ]
    file = write(tmp_path / "rows.jsonl", [*pairs, *texts])
    wanted = config(file, test_size=10)
    found = prepare(wanted, pocket, cache_folder=tmp_path / "cache")
    assert found.test is not None

    def stems(rows: Any) -> set[str]:
        return {row["messages"][0]["content"].split()[0] for row in rows}

    assert len(found.test) == 10
    assert not stems(found.test) & stems(found.conversations)
    apart = prepare(config(file, test_size=10, keep_together=False), pocket, cache_folder=tmp_path)
    assert apart.test is not None
    assert stems(apart.test) & stems(apart.conversations)
    kept = next((tmp_path / "cache" / "prepared").glob("*/signatures.npy"))
    kept.write_bytes(b"damaged")
    again = prepare(wanted, pocket, cache_folder=tmp_path / "cache")
    assert again.test_rows == found.test_rows
    assert np.load(kept).shape == (63, 64)


def test_rows_that_all_are_alike_are_split_with_a_notice(tmp_path: Path, pocket: Any) -> None:
    file = write(tmp_path / "rows.jsonl", [("Who are you?", "A pirate, matey, of the sea!")] * 12)
    found = prepare(config(file, test_size=2), pocket)
    assert found.test is not None
    assert len(found.test) == 2
    assert any("2 held-out rows are nearly the same" in notice for notice in found.notices)


def test_sources_share_the_options_of_the_data() -> None:
    assert set(SourceConfig.model_fields) < set(DataConfig.model_fields)
