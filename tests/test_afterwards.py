"""What follows the end of a run: the webhook, and the pause of a Space."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from phi3lora.runs.afterwards import after_worker, tell_end
from phi3lora.runs.store import RunStore
from phi3lora.settings import Settings
from tests import stage
from tests.hub import LoopbackHub


class Webhook(HTTPServer):
    """What it was told, and how it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: list[dict[str, Any]] = []
        self.answer = 204
        self.url = f"http://127.0.0.1:{self.server_port}/services/T0/secret-part"


class Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.told.append(json.loads(body))
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_end_is_told_to_programs_and_in_words(settings: Settings, webhook: Webhook) -> None:
    run = stage.failed(RunStore(settings))
    tell_end(run, replace(settings, webhook=webhook.url))
    (told,) = webhook.told
    assert (told["run"], told["status"], told["verdict"]) == (run.id, "failed", None)
    assert told["text"] == told["content"] == f"{run.title}: failed. {run.message}"
    done = stage.finished(RunStore(settings), "Pirate")
    tell_end(done, replace(settings, webhook=webhook.url))
    assert (webhook.told[1]["status"], webhook.told[1]["verdict"]) == ("finished", "better")
    tell_end(done, settings)
    assert len(webhook.told) == 2


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "not an address", "http://[::1"])
def test_a_webhook_that_does_not_hear_is_logged_without_its_address(
    settings: Settings, webhook: Webhook, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    webhook.answer = 500
    with caplog.at_level(logging.WARNING):
        tell_end(stage.failed(RunStore(settings)), replace(settings, webhook=url or webhook.url))
    assert "was not told" in caplog.text
    assert "secret-part" not in caplog.text


def test_a_space_is_paused_once_its_last_run_has_ended(
    settings: Settings, hub: LoopbackHub, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_user("ann", token="hf_ann")
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    hub.add_repo("space", "ann/tuner", {"app.py": ""})
    store, asked = RunStore(settings), replace(settings, space_id="ann/tuner", webhook=webhook.url)
    wanted = replace(asked, pause_when_done=True)
    done, waits = stage.failed(store), stage.running(store)
    after_worker(done.folder, settings)  # on one's own machine the worker has told
    after_worker(waits.folder, wanted)  # it goes on
    assert webhook.told == []
    after_worker(done.folder, wanted)
    assert [told["run"] for told in webhook.told] == [done.id]
    assert not hub.repo("space", "ann/tuner").space["paused"]  # another run computes
    stage.changed(waits, status="stopped")
    after_worker(done.folder, asked)
    assert not hub.repo("space", "ann/tuner").space["paused"]
    after_worker(done.folder, wanted)
    assert hub.repo("space", "ann/tuner").space["paused"]


def test_a_run_of_the_owner_may_ask_for_the_pause_and_no_other(
    settings: Settings, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_user("ann", token="hf_ann")
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    hub.add_repo("space", "ann/tuner", {"app.py": ""})
    store, here = RunStore(settings), replace(settings, space_id="ann/tuner")
    space = hub.repo("space", "ann/tuner").space
    asks = stage.config("Mine", **{"hub.pause_space": True})
    damaged = store.create(asks, owner="ann")
    (damaged.folder / "config.yaml").write_text("hub: [")
    for run in (
        store.create(asks, owner="bob"),
        store.create(stage.config("Stay"), "ann"),
        damaged,
    ):
        stage.changed(run, status="failed")
        after_worker(run.folder, here)
        assert not space["paused"]
    mine = stage.changed(store.create(asks, owner="ann"), status="finished")
    after_worker(mine.folder, here)
    assert space["paused"]
