"""Where attacks take place: the real app on loopback, a Space that knows visitors by a header."""

from __future__ import annotations

import http.client
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from phi3lora.app import working
from phi3lora.app.application import Application
from phi3lora.app.callers import Session
from phi3lora.errors import Phi3LoraError
from phi3lora.settings import Settings
from phi3lora.ui.app import build, serve
from tests.test_ownership import visited

PACKAGE = Path(__file__).parents[2] / "phi3lora"
PAGES = [
    file.stem
    for file in (PACKAGE / "ui").glob("*.py")
    if "import session_of" in file.read_text() and file.stem != "watch"
]


@dataclass(frozen=True)
class Try:
    """One attack, and whether it was held off."""

    what: str
    held: bool


@dataclass
class Ground:
    """The app as an attacker meets it.

    Attributes:
        full: try everything; else a selection.
        folder: of this campaign.
        demo, app: on a Space; `port` answers for it.
        here: the port of the same app on one's own machine.
        part: of the measured attacks those are tried that have it in their name.
    """

    full: bool
    folder: Path
    demo: Any
    app: Application
    port: int
    here: int
    part: str = ""

    def ask(
        self, method: str, path: str, body: bytes | None = None, port: int = 0, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request; (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            endless = fields.get("content-type", "").startswith("text/event-stream")
            return answer.status, fields, b"" if endless else answer.read()
        finally:
            connection.close()

    def stream(self, method: str, path: str, body: bytes, **headers: str) -> bytes:
        """What an event stream says until it ends, or the answer as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            return connection.getresponse().read()
        finally:
            connection.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def some(self, things: list[Any], few: int) -> list[Any]:
        """All of them, or a few that are spread over them."""
        if self.full or len(things) <= few:
            return things
        return things[:: -(-len(things) // few)]


def by_header(request: Any) -> Session:
    """The visitor that a header names."""
    name = getattr(request, "headers", {}).get("x-visitor", "")
    return Session(name if re.fullmatch(r"\w*", name) else "")


def known_by_header(patch: pytest.MonkeyPatch | None = None) -> None:
    """From now on a header says who a visitor is, to every page and to what serves them."""
    patch = patch or pytest.MonkeyPatch()
    for page in PAGES:
        patch.setattr(f"phi3lora.ui.{page}.session_of", by_header)
    patch.setattr("phi3lora.ui.watch.visitor_of", lambda asking: by_header(asking).browser)
    patch.setattr("phi3lora.ui.watch.account_of", signed_in_by_header)


def signed_in_by_header(asking: Any) -> str:
    """The visitor that a header names, but of an agent, who signs in nowhere."""
    return "" if asking.headers.get("x-gradio-user") == "mcp" else by_header(asking).browser


@contextmanager
def faults() -> Iterator[list[str]]:
    """Where code of ours failed meanwhile with anything but an error in words."""
    found: list[str] = []

    def note(error: BaseException | None) -> None:
        frames = traceback.extract_tb(error.__traceback__) if error is not None else []
        ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
        if ours and not isinstance(error, gr.Error):
            found.append(f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {error!r}")

    def logged(record: logging.LogRecord) -> bool:
        note(record.exc_info[1] if record.exc_info else None)
        return False  # told in the table, and not in the log besides

    with pytest.MonkeyPatch.context() as patch:
        # By which Gradio tells of it.
        patch.setattr(traceback, "print_exc", lambda *_, **__: note(sys.exc_info()[1]))
        working.logger.addFilter(logged)  # what was not foreseen, and put into words
        try:
            yield found
        finally:
            working.logger.removeFilter(logged)


def refused(attempt: Callable[[], Any]) -> bool:
    """Whether an attempt ends in words of ours."""
    try:
        attempt()
    except Phi3LoraError:
        return True
    return False


@contextmanager
def ground(folder: Path, full: bool, trains: bool = False) -> Iterator[Ground]:
    """The app twice: as a Space, and on one's own machine.

    Args:
        trains: what is launched is really trained.
    """
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        known_by_header(patch)
        settings = Settings(folder / "space", space_id="ann/space", who_may_train="signed-in")
        space = visited(settings, trains)
        demo = serve(build(space), space, "127.0.0.1", None, block=False)
        stack.callback(space.close)
        stack.callback(demo.close)
        own = Application.open(Settings(folder / "here"))
        local = serve(build(own), own, "127.0.0.1", None, block=False)
        stack.callback(own.close)
        stack.callback(local.close)
        yield Ground(full, folder, demo, space, int(demo.server_port), int(local.server_port))
