"""Answers the app's address from the first moment, while Gradio and the pages are imported.

    launch_soon(settings, "127.0.0.1", 7860)

Every request gets 503 and the Train page's frame with the preview of the bundled example, which
turns into the app as soon as that answers. Nothing here reads what a request asks for.
"""

from __future__ import annotations

import errno
import os
import socketserver
import threading

from phi3lora.errors import ConfigError, Problem
from phi3lora.importing import heavy_imports
from phi3lora.settings import Settings
from phi3lora.ui.languages import language_of
from phi3lora.ui.quick_start import without_stubs
from phi3lora.ui.skeleton import waiting_page

PORT = 7860  # Gradio's first one, where its variable names no other
LONGEST_REQUEST = 16_384  # bytes
PATIENCE = 2.0  # seconds for a request to arrive whole


class _Answer(socketserver.StreamRequestHandler):
    timeout = PATIENCE

    def handle(self) -> None:
        headers = self._headers()
        language = language_of(headers.get("cookie", ""), headers.get("accept-language", ""))
        page = waiting_page(language).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html; charset=utf-8\r\n"
            f"Content-Length: {len(page)}\r\nRetry-After: 1\r\nCache-Control: no-store\r\n"
            "Connection: close\r\n\r\n"
        )
        self.wfile.write(head.encode() + (b"" if self._asked.startswith(b"HEAD") else page))

    def _headers(self) -> dict[str, str]:
        """Of the request, by their names in small letters."""
        self._asked, found, left = self.rfile.readline(LONGEST_REQUEST), {}, LONGEST_REQUEST
        while left > 0 and (line := self.rfile.readline(left)).strip():
            left -= len(line)
            name, _, value = line.decode("latin-1").partition(":")
            found[name.strip().lower()] = value.strip()
        return found


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up in the middle, or says nothing, gets nothing."""


class Doorman:
    """Listens until it leaves. Raises OSError or OverflowError where that cannot be."""

    def __init__(self, host: str, port: int) -> None:
        self._server: _Server | None = _Server((host, port), _Answer)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def leave(self) -> None:
        """Free the port; a second time changes nothing."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def launch_soon(settings: Settings, host: str, port: int | None) -> None:
    """Serve until interrupted; a browser that comes before the app is ready sees what will come.

    On a Space the platform waits for the app itself, with a page of its own. Without a port it is
    Gradio's first one that is free. Raises ConfigError where nothing can listen there.
    """
    doorman = None if settings.on_space else _standing(host, port)
    with heavy_imports(), without_stubs():
        from phi3lora.ui.app import launch
    launch(settings, host, port, ready=doorman.leave if doorman else lambda: None)


def _standing(host: str, port: int | None) -> Doorman | None:
    """None where another program has Gradio's first port: the app takes one of the next."""
    first = port or int(os.environ.get("GRADIO_SERVER_PORT", PORT))
    try:
        return Doorman(host, first)
    except (OSError, OverflowError) as error:
        if port is None and getattr(error, "errno", None) == errno.EADDRINUSE:
            return None
        reason = getattr(error, "strerror", None) or error
        message = f"nothing can listen on {host}:{first} ({reason}); choose another host or port."
        raise ConfigError([Problem("--port", message)]) from None
