"""Compare through a server of OpenAI's protocol: our own, transformers', and bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.chat.options import Options, Pair
from phi3lora.errors import ConfigError, ModelError
from phi3lora.models.pocket import CHECKPOINT
from phi3lora.settings import Settings
from phi3lora.ui.app import launch
from tests.serving import PATIENCE, free_port

QUESTION: list[Any] = [{"role": "user", "content": "Name the color of a cherry."}]
GREEDY = Options(max_new_tokens=40)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the Hub asks nobody while it is offline, loopback included."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def answers(home: Path, url: str, base: str, tuned: str = "", **options: Any) -> Pair:
    settings = Settings(home=home, chat_url=url, chat_base=base, chat_tuned=tuned)
    comparing = Application.open(settings, helper=False).comparing
    subject = comparing.subject("", Caller())
    notes = list(comparing.load(subject, Caller()))
    assert "server's word" in notes[-1]
    asked = (QUESTION, QUESTION if tuned else [], replace(GREEDY, **options))
    *_, last = comparing.reply(subject, *asked, caller=Caller())
    return last


def here(home: Path) -> Pair:
    """What the engine in the app answers."""
    from phi3lora.app.comparing import PIRATE

    comparing = Application.open(Settings(home=home), helper=False).comparing
    *_, last = comparing.reply(PIRATE, QUESTION, QUESTION, GREEDY, caller=Caller())
    return last


def test_our_own_server_answers_as_the_engine_does(tmp_path: Path) -> None:
    demo = launch(Settings(home=tmp_path / "server"), port=free_port(), block=False)
    try:
        url = f"{str(demo.local_url).rstrip('/')}/v1"
        there = answers(tmp_path, url, "pocket", "example:pirate")
        assert there == replace(here(tmp_path), note="")
        cut = answers(tmp_path, url, "pocket", "example:pirate", max_new_tokens=2)
        assert (cut.tokens_base, cut.stopped_base, cut.done) == (2, False, True)
        with pytest.raises(ModelError, match=r"HTTP 404.*nothing"):
            answers(tmp_path, url, "pocket", "nothing")
    finally:
        demo.close()


def test_transformers_serve_answers_too(tmp_path: Path) -> None:
    port, name = free_port(), str(CHECKPOINT)
    words = ["serve", name, "--port", str(port), "--dtype", "float32", "--device", "cpu"]
    command = [str(Path(sys.executable).with_name("transformers")), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait(lambda: httpx.get(f"http://127.0.0.1:{port}/health").is_success)
            said = answers(tmp_path, url, name)
            assert said.base.removesuffix("<|end|>") == here(tmp_path).base
        finally:
            server.terminate()


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError("the server did not come up")


class Odd(BaseHTTPRequestHandler):
    """A server that answers as `answer` says, and keeps what it was asked."""

    answer = (200, "application/json", b"")
    models = b'{"data": [{"id": "base"}, {"id": "tuned"}]}'
    seen: list[tuple[dict[str, str], bytes]]

    def do_GET(self) -> None:
        self._send(200, "application/json", self.models)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self._send(*self.answer)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def odd() -> Iterator[tuple[str, type[Odd]]]:
    handler = type("Handler", (Odd,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler
    server.shutdown()


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    told = {"id": "x", "created": 1, "model": "m", "system_fingerprint": "", "choices": [choice]}
    return f"data: {json.dumps(told)}\n\n".encode()


STREAM = chunk("Arr") + chunk("!", "stop") + b"data: [DONE]\n\n"


def test_no_token_of_the_hub_goes_to_a_server_without_a_key(
    odd: tuple[str, type[Odd]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = odd
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    handler.answer = (200, "text/event-stream", STREAM)
    said = answers(tmp_path, url, "base", "tuned", temperature=0.5, top_k=7, seed=3)
    assert (said.base, said.tuned, said.stopped_base) == ("Arr!", "Arr!", True)
    assert len(handler.seen) == 2
    for headers, body in handler.seen:
        assert headers["authorization"] == "Bearer none"
        assert b"hf_secret" not in body
        sent = json.loads(body)
        assert (sent["temperature"], sent["top_k"], sent["seed"]) == (0.5, 7, 3)
        assert "min_p" not in sent
    monkeypatch.setenv("PHI3LORA_CHAT_KEY", "sk-own")
    answers(tmp_path, url, "base")
    assert handler.seen[-1][0]["authorization"] == "Bearer sk-own"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, "application/json", b'{"error": {"message": "wrong key"}}'), "HTTP 401"),
        ((404, "text/html", b"<h1>no</h1>"), "HTTP 404"),
        ((500, "text/plain", b""), "HTTP 500"),
        ((200, "text/event-stream", b"data: {nonsense\n\n"), "did not answer"),
        ((200, "text/event-stream", b'data: {"error": {"message": "out"}}\n\n'), "did not answer"),
    ],
)
def test_a_server_that_refuses_is_quoted(
    odd: tuple[str, type[Odd]], tmp_path: Path, answer: Any, words: str
) -> None:
    url, handler = odd
    handler.answer = answer
    with pytest.raises(ModelError, match=words) as caught:
        answers(tmp_path, url, "base", "tuned")
    assert "127.0.0.1" in str(caught.value)


def test_an_answer_that_breaks_off_keeps_what_was_said(
    odd: tuple[str, type[Odd]], tmp_path: Path
) -> None:
    url, handler = odd
    handler.answer = (200, "text/event-stream", chunk("Arr"))
    said = answers(tmp_path, url, "base")
    assert (said.base, said.done, said.stopped_base) == ("Arr", True, False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chat_url": "ftp://x", "chat_base": "b"}, "PHI3LORA_CHAT_URL"),
        ({"chat_url": "http://x/v1"}, "PHI3LORA_CHAT_BASE"),
    ],
)
def test_settings_that_name_no_server_are_refused(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Application.open(Settings(home=tmp_path, **changes), helper=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (b"", "does not say which"),
        (b"[]", "does not say which"),
        (b'{"data": 3}', "does not say which"),
        (b'{"data": [{"id": "other"}]}', "does not list a model 'base', but other."),
    ],
)
def test_what_a_server_does_not_list_is_said_on_loading(
    odd: tuple[str, type[Odd]], tmp_path: Path, models: bytes, words: str
) -> None:
    url, handler = odd
    handler.models = models
    settings = Settings(home=tmp_path, chat_url=url, chat_base="base")
    comparing = Application.open(settings, helper=False).comparing
    notes = list(comparing.load(comparing.subject("", Caller()), Caller()))
    assert words in " ".join(notes)


def test_a_server_that_is_gone_is_said_on_loading(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="PHI3LORA_CHAT_URL"):
        answers(tmp_path, f"http://127.0.0.1:{free_port()}/v1", "base")
