"""OpenAI's protocol, asked by OpenAI's own client; named endpoints by Gradio's; tools by MCP's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from phi3lora.chat.options import Options
from phi3lora.chat.serving import prompt_of
from phi3lora.data.rendering import render_prompt
from phi3lora.serve.protocol import ChatRequest
from phi3lora.settings import Settings
from phi3lora.ui.app import launch
from tests.family import KINDS, tokenizer_of
from tests.hub.server import LoopbackHub
from tests.serving import free_port
from tests.test_tools import MESSAGES, OPENAI

PIRATE = "example:pirate"
HELLO: list[Any] = [{"role": "user", "content": "Name the color of a cherry."}]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with its pages, on one's own machine."""
    demo = launch(Settings(home=tmp_path_factory.mktemp("home")), port=free_port(), block=False)
    yield str(demo.local_url).rstrip("/")
    demo.close()


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)


def ask(client: openai.OpenAI, model: str = PIRATE, **more: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 40, **more}
    return client.chat.completions.create(model=model, messages=HELLO, **options)


def both(home: Path) -> tuple[str, str]:
    """What the chat of the pages answers."""
    from phi3lora.app.application import Application
    from phi3lora.app.callers import Caller
    from phi3lora.app.comparing import PIRATE as SUBJECT

    comparing = Application.open(Settings(home=home), helper=False).comparing
    options = Options(max_new_tokens=40)
    *_, last = comparing.reply(SUBJECT, HELLO, HELLO, options, caller=Caller())
    return last.base, last.tuned


def test_models_are_the_base_and_what_was_made_of_it(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["pocket", PIRATE]
    assert client.models.retrieve(PIRATE).parent == "pocket"  # type: ignore[attr-defined]


def test_an_answer_is_the_chats(client: openai.OpenAI, tmp_path: Path) -> None:
    base, tuned = both(tmp_path)
    assert base != tuned
    for model, expected in (("pocket", base), (PIRATE, tuned)):
        answer = ask(client, model)
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens > 3
        assert answer.usage.completion_tokens > 3


def test_a_stream_joins_to_the_same(client: openai.OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


def test_limit_stop_seed_and_parts(client: openai.OpenAI) -> None:
    short = ask(client, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    whole = ask(client).choices[0].message.content
    word = whole.split()[2]
    cut = ask(client, stop=[word, "never said"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(word)], "stop")
    pieces = list(ask(client, stop=word, stream=True))
    text = "".join(one.choices[0].delta.content or "" for one in pieces)
    assert text == cut.message.content
    drawn = [ask(client, temperature=1.5, seed=7).choices[0].message.content for _ in range(2)]
    assert drawn[0] == drawn[1]
    parts = [{"role": "user", "content": [{"type": "text", "text": HELLO[0]["content"]}]}]
    same = client.chat.completions.create(
        model=PIRATE,
        messages=parts,
        temperature=0,
        max_tokens=40,  # type: ignore[arg-type]
    )
    assert same.choices[0].message.content == whole


def test_two_at_a_time(client: openai.OpenAI) -> None:
    alone = [ask(client, model).choices[0].message.content for model in ("pocket", PIRATE)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda model: ask(client, model), ("pocket", PIRATE)))
    assert [answer.choices[0].message.content for answer in together] == alone


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"n": 2}, 400, "n"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 10**7}, 400, "max_tokens"),
        ({"stop": ["a"] * 9}, 400, "stop"),
        ({"seed": -4}, 400, "seed"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"model": "nobody/nothing"}, 404, "model"),
        ({"model": "/etc/passwd"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
        ({"messages": [{"role": "pirate", "content": "Hi"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "messages"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_have_openais_form(
    client: openai.OpenAI, change: dict[str, Any], status: int, param: str, stream: bool
) -> None:
    asked: dict[str, Any] = {"model": PIRATE, "messages": HELLO, "stream": stream, **change}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.status_code == status
    assert caught.value.param == param
    assert "Traceback" not in str(caught.value)


def test_tools_and_calls_are_written_by_the_template() -> None:
    """As a training on the same conversation has them, without the answer."""
    tokenizer = tokenizer_of(KINDS["Phi-4-mini"])
    asked = ChatRequest.model_validate(
        {**OPENAI, "messages": OPENAI["messages"][:-1], "model": "m"}
    )
    messages: list[Any] = asked.messages()
    assert prompt_of(tokenizer, messages, asked.options()) == render_prompt(
        tokenizer, MESSAGES[:-1]
    )


def test_a_template_without_tools_refuses_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Leave that out"):
        ask(client, tools=[{"type": "function", "function": {"name": "weather"}}])
    unnamed = [*HELLO, {"role": "assistant", "tool_calls": [{"id": "1"}]}, *HELLO]
    with pytest.raises(openai.BadRequestError, match="not named"):
        client.chat.completions.create(model=PIRATE, messages=unnamed)


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b"null", b'"text"', b"{}"])
def test_a_body_that_is_no_request(address: str, body: bytes) -> None:
    request = urllib.request.Request(f"{address}/v1/chat/completions", body)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert json.loads(caught.value.read())["error"]["type"] == "invalid_request_error"


def test_a_reader_that_leaves_ends_the_answer(address: str, client: openai.OpenAI) -> None:
    """What nobody reads is not computed: the next answer comes while the left one would grow."""
    stream = ask(client, stream=True, max_tokens=1500, temperature=2.0, seed=3)
    next(iter(stream))
    stream.close()
    assert ask(client).choices[0].finish_reason == "stop"


def test_on_a_space_a_token_says_who_asks(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phi3lora.serve import openai as door

    settings = Settings(home=tmp_path, space_id="ann/space", who_may_train="signed-in")
    demo = launch(settings, port=free_port(), block=False)
    try:
        base = f"{str(demo.local_url).rstrip('/')}/v1"
        stranger = openai.OpenAI(base_url=base, api_key="hf_nobody_has_this", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        hub.add_user("ann", token="hf_ann")
        known = openai.OpenAI(base_url=base, api_key="hf_ann", max_retries=0)
        assert PIRATE in [model.id for model in known.models.list()]
        assert ask(known).choices[0].finish_reason == "stop"
        monkeypatch.setattr(door, "HOURLY", 1)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(known)
        assert int(caught.value.response.headers["retry-after"]) > 0
    finally:
        demo.close()


def test_serve_without_pages_asks_for_its_key(tmp_path: Path) -> None:
    """`phi3lora serve`, in a process of its own, with one adapter and nothing else."""
    port = free_port()
    words = [sys.executable, "-m", "phi3lora", "serve", "--adapter", PIRATE, "--port", str(port)]
    environment = {**os.environ, "PHI3LORA_HOME": str(tmp_path), "PHI3LORA_API_KEY": "sk-own"}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert f"Serving pocket, {PIRATE}" in server.stderr.readline()
            url = f"http://127.0.0.1:{port}/v1"
            known = openai.OpenAI(base_url=url, api_key="sk-own", max_retries=8)
            assert [model.id for model in known.models.list()] == ["pocket", PIRATE]
            assert ask(known).choices[0].message.content.startswith("Arr")
            with pytest.raises(openai.NotFoundError, match="it serves pocket"):
                ask(known, "microsoft/Phi-3.5-mini-instruct")
            with pytest.raises(openai.AuthenticationError):
                openai.OpenAI(base_url=url, api_key="sk-other").models.list()
        finally:
            server.terminate()
