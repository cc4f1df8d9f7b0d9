"""A new token reaches the worker that holds the run, and nobody else."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Session
from phi3lora.config import RunConfig
from phi3lora.runs import life, renewal
from phi3lora.runs.renewal import renew, renewable
from phi3lora.runs.store import changed
from phi3lora.settings import Settings
from tests.hub import LoopbackHub
from tests.serving import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets without a file")
TOKEN = "hf_oauth_" + "new" * 20


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose lock this process holds."""
    lock = life.take(tmp_path)
    assert lock is not None
    life.sign(lock, os.getpid())
    yield tmp_path
    os.close(lock)


def test_a_token_arrives_without_touching_the_disk(folder: Path) -> None:
    taken: list[str] = []
    with renewable(folder, taken.append):
        assert renew(folder, TOKEN)
        assert renew(folder, TOKEN + "2")
    assert taken == [TOKEN, TOKEN + "2"]
    assert [path.name for path in folder.iterdir()] == [life.LOCK]
    assert TOKEN.encode() not in (folder / life.LOCK).read_bytes()
    assert not renew(folder, TOKEN)  # nobody listens any more


def test_whoever_holds_no_lock_gets_no_token(tmp_path: Path) -> None:
    taken: list[str] = []
    with renewable(tmp_path, taken.append):
        assert not renew(tmp_path, TOKEN)
    assert taken == []


def test_a_sign_in_reaches_the_runs_of_whoever_signed_in(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_user("ann", token="hf_first")
    hub.add_user("bob", token="hf_bob")
    settings = Settings(home=tmp_path, space_id="ann/app", sign_in=True)
    app = Application.open(settings, helper=False)
    run = app.launching.store.create(RunConfig().with_values({"hub.backup": True}), owner="ann")
    lock = life.take(run.folder)
    assert lock is not None
    life.sign(lock, os.getpid())
    changed(run, status="running")
    taken: SimpleQueue[str] = SimpleQueue()
    with renewable(run.folder, taken.put):
        for token in ("hf_first", "hf_first", "hf_bob"):
            app.callers.caller(Session(token=token))
        assert taken.get(timeout=PATIENCE) == "hf_first"
        hub.add_token("ann", "hf_again")
        app.callers.caller(Session(token="hf_again"))
        assert taken.get(timeout=PATIENCE) == "hf_again"
    os.close(lock)
    assert taken.empty()


def test_rubbish_and_connections_that_break_are_passed_over(folder: Path) -> None:
    taken: list[str] = []
    with renewable(folder, taken.append):
        for rubbish in (b"", b"\xff\xfe\n", b"x" * (2 * renewal.LONGEST + 5)):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(renewal._address(folder))
                connection.sendall(rubbish)
        assert renew(folder, TOKEN)
    assert taken == [TOKEN]


def test_two_workers_of_a_run_do_not_stop_each_other(folder: Path) -> None:
    taken: list[str] = []
    with renewable(folder, taken.append), renewable(folder, lambda token: None):
        assert renew(folder, TOKEN)
    assert taken == [TOKEN]
