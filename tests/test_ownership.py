"""Every endpoint of the pages, called by somebody else with ann's run: nothing shows or moves.

The app is real and answers over HTTP; only who sends a request is taken from a header, which the
Hub would say otherwise.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller, Callers
from phi3lora.app.comparing import BUNDLED, PIRATE, Comparing, Subject
from phi3lora.app.datasets import Datasets
from phi3lora.app.launching import Launching
from phi3lora.chat.answering import Room
from phi3lora.chat.options import Options, Pair
from phi3lora.config import ModelConfig, RunConfig
from phi3lora.data.columns import Columns
from phi3lora.errors import DataError, HubError, LimitError
from phi3lora.models.hardware import GIB, Hardware
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import Run, RunStore
from phi3lora.settings import Settings
from phi3lora.training.preflight import Preflight
from phi3lora.ui.app import build, serve
from tests import stage
from tests.hub import LoopbackHub

SECRET = "The hidden galleon"
QUESTIONS = ("message", "set-prompts")  # fields without which nothing is asked


class Visited(Callers):
    """Whoever the header names."""

    def caller(self, session: Any = None) -> Caller:
        return Caller(session.browser)


class NoPreflights:
    """Finds nothing, at once.

    Attributes:
        asked: what was to be read.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []

    def preflight(self, *asked: Any) -> Preflight:
        self.asked.append(str(asked))
        return Preflight([])

    def inspection(self, *_: Any) -> None: ...

    def columns(self, *asked: Any) -> Columns:
        self.asked.append(str(asked))
        return Columns([], [])

    def parts(self, *asked: Any) -> tuple[list[str], list[str]]:
        self.asked.append(str(asked))
        return [], ["train"]

    def findings(self, *asked: Any, **_: Any) -> list[Any]:
        self.asked.append(str(asked))
        return []

    def hardware(self) -> Hardware:
        return Hardware("cpu", "CPU, 2 cores", 8 * GIB, 8 * GIB, True, 2)

    def close(self) -> None: ...


class NoEngine:
    """Loads nothing, says no word, and is never asked for a run of ann's.

    Attributes:
        asked: how often it was asked for an answer.
    """

    def __init__(self) -> None:
        self.asked = 0

    def reply(
        self,
        messages: Any,
        messages_tuned: Any,
        options: Options,
        *_: Any,
        base: ModelConfig,
        against_base: ModelConfig | None,
        **named: Any,
    ) -> Any:
        self.asked += 1
        options.check()
        assert {named["adapter"], named["against"]} <= {None, PIRATE.result}
        assert {base.path, (against_base or base).path} <= {ModelConfig().path, PIRATE.base.path}
        return iter([Pair("", "", True, True)])

    def fits(self) -> Room:
        return Room(True, 0, 0)


class Silent(Comparing):
    """Real subjects and checks; nothing is loaded."""

    def load(self, subject: Subject, caller: Caller) -> Iterator[str]:
        yield f"loading {subject.result}"

    def _new_engine(self) -> Any:
        return NoEngine()


class Quiet(Datasets):
    """No Hub is asked."""

    def search(self, *_: Any) -> list[Any]:
        return []


class Idle(Queue):
    """Every check of the real one; then nothing is trained."""

    def _start(self, *_: Any) -> Run:
        raise LimitError("Nothing is trained here.")


def visited(settings: Settings, trains: bool = False) -> Application:
    """The real thing for whoever the header names, which trains only if it is told to."""
    real = Application.open(settings)
    callers, preflights, store = Visited(settings), NoPreflights(), real.launching.store
    queue = real.launching.queue if trains else Idle(settings, store)
    return replace(
        real,
        callers=callers,
        datasets=Quiet(settings, store, preflights),
        launching=Launching(settings, store, queue, real.views, preflights),
        comparing=Silent(settings, store, real.views, callers),
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[gr.Blocks, Application, str]]:
    home = tmp_path_factory.mktemp("home")
    here = visited(Settings(home=home, space_id="ann/space", who_may_train="signed-in"))

    from tests.attacks.ground import known_by_header

    with pytest.MonkeyPatch.context() as patch:
        known_by_header(patch)
        demo = serve(build(here), here, "127.0.0.1", None, block=False)
        yield demo, here, demo.local_url.rstrip("/")
        demo.close()
    here.close()


def anns(store: RunStore) -> list[Run]:
    """A run in each state, all of them ann's."""
    made = list(stage.fill(store).values())
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


def ask(
    address: str, fn: Any, data: list[Any], who: str, event: Any = None, query: str = ""
) -> str:
    """Call a function by its index, as a program would; everything it answers.

    Args:
        query: of the page's own address, which Gradio sends along.
    """
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
        f"{address}/gradio_api/queue/join?{query}",
        json.dumps(body).encode(),
        headers,
        method="POST",
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
        elif getattr(component, "elem_id", None) in QUESTIONS:
            found.append("Ahoy?")
        elif isinstance(component, gr.State):
            found.append(None)
        else:
            found.append(component.value if not callable(component.value) else None)
    return found


def elements(fn: Any) -> set[str]:
    """The names of what a function takes."""
    return {one.elem_id for one in fn.inputs if getattr(one, "elem_id", None)}


def clicked(run: str) -> dict[str, str]:
    """What a click on anything of a run sends along."""
    return {"run": run, "repo": run, "of": run, "do": "discard", "take": "log"}


@pytest.mark.parametrize("who", ["eve", ""])
def test_nobody_else_reaches_a_run_by_any_endpoint(
    app: tuple[gr.Blocks, Application, str], who: str
) -> None:
    demo, here, address = app
    store = here.launching.store
    runs = anns(store)
    before = snapshot(runs)
    with_run = [fn for fn in demo.fns.values() if callable(fn.fn)]
    assert len(with_run) > 30
    # `make attacks` tries every run with each, and each as nobody.
    takes_run = [fn for fn in with_run if {"run-id", "adapter"} & elements(fn)]
    for number, fn in enumerate(with_run if who else takes_run):
        run = runs[number % len(runs)]
        said = ask(address, fn, arguments(fn, run), who, clicked(run.id))
        assert SECRET not in said, f"{fn.fn} shows ann's run to {who or 'a stranger'}"
    assert snapshot(runs) == before
    assert {run.id for run in store.list("ann")} >= {run.id for run in runs}


def test_everybody_asks_what_is_everybodys(app: tuple[gr.Blocks, Application, str]) -> None:
    """Or a question about ann's run would be refused for want of a chat, and not for being hers."""
    demo, here, address = app
    asks = [fn for fn in demo.fns.values() if {"message", "adapter"} <= elements(fn)]
    asks = [fn for fn in asks if getattr(fn.fn, "__name__", "") == "on_ask"]
    run, chat = anns(here.launching.store)[2], cast(Any, here.comparing.engine())
    assert asks
    for fn in asks:
        before, values = chat.asked, arguments(fn, run)
        assert SECRET not in ask(address, fn, values, "eve")
        assert chat.asked == before
        values[values.index(run.id)] = BUNDLED
        assert '"success":true' in ask(address, fn, values, "eve")
        assert chat.asked == before + 1


def test_ann_reaches_her_own_by_the_same_call(app: tuple[gr.Blocks, Application, str]) -> None:
    demo, here, address = app
    run = anns(here.launching.store)[2]
    shows = next(fn for fn in demo.fns.values() if getattr(fn.fn, "__name__", "") == "on_show")
    assert SECRET in ask(address, shows, [run.id], "ann")
    pulse = urllib.request.Request(f"{address}/pulse?run={run.id}", headers={"x-visitor": "eve"})
    assert urllib.request.urlopen(pulse, timeout=30).read().decode().endswith("gone")


def test_signatures_of_components_are_worked_out_once(
    app: tuple[gr.Blocks, Application, str],
) -> None:
    """Gradio asks for that of every component of all pages whenever one is opened."""
    for kind in {type(block) for block in app[0].blocks.values()}:
        assert inspect.signature(kind.__init__) is inspect.signature(kind.__init__), kind
        own = inspect.unwrap(kind.__init__)
        assert inspect.signature(own) == inspect.signature(kind.__init__)


class Growing:
    """An engine whose answer has twenty words, sixteen a second."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock

    def reply(self, *_: Any, **__: Any) -> Iterator[Pair]:
        for said in range(20):
            self._clock.now += 1 / 16
            yield Pair("word " * said, "", done_base=said == 19, done_tuned=True)


def test_frames_are_rarer_where_many_answers_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is work of the one loop that serves everybody; the last comes at once all the same."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("phi3lora.app.comparing.time", SimpleNamespace(monotonic=lambda: clock.now))
    comparing = Application.open(Settings(tmp_path)).comparing
    comparing._engine = Growing(clock)  # type: ignore[assignment]
    subject = Subject(ModelConfig(path="pocket"))

    def ask() -> Iterator[Pair]:
        return comparing.reply(subject, [], [], Options(), caller=Caller())

    assert len(list(ask())) == 11
    others = [ask() for _ in range(50)]
    for other in others:
        next(other)
    *frames, last = ask()
    assert len(frames) == 4
    assert last.done
    for other in others:
        list(other)
    assert len(list(ask())) == 11


class Loaded:
    """An engine that has the base in memory already, for whoever asks."""

    def reply(self, *_: Any, **__: Any) -> Iterator[Any]:
        return iter([Pair("Yes.", "Arr.", True, True)])


def test_a_run_that_is_one_too_many_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand launches are a thousand sentences, and no run, no preflight, no folder."""
    app = visited(Settings(home=tmp_path, runs_per_user=0))
    config = RunConfig().with_values({"data.path": "example:pirate"})
    asked = app.launching._preflights.asked  # type: ignore[attr-defined]
    with pytest.raises(LimitError, match="may have 0"):
        app.launching.launch(config, Caller())
    assert not asked
    monkeypatch.setattr(app.launching.queue, "check_limits", lambda owner: None)  # just before
    with pytest.raises(LimitError, match="may have 0"):
        app.launching.launch(config, Caller())
    assert app.launching.runs(Caller()) == []
    app.close()


def test_a_gated_base_that_somebody_loaded_answers_nobody_else(
    hub: LoopbackHub, settings: Settings
) -> None:
    hub.add_user("ann", token="hf_ann")
    hub.add_user("bob", token="hf_bob")
    files = {file.name: file.read_bytes() for file in CHECKPOINT.iterdir()}
    hub.add_repo("model", "ann/gated", files, gated=True, allowed=["ann"])
    comparing = Application.open(settings).comparing
    comparing._engine = Loaded()  # type: ignore[assignment]
    subject = Subject(ModelConfig(path="ann/gated"))

    def ask(name: str, token: str | None) -> list[Any]:
        return list(comparing.reply(subject, [], [], Options(), caller=Caller(name, token)))

    assert [pair.base for pair in ask("ann", "hf_ann")] == ["Yes."]
    for name, token in (("bob", "hf_bob"), ("", None)):
        with pytest.raises(HubError, match="gated"):
            ask(name, token)


def test_a_stranger_asks_no_more_than_two_thousand_characters(tmp_path: Path) -> None:
    """Reading a question costs everybody on a Space; one's own machine reads what it is given."""
    subject = Subject(ModelConfig(path="pocket"))
    for space, longest in (("ann/space", 2_000), (None, 200_000)):
        comparing = Application.open(Settings(tmp_path, space_id=space)).comparing
        comparing._engine = Loaded()  # type: ignore[assignment]

        def ask(*said: str, asked: Comparing = comparing) -> list[Any]:
            talk = [{"role": "user", "content": text} for text in said]
            return list(asked.reply(subject, talk, talk, Options(), caller=Caller("eve")))

        assert ask("x" * longest)
        if space:
            with pytest.raises(DataError, match="at most 2,000 characters"):
                ask("x" * (longest + 1))
            with pytest.raises(DataError, match="too long to go on"):
                ask(*["x" * 1_000] * 101)
