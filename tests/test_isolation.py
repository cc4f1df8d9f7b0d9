"""Nobody reads the owner's secrets or another visitor's files, wherever a run starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.config import RunConfig
from phi3lora.errors import AccessError, HubError, RunError
from phi3lora.hub import sending
from phi3lora.hub.backup import NOTE, TAG, settle
from phi3lora.isolation import inherited
from phi3lora.runs.copies import restore, rows_to_send
from phi3lora.runs.permission import check_paths
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import RunStore, changed
from phi3lora.settings import Settings
from phi3lora.training.checkpoints import keep_within
from tests.fake_training import config as quick
from tests.fake_training import install, pid_of, wait_for
from tests.hub import LoopbackHub
from tests.serving import free_port

ID = "20261121-093000-4f1a2b"
FOREIGN = (
    "/proc/1/environ",
    "/proc/self/environ",
    "~/.cache/huggingface/token",
    "~nobody/x",
    "../../etc/passwd",
    "data/../../../etc/passwd",
    "data/a/b",
    "file:///etc/passwd",
    "https://example.com/rows.jsonl",
    "a/../../etc/passwd",
    "example:../../etc/passwd",
    "rows.jsonl\0",
    "./app.py",
)


@pytest.fixture
def space(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", space_id="ann/space", who_may_train="signed-in")


def with_path(field: str, path: str) -> RunConfig:
    return RunConfig().with_values({field: path})


@pytest.mark.parametrize("path", FOREIGN)
@pytest.mark.parametrize("field", ["data.path", "model.path"])
def test_a_run_on_a_space_names_no_file_of_the_machine(
    space: Settings, field: str, path: str
) -> None:
    with pytest.raises(AccessError, match=field):
        check_paths(with_path(field, path), "eve", space)


def test_a_link_among_the_uploads_leads_nowhere(space: Settings) -> None:
    mine = space.uploads("eve")
    mine.mkdir(parents=True)
    (mine / "rows.jsonl").symlink_to("/proc/self/environ")
    config = with_path("data.path", str(mine / "rows.jsonl"))
    with pytest.raises(AccessError):
        check_paths(config, "eve", space)
    run = RunStore(space).create(config, owner="eve")
    assert rows_to_send(run, space) is None


def test_a_folder_is_the_owners_uploads_with_all_that_is_in_it(space: Settings) -> None:
    mine = space.uploads("eve") / "rows"
    mine.mkdir(parents=True)
    (mine / "a.jsonl").write_text("{}")
    config = with_path("data.path", str(mine))
    check_paths(config, "eve", space)
    with pytest.raises(AccessError):
        check_paths(config, "ann", space)
    (mine / "b.jsonl").symlink_to("/proc/self/environ")
    with pytest.raises(AccessError):
        check_paths(config, "eve", space)


def test_queue_and_resume_refuse_what_was_written_into_a_run(space: Settings) -> None:
    launching = Application.open(space).launching
    run = launching.store.create(RunConfig(), owner="eve")
    run = changed(run, status="stopped")
    stolen = with_path("data.path", "/proc/1/environ")
    (run.folder / "config.yaml").write_text(stolen.to_yaml())
    for attempt in (
        lambda: launching.resume(launching.store.get(run.id, "eve"), Caller("eve", "hf_eve")),
        lambda: launching.queue.submit(launching.store.get(run.id, "eve")),
    ):
        with pytest.raises(AccessError, match="files of this machine"):
            attempt()
    assert rows_to_send(launching.store.get(run.id, "eve"), space) is None


def test_the_worker_refuses_too(
    space: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "fake", monkeypatch)
    monkeypatch.setenv("SPACE_ID", "ann/space")
    queue = Queue(space)
    first = queue.submit(queue.store.create(quick("slow"), owner="eve"))
    wait_for(first, "running")
    second = queue.submit(queue.store.create(quick("quick"), owner="eve"))
    stolen = quick("quick").with_values({"data.path": "/proc/1/environ"})
    (second.folder / "config.yaml").write_text(stolen.to_yaml())  # while it starts or waits
    queue.stop(first)
    ended = wait_for(second, "failed", "finished")
    # The config was read before or after the change; what was read was allowed.
    assert ended.status == "finished" or "files of this machine" in ended.message


@pytest.fixture
def ann(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    monkeypatch.setattr(sending, "RETRY_SECONDS", ())
    hub.add_user("eve", token="hf_eve")
    return hub


def planted(hub: LoopbackHub, config: RunConfig) -> str:
    """A run's repository of eve's own making."""
    card = {"tags": ["phi3lora", TAG], "phi3lora": {"id": ID, "title": "x", "created": 1.0}}
    files = {
        "README.md": f"---\n{json.dumps(card)}\n---\n".encode(),
        NOTE: json.dumps({"id": ID, "title": "x", "created": 1.0}).encode(),
        "config.yaml": config.to_yaml().encode(),
        "data/rows.jsonl": b'{"messages": []}\n',
    }
    hub.add_repo("model", "eve/run", files, private=True)
    return "eve/run"


@pytest.mark.parametrize("path", FOREIGN)
@pytest.mark.parametrize("field", ["data.path", "model.path"])
def test_a_restored_run_names_no_file_anywhere(
    ann: LoopbackHub, settings: Settings, field: str, path: str
) -> None:
    repo = planted(ann, with_path(field, path))
    with pytest.raises(HubError, match="machine"):
        restore(RunStore(settings), repo, "hf_eve", "eve")
    assert RunStore(settings).all() == []


@pytest.mark.parametrize("named", ["data/rules.py:score", "/etc/rules.py:score"])
def test_a_restored_run_brings_no_function(
    ann: LoopbackHub, settings: Settings, space: Settings, named: str
) -> None:
    repo = planted(ann, RunConfig().with_values({"grpo_config.function": named}))
    for place in (settings, space):
        with pytest.raises(HubError, match="code of one machine"):
            restore(RunStore(place), repo, "hf_eve", "eve")
        assert RunStore(place).all() == []


def test_rows_that_came_along_are_read_in_the_runs_folder(
    ann: LoopbackHub, space: Settings
) -> None:
    repo = planted(ann, with_path("data.path", "data/rows.jsonl"))
    run = restore(RunStore(space), repo, "hf_eve", "eve")
    assert run.config.data.path == str(run.folder / "data" / "rows.jsonl")
    check_paths(run.config, "eve", space, run.folder)
    check_paths(run.config, "eve", space)  # another run of hers may go on with them
    with pytest.raises(AccessError):
        check_paths(run.config, "ann", space)
    assert rows_to_send(run, space) == (run.folder / "data" / "rows.jsonl").resolve()


def test_large_rows_stay_and_their_run_comes_back_without_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(with_path("data.path", "data/huge.jsonl").to_yaml())
    settle(tmp_path, tmp_path)
    config, _ = RunConfig.from_yaml(tmp_path / "config.yaml")
    assert config.data.path == str(tmp_path / "data" / "huge.jsonl")


def test_a_checkpoint_names_no_other_place_as_its_best(tmp_path: Path) -> None:
    """Else `load_best_model_at_end` ends a run with somebody else's adapter."""
    for name, step in (("ann/checkpoints", 2), ("eve/checkpoints", 1), ("eve/checkpoints", 4)):
        checkpoint = tmp_path / name / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"):
            (checkpoint / file).touch()
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    newest = tmp_path / "eve/checkpoints/checkpoint-4"

    def best_after(named: str) -> str | None:
        state = {"global_step": 4, "best_model_checkpoint": named}
        (newest / "trainer_state.json").write_text(json.dumps(state))
        keep_within(newest)
        return json.loads((newest / "trainer_state.json").read_text())["best_model_checkpoint"]

    own = tmp_path / "eve/checkpoints/checkpoint-1"
    assert best_after(str(tmp_path / "ann/checkpoints/checkpoint-2")) is None
    assert best_after("../../ann/checkpoints/checkpoint-2") is None
    assert best_after("..") is None
    assert best_after(str(own)) == str(own)
    assert best_after("/elsewhere/before/checkpoints/checkpoint-1") == str(own)


def test_what_is_inherited_holds_no_secret() -> None:
    names = ("HF_TOKEN", "OAUTH_CLIENT_SECRET", "PHI3LORA_API_KEY", "SPACE_TOKEN", "AWS_REGION")
    assert inherited(dict.fromkeys(names, "x")) == {}
    odd = ("PHI3LORA_APIKEY", "SPACE_PASSWD", "HF_AUTH", "PHI3LORA_DSN", "SPACES_MYSECRETS")
    assert inherited({"PHI3LORA_WEBHOOK": "https://hooks.example/T0/x"}) == {}
    assert inherited(dict.fromkeys(odd, "x")) == {}
    assert inherited({"PHI3LORA_NOTE": "hf_" + "a1B2" * 8}) == {}, "whatever it is called"
    kept = {"PATH": "/bin", "HF_ENDPOINT": "x", "TOKENIZERS_PARALLELISM": "false", "LC_ALL": "C"}
    assert inherited(kept) == kept


def test_a_token_stands_in_no_environment_and_no_process_list(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "fake", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_app")
    queue = Queue(settings)
    run = queue.submit(queue.store.create(quick("slow")), "hf_of_the_visitor")
    run = wait_for(run, "running")
    process = psutil.Process(pid_of(run))
    seen = f"{process.environ()} {process.cmdline()}"
    assert "hf_of" not in seen
    queue.stop(run)
    leaky = wait_for(
        queue.submit(queue.store.create(quick("leaky")), "hf_of_the_visitor"), "failed"
    )
    assert leaky.message.startswith("refused for hf_"), "the training is handed the token"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_hidden_process_is_not_dumpable() -> None:
    code = (
        "import ctypes; from phi3lora.isolation import hide_process; hide_process();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stdout == b"0\n"


def listening(process: psutil.Process) -> set[int]:
    """Ports that a process and its children listen on."""
    found = set()
    for one in (process, *process.children(recursive=True)):
        found |= {c.laddr.port for c in one.net_connections() if c.status == psutil.CONN_LISTEN}
    return found


@pytest.fixture(params=["here", "space", "comparison"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[psutil.Process, int]]:
    """The app in a process of its own: on one's own machine, on a Space, and a comparison Space."""
    port = free_port()
    options = "['--host', '127.0.0.1', '--port', 'PORT']"
    code = f"import app, sys; sys.argv[1:] = {options}; app.main()"
    if request.param == "comparison":
        code = "from phi3lora.ui.comparison import launch; launch('ann/pirate', port=PORT)"
    environ = {**os.environ, "PHI3LORA_HOME": str(tmp_path)}
    if request.param != "here":
        environ |= {"SPACE_ID": "ann/space", "SYSTEM": "spaces"}
    command = [sys.executable, "-c", code.replace("PORT", str(port))]
    process = subprocess.Popen(command, env=environ, cwd=Path(__file__).parent.parent)
    try:
        yield psutil.Process(process.pid), port
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    """Whether the app does; until then somebody else may, with 503."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_nothing_but_the_chosen_port_listens(served: tuple[psutil.Process, int]) -> None:
    """Gradio's hot reload on a Space would run code for whoever reaches port 7887."""
    process, port = served
    while not answers(port):
        assert process.status() != psutil.STATUS_ZOMBIE, "the app did not come up"
        time.sleep(0.2)
    for _ in range(15):  # the reload server comes up beside the app, in a thread
        assert listening(process) == {port}
        time.sleep(0.2)


def test_a_stranger_in_the_store_is_no_owner(space: Settings) -> None:
    store = RunStore(space)
    run = store.create(RunConfig(), owner="ann")
    with pytest.raises(RunError):
        store.get(run.id, "eve")
