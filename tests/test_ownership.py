"""Every endpoint of the pages, called by somebody else with ann's run: nothing shows or moves.

The app is real and answers over HTTP; only who sends a request is taken from a header, which the
Hub would say otherwise.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from phi3lora.chat.options import Pair
from phi3lora.config import ModelConfig
from phi3lora.errors import HubError
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.runs.store import Run
from phi3lora.settings import Settings
from phi3lora.training.preflight import Preflight
from phi3lora.ui.app import build, serve
from phi3lora.ui.core import Caller, Core
from tests import stage
from tests.hub import LoopbackHub

SECRET = "The hidden galleon"


class Visited(Core):
    """The real thing for whoever the header names."""

    def caller(self, request: Any) -> Caller:
        return Caller(getattr(request, "headers", {}).get("x-visitor", ""))

    def look(self, config: Any, caller: Caller) -> Preflight:
        self._check_leave(caller)
        return Preflight([])

    def parts(self, *_: Any) -> tuple[list[str], list[str]]:
        return [], ["train"]

    def search(self, *_: Any) -> list[tuple[str, str]]:
        return []

    def load(self, base: Any, adapter: Path | None, caller: Caller) -> Iterator[str]:
        yield f"loading {adapter}"

    def reply(self, subject: Any, *_: Any) -> Iterator[Any]:
        assert subject.adapter is None
        return iter(())


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[gr.Blocks, Core, str]]:
    home = tmp_path_factory.mktemp("home")
    core = Visited(Settings(home=home, space_id="ann/space", who_may_train="signed-in"))
    demo = serve(build(core.settings, core), core, "127.0.0.1", None, block=False)
    yield demo, core, demo.local_url.rstrip("/")
    demo.close()
    core.preflights.close()


def anns(core: Core) -> list[Run]:
    """A run in each state, all of them ann's."""
    made = list(stage.fill(core.store).values())
    runs = []
    for run in made:
        state = run.state.model_copy(update={"owner": "ann", "title": SECRET})
        (run.folder / "state.json").write_text(state.model_dump_json())
        (run.folder / "log.txt").write_text(SECRET)
        runs.append(replace(run, state=state))
    return runs


def snapshot(runs: list[Run]) -> str:
    """Every byte of the runs, as a hash."""
    files = [path for run in runs for path in sorted(run.folder.rglob("*")) if path.is_file()]
    return hashlib.sha256(b"".join(bytes(path) + path.read_bytes() for path in files)).hexdigest()


def ask(address: str, fn: Any, data: list[Any], who: str, event: Any = None) -> str:
    """Call a function by its index, as a program would; everything it answers."""
    session = f"{who}-{fn._id}"
    body = {
        "fn_index": fn._id,
        "data": data,
        "session_hash": session,
        "event_data": event,
        "trigger_id": None,
    }
    headers = {"Content-Type": "application/json", "x-visitor": who}
    join = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(), headers, method="POST"
    )
    said = urllib.request.urlopen(join, timeout=60).read().decode()
    stream = urllib.request.Request(
        f"{address}/gradio_api/queue/data?session_hash={session}", headers=headers
    )
    with urllib.request.urlopen(stream, timeout=60) as answer:
        for line in answer:
            said += line.decode()
            if '"process_completed"' in said or '"unexpected_error"' in said:
                break
    return said


def arguments(fn: Any, run: Run) -> list[Any]:
    """What the page would send with ann's run chosen; states are the server's."""
    found: list[Any] = []
    for component in fn.inputs:
        if getattr(component, "elem_id", None) in ("run-id", "adapter"):
            found.append(run.id)
        elif isinstance(component, gr.State):
            found.append(None)
        else:
            found.append(component.value if not callable(component.value) else None)
    return found


@pytest.mark.parametrize("who", ["eve", ""])
def test_nobody_else_reaches_a_run_by_any_endpoint(
    app: tuple[gr.Blocks, Core, str], who: str
) -> None:
    demo, core, address = app
    runs = anns(core)
    before, called = snapshot(runs), 0
    with_run = [fn for fn in demo.fns.values() if callable(fn.fn)]
    assert len(with_run) > 30
    for fn in with_run:
        takes_run = {getattr(part, "elem_id", None) for part in fn.inputs} & {"run-id", "adapter"}
        for run in runs if takes_run else runs[:1]:
            said = ask(address, fn, arguments(fn, run), who, {"run": run.id, "repo": run.id})
            assert SECRET not in said, f"{fn.fn} shows ann's run to {who or 'a stranger'}"
            called += 1
    assert called > 40
    assert snapshot(runs) == before
    assert {run.id for run in core.store.list("ann")} >= {run.id for run in runs}


def test_ann_reaches_her_own_by_the_same_call(app: tuple[gr.Blocks, Core, str]) -> None:
    demo, core, address = app
    run = anns(core)[2]
    shows = next(fn for fn in demo.fns.values() if getattr(fn.fn, "__name__", "") == "on_show")
    assert SECRET in ask(address, shows, [run.id], "ann")
    pulse = urllib.request.Request(f"{address}/pulse?run={run.id}", headers={"x-visitor": "eve"})
    assert urllib.request.urlopen(pulse, timeout=30).read().decode().endswith("gone")


class Loaded:
    """An engine that has the base in memory already, for whoever asks."""

    def reply(self, *_: Any, **__: Any) -> Iterator[Any]:
        return iter([Pair("Yes.", "Arr.", True, True)])


def test_a_gated_base_that_somebody_loaded_answers_nobody_else(
    hub: LoopbackHub, settings: Settings
) -> None:
    hub.add_user("ann", token="hf_ann")
    hub.add_user("bob", token="hf_bob")
    files = {file.name: file.read_bytes() for file in CHECKPOINT.iterdir()}
    hub.add_repo("model", "ann/gated", files, gated=True, allowed=["ann"])
    core = Core(settings)
    core._engine = Loaded()
    subject = SimpleNamespace(base=ModelConfig(path="ann/gated"), adapter=None)

    def ask(name: str, token: str | None) -> list[Any]:
        return list(core.reply(subject, [], [], None, lambda: False, Caller(name, token)))

    assert [pair.base for pair in ask("ann", "hf_ann")] == ["Yes."]
    for name, token in (("bob", "hf_bob"), ("", None)):
        with pytest.raises(HubError, match="gated"):
            ask(name, token)
