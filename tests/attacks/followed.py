"""Tokens and secrets, followed through a real run: launched, backed up, published, fetched back."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from phi3lora.app.callers import Caller
from phi3lora.app.publishing import Publication, Publishing
from phi3lora.config import RunConfig
from phi3lora.runs import life
from phi3lora.runs.store import Run
from phi3lora.settings import Settings
from phi3lora.training.script import script
from tests import fake_training
from tests.attacks.ground import Ground, Try, ground
from tests.faults.recipes import config as small
from tests.hub import LoopbackHub, fixtures

TOKEN = "hf_" + "Q7zK2mV9" * 4
# In the environment of the app; a Space has such of its owner's.
OWNERS = {
    "HF_TOKEN": "hf_" + "W3rT8yB5" * 4,
    "OAUTH_CLIENT_SECRET": "oauth-3f9c1d77",
    "AWS_SECRET_ACCESS_KEY": "aws-5b0e44c2",
    "DATABASE_URL": "postgres://app:pw-91ab3e@db/app",
    "MY_PASSWORD": "pw-c07d5512",
    "HF_API_KEY": "key-77aa10f3",
    "X": "x-0d9c4e6b",
}
SECRETS = {"the visitor's token": TOKEN} | {f"the owner's {name}": s for name, s in OWNERS.items()}


def followed(full: bool, folder: Path) -> Iterator[Try]:
    """One run and all that comes of it, in an app of its own, where no other run waits.

    In the short selection nothing is really trained.
    """
    with ground(folder, full, trains=True) as place:
        yield from _followed(place)


def _followed(ground: Ground) -> Iterator[Try]:
    with _on_the_hub(ground) as hub, _watched() as (processes, told):
        run = _run(ground)
        yield Try(f"the run ends: {run.status}", run.status == "finished")
        yield Try("a worker was seen", any("phi3lora.runs.worker" in one for one in processes))
        files = dict(_files(ground.folder))
        yield from _none("files", files)
        yield from _none("environments and command lines", dict(enumerate(processes)))
        yield from _none("pages", dict(_pages(ground, run)))
        if ground.full:
            made = dict(_made(ground, run))
            yield from _none("what is made of it", made)
            yield from _none("files of a run that came back", dict(_files(ground.folder)))
        yield from _none("the Hub's repositories", dict(hub.stored()))
        asked = {str(number): f"{one} {one.query}" for number, one in enumerate(hub.requests)}
        yield from _none("addresses", asked)
        sent = {one.authorization for one in hub.requests} - {None, f"Bearer {TOKEN}"}
        yield Try(f"the Hub hears of no other token {sorted(map(str, sent))}", not sent)
        yield Try("it was asked with the visitor's", any(one.authorization for one in hub.requests))
        yield from _none("logs", dict(enumerate(told)))


def _none(where: str, texts: dict[str, bytes] | dict[str, str] | dict[int, str]) -> Iterator[Try]:
    """No secret in any of these, of which there must be some."""
    for what, secret in SECRETS.items():
        found = [name for name, text in texts.items() if _holds(text, secret)]
        yield Try(f"{what} in {where} {found[:2]}", bool(texts) and not found)


def _holds(text: bytes | str, secret: str) -> bool:
    return secret.encode() in text if isinstance(text, bytes) else secret in text


@contextmanager
def _on_the_hub(ground: Ground) -> Iterator[LoopbackHub]:
    """An empty Hub that knows eve, for this process and its workers; the owner's secrets beside."""
    hub = fixtures._HUB
    hub.reset()
    hub.requests.clear()
    hub.add_user("eve", token=TOKEN)
    fixtures.forget()
    fixtures.go_offline(False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (OWNERS | {"HF_HUB_OFFLINE": "0", "SPACE_ID": "ann/space"}).items():
            patch.setenv(name, value)
        if not ground.full:
            fake_training.install(ground.folder / "fake", patch)
        try:
            yield hub
        finally:
            fixtures.go_offline(True)
            hub.reset()


@contextmanager
def _watched() -> Iterator[tuple[set[str], list[str]]]:
    """What process lists show meanwhile of every process that is started, and what is logged."""
    seen: set[str] = set()
    told: list[str] = ["(what was logged)"]
    over, before = threading.Event(), {one.pid for one in psutil.process_iter()}

    def look() -> None:
        while not over.wait(0.02):
            for process in psutil.process_iter():
                if process.pid not in before:
                    with suppress(psutil.Error):
                        seen.add(f"{process.cmdline()} {process.environ()}")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler, looking = Handler(), threading.Thread(target=look, daemon=True)
    logging.getLogger().addHandler(handler)
    looking.start()
    try:
        yield seen, told
    finally:
        over.set()
        looking.join()
        logging.getLogger().removeHandler(handler)


def _run(ground: Ground) -> Run:
    """Eve's run, in a worker of its own and backed up, to the end of its last copy."""
    config = small("LoRA") if ground.full else RunConfig().with_values({"model.device": "cpu"})
    config = config.with_values({"title": f"quick {TOKEN}", "hub.backup": True})
    if not ground.full:
        config = config.with_values({"title": "quick"})
    launching = ground.app.launching
    run = launching.queue.submit(launching.store.create(config, owner="eve"), TOKEN)
    deadline = time.monotonic() + 300
    while life.is_held(run.folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return run.refresh()


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every byte that this campaign, the app and the Hub's clients have on the disk."""
    for place in (folder, Path(fixtures._HOME.name)):
        for path in sorted(place.rglob("*")):
            if path.is_file():
                yield str(path), path.read_bytes()


def _pages(ground: Ground, run: Run) -> Iterator[tuple[str, bytes]]:
    """What the app answers eve about it."""
    from tests.test_ownership import arguments, ask

    shows = {"on_show", "on_pulse"} | ({"on_download", "make"} if ground.full else set())
    handlers = [fn for fn in ground.demo.fns.values() if getattr(fn.fn, "__name__", "") in shows]
    for fn in handlers:
        yield fn.fn.__name__, ask(ground.address, fn, arguments(fn, run), "eve").encode()
    for path in ("/config", "/", f"/runs?run={run.id}", f"/pulse?run={run.id}"):
        fields = {"authorization": f"Bearer {TOKEN}"}
        yield path, ground.ask("GET", path, x_visitor="eve", **fields)[2]


def _made(ground: Ground, run: Run) -> Iterator[tuple[str, str]]:
    """Script, card, a published result, and the run as it comes back from the Hub."""
    eve, publishing = Caller("eve", TOKEN), Publishing(ground.app.settings)
    yield "script", script(run.config)
    yield "card", publishing.draft(run, "eve/result", eve)
    published = publishing.push(run, Publication("eve/result"), eve, tell=lambda message: None)
    yield "published", str(published)
    elsewhere = ground.folder / f"elsewhere-{secrets.token_hex(4)}"
    there = replace(ground.app.settings, home=elsewhere)
    yield "restored", str(_restored(there, eve))


def _restored(settings: Settings, eve: Caller) -> Run:
    from phi3lora.app.application import Application

    app = Application.open(settings)
    try:
        [copy] = app.launching.backed_up(eve)
        return app.launching.restore(copy.repo, eve)
    finally:
        app.close()
