"""The named endpoints by Gradio's own client, the tools by MCP's own, both at a running Space."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.data.sources import EXAMPLES
from phi3lora.serve.operations import Operations
from phi3lora.settings import Settings
from phi3lora.ui.app import launch
from tests.hub import LoopbackHub
from tests.serving import PATIENCE, free_port

QUESTION = "Name the color of a cherry."
QUICK = {
    "training_config.max_steps": 2,
    "training_config.eval_strategy": "no",
    "evaluation.enabled": False,
}
NAMES = [
    "search_datasets",
    "inspect_dataset",
    "estimate",
    "launch_run",
    "run_status",
    "stop_run",
    "list_runs",
    "ask",
    "publish",
]


@pytest.fixture
def space(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Space where ann is known and a chat dataset is to be found."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # for the processes that it starts
    for name in ("ann", "bob"):
        hub.add_user(name, token=f"hf_{name}")
    rows = EXAMPLES["pirate"].read_text(encoding="utf-8").splitlines()[:24]
    hub.add_repo("dataset", "bob/pirate-talk", {"train.jsonl": "\n".join(rows)})
    settings = Settings(home=tmp_path / "home", space_id="ann/space")
    demo = launch(settings, port=free_port(), block=False)
    yield str(demo.local_url).rstrip("/")
    demo.close()


def endpoints(address: str, token: str | None = None) -> Client:
    return Client(address, token=token, verbose=False)


@asynccontextmanager
async def tools(address: str, token: str | None = None) -> AsyncIterator[ClientSession]:
    headers = {"Authorization": f"Bearer {token}"} if token else None
    url = f"{address}/gradio_api/mcp/"
    async with (
        streamablehttp_client(url, headers) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session


async def use(session: ClientSession, tool: str, **given: Any) -> Any:
    result = await session.call_tool(tool, given)
    (content,) = result.content
    assert content.type == "text"
    if result.isError:
        raise AppError(content.text)
    return json.loads(content.text)


def test_an_agent_goes_from_finding_a_dataset_to_asking_the_tuned_model(
    space: str, hub: LoopbackHub
) -> None:
    async def walk() -> None:
        async with tools(space, "hf_ann") as session:
            listed = (await session.list_tools()).tools
            assert [tool.name for tool in listed] == NAMES
            for tool in listed:
                described = tool.inputSchema["properties"].values()
                assert tool.description
                assert all(one["description"] for one in described)
            found = await use(session, "search_datasets", query="pirate")
            dataset = found["datasets"][0]["id"]
            assert dataset == "bob/pirate-talk"
            inspected = await use(session, "inspect_dataset", dataset=dataset)
            assert inspected["rows"] == 24
            ready = await use(session, "estimate", dataset=dataset, options=QUICK)
            assert ready["ready"], ready["checks"]
            assert ready["estimate"]["memory_bytes"] > 0
            launched = await use(session, "launch_run", dataset=dataset, options=QUICK)
            run = launched["run"]
            status = await over(session, run)
            assert (status["status"], status["step"]) == ("finished", 2), status
            assert [one["run"] for one in (await use(session, "list_runs"))["runs"]] == [run]
            answers = await use(session, "ask", question=QUESTION, model=run)
            assert answers["base"]
            assert answers["tuned"]
            told = await use(session, "publish", run=run, repo="ann/by-an-agent", private=True)
            assert told["url"].endswith("/ann/by-an-agent")
            assert "adapter_model.safetensors" in hub.files("model", "ann/by-an-agent")

    asyncio.run(walk())


async def over(session: ClientSession, run: str) -> Any:
    """The status of a run that has ended."""
    for _ in range(240):
        status = await use(session, "run_status", run=run)
        if status["status"] not in ("queued", "running"):
            return status
        await asyncio.sleep(0.5)
    raise AssertionError(f"the run did not end: {status}")


def test_a_stranger_may_look_and_ask_and_changes_nothing(space: str) -> None:
    client = endpoints(space)
    assert client.predict(api_name="/list_runs") == {"runs": []}
    assert client.predict(QUESTION, api_name="/ask")["tuned"].startswith("Arr")
    for refused, given in (("/launch_run", ()), ("/publish", ("run", "ann/x"))):
        with pytest.raises(AppError, match=r"[Ss]ign in|no run"):
            client.predict(*given, api_name=refused)

    async def walk() -> None:
        async with tools(space) as session:
            for refused, given in (
                ("launch_run", {}),
                ("publish", {"run": "20261121-093000-4f1a2b", "repo": "ann/x"}),
                ("stop_run", {"run": "20261121-093000-4f1a2b"}),
            ):
                with pytest.raises(AppError, match=r"[Ss]ign in|no run"):
                    await use(session, refused, **given)
            assert (await use(session, "ask", question=QUESTION))["base"]

    asyncio.run(walk())


def test_ones_own_runs_and_nobody_elses(space: str) -> None:
    ann, bob = endpoints(space, "hf_ann"), endpoints(space, "hf_bob")
    run = ann.predict("example:pirate", options=QUICK, title="Mine", api_name="/launch_run")["run"]
    with pytest.raises(AppError, match="no run"):
        bob.predict(run, api_name="/run_status")
    with pytest.raises(AppError, match="no run"):
        bob.predict(run, api_name="/stop_run")
    assert bob.predict(api_name="/list_runs") == {"runs": []}
    (listed,) = ann.predict(api_name="/list_runs")["runs"]
    assert (listed["title"], listed["dataset"]) == ("Mine", "example:pirate")
    ann.predict(run, api_name="/stop_run")
    deadline = time.monotonic() + PATIENCE
    while ann.predict(run, api_name="/run_status")["status"] in ("queued", "running", "stopping"):
        assert time.monotonic() < deadline
        time.sleep(0.3)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/inspect_dataset", {"dataset": "nobody/nothing"}, "nobody/nothing"),
    ("/inspect_dataset", {"dataset": "/etc/passwd"}, "upload a file"),
    ("/estimate", {"recipe": "no-such"}, "there is no 'no-such'"),
    ("/estimate", {"options": {"peft_config.no_such": 3}}, "no_such"),
    ("/estimate", {"options": ["no"]}, "options"),
    ("/launch_run", {"options": {"model.path": "/root"}}, ""),
    ("/launch_run", {"dataset": 7}, "dataset: expected a text, got 7"),
    ("/run_status", {"run": None}, "run: expected a text, got None"),
    ("/ask", {"question": "x" * 200_000}, ""),
    ("/ask", {"question": "Hi", "options": {"temperatur": 1}}, "no such sampling option"),
    ("/ask", {"question": "Hi", "options": {"temperature": -1}}, "temperature"),
    ("/ask", {"question": "Hi", "model": "../../etc"}, ""),
]


def refusal(client: Client, name: str, given: dict[str, Any]) -> str:
    try:
        answer = client.predict(api_name=name, **given)
    except AppError as error:
        return str(error)
    raise AssertionError(f"{name} of {given} was answered: {answer}")


def test_refusals_are_sentences(space: str) -> None:
    client = endpoints(space, "hf_ann")
    for name, given, words in REFUSED:
        told = refusal(client, name, given)
        assert words in told, (name, given)
        assert len(told.split()) > 2, told
        for fault in ("Traceback", "Error(", "fault of ours"):
            assert fault not in told, (name, given)


def test_what_is_offered_is_documented() -> None:
    """Each argument in one line, since Gradio reads no more; nothing else is open."""
    for operation in Operations.__dict__.values():
        if not callable(operation) or operation.__name__.startswith("_"):
            continue
        for name in set(operation.__annotations__) - {"caller", "return"}:
            (line,) = [
                one for one in operation.__doc__.splitlines() if one.strip().startswith(f"{name}: ")
            ]
            assert line.rstrip().endswith("."), line


def test_without_a_page_the_same(tmp_path: Path) -> None:
    """The operations need no Gradio: a program may call them in its own process."""
    app = Application.open(Settings(home=tmp_path), helper=False)
    assert [one.__name__ for one in Operations(app).offered] == NAMES
    assert Operations(app).ask(QUESTION, caller=Caller())["tuned"].startswith("Arr")


def test_every_example_of_the_page_on_doors_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one's own machine, where nobody signs in."""
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    demo = launch(Settings(home=tmp_path), port=free_port(), block=False)
    try:
        names = {"ADDRESS": str(demo.local_url).rstrip("/"), "TOKEN": None}
        for example in examples:
            exec(example, names)
    finally:
        demo.close()
    told = capsys.readouterr().out
    assert len(examples) == 3
    assert told.count("Arr, A cherry be red, matey!") == 2
    assert re.search(r"^400$", told, re.MULTILINE)
