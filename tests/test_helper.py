"""The processes that run preflights: what hangs, grows, crashes or raises harms nobody else."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest

from phi3lora.app import preflights
from phi3lora.app.helper import Helper, HelperDied, Limits, _is_over, environment
from phi3lora.app.preflights import PreflightPool
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, DataError, Phi3LoraError, Problem
from phi3lora.settings import Settings
from tests.serving import PATIENCE

NO = Limits()


# What the helpers are asked: they import this module.


def add(one: int, two: int) -> int:
    sys.stdout.write("what a library prints is no answer\n")
    return one + two


def warn() -> None:
    warnings.warn("This is deprecated.", FutureWarning, stacklevel=1)


def spin() -> None:
    while True:
        pass


def grow() -> None:
    kept = []
    while True:
        kept.append(b"x" * 10_000_000)


def die() -> None:
    os._exit(1)


def wait_for(file: str) -> str:
    while not Path(file).exists():
        time.sleep(0.02)
    return file


class Odd(Exception):
    """Cannot be unpickled: it wants two arguments and keeps one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


class OddOfOurs(Phi3LoraError):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail(kind: str) -> None:
    raise {
        "odd": Odd("a", "b"),
        "odd of ours": OddOfOurs("a", "b"),
        "ours": DataError("No such column."),
        "problems": ConfigError([Problem("data.path", "is missing.")]),
        "memory": MemoryError(),
        "recursion": RecursionError("maximum recursion depth exceeded"),
        "panic": BaseException("panic"),
        "exit": SystemExit(4),
    }[kind]


def unpicklable() -> Any:
    return lambda: None


def seen() -> tuple[dict[str, str], bytes]:
    return dict(os.environ), Path("/proc/self/environ").read_bytes() if psutil.LINUX else b""


@pytest.fixture(scope="module")
def helper() -> Any:
    started = Helper(strangers=False)
    yield started
    started.end()


def test_an_answer_comes_back(helper: Helper) -> None:
    assert [helper.ask(add, (number, 1), NO) for number in range(3)] == [1, 2, 3]


def test_what_libraries_tell_their_developers_is_not_passed_on(
    helper: Helper, capfd: pytest.CaptureFixture[str]
) -> None:
    """A command's helper writes where the command does."""
    helper.ask(warn, (), NO)
    assert "deprecated" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("odd", Phi3LoraError, "Odd: a"),
        ("odd of ours", Phi3LoraError, "a and b"),
        ("ours", DataError, "No such column."),
        ("problems", Phi3LoraError, "data.path: is missing."),
        ("memory", Phi3LoraError, "MemoryError"),
        ("recursion", Phi3LoraError, "maximum recursion depth"),
        ("panic", Phi3LoraError, "panic"),
        ("exit", Phi3LoraError, "SystemExit: 4"),
    ],
)
def test_every_exception_comes_back_in_words(
    helper: Helper, kind: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        helper.ask(fail, (kind,), NO)
    assert words in str(caught.value)
    assert helper.ask(add, (1, 1), NO) == 2, "the helper is still there"


def test_an_answer_that_cannot_be_sent_is_an_error_in_words(helper: Helper) -> None:
    with pytest.raises(Phi3LoraError, match="could not be read"):
        helper.ask(unpicklable, (), NO)
    assert helper.ask(add, (1, 1), NO) == 2


@pytest.mark.parametrize(
    ("function", "limits", "words"),
    [
        (spin, Limits(seconds=0.3), "longer than 0.3 s"),
        (grow, Limits(bytes=300_000_000), "of memory"),
    ],
)
def test_what_hangs_or_grows_is_ended(function: Any, limits: Limits, words: str) -> None:
    one = Helper(strangers=False)
    with pytest.raises(Phi3LoraError, match=words):
        one.ask(function, (), limits)
    assert not one.alive


def test_a_helper_that_dies_says_so() -> None:
    one = Helper(strangers=False)
    with pytest.raises(HelperDied):
        one.ask(die, (), NO)
    assert not one.alive


def test_a_helper_of_strangers_is_started_without_secrets(monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_space")
    monkeypatch.setenv("OAUTH_CLIENT_SECRET", "oauth_of_the_space")
    monkeypatch.setenv("MY_DATABASE", "postgres://user:pass@host")
    one = Helper(strangers=True)
    if psutil.LINUX:  # as root sees it from outside, from its first moment on
        outside = Path(f"/proc/{one._process.pid}/environ").read_bytes()
        assert b"of_the_space" not in outside
        assert b"postgres" not in outside
    kept = environment(strangers=True)
    assert not {"HF_TOKEN", "OAUTH_CLIENT_SECRET", "MY_DATABASE"} & kept.keys()
    assert "HF_TOKEN" not in environment(strangers=False)
    one.end()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_helper_ends_with_its_app() -> None:
    one = Helper(strangers=False)
    one.ask(add, (1, 1), NO)
    threading.Thread(target=lambda: ignore(lambda: one.ask(spin, (), NO)), daemon=True).start()
    time.sleep(0.2)
    assert one._process.stdin is not None
    one._process.stdin.close()  # as when the app is killed
    assert one._process.wait(PATIENCE) == 0


def ignore(ask: Any) -> None:
    try:
        ask()
    except HelperDied:
        return


# The pool


@pytest.fixture
def pool(tmp_path: Path) -> Any:
    pool = PreflightPool(Settings(home=tmp_path, space_id="ann/space"))
    yield pool
    pool.close()


def test_one_person_has_one_preflight_at_a_time_and_others_go_on(
    pool: PreflightPool, tmp_path: Path
) -> None:
    flags = [str(tmp_path / name) for name in ("one", "two", "three")]
    answers: list[str] = []

    def found(flag: str) -> None:
        answers.append(pool._call("eve", wait_for, flag))

    eve = [threading.Thread(target=found, args=(flag,), daemon=True) for flag in flags]
    for thread in eve:
        thread.start()
    until(lambda: pool._of["eve"] + pool._waiting["eve"] == len(eve))
    assert (pool._of["eve"], pool._waiting["eve"]) == (1, 2)
    with pytest.raises(Phi3LoraError, match="2 previews of yours are waiting"):
        pool._call("eve", add, 1, 1)
    assert pool._call("ann", add, 1, 1) == 2, "eve's preflight leaves room for ann's"
    for flag in flags:
        Path(flag).touch()
    for thread in eve:
        thread.join(PATIENCE)
    assert sorted(answers) == sorted(flags)


def until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_endless_preflights_stop_nobody(pool: PreflightPool) -> None:
    pool._limits = Limits(seconds=0.3)
    for person in ("eve", "mallory", "eve"):
        with pytest.raises(Phi3LoraError, match="was ended"):
            pool._call(person, spin)
    pool._limits = Limits()
    assert pool._call("ann", add, 1, 1) == 2


def test_who_waits_too_long_is_told(pool: PreflightPool, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(preflights, "PATIENCE", 0.1)
    monkeypatch.setattr(preflights, "WORKERS", 1)
    flag = tmp_path / "flag"
    busy = threading.Thread(target=lambda: pool._call("eve", wait_for, str(flag)), daemon=True)
    busy.start()
    until(lambda: pool._of["eve"])
    with pytest.raises(Phi3LoraError, match="Others are reading"):
        pool._call("ann", add, 1, 1)
    flag.touch()
    busy.join(PATIENCE)


def test_a_helper_that_died_is_replaced_once(pool: PreflightPool) -> None:
    with pytest.raises(Phi3LoraError, match="ended without an answer"):
        pool._call("eve", die)
    assert pool._call("eve", add, 1, 1) == 2


@pytest.mark.parametrize("path", ["~nobody_of_that_name/x", "rows\0.jsonl", "/proc/self/mem"])
def test_an_odd_path_gets_words(path: str, tmp_path: Path) -> None:
    config = RunConfig().with_values({"data.path": path})
    assert preflights._data_key(config, None, None) == preflights._data_key(config, None, None)


def test_a_real_preflight(pool: PreflightPool) -> None:
    config = RunConfig().with_values({"data.path": "example:pirate", "model.path": "pocket"})
    look = pool.preflight(config, person="ann")
    assert look.inspection.kept == 400
    again = pool.preflight(config, person="ann")
    assert again.inspection.kept == 400


@pytest.mark.parametrize(
    ("waited", "computed", "over"),
    [(59, 59, False), (61, 61, True), (61, 20, False), (179, 20, False), (181, 0, True)],
)
def test_who_is_left_no_processor_is_waited_for(waited: float, computed: float, over: bool) -> None:
    assert _is_over(Limits(seconds=60), waited, computed) is over
    assert not _is_over(Limits(), waited, computed)
