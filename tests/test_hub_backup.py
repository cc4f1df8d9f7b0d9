"""A run's copy on the Hub: complete, private, never in the way, and good to resume from."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from phi3lora.config import RunConfig
from phi3lora.errors import HubError, RunError
from phi3lora.events import Emit, Event, Notice, Saved, Step
from phi3lora.hub import sending
from phi3lora.hub.access import identity
from phi3lora.hub.backup import (
    Backup,
    RunNote,
    check_run_repo,
    fetch_run,
    list_runs,
    settle,
)
from phi3lora.runs.copies import copied, restore
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import Run, RunState, RunStore
from phi3lora.settings import Settings
from tests.fake_training import config as quick
from tests.fake_training import install
from tests.hub import LoopbackHub
from tests.published import make_run
from tests.serving import PATIENCE

NOTE = RunNote("20261121-093000-4f1a2b", "Pirate", 1_795_000_000.0)
REPO = f"ann/phi3lora-{NOTE.id}"
SECONDS = (0.01,)


@pytest.fixture
def ann(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    hub.add_user("ann", token="hf_ann", orgs=["crew"])
    hub.add_user("bob", token="hf_bob", orgs=["crew"])
    monkeypatch.setattr(sending, "RETRY_SECONDS", ())
    return hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints 1 to 3 and no result yet."""
    folder = make_run(tmp_path / "run", {"hub.backup": True})
    shutil.rmtree(folder / "adapter")
    first = folder / "checkpoints" / "checkpoint-3"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (first / name).write_bytes(name.encode())
    state = {"global_step": 3, "best_model_checkpoint": f"{folder}/checkpoints/checkpoint-3"}
    (first / "trainer_state.json").write_text(json.dumps(state))
    for step in (1, 2):
        shutil.copytree(first, first.with_name(f"checkpoint-{step}"))
    return folder


def start(folder: Path, told: list[str], token: str = "hf_ann", rows: Path | None = None) -> Backup:
    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    return Backup(folder, NOTE, config, token, told.append, SECONDS, rows)


def checkpoints(hub: LoopbackHub) -> set[str]:
    names = (name.split("/") for name in hub.files("model", REPO))
    return {parts[1] for parts in names if parts[0] == "checkpoints"}


def wait_for(condition: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.02)


# Sending


def test_a_checkpoint_and_events_arrive_in_a_private_repository(
    ann: LoopbackHub, run: Path
) -> None:
    told: list[str] = []
    backup = start(run, told)
    backup.saved("checkpoints/checkpoint-3")
    backup.finish()
    assert told == []
    files = ann.files("model", REPO)
    assert ann.repo("model", REPO).private
    assert {name for name in files if not name.startswith("checkpoints/")} == {
        ".gitattributes",
        "README.md",
        "config.yaml",
        "events.jsonl",
        "report.json",
        "run.json",
    }
    place = "checkpoints/checkpoint-3/"
    sent = {name.removeprefix(place): data for name, data in files.items() if place in name}
    assert "training_args.bin" not in sent
    for name in ("optimizer.pt", "rng_state.pth", "adapter_model.safetensors"):
        assert sent[name] == (run / place / name).read_bytes()
    assert files["events.jsonl"] == (run / "events.jsonl").read_bytes()
    assert str(run).encode() not in b"".join(files.values())
    assert b"hf_ann" not in b"".join(data for _, data in ann.stored())
    assert not (run / ".backup").exists()
    [found] = list_runs("hf_ann")
    assert (found.repo, found.id, found.title, found.step) == (REPO, NOTE.id, "Pirate", 3)
    assert not found.finished


def test_only_the_newest_checkpoint_is_kept_and_a_busy_hub_skips_older_ones(
    ann: LoopbackHub, run: Path
) -> None:
    told: list[str] = []
    ann.fail("/super-squash/", 403)  # so that the history can be looked at
    backup = start(run, told)
    backup.saved("checkpoints/checkpoint-1")
    wait_for(lambda: ("model", REPO) in ann.store.repos and checkpoints(ann) == {"checkpoint-1"})
    with ann.held("preupload|/commit/") as rule:
        backup.saved("checkpoints/checkpoint-2")
        assert rule.waiting.wait(PATIENCE)
        backup.saved("checkpoints/checkpoint-2")
        backup.saved("checkpoints/checkpoint-3")  # returns, though the Hub does not answer
        shutil.rmtree(run / "checkpoints" / "checkpoint-3")  # as the training does
        assert checkpoints(ann) == {"checkpoint-1"}, "it has not answered yet"
    backup.finish()
    assert checkpoints(ann) == {"checkpoint-3"}
    assert len([c for c in ann.commits("model", REPO) if "checkpoint-2" in c.title]) == 1
    assert told[-1].startswith("The backup is complete, but its older checkpoints still count")


def test_the_end_gives_back_what_older_checkpoints_took(ann: LoopbackHub, run: Path) -> None:
    backup = start(run, [])
    for step in (1, 2, 3):
        weights = run / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt"
        weights.write_bytes(bytes([step, 0]) * 50_000)
        backup.saved(f"checkpoints/checkpoint-{step}")
        wait_for(
            lambda step=step: (
                ("model", REPO) in ann.store.repos and checkpoints(ann) == {f"checkpoint-{step}"}
            )
        )
    assert ann.repo("model", REPO).used_storage > 300_000
    backup.finish()
    assert checkpoints(ann) == {"checkpoint-3"}
    assert len(ann.commits("model", REPO)) == 1
    repo = ann.repo("model", REPO)
    there = {entry.etag: entry.size for entry in repo.head.tree.values()}
    assert repo.used_storage == sum(there.values())


def test_a_copy_that_another_app_made_goes_on_beside_it(ann: LoopbackHub, run: Path) -> None:
    scopes = ["contribute-repos", "read-repos"]
    for app in ("one", "two"):
        ann.add_token("ann", f"hf_oauth_{app}", "oauth", scopes, app, expires_at=4e9)
    ann.add_token("ann", "hf_oauth_blind", "oauth", scopes[:1], "three", expires_at=4e9)
    told: list[str] = []
    start(run, told, "hf_oauth_one").finish()
    assert told == []
    for token, place in (("hf_oauth_two", f"{REPO}-2"), ("hf_oauth_blind", f"{REPO}-3")):
        for _ in range(2):  # resumed there again, it goes on where it was
            start(run, told, token).finish()
        assert (
            told
            == [
                f"{REPO} was made by another app and cannot be written with this sign-in; the "
                f"run's copy goes on in {place}."
            ]
            * 2
        )
        told.clear()
    assert sorted(name for _, name in ann.store.repos) == [REPO, f"{REPO}-2", f"{REPO}-3"]
    assert all(repo.private for repo in ann.store.repos.values())


def test_a_backup_goes_on_when_its_owner_signs_in_again(ann: LoopbackHub, run: Path) -> None:
    for name in ("old", "new"):
        ann.add_token(
            "ann", f"hf_oauth_{name}", "oauth", ["contribute-repos"], "app", expires_at=4e9
        )
    told: list[str] = []
    config, _ = RunConfig.from_yaml(run / "config.yaml")
    backup = Backup(run, NOTE, config, "hf_oauth_old", told.append, (600.0,))
    wait_for(lambda: ("model", REPO) in ann.store.repos)
    ann.revoke("hf_oauth_old")
    backup.saved("checkpoints/checkpoint-3")
    wait_for(lambda: told)
    assert "it is wrong or expired" in told[0]
    backup.sign_in("hf_oauth_new")  # and the ten minutes are not waited for
    wait_for(lambda: checkpoints(ann) == {"checkpoint-3"})
    backup.finish()
    assert told[-1] == "The backup on the Hub goes on."
    assert "hf_oauth" not in "".join(told)


def test_failures_are_told_tried_again_and_never_raised(ann: LoopbackHub, run: Path) -> None:
    told: list[str] = []
    rule = ann.fail("/api/repos/create", status=403, times=2, message="No.")
    backup = start(run, told)
    backup.saved("checkpoints/checkpoint-3")
    wait_for(lambda: rule.hits == 2 and len(told) >= 3)
    backup.finish()
    assert [line.split(":")[0] for line in told[:2]] == ["The backup on the Hub waits"] * 2
    assert f"The token may not create {REPO}" in told[0]
    assert told[2] == "The backup on the Hub goes on."
    assert checkpoints(ann) == {"checkpoint-3"}


def test_a_sign_in_that_ends_is_told_and_the_run_goes_on(ann: LoopbackHub, run: Path) -> None:
    told: list[str] = []
    ann.revoke("hf_ann")
    backup = start(run, told)
    backup.saved("checkpoints/checkpoint-3")
    backup.finish()
    assert "The Hub refused the token: it is wrong or expired. Sign in again." in told[0]
    assert told[-1].startswith("The run's last state is not on the Hub, only here: The Hub refused")
    assert not backup._thread.is_alive()


def test_the_result_and_a_small_data_file_go_along(ann: LoopbackHub, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    folder = make_run(tmp_path / "done", {"hub.backup": True, "data.path": str(rows)})
    backup = start(folder, [], rows=rows)
    backup.finish()
    files = ann.files("model", REPO)
    assert files["data/rows.jsonl"] == rows.read_bytes()
    assert "adapter/adapter_model.safetensors" in files
    assert "adapter/training_args.bin" not in files
    assert list_runs("hf_ann")[0].finished
    fetched = tmp_path / "fetched"
    assert fetch_run(REPO, "hf_ann", fetched) == NOTE
    settle(fetched, tmp_path / "final")
    config, _ = RunConfig.from_yaml(fetched / "config.yaml")
    assert config.data.path == str(tmp_path / "final" / "data" / "rows.jsonl")


# Names


def test_whose_name_and_for_what(ann: LoopbackHub) -> None:
    who = identity("hf_ann")
    ann.add_repo("model", "ann/public", {"README.md": "---\ntags: [phi3lora-run]\n---\n"})
    ann.add_repo("model", "ann/other", {"model.txt": "1"}, private=True)
    assert check_run_repo("ann/new", who, "hf_ann") is False
    for name, words in (
        ("crew/run", "is not ann's own: a run is backed up to one's own account"),
        ("bob/run", "Choose ann/run"),
        ("ann/public", "is public; a run is backed up to a private repository"),
        ("ann/other", "holds something else than a run"),
    ):
        with pytest.raises(HubError, match=words):
            check_run_repo(name, who, "hf_ann")


# Coming back


def test_pickles_come_only_from_ones_own_private_repository(
    ann: LoopbackHub, run: Path, tmp_path: Path
) -> None:
    backup = start(run, [])
    backup.saved("checkpoints/checkpoint-3")
    backup.finish()
    with pytest.raises(HubError, match="is not bob's own"):
        fetch_run(REPO, "hf_bob", tmp_path / "bobs")
    assert list_runs("hf_bob") == []
    ann.repo("model", REPO).private = False
    with pytest.raises(HubError, match="is public"):
        fetch_run(REPO, "hf_ann", tmp_path / "public")
    assert list_runs("hf_ann") == []
    ann.add_repo(
        "model", "ann/bare", {"README.md": "---\ntags: [phi3lora-run]\n---\n"}, private=True
    )
    with pytest.raises(HubError, match="holds no run: it lacks"):
        fetch_run("ann/bare", "hf_ann", tmp_path / "bare")
    with pytest.raises(HubError, match="There is no ann/nothing"):
        fetch_run("ann/nothing", "hf_ann", tmp_path / "nothing")


def test_only_files_that_a_run_has_are_fetched(ann: LoopbackHub, run: Path, tmp_path: Path) -> None:
    backup = start(run, [])
    backup.saved("checkpoints/checkpoint-3")
    backup.finish()
    extra = {
        "state.json": b"{}",
        "stop": b"",
        "checkpoints/checkpoint-3/training_args.bin": b"1",
        "checkpoints/checkpoint-3/evil.pkl": b"1",
        "checkpoints/x/optimizer.pt": b"1",
        "adapter/adapter_model.bin": b"1",
        "deep/er/config.yaml": b"1",
    }
    ann.commit("model", REPO, extra)
    fetch_run(REPO, "hf_ann", tmp_path / "here")
    here = {
        path.relative_to(tmp_path / "here").as_posix()
        for path in (tmp_path / "here").rglob("*")
        if path.is_file()
    }
    assert not here & set(extra)
    assert "checkpoints/checkpoint-3/optimizer.pt" in here


def test_a_restored_run_stands_where_it_stood(
    ann: LoopbackHub, run: Path, settings: Settings
) -> None:
    backup = start(run, [])
    backup.saved("checkpoints/checkpoint-3")
    backup.finish()
    store = RunStore(settings)
    found = restore(store, REPO, "hf_ann", owner="ann")
    assert (found.id, found.owner, found.title, found.status) == (
        NOTE.id,
        "ann",
        "Pirate",
        "stopped",
    )
    assert found.state.created == NOTE.created
    assert found.config.hub.backup
    state = json.loads((found.folder / "checkpoints/checkpoint-3/trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == f"{found.folder}/checkpoints/checkpoint-3"
    assert [run.id for run in store.list("ann")] == [NOTE.id]
    with pytest.raises(RunError, match="is here already"):
        restore(store, REPO, "hf_ann", owner="ann")
    assert not list(settings.runs_folder.glob(".restored-*"))


class Wiped(BaseException):
    """The machine is gone."""


def test_a_wiped_disk_in_the_middle_changes_no_loss(ann: LoopbackHub, tmp_path: Path) -> None:
    """Die at step 4, when checkpoint 2 is on the Hub; remove everything, come back and finish."""
    from phi3lora.training.trainer import train

    config = RunConfig().with_values(
        {
            "model.path": "pocket",
            "data.path": "example:pirate",
            "data.max_rows": 40,
            "training_config.max_steps": 6,
            "training_config.save_steps": 2,
            "training_config.save_strategy": "steps",
            "training_config.logging_steps": 1,
            "training_config.save_total_limit": 1,
            "training_config.per_device_train_batch_size": 4,
            "training_config.gradient_accumulation_steps": 1,
            "training_config.eval_strategy": "no",
            "training_config.seed": 7,
        }
    )
    whole, broken, back = (tmp_path / name for name in ("whole", "broken", "back"))
    expected: dict[int, float] = {}
    train(config, whole, remember(expected))

    broken.mkdir()
    (broken / "config.yaml").write_text(config.to_yaml())
    backup = start(broken, [])

    def emit(event: Event) -> None:
        if isinstance(event, Saved) and event.step == 2:
            backup.saved(event.path)
            wait_for(lambda: [run.step for run in list_runs("hf_ann")] == [2])
        if isinstance(event, Step) and event.step == 4:
            raise Wiped

    with pytest.raises(Wiped):
        train(config, broken, emit)
    shutil.rmtree(broken)

    fetch_run(REPO, "hf_ann", back)
    settle(back, back)
    found: dict[int, float] = {}
    config, _ = RunConfig.from_yaml(back / "config.yaml")
    assert train(config, back, remember(found), token="hf_ann") == "finished"
    assert sorted(expected) == [1, 2, 3, 4, 5, 6]
    assert found == {step: expected[step] for step in (3, 4, 5, 6)}
    weights = "adapter/adapter_model.safetensors"
    assert (back / weights).read_bytes() == (whole / weights).read_bytes()
    written = [path for path in back.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)  # a pickle of all arguments
    assert not [path for path in written if b"hf_ann" in path.read_bytes()]


def remember(losses: dict[int, float]) -> Emit:
    def emit(event: Event) -> None:
        if isinstance(event, Step) and event.loss is not None:
            losses[event.step] = event.loss

    return emit


def test_a_run_in_its_own_process_is_copied_to_its_end(
    ann: LoopbackHub, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    install(tmp_path / "fake", monkeypatch)
    queue = Queue(settings)
    asked = quick("quick").with_values({"hub.backup": True, "hub.repo": "ann/kept"})
    run = queue.submit(queue.store.create(asked), "hf_ann")
    wait_for(lambda: [found.repo for found in list_runs("hf_ann")] == ["ann/kept"])
    wait_for(lambda: not run.alive)
    assert run.refresh().status == "finished", run.log_tail(20)
    kinds = [
        json.loads(line)["kind"]
        for line in ann.files("model", "ann/kept")["events.jsonl"].splitlines()
    ]
    assert kinds[-1] == "ended"


def test_a_run_that_nobody_signed_in_for_says_that_it_is_not_copied(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path / "run", {"hub.backup": True}), RunState(id=NOTE.id))
    told: list[Event] = []
    with copied(run, told.append, None, Settings(tmp_path)) as copy:
        copy.begin()
        copy(Saved(step=3, path="checkpoints/checkpoint-3"))
    assert [event.kind for event in told] == ["notice", "saved"]
    assert isinstance(told[0], Notice)
    assert "not backed up: nobody was signed in" in told[0].message
