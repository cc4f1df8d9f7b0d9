"""The real app as a Space, in a process of its own, for attacks whose cost is measured.

    with served(folder) as space:
        space.get("/"); space.call("on_ask", "ann", message="Ahoy?")
        space.memory()          bytes, with all its helpers and workers

Nothing of it is replaced but who a visitor is, which a header says instead of the Hub.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds for the app to be up, and for one answer


@dataclass
class Space:
    """The app from outside.

    Attributes:
        handlers: name → of each by that name its number, what the page sends at first, and where an
            element's value is.
    """

    home: Path
    port: int
    process: psutil.Process
    handlers: dict[str, list[dict[str, Any]]]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, who: str = "") -> bytes:
        """The answer's body."""
        asked = urllib.request.Request(f"{self.address}{path}", headers={"x-visitor": who})
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return bytes(answer.read())

    def begin(self, name: str, who: str, **values: Any) -> int:
        """The status that a call is answered with, of which nothing more is heard."""
        try:
            self._post("/gradio_api/queue/join", who, self._body(name, values))
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def call(self, name: str, who: str, **values: Any) -> str:
        """Everything that a handler says to a visitor; `values` by element, `-` written as `_`."""
        body = self._body(name, values)
        said = self._post("/gradio_api/queue/join", who, body)
        stream = urllib.request.Request(
            f"{self.address}/gradio_api/queue/data?session_hash={body['session_hash']}",
            headers={"x-visitor": who},
        )
        with urllib.request.urlopen(stream, timeout=PATIENCE) as answer:
            for line in answer:
                said += line.decode()
                if '"process_completed"' in said or '"unexpected_error"' in said:
                    break
        return said

    def _body(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        given = {element.replace("_", "-"): value for element, value in values.items()}
        handler = next(one for one in self.handlers[name] if given.keys() <= one["places"].keys())
        data, session = list(handler["values"]), secrets.token_hex(8)
        for element, value in given.items():
            data[handler["places"][element]] = value
        return {"fn_index": handler["number"], "data": data, "session_hash": session}

    def _post(self, path: str, who: str, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json", "x-visitor": who}
        asked = urllib.request.Request(
            f"{self.address}{path}", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def memory(self) -> int:
        """Bytes that the app and all it has started hold."""
        total = 0
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total


@contextmanager
def served(home: Path, **environment: str) -> Iterator[Space]:
    """The app, up and warm: its base answers. It and all it started are ended afterwards."""
    home.mkdir(parents=True, exist_ok=True)
    said = home / "served.json"
    command = [sys.executable, "-m", "tests.attacks.served", str(home), str(said)]
    given = {**os.environ, "GRADIO_TEMP_DIR": str(home / "gradio"), **environment}
    with (home / "served.log").open("wb") as log:
        started = subprocess.Popen(command, cwd=ROOT, env=given, stdout=log, stderr=log)
    process = psutil.Process(started.pid)
    try:
        deadline = time.monotonic() + PATIENCE
        while not said.exists():
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the app is not up: {(home / 'served.log').read_text()[-2000:]}"
                )
            time.sleep(0.1)
        found = json.loads(said.read_text())
        space = Space(home, found["port"], process, found["handlers"])
        space.call("on_ask", "ann", message="Ahoy?")
        yield space
    finally:
        # A worker outlives its app on purpose: it has a session of its own, and is found by its
        # place.
        ours = [process, *process.children(recursive=True)]
        ours += [one for one in psutil.process_iter() if str(home) in _command(one)]
        for one in ours:
            with suppress(psutil.Error):
                one.kill()
        started.wait()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def main() -> None:
    """Serve until killed."""
    home, said = Path(sys.argv[1]), Path(sys.argv[2])
    import gradio as gr

    from phi3lora.app.application import Application
    from phi3lora.settings import Settings
    from phi3lora.ui import app as pages
    from tests.attacks.ground import known_by_header
    from tests.test_ownership import Visited

    settings = Settings(
        home / "space",
        space_id="ann/space",
        who_may_train="signed-in",
        runs_per_day=20,
        hours_per_run=1.0,
    )
    known_by_header()
    app = Application.open(settings)
    callers: Any = app.callers
    callers.__class__ = Visited
    demo = pages.serve(pages.build(app), app, "127.0.0.1", None, block=False)
    handlers: dict[str, list[Any]] = {}
    for number, fn in demo.fns.items():
        values = [
            None if isinstance(c, gr.State) or callable(c.value) else c.value for c in fn.inputs
        ]
        ids = [(getattr(c, "elem_id", None) or "").replace("_", "-") for c in fn.inputs]
        places = {one: place for place, one in enumerate(ids)}
        name = getattr(fn.fn, "__name__", "")
        one = {"number": number, "values": values, "places": places}
        handlers.setdefault(name, []).append(one)
    whole = json.dumps({"port": demo.server_port, "handlers": handlers}, default=str)
    said.with_suffix(".part").write_text(whole)
    said.with_suffix(".part").rename(said)
    demo.block_thread()


if __name__ == "__main__":
    main()
