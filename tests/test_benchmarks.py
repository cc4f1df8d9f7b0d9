"""The benchmarks do what they say, at their smallest size; no test looks at a clock."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import page
from benchmarks.harness import (
    DOCS,
    REPOSITORY,
    Bars,
    Goal,
    Report,
    Table,
    medians,
    publish,
    ratio,
    take_turns,
)

SLOW = pytest.mark.slow


def report(**changes: object) -> Report:
    """A result as a benchmark makes it."""
    values = {
        "name": "data",
        "title": "A title",
        "about": "What was done.",
        "command": "python -m benchmarks.data",
        "tables": [Table("Times", ["", "time"], [["ours", "1.00 s"], ["theirs", "3.00 s"]])],
        "goals": [
            Goal("Faster", 3.0, 2.0, "least", "×"),
            Goal("Smaller", 400.0, 350.0, "most", " MiB", why="Pandas."),
        ],
        "pictures": [Bars("Times", "s", {"ours": [1.0], "theirs": [3.0]}, limit=2.0)],
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_contestants_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    clock = iter([9.0, 9.0, 1.0, 2.0, 10.0, 30.0])

    def contestant(name: str) -> float:
        order.append(name)
        return next(clock)

    taken = take_turns({"a": lambda: contestant("a"), "b": lambda: contestant("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert taken == {"a": [1.0, 10.0], "b": [2.0, 30.0]}
    assert medians(taken) == {"a": 5.5, "b": 16.0}
    assert ratio(taken, "b", "a") == 2.5  # of 2 and 3: not 16 / 5.5


@pytest.mark.parametrize(
    ("measured", "limit", "side", "met"),
    [(2, 2, "least", True), (1.9, 2, "least", False), (2, 2, "most", True), (3, 2, "most", False)],
)
def test_goal(measured: float, limit: float, side: str, met: bool) -> None:
    assert Goal("x", measured, limit, side).met is met  # type: ignore[arg-type]


def test_a_result_is_kept_drawn_and_put_on_the_page(tmp_path: Path) -> None:
    parts = ("summary", "behind", "data", "gpu-lora")
    marks = "\n".join(f"<!-- begin {name} -->\nold\n<!-- end {name} -->" for name in parts)
    (tmp_path / "benchmarks.md").write_text(f"By hand.\n{marks}\nBy hand too.\n", encoding="utf-8")
    publish(report(), tmp_path)

    kept = json.loads((tmp_path / "benchmarks" / "data.json").read_text(encoding="utf-8"))
    assert [goal["met"] for goal in kept["goals"]] == [True, False]
    assert (tmp_path / "benchmarks" / "data.svg").read_text(encoding="utf-8").startswith("<?xml")
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert text.startswith("By hand.\n")
    assert text.endswith("By hand too.\n")
    assert "old" not in text
    assert "| A title: Faster | at least 2× | 3× | yes |" in text
    assert "- A title: Smaller: 400 MiB instead of at most 350 MiB. Pandas." in text
    assert "| theirs | 3.00 s |" in text
    assert "![A title](benchmarks/data.svg)" in text
    assert text.count("Not measured yet: `python -m benchmarks.gpu --method lora`.") == 2


def test_the_same_figures_make_the_same_picture(tmp_path: Path) -> None:
    for name in ("one", "two"):
        publish(report(), tmp_path / name)
    one, two = ((tmp_path / n / "benchmarks" / "data.svg").read_bytes() for n in ("one", "two"))
    assert one == two


def test_the_page_is_as_the_kept_figures_make_it() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert page.render(text, page.load(DOCS / "benchmarks")) == text


def test_the_page_names_every_benchmark() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    runnable = {
        p.stem
        for p in (REPOSITORY / "benchmarks").glob("*.py")
        if "publish(" in p.read_text(encoding="utf-8")
    } - {"harness"}
    assert runnable >= {"startup", "data", "gpu"}
    for name in runnable:
        assert f"`python -m benchmarks.{name}" in text


def in_this_process(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """What `python -m module …` would print, without importing everything once more."""
    said, environment = StringIO(), os.environ
    try:
        with redirect_stdout(said):
            importlib.import_module(command[2]).main(command[3:])
    finally:
        vars(os)["environ"] = environment  # `datasets.map` in several processes leaves a copy there
    return subprocess.CompletedProcess(command, 0, said.getvalue(), "")


class Child:
    """`Popen` of such a command: it has run when it is asked for what it said."""

    returncode = 0

    def __init__(self, command: list[str], **_: Any) -> None:
        self.command, self.pid = command, os.getpid()

    def communicate(self) -> tuple[str, str]:
        return in_this_process(self.command).stdout, ""


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Lets a benchmark's commands run here: what they are told and what they answer is theirs."""
    here = SimpleNamespace(run=in_this_process, Popen=Child, PIPE=subprocess.PIPE)

    def use(module: Any) -> None:
        monkeypatch.setattr(module, "subprocess", here)

    return use


@SLOW
def test_chat(tmp_path: Path) -> None:
    from benchmarks import chat

    chat.main(["--small", "--out", str(tmp_path)])
    (result,) = figures(tmp_path, "chat")["results"]
    assert 0 < result["of_the_memorys_rate"] < 1
    assert result["tokens"] == 8
    assert set(result["seconds"]) >= {"base alone", "tuned alone", "together"}


@SLOW
def test_training(
    tmp_path: Path,
    real_vocabulary: Path,
    alpaca_rows: Path,
    one_process: Callable[[Any], None],
) -> None:
    from benchmarks import training

    one_process(training)
    training.main(["--small", "--rounds", "1", "--out", str(tmp_path)])
    kept = figures(tmp_path, "training")
    assert set(kept["taken"]) >= {"plain TRL", "phi3lora"}
    assert kept["faster"] > 0
    assert set(kept["peaks"]) == {"plain TRL", "phi3lora"}


@SLOW
def test_startup(tmp_path: Path) -> None:
    from benchmarks import startup

    startup.main(["--small", "--out", str(tmp_path)])
    kept = figures(tmp_path, "startup")
    assert set(kept["seconds"]) == {"phi3lora", "an empty Gradio app"}
    assert all(value > 0 for name in kept["memory_mib"] for value in kept["memory_mib"][name])
    assert kept["idle"]["pages"][0] >= 0


@SLOW
def test_data(tmp_path: Path, one_process: Callable[[Any], None]) -> None:
    from benchmarks import data

    one_process(data)
    data.main(["--small", "--out", str(tmp_path)])
    kept = figures(tmp_path, "data")
    assert set(kept["first"]) == {"phi3lora", "datasets.map", "TRL"}
    assert set(kept["rows"].values()) == {300}
    assert len(set(kept["tokens"].values())) == 1  # all three made the same tokens


@SLOW
def test_gpu_at_toy_size(tmp_path: Path, one_process: Callable[[Any], None]) -> None:
    from benchmarks import gpu

    one_process(gpu)
    gpu.main(["--small", "--method", "qlora", "--out", str(tmp_path)])
    kept = figures(tmp_path, "gpu-qlora")
    ours, theirs = (kept["turns"][name][0] for name in ("phi3lora", "TRL + PEFT"))
    for length in ("64", "128"):
        assert ours["lengths"][length]["tokens"] == theirs["lengths"][length]["tokens"] > 200
    assert ours["operations"] == theirs["operations"] > 0


def figures(folder: Path, name: str) -> dict[str, Any]:
    """What a benchmark kept of what it measured."""
    kept = json.loads((folder / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    measured: dict[str, Any] = kept["figures"]
    return measured


def test_without_a_gpu_the_command_for_gpus_says_so_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import on_gpu

    monkeypatch.setattr(on_gpu, "_has_gpu", lambda: False)
    assert on_gpu.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().out == f"{on_gpu.NONE_HERE}\n"
    assert list(tmp_path.iterdir()) == []


def test_on_a_gpu_what_fails_does_not_keep_the_rest_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import on_gpu

    ran: list[str] = []
    monkeypatch.setattr(on_gpu, "_has_gpu", lambda: True)
    monkeypatch.setattr(on_gpu, "_ran", lambda name, _: ran.append(name) or name != "QLoRA")
    assert on_gpu.main(["--out", str(tmp_path)]) == 1
    assert ran == [name for name, _ in on_gpu.steps(tmp_path, tmp_path)]
    assert capsys.readouterr().out == "FAILED: QLoRA\n"
    for _, command in on_gpu.steps(tmp_path, tmp_path):
        for part in command:
            assert not part.startswith("tests/") or (on_gpu.REPOSITORY / part).is_file()


@pytest.mark.parametrize("small", [False, True])
def test_every_step_on_a_gpu_is_a_command_that_its_benchmark_takes(
    tmp_path: Path, small: bool
) -> None:
    from benchmarks import on_gpu

    for name, (_, module, *rest) in on_gpu.steps(tmp_path / "base", tmp_path, small):
        if module.startswith("benchmarks."):
            taken = importlib.import_module(module)._arguments(rest)
            assert taken.small is small, name
            assert taken.out == tmp_path or taken.make == tmp_path / "base"


def test_on_a_gpu_every_goal_is_measured() -> None:
    """Speed, rate and memory of a step, and of a pair of answers."""
    from benchmarks import chat, gpu

    lengths = {"2048": {"seconds": 1.0, "tokens": 8192.0, "peak": 2.0**30}}
    slower = {"2048": {"seconds": 2.0, "tokens": 8192.0, "peak": 2.0**31}}
    told = {"operations": 1e9, "rate": 1e13}
    turns = {gpu.TRL: [{"lengths": slower, **told}], gpu.OURS: [{"lengths": lengths, **told}]}
    arguments = gpu._arguments(["--lengths", "2048"])
    goals = {
        g.title.partition(":")[0]: (g.measured, g.met)
        for g in gpu._report(arguments, turns, {}).goals
    }
    assert goals == {
        "Times as fast as plain TRL and PEFT": (2.0, True),
        "Of the bfloat16 rate": (pytest.approx(81.92), True),
        "Of TRL's peak memory": (50.0, True),
    }
    ratios = {f"{chat.BOTH} / {alone}": 1.1 for alone in (chat.BASE, chat.TUNED)}
    result = {"parameters": 1, "ratios": ratios, "tenth_over_first": 1, "of_the_memorys_rate": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat.torch.cuda, "is_available", lambda: True)
        found = {g.title: g.met for g in chat._goals(["mini"], [result])}
    assert found["Of the memory's rate, mini"] is False
