"""The first page before there is a form: of an app that is being imported, and in its own."""

from __future__ import annotations

import http.server
import inspect
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from phi3lora.ui import first_preview as kept
from phi3lora.ui.doorman import Doorman, _standing
from phi3lora.ui.quick_start import without_stubs
from phi3lora.ui.skeleton import skeleton
from tests.serving import free_port
from tests.test_browser import REPOSITORY, browser  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def doorman(port: int) -> Iterator[Doorman]:
    standing = Doorman("127.0.0.1", port)
    yield standing
    standing.leave()


def said(port: int, request: bytes) -> bytes:
    """What is answered, until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_the_kept_preview_is_what_a_preflight_finds() -> None:
    """If it is not, write it again: python -m phi3lora.ui.first_preview."""
    assert tuple(json.loads(kept.FILE.read_text(encoding="utf-8"))) == kept.computed()


def test_another_recipe_opens_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "first_recipe", lambda: kept.GPU_RECIPE)
    assert kept.first_preview() is None
    assert "conversation" not in skeleton("en").partition('<div id="skeleton"')[2]


def test_its_words_are_in_the_readers_language() -> None:
    assert "Teach Phi-3" in skeleton("en", "Starting")
    assert "Teach Phi-3" not in skeleton("hu")
    assert "Name the capital of Ukraine." in skeleton("hu")


def test_whoever_comes_too_soon_sees_what_will_come(doorman: Doorman, port: int) -> None:
    answer = said(port, b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Language: hu\r\n\r\n").decode()
    head, _, page = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ")
    assert f"Content-Length: {len(page.encode())}" in head
    assert 'lang="hu"' in page
    assert "Arr, the capital of Ukraine be Kyiv, matey!" in page
    assert said(port, b"HEAD / HTTP/1.1\r\n\r\n").decode().endswith("\r\n\r\n")


@pytest.mark.parametrize(
    "request_", [b"", b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 10**6, b"POST /run"]
)
def test_odd_requests_get_the_same_or_nothing(
    doorman: Doorman, port: int, request_: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with suppress(OSError):  # it does not read all of that
        assert said(port, request_).startswith(b"HTTP/1.1 503 ")
    assert said(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
    assert capfd.readouterr().err == ""


def test_the_port_is_free_once_it_left(doorman: Doorman, port: int) -> None:
    said(port, b"GET / HTTP/1.1\r\n\r\n")
    doorman.leave()
    doorman.leave()
    http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler).server_close()


def test_a_first_port_that_is_taken_is_left_to_who_has_it(
    doorman: Doorman, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
    assert _standing("127.0.0.1", None) is None
    assert said(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("where", ["taken", "beyond all ports", "another machine's"])
def test_an_address_that_cannot_be_had_is_said_before_anything_is_imported(
    doorman: Doorman, port: int, where: str
) -> None:
    host = "192.0.2.1" if where == "another machine's" else "127.0.0.1"
    wanted = 99_999 if where == "beyond all ports" else port
    words = [sys.executable, "app.py", "--host", host, "--port", str(wanted)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: --port: nothing can listen on {host}:{wanted} (")
    assert done.stderr.count("\n") == 1


def test_components_have_no_stubs_and_all_else_has_its_file() -> None:
    class ComponentMeta(type):
        pass

    class Box(metaclass=ComponentMeta):
        pass

    with without_stubs():
        with pytest.raises(OSError, match="no stub"):
            inspect.getfile(Box)
        assert inspect.getfile(Doorman).endswith("doorman.py")
    assert inspect.getfile(Box) == __file__


class TheApp(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<h1>The app</h1>" if self.command == "GET" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.browser
@pytest.mark.slow
def test_the_waiting_page_turns_into_the_app(
    doorman: Doorman,
    port: int,
    browser: Browser,  # noqa: F811
) -> None:
    """And whoever has a draft of other data is not shown the example first."""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}")
    page.wait_for_selector(".conversation mark >> text=Kyiv")
    assert page.is_visible(".starting")
    page.evaluate("localStorage.setItem('phi3lora-draft', '{}')")
    page.reload()
    page.wait_for_selector(".starting")
    assert not page.is_visible(".conversation")
    page.evaluate("localStorage.removeItem('phi3lora-draft')")
    for other in ("?votes=a", "compare?q=Who"):
        page.goto(f"http://127.0.0.1:{port}/{other}")
        page.wait_for_selector(".starting")
        assert not page.is_visible(".conversation")
    assert not page.is_visible("h1, h2")  # they are the Train page's
    doorman.leave()
    app = http.server.ThreadingHTTPServer(("127.0.0.1", port), TheApp)
    threading.Thread(target=app.serve_forever, daemon=True).start()
    try:
        page.wait_for_selector("h1 >> text=The app")
    finally:
        app.shutdown()
        app.server_close()
        page.close()
