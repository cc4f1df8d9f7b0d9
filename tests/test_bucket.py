"""`/data` on a Space is a mounted bucket: no links, and a file is safe once closed or fsynced."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.events import Ended, EventLog, Saved, Step, read_events
from phi3lora.hub import backup
from phi3lora.runs.store import RunStore
from phi3lora.settings import MOUNT, Settings

_FORBIDDEN: list[Path] = []


def _refuse_links(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("os.link", "os.symlink") and _FORBIDDEN:
        target = Path(os.fsdecode(arguments[1]))
        if any(target.is_relative_to(folder) for folder in _FORBIDDEN):
            raise OSError(95, "Operation not supported", str(target))


sys.addaudithook(_refuse_links)


class Bucket:
    """A folder whose files are, after a crash, as they were when last closed or fsynced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.safe: dict[str, bytes] = {}

    def keep(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.is_relative_to(self.folder) and path.is_file():
            self.safe[str(path.relative_to(self.folder))] = path.read_bytes()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    found = Bucket(tmp_path / "data")
    found.folder.mkdir()
    real = os.fsync

    def fsync(descriptor: Any) -> None:
        real(descriptor)
        found.keep(descriptor if isinstance(descriptor, int) else descriptor.fileno())

    monkeypatch.setattr(os, "fsync", fsync)
    _FORBIDDEN.append(found.folder)
    yield found
    _FORBIDDEN.remove(found.folder)


def test_the_bucket_behaves_like_one(bucket: Bucket) -> None:
    (bucket.folder / "a").write_text("a")
    for link in (os.link, os.symlink):
        with pytest.raises(OSError, match="not supported"):
            link(bucket.folder / "a", bucket.folder / "b")
    assert bucket.safe == {}


def test_a_run_lives_there_and_its_files_are_safe(bucket: Bucket) -> None:
    store = RunStore(Settings(home=bucket.folder))
    run = store.create(RunConfig(), owner="ann")
    for name in ("config.yaml", "state.json"):
        assert (run.folder / name).read_bytes() in bucket.safe.values()
    assert store.get(run.id, "ann").config == run.config


def test_events_are_safe_at_each_checkpoint_and_at_the_end(bucket: Bucket) -> None:
    path = bucket.folder / "events.jsonl"
    with EventLog(path) as log:
        log.emit(Step(step=1, total_steps=2, loss=1.0))
        assert "events.jsonl" not in bucket.safe  # each step would be an upload
        log.emit(Saved(path="checkpoints/checkpoint-1", step=1))
        after_checkpoint = bucket.safe["events.jsonl"]
        log.emit(Step(step=2, total_steps=2, loss=0.5))
        assert bucket.safe["events.jsonl"] == after_checkpoint
        log.emit(Ended(outcome="finished", step=2, seconds=1.0))
        (bucket.folder / "after-a-crash").write_bytes(bucket.safe["events.jsonl"])
        found = read_events(bucket.folder / "after-a-crash")[0]
    assert [event.kind for event in found] == ["step", "saved", "step", "ended"]


def test_a_backup_takes_copies_where_links_are_not_possible(bucket: Bucket) -> None:
    checkpoint = bucket.folder / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    links = backup._link(checkpoint, bucket.folder / ".backup" / "1")
    assert (links / "optimizer.pt").read_bytes() == b"state"


def test_runs_lie_on_the_volume_and_caches_on_the_spaces_own_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3lora.settings.MOUNT", tmp_path)
    environ = {"SPACE_ID": "ann/app", "XDG_CACHE_HOME": "/own/disk"}
    settings = Settings.from_environment(environ)
    assert settings.runs_folder == tmp_path / "phi3lora" / "runs"
    assert settings.cache_folder == Path("/own/disk/phi3lora/cache")
    assert settings.home_problem == ""
    named = Settings.from_environment({**environ, "PHI3LORA_HOME": str(tmp_path / "mine")})
    assert named.cache_folder == Path("/own/disk/phi3lora/cache")
    here = Settings.from_environment({"PHI3LORA_HOME": str(tmp_path)})
    assert here.cache_folder == tmp_path / "cache"


@pytest.mark.parametrize("problem", ["", "The volume at /data cannot be written."])
def test_it_is_said_at_the_top_of_the_first_page(tmp_path: Path, problem: str) -> None:
    from phi3lora.app.application import Application
    from phi3lora.ui.app import build

    app = Application.open(Settings(home=tmp_path, home_problem=problem), helper=False)
    shown = [str(part["props"].get("value")) for part in build(app).config["components"]]
    assert any("cannot be written" in value for value in shown) == bool(problem)


@pytest.mark.parametrize(
    ("sign_in", "scopes", "expected"),
    [(False, "", True), (True, "write-discussions", True), (True, "contribute-repos", False)],
)
def test_pull_requests_are_offered_where_they_are_permitted(
    sign_in: bool, scopes: str, expected: bool
) -> None:
    environ = {"SPACE_ID": "ann/app", "OAUTH_SCOPES": f"openid {scopes}"}
    if sign_in:
        environ |= {"SYSTEM": "spaces", "OAUTH_CLIENT_ID": "one"}
    assert Settings.from_environment(environ).may_propose == expected


def test_a_volume_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3lora.settings.MOUNT", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    settings = Settings.from_environment({"SPACE_ID": "ann/app", "XDG_CACHE_HOME": "/own/disk"})
    assert settings.home == Path("/own/disk/phi3lora")
    assert "cannot be written" in settings.home_problem
    monkeypatch.setattr("phi3lora.settings.MOUNT", tmp_path / "absent")
    settings = Settings.from_environment({"SPACE_ID": "ann/app", "XDG_CACHE_HOME": "/own/disk"})
    assert settings.home_problem == ""
    assert Path("/data") == MOUNT
