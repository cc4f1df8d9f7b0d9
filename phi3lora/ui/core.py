"""What the pages call: one object that holds the core's parts, each made when first needed.

    core = Core(settings)
    core.look(config, caller)          the data as it will be trained, checks and estimate
    core.queue.submit(run, token)
    core.engine()                      the chat; loads nothing yet

A test hands the pages an object with the same methods and no model behind it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from starlette.requests import HTTPConnection

from phi3lora.app.preflights import PreflightPool
from phi3lora.app.views import Follower
from phi3lora.chat.votes import Tally, Vote, VoteBook
from phi3lora.config import POCKET, RunConfig
from phi3lora.data.sources import is_local
from phi3lora.errors import AccessError, DataError, HubError, Phi3LoraError
from phi3lora.hub.access import (
    SUGGESTED_MODELS,
    Found,
    cached_identity,
    search_datasets,
    search_models,
    stored_token,
)
from phi3lora.hub.backup import RunRepo, list_runs
from phi3lora.hub.client import Unreachable
from phi3lora.models import pocket
from phi3lora.runs.copies import restore
from phi3lora.runs.export import Kind, export_code
from phi3lora.runs.permission import check_path, check_paths
from phi3lora.runs.queue import Queue
from phi3lora.runs.store import LOCAL, Run, RunStore
from phi3lora.settings import Settings
from phi3lora.training.preflight import Preflight, blocking
from phi3lora.ui import show

BLOCK = 1 << 20
FRAME = 0.08  # seconds between two looks at a growing answer
FEW = 3  # prompts of a report, below which the pocket model's are suggested too
FOUND, RECENT = 8, 3
LONGEST_PROMPT = 160
LATELY = 20  # runs among which one like the next is looked for
SETTLED = 3  # steps after which a run takes no more memory
ANONYMOUS = ""  # owns nothing
BROWSER = "phi3lora"  # the cookie that tells browsers apart on one's own machine
REMEMBERED = 1000  # people, and browsers
YES_LASTS = 60.0  # seconds for which the Hub's leave to read a base is good
ASKED = 1000


@dataclass(frozen=True)
class Caller:
    """Who asks: the owner of their runs, and their Hub token if they signed in."""

    name: str = LOCAL
    token: str | None = field(default=None, repr=False)

    def owns(self, namespace: str) -> bool:
        """Whether an account is this person's, or an organisation's in whose name they write."""
        if self.name == namespace:
            return True
        return self.token is not None and cached_identity(self.token).owns(namespace)


class Core:
    """The real thing behind the pages."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = RunStore(settings)
        self.queue = Queue(settings, self.store)
        self.follower = Follower(self.store)
        self.preflights = PreflightPool(settings)
        self._book = VoteBook(settings.home / "votes.jsonl")
        self._tokens: OrderedDict[str, str] = OrderedDict()  # by browser; never written down
        self._names: OrderedDict[str, str] = OrderedDict()  # by a token's hash
        self._may_use: dict[tuple[str, str, str], float] = {}  # (who, base, revision) → until
        self._engine: Any = None
        self._lock = threading.Lock()

    def caller(self, request: Any) -> Caller:
        """Who sent this request. On one's own machine everybody is `local`.

        On a Space it is whoever the Hub says the session's token belongs to, and nobody else.
        Raises HubError where the Hub cannot be asked, and was not lately.
        """
        if not self.settings.on_space:
            return Caller(LOCAL, self._tokens.get(browser_of(request)) or stored_token())
        token = session_token(request)
        return self._owner_of(token) if token else Caller(ANONYMOUS)

    def _owner_of(self, token: str) -> Caller:
        """Whom the Hub knows by this token; whom it knew, while it gives no answer."""
        key = hashlib.sha256(token.encode()).hexdigest()
        try:
            name = cached_identity(token).name
        except Unreachable:
            if key not in self._names:
                raise
            return Caller(self._names[key], token)
        except HubError:  # refused: revoked, or expired
            return Caller(ANONYMOUS)
        remember(self._names, key, name)
        return Caller(name, token)

    def sign_in(self, token: str, request: Any) -> str:
        """Use this token for what this browser asks, until the app ends; whose it is.

        Only on one's own machine. Raises HubError for a token that the Hub refuses.
        """
        browser = browser_of(request)
        if self.settings.on_space or not browser:
            raise AccessError("Sign in with Hugging Face; tokens are not taken here.")
        name = cached_identity(token).name
        remember(self._tokens, browser, token)
        return name

    def sign_out(self, request: Any) -> None:
        """Forget this browser's token."""
        self._tokens.pop(browser_of(request), None)

    def pulse(self, request: HTTPConnection) -> str:
        """A fingerprint of what a page about this run shows; it changes when that does."""
        try:
            owner = self.caller(request).name
        except HubError:
            return "waiting for the Hub"
        return self.follower.pulse(owner, request.query_params.get("run", ""))

    def run(self, run_id: str, caller: Caller) -> Run:
        """The caller's run. RunError if it is not theirs, or is not at all."""
        return self.store.get(run_id, caller.name)

    def look(self, config: RunConfig, caller: Caller) -> Preflight:
        """The data as it will be trained, the checks before launch, and the estimate.

        Raises AccessError for who may not train here, or may not name such a file.
        """
        self._check_leave(caller)
        self._check_paths(config, caller)
        return self.preflights.look(config, caller.token, self._speed(config, caller))

    def _speed(self, config: RunConfig, caller: Caller) -> float | None:
        """Tokens per second of the caller's last finished run with the same base, if there is."""
        for run in self.store.list(caller.name)[:LATELY]:
            if run.status == "finished" and _same_base(run, config):
                step = self.follower.view(run).step
                return step.tokens_per_second if step else None
        return None

    def launch(self, config: RunConfig, caller: Caller) -> Run:
        """Check once more, make a run, and put it in line."""
        look = self.look(config, caller)
        if red := blocking(look):
            raise Phi3LoraError("Not launched.\n" + "\n".join(red))
        title = config.title or Path(config.data.path.removeprefix("example:")).stem.capitalize()
        run = self.store.create(config, owner=caller.name, title=title)
        return self.queue.submit(run, caller.token)

    def kept_runs(self, caller: Caller) -> list[RunRepo]:
        """The caller's runs that are on the Hub and not here, newest first. Raises HubError."""
        if caller.token is None:
            return []
        here = {run.id for run in self.store.list(caller.name)}
        return [kept for kept in list_runs(caller.token) if kept.id not in here]

    def bring_back(self, repo: str, caller: Caller) -> Run:
        """Fetch a run that was backed up. Raises RunError, HubError, or AccessError."""
        self._check_leave(caller)
        if caller.token is None:
            raise AccessError("Sign in first; runs are backed up to one's own account.")
        return restore(self.store, repo, caller.token, caller.name)

    def resume(self, run_id: str, caller: Caller) -> Run:
        """Put the caller's run in line again."""
        run = self.run(run_id, caller)
        self._check_leave(caller)
        check_paths(run.config, run.owner, self.settings, run.folder)
        return self.queue.resume(run, caller.token)

    def code(self, config: RunConfig, kind: Kind, file: Path, caller: Caller) -> Path:
        """Write a config as a script or a notebook. On a Space it names no path of the machine."""
        self._check_leave(caller)
        self._check_paths(config, caller)
        on_space = self.settings.on_space
        return export_code(config, kind, file, token=caller.token, portable=on_space)

    def _check_leave(self, caller: Caller) -> None:
        """Whether this visitor may train here. AccessError if not."""
        allowed, owner = self.settings.who_may_train, self.settings.space_owner
        if caller.name == ANONYMOUS:
            raise AccessError(
                "Training here asks you to sign in with Hugging Face first, at the top of the "
                "page. Compare is open to everybody."
            )
        if allowed == "owner" and owner and not caller.owns(owner):
            raise AccessError(f"Only {owner} may train on this Space; duplicate it to train.")

    def _check_paths(self, config: RunConfig, caller: Caller) -> None:
        """On a Space a visitor may name what they uploaded, and no other file of this machine."""
        check_paths(config, caller.name, self.settings)

    def keep_upload(self, temporary: Path, caller: Caller) -> Path:
        """Keep a dropped file where a run can still read it tomorrow."""
        self._check_leave(caller)
        digest = hashlib.sha256()
        try:
            with temporary.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
            folder = self.settings.uploads(caller.name) / digest.hexdigest()[:32]
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / temporary.name
            if not kept.exists():
                shutil.copyfile(temporary, kept)
        except OSError as error:
            raise DataError(f"The file could not be kept: {error.strerror}.") from None
        return kept

    def engine(self) -> Any:
        """The chat engine, shared by everybody; it loads the base when it is first asked."""
        with self._lock:
            if self._engine is None:
                from phi3lora.chat.whole import Chat

                self._engine = Chat(self.settings, self._training_needs)
            return self._engine

    def _training_needs(self) -> int | None:
        """Bytes that a run may yet take; None where none computes. Asked once a second.

        A run that has made a few steps has been at its peak, and what is free stays free.
        """
        from phi3lora.models.hardware import detect_hardware
        from phi3lora.training.estimate import estimate

        running = [run for run in self.store.all() if run.status in ("running", "stopping")]
        if not running:
            return None
        needs = 0
        for run in running:
            step = self.follower.view(run).step
            if step is not None and step.step >= SETTLED:
                continue
            try:
                hardware = detect_hardware(run.config.model.device)
                needs += estimate(run.config, hardware).memory_bytes
            except Phi3LoraError:
                continue  # the run itself will say so
        return needs

    def load(self, base: Any, adapter: Path | None, caller: Caller) -> Iterator[str]:
        """Load a base and an adapter for the chat; says what it does while it does it."""
        self._check_base(base, caller)
        engine, notes = self.engine(), SimpleQueue[str | None | BaseException]()

        def work() -> None:
            try:
                engine.load(base, adapter, token=caller.token, progress=notes.put)
                notes.put(None)
            except Phi3LoraError as error:
                notes.put(error)

        threading.Thread(target=work, daemon=True).start()
        while (note := notes.get()) is not None:
            if isinstance(note, BaseException):
                raise note
            yield note

    def reply(
        self,
        subject: Any,
        base: list[dict[str, Any]],
        tuned: list[dict[str, Any]],
        options: Any,
        should_stop: Callable[[], bool],
        caller: Caller,
    ) -> Iterator[Any]:
        """Both answers as they grow, a dozen times a second at most."""
        self._check_base(subject.base, caller)
        pairs = self.engine().reply(
            base,
            tuned,
            options,
            should_stop,
            base=subject.base,
            adapter=subject.adapter,
            token=caller.token,
        )
        last, pair = 0.0, None
        for pair in pairs:
            if pair.done or time.monotonic() - last > FRAME:
                last = time.monotonic()
                yield pair

    def _check_base(self, base: Any, caller: Caller) -> None:
        """Whether this caller may read the base, which somebody else may have loaded.

        Asked with the caller's own token; a yes is good for a while. Raises HubError, ModelError.
        """
        from phi3lora.models.base import check_base, resolve_path
        from phi3lora.models.hardware import detect_hardware

        asked = (caller.name, base.path, base.revision or "")
        if time.monotonic() < self._may_use.get(asked, 0):
            return
        path = resolve_path(base.path, detect_hardware(base.device))
        check_base(path, base.revision, caller.token)
        self._may_use[asked] = time.monotonic() + YES_LASTS
        while len(self._may_use) > ASKED:
            self._may_use.pop(next(iter(self._may_use)))

    def room_message(self) -> str:
        """Why there is no room for the chat beside a training; empty where there is."""
        if self._engine is None:
            return ""
        room = self._engine.fits()
        return "" if room.fits else show.notice(room.message)

    def suggestions(self, run_id: str, caller: Caller) -> list[str]:
        """Prompts to try: held-out ones of the run's report, else of the pocket world."""
        run = next((run for run in self.store.list(caller.name) if run.id == run_id), None)
        prompts = held_out_prompts(run.folder / "report.json") if run else []
        if len(prompts) < FEW:
            prompts += pocket.prompts()
        return prompts

    def vote(self, vote: Vote) -> None:
        """Write a blind vote down. RunError if this pair of answers has one."""
        self._book.record(vote)

    def tally(self, adapter: str) -> Tally:
        """Blind votes on an adapter."""
        return self._book.tally(adapter)

    def search(self, query: str, caller: Caller) -> list[tuple[str, str]]:
        """Datasets on the Hub that match, as (what to show, id).

        Without words: what the caller trained on lately, their own, and suggestions.
        """
        self._check_leave(caller)
        page = search_datasets(query, caller.token, limit=FOUND)
        lines = {found.id: dataset_line(found) for found in page}
        if not query:
            recent = {path: f"{path} · used lately" for path in self._recent_datasets(caller)}
            lines = recent | {name: line for name, line in lines.items() if name not in recent}
        return [(line, name) for name, line in list(lines.items())[:FOUND]]

    def _recent_datasets(self, caller: Caller) -> list[str]:
        """Hub datasets of the caller's latest runs, newest first."""
        paths = []
        for run in self.store.list(caller.name)[:LATELY]:
            try:
                paths.append(run.config.data.path)
            except Phi3LoraError:
                continue
        return [path for path in dict.fromkeys(paths) if not is_local(path)][:RECENT]

    def bases(self, caller: Caller) -> list[str]:
        """Bases to suggest: the bundled one, the caller's own of type phi3, and well-known ones."""
        page = search_models("", caller.token, limit=len(SUGGESTED_MODELS) + FOUND)
        return ["auto", POCKET, *(found.id for found in page)]

    def parts(self, path: str, name: str | None, caller: Caller) -> tuple[list[str], list[str]]:
        """Configurations and splits of a Hub dataset."""
        self._check_leave(caller)
        check_path("data.path", path, caller.name, self.settings)
        return self.preflights.parts(path, name, caller.token)


def _same_base(run: Run, config: RunConfig) -> bool:
    """Whether a run's speed says something about this config's."""
    try:
        theirs = run.config.model
    except Phi3LoraError:
        return False
    ours = config.model
    return (theirs.path, theirs.quantization) == (ours.path, ours.quantization)


def held_out_prompts(report: Path) -> list[str]:
    """Prompts of a report's samples, short ones of one turn."""
    try:
        values = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    samples = [*values.get("gained", []), *values.get("lost", [])]
    prompts = [str(sample.get("prompt", "")) for sample in samples]
    return [prompt for prompt in dict.fromkeys(prompts) if 0 < len(prompt) <= LONGEST_PROMPT]


def dataset_line(found: Found) -> str:
    """A search result in a line."""
    known = [
        found.rows and f"{found.rows} rows",
        found.downloads and f"{show.short_count(found.downloads)} downloads",
        found.likes and f"{show.short_count(found.likes)} likes",
        found.size and show.size(found.size),
        found.licence,
        "gated" if found.gated else "",
        "private" if found.private else "",
    ]
    return " · ".join([found.id, *(part for part in known if part)])


def browser_of(request: Any) -> str:
    """What tells this browser from others on one's own machine; empty for a program."""
    connection = getattr(request, "request", request)
    return str(getattr(connection, "cookies", {}).get(BROWSER, ""))


def remember(known: OrderedDict[str, str], key: str, value: str) -> None:
    """Add to a memory that forgets the oldest."""
    known[key] = value
    known.move_to_end(key)
    while len(known) > REMEMBERED:
        known.popitem(last=False)


def session_token(request: Any) -> str | None:
    """The token of whoever signed in with this browser, unless it has expired."""
    connection = getattr(request, "request", request)
    if "session" not in getattr(connection, "scope", {}):
        return None
    signed_in = connection.session.get("oauth_info") or {}
    if signed_in.get("expires_at", 0) < time.time():
        return None
    return signed_in.get("access_token")
