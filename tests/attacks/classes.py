"""The classes of attacks, each a function that tries and yields what it tried."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import gradio as gr
import pytest

from phi3lora.app.callers import Caller
from phi3lora.app.helper import environment
from phi3lora.config import RunConfig
from phi3lora.runs.permission import check_paths
from tests import stage
from tests.attacks.exhausting import bombs, crowds, launches, uploads
from tests.attacks.filed import brought
from tests.attacks.followed import OWNERS, TOKEN, followed
from tests.attacks.ground import Ground, Try, faults, refused
from tests.attacks.marked import markup
from tests.attacks.pickled import pickles
from tests.attacks.programs import programs
from tests.test_ownership import QUESTIONS, SECRET, anns, arguments, ask, clicked, snapshot

Attack = Callable[[Ground], Iterator[Try]]
EVE = Caller("eve")
EXAMPLE = "example:pirate"

# Handlers that need not know who asks: they turn values of the page into others.
VALUES_ALONE = {
    "<lambda>",
    "not_renaming",
    "on_choose",
    "on_clear",
    "on_example",
    "on_field",
    "on_kinds",
    "on_method",
    "on_edit",
    "on_fit",
    "on_fix",
    "on_live",
    "on_pick",
    "on_recipe",
    "on_result",
    "on_source",
    "on_strength",
    "on_suggestion",
    "on_undo",
    "on_yaml",
}
# Routes that answer everybody, and what they tell: nothing of anybody.
OPEN_ROUTES = {
    "/": "the pages",
    "/{page}": "the pages",
    "/runs": "the pages",
    "/compare": "the pages",
    "/config": "components, without values of visitors",
    "/pulse": "a fingerprint of the caller's own runs",
    "/compare.png": "answers that whoever has the link may see",
    "/assets/{path:path}": "scripts",
    "/static/{path:path}": "pictures",
    "/favicon.ico": "a picture",
    "/theme.css": "style",
    "/robots.txt": "robots",
    "/pwa_icon": "a picture",
    "/pwa_icon/{size}": "a picture",
    "/manifest.json": "a name",
    "/login": "no accounts: refused by Gradio",
    "/login/huggingface": "signing in",
    "/login/callback": "signing in",
    "/login_check": "nothing",
    "/logout": "ends the caller's own session",
    "/user": "nobody: there are no accounts",
    "/app_id": "a number",
    "/info": "what the named endpoints take",
    "/openapi.json": "what the named endpoints take",
    "/file={path_or_url:path}": "files that were uploaded, to their owner",
    "/file/{path:path}": "files that were uploaded, to their owner",
    "/reset": "an iterator of a session",
    "/heartbeat/{session_hash}": "a pulse",
    "/call/{api_name}": "operations, each asking who calls",
    "/call/v2/{api_name}": "operations, each asking who calls",
    "/call/{api_name}/{event_id}": "events, by an id nobody guesses",
    "/call/v2/{api_name}/{event_id}": "events, by an id nobody guesses",
    "/v1/models": "needs a token on a Space",
    "/v1/models/{name:path}": "needs a token on a Space",
    "/v1/chat/completions": "needs a token on a Space",
    "/mcp": "operations, each asking who calls",
    "/queue/join": "handlers, each called in this class",
    "/queue/data": "events of a session, by an id nobody guesses",
    "/queue/status": "lengths",
    "/cancel": "an event of a session, by ids nobody guesses",
    "/upload_progress": "progress, by an id nobody guesses",
    "/upload": "needs a session on a Space",
    "/startup-events": "nothing",
    "/gradio_api/startup-events": "nothing",
}


def routes(app: Any) -> Iterator[tuple[str, set[str]]]:
    """Path and methods of every route, routers within routers included."""
    for route in getattr(app, "routes", []):
        inner = getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", None
        )
        if inner:
            yield from routes(type("Router", (), {"routes": inner}))
        elif hasattr(route, "path"):
            yield route.path, set(getattr(route, "methods", None) or {"GET"})


def isolation(ground: Ground) -> Iterator[Try]:
    """Every handler and route, as another visitor and as nobody, with ann's run."""
    runs = anns(ground.app.launching.store)
    before = snapshot(runs)
    handlers = [fn for fn in ground.demo.fns.values() if callable(fn.fn)]
    for fn in handlers:
        name = named(fn)
        hints = get_type_hints(inspect.unwrap(fn.fn)) if name != "<lambda>" else {}
        asks = any(hint is gr.Request for hint in hints.values()) or name in VALUES_ALONE
        yield Try(f"{name} asks who calls it", asks)
    yield Try("there are handlers", len(handlers) > 30)
    for who, fn in itertools.product(("eve", ""), ground.some(handlers, 8)):
        for run in ground.some(runs, 1):
            values, query = arguments(fn, run), f"from={run.id}&run={run.id}&adapter={run.id}"
            for event in (clicked(run.id), {"several": [run.id], "do": "recover", "of": run.id}):
                with faults() as failed:
                    said = ask(ground.address, fn, values, who, event, query)
                held = SECRET not in said and not failed
                yield Try(f"{named(fn)} by {who or 'nobody'} {failed[:1]}", held)
    yield from _typed(ground, handlers, runs[2].id)
    forged: list[Any] = [None, -1, 10**30, "../" * 9, [[]], {"path": "/etc/passwd"}, "\0", "~x"]
    for fn, value in itertools.product(ground.some(handlers, 20), ground.some(forged, 2)):
        event = value if value in (None, -1) else {"run": value, "repo": value, "prompt": value}
        with faults() as failed:
            said = ask(ground.address, fn, [value] * len(fn.inputs), "eve", event)
        fine = SECRET not in said and "root:x" not in said and not failed
        yield Try(f"{named(fn)} with {value!r} {failed[:1]}", fine)
    yield from _routes(ground, runs)
    yield from _sessions(ground)
    asked = ground.app.comparing.engine().asked  # type: ignore[attr-defined]
    if ground.full:
        yield Try(f"{asked} questions came as far as the chat", asked > 0)
    yield Try("nothing of ann's has changed", snapshot(runs) == before)


def named(fn: Any) -> str:
    """What a handler is called."""
    return getattr(fn.fn, "__name__", "<lambda>")


def _typed(ground: Ground, handlers: list[Any], run: str) -> Iterator[Try]:
    """Ann's run, its folder and an upload of hers, typed into each field that names something."""
    read = ground.app.launching._preflights.asked  # type: ignore[attr-defined]
    upload = ground.app.settings.uploads("ann") / "x" / "rows.jsonl"
    upload.parent.mkdir(parents=True, exist_ok=True)
    upload.write_text(json.dumps({"text": SECRET}))
    folder = ground.app.settings.runs_folder / run
    fields = [(fn, place) for fn in handlers for place, one in enumerate(fn.inputs) if names(one)]
    texts = (run, str(folder), str(upload))
    for (fn, place), text in itertools.product(ground.some(fields, 12), ground.some([*texts], 1)):
        values = [EXAMPLE if is_data(one) else value_of(one) for one in fn.inputs]
        values[place] = [{"path": text}] if "more" in fn.inputs[place].elem_id else text
        seen = len(read)
        with faults() as failed:
            said = ask(ground.address, fn, values, "eve", {"do": "open", "row": "0:0"})
        reached = [one for one in read[seen:] if str(ground.app.settings.home) in one]
        held = SECRET not in said and not failed and not reached
        yield Try(f"{named(fn)}, {fn.inputs[place].elem_id} {text} {failed[:1]}", held)


def names(component: Any) -> bool:
    """Whether it takes the name of a run, a file or a model."""
    named = getattr(component, "elem_id", "") or ""
    takes = re.search(r"path|adapter|against|third|more|run-id", named)
    return takes is not None and isinstance(component, gr.Textbox | gr.Dropdown)


def is_data(component: Any) -> bool:
    """Whether it is the form's field of the data."""
    return getattr(component, "elem_id", None) == "field-data-path"


def value_of(component: Any) -> Any:
    """What the page sends at first, and a question; states are the server's."""
    if getattr(component, "elem_id", None) in QUESTIONS:
        return "Ahoy?"
    static = not isinstance(component, gr.State) and not callable(component.value)
    return component.value if static else None


def _routes(ground: Ground, runs: list[Any]) -> Iterator[Try]:
    secret, run = str(runs[0].folder / "log.txt"), runs[2].id
    for path, methods in dict(routes(ground.demo.app)).items():
        known = path.removeprefix("/gradio_api").rstrip("/") or "/"
        filled = path
        for part in ("{path_or_url:path}", "{path:path}", "{session_hash}", "{event_id}"):
            filled = filled.replace(part, secret if "path" in part else runs[0].id)
        filled = filled.replace("{page}", "runs").replace("{", "").replace("}", "")
        endless = "heartbeat" in path or path.endswith("/queue/data")
        for method in sorted(methods & {"GET", "POST"}) if not endless else []:
            asked = (
                f"{filled}?run={run}&adapter={run}&against={run}&q=x" if method == "GET" else filled
            )
            status, _, body = ground.ask(method, asked, b"{}" if method == "POST" else None)
            told = SECRET.encode() in body
            yield Try(f"{method} {path} tells nothing", not told and status != 500)
            listed = known in OPEN_ROUTES or path in OPEN_ROUTES or status == 404
            yield Try(f"{method} {path} is closed, or known to be open", listed)


def _sessions(ground: Ground) -> Iterator[Try]:
    """Ann's session, and an event of hers, named by another and by nobody."""
    shows = next(fn for fn in ground.demo.fns.values() if named(fn) == "on_show")
    run, hers = anns(ground.app.launching.store)[2].id, "the-session-of-ann"
    call: dict[str, Any] = {"fn_index": shows._id, "data": [run], "session_hash": hers}
    join, json_ = "/gradio_api/queue/join", {"content_type": "application/json"}

    def send(path: str, body: dict[str, Any], who: str) -> tuple[int, bytes]:
        status, _, said = ground.ask(
            "POST", path, json.dumps(body).encode(), x_visitor=who, **json_
        )
        return status, said

    event = json.loads(send(join, call, "ann")[1])["event_id"]
    named_ = {"session_hash": hers, "event_id": event, "fn_index": shows._id}
    asked: list[tuple[str, dict[str, Any] | None]] = [
        (f"/gradio_api/queue/data?session_hash={hers}", None),
        (f"/gradio_api/queue/data?session_hash=x&session_hash={hers}", None),
        (f"/gradio_api/heartbeat/{hers}", None),
        (f"/gradio_api/call/ask/{event}", None),
        (f"/gradio_api/call/v2/ask/{event}", None),
        (join, call),
        (f"{join}?session_hash={hers}", {**call, "session_hash": "x"}),
        ("/gradio_api/cancel", named_),
        ("/gradio_api/cancel", {**named_, "session_hash": "x"}),
        ("/gradio_api/reset", {"event_id": event}),
        ("/gradio_api/component_server", {**named_, "component_id": 1, "fn_name": "x", "data": 1}),
    ]
    for (path, body), who in itertools.product(asked, ("eve", "")):
        if body is None:
            status, _, _ = ground.ask("GET", path, x_visitor=who)
        else:
            status, _ = send(path, body, who)
        yield Try(f"{path} of ann's session by {who or 'nobody'}: {status}", status in (403, 404))
    said = ground.stream("GET", f"/gradio_api/queue/data?session_hash={hers}", b"", x_visitor="ann")
    yield Try("ann hears her own answer all the same", SECRET.encode() in said)


def spelled(path: str) -> list[str]:
    """One file's path in many spellings."""
    up = "../" * 12
    return [
        path,
        f"/{path}",
        f"{up}{path.lstrip('/')}",
        f"/tmp/../{path.lstrip('/')}",
        f"file://{path}",
        f"file:{path}",
        f"local://{path}",
        f"{path}\0",
        f"{path}\0.jsonl",
        f"\u202e{path}",
        f"{path}\u200b",
        path.replace("/", "//"),
        path.replace("/", "/./"),
        path.replace("/", "\\"),
        f"{path[:-1]}?",
        f"{path[:-1]}*",
        f"{path[:-2]}[{path[-2]}]{path[-1]}",
        f"~/{up}{path.lstrip('/')}",
        "~root" + path,
        f"example:{up}{path.lstrip('/')}",
        f"zip://x::{path}",
        f"simplecache::{path}",
        f"data/{up}{path.lstrip('/')}",
        f"eve/..{path}",
        path.replace("etc", "%65tc"),
    ]


def files(ground: Ground) -> Iterator[Try]:
    """Paths in every field and address, in restored runs, cards, archives and tokenizers."""
    mine = ground.app.settings.uploads("eve")
    mine.mkdir(parents=True, exist_ok=True)
    for name, target in (("link.jsonl", "/etc/passwd"), ("env.jsonl", "/proc/self/environ")):
        if not (mine / name).is_symlink():
            (mine / name).symlink_to(target)
    of_ann = ground.app.settings.uploads("ann") / "rows.jsonl"
    wanted = ["/etc/passwd", "/proc/self/environ", str(of_ann)]
    paths = [one for path in wanted for one in spelled(path)]
    paths += [str(mine / "link.jsonl"), str(mine / "env.jsonl"), f"{mine}/../../..", "/dev/zero"]
    for path in ground.some(paths, 25):
        for field in ("data.path", "model.path", "model.adapter"):
            yield Try(f"{field} {path!r}", refused(lambda f=field, p=path: start(ground, f, p)))
        adapter = refused(lambda p=path: ground.app.comparing.subject(p, EVE))
        yield Try(f"adapter {path!r}", adapter)
        status, _, body = ground.ask("GET", f"/gradio_api/file={escape(path)}", x_visitor="eve")
        yield Try(f"file={path!r}", status != 200 and b"root:x" not in body)
    yield from brought(ground, paths)


def start(ground: Ground, field: str, path: Any) -> None:
    """As a visitor would begin a run; nothing is fetched."""
    config = RunConfig().with_values({field: path})
    check_paths(config, "eve", ground.app.settings)
    ground.app.launching.preflight(config, EVE)
    if not str(path).startswith("example:"):
        return
    from phi3lora.data.sources import open_source

    open_source(config.data)


def escape(path: str) -> str:
    from urllib.parse import quote

    return quote(path, safe="/")


def addresses(ground: Ground) -> Iterator[Try]:
    """Addresses in every field that reaches fsspec, datasets or the Hub: nobody is asked."""
    schemes = ["http", "https", "ftp", "s3", "gs", "webhdfs", "memory", "hf", "ssh", "git", "smb"]
    paths = [f"{scheme}://127.0.0.1:9/x.jsonl" for scheme in schemes]
    paths += ["zip://x::http://127.0.0.1:9/a.zip", "simplecache::ftp://127.0.0.1:9/a"]
    paths += ["eve/a@b", "eve/a#b", "eve/a?b", "eve/../ann", "eve//a", "eve/a/b/c", "//127.0.0.1/a"]
    for path in ground.some(paths, 8):
        for field in ("data.path", "model.path", "model.adapter"):
            with watched() as asked:
                held = refused(lambda f=field, p=path: start(ground, f, p))
            yield Try(f"{field} {path}", held and not asked)
        with watched() as asked:
            held = refused(lambda p=path: start(ground, "data.more", [{"path": p}]))
        yield Try(f"data.more {path}", held and not asked)
        with watched() as asked:
            held = refused(lambda p=path: ground.app.comparing.subject(p, EVE))
        yield Try(f"adapter {path}", held and not asked)
        status, _, _ = ground.ask("GET", f"/gradio_api/file={path}")
        yield Try(f"file={path}", status in (403, 404))


@contextmanager
def watched() -> Iterator[list[Any]]:
    """Connections that are begun meanwhile, by anybody in this process."""
    asked: list[Any] = []
    connect = socket.socket.connect

    def noting(self: socket.socket, address: Any) -> Any:
        asked.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noting)
        yield asked


def origin(ground: Ground) -> Iterator[Try]:
    """Foreign pages, other names, planted cookies, open redirects, WebSockets."""
    hosts = ["evil.example", "127.0.0.1.evil.example", "localhost.", "127.1", "0.0.0.0", "x@[::1]"]
    for host, path in itertools.product(hosts, ("/", "/config", "/pulse", "/gradio_api/info")):
        status, _, _ = ground.ask("GET", path, port=ground.here, host=host)
        yield Try(f"host {host} {path}", status == 403)
    origins = [
        "https://evil.example",
        "null",
        "http://[",
        "http://127.0.0.1:1",
        "http://localhost.e",
    ]
    for came, path in itertools.product(origins, ("/gradio_api/queue/join", "/gradio_api/cancel")):
        for port in (ground.here, ground.port):
            status, _, _ = ground.ask("POST", path, b"{}", port=port, origin=came)
            yield Try(f"POST {path} from {came}", status == 403)
            _, headers, _ = ground.ask("GET", "/config", port=port, origin=came)
            shared = [name for name in headers if name.startswith("access-control")]
            yield Try(f"GET from {came}", not shared)
    for cookie in ("phi3lora=planted", "phi3lora=a.b", "phi3lora=" + "x" * 3000):
        _, headers, _ = ground.ask("GET", "/", port=ground.here, cookie=cookie)
        yield Try(f"cookie {cookie[:20]}", "HttpOnly" in headers.get("set-cookie", ""))
    for target in ("//evil.example", "////evil.example", "https://evil.example", "/\\evil.example"):
        for path in (f"/logout?_target_url={target}", f"/gradio_api/file={target}"):
            _, headers, _ = ground.ask("GET", path)
            yield Try(f"redirect {path}", "evil.example" not in headers.get("location", "")[:2])
    upgrade = {"upgrade": "websocket", "connection": "Upgrade", "sec_websocket_version": "13"}
    for path in ("/", "/gradio_api/queue/join", "/ws"):
        key = {"sec_websocket_key": "x3JJHMbDL1EzLkh9GBhXDw=="}
        status, _, _ = ground.ask("GET", path, port=ground.here, **upgrade, **key)
        yield Try(f"WebSocket {path}", status != 101)


def secrets(ground: Ground) -> Iterator[Try]:
    """Tokens and secrets, typed and followed through a run: in no file, list, address or answer."""
    store, config = ground.app.launching.store, stage.config(f"My {TOKEN}")
    run = store.create(config, owner="eve", title=f"My {TOKEN}")
    for file in sorted(run.folder.rglob("*")):
        yield Try(
            f"{file.name} of a run", not file.is_file() or TOKEN.encode() not in file.read_bytes()
        )
    given = environment(strangers=True, environ={**os.environ, **OWNERS})
    for name, secret in OWNERS.items():
        kept = name in given or secret in given.values()
        yield Try(f"a helper's {name}", not kept)
    for path in ("/config", "/pulse", "/", f"/pulse?run={run.id}"):
        _, _, body = ground.ask("GET", path, x_visitor="eve", authorization=f"Bearer {TOKEN}")
        yield Try(f"{path} with a token", TOKEN.encode() not in body)
    for error in (Caller("eve", TOKEN), ground.app.callers):
        yield Try(f"{type(error).__name__} shown", TOKEN not in repr(error))
    yield from followed(ground.full, ground.folder / "followed")


def dependencies(ground: Ground) -> Iterator[Try]:
    """Installed versions, and the lowest that requirements.txt admits, against known advisories."""
    from importlib.metadata import PackageNotFoundError, version

    import yaml
    from packaging.requirements import Requirement
    from packaging.version import Version

    kept = yaml.safe_load((Path(__file__).parent / "advisories.yaml").read_text())
    lines = (Path(__file__).parents[2] / "requirements.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    lowest = {
        one.name.lower(): min(
            Version(s.version) for s in one.specifier if s.operator in (">=", "==")
        )
        for one in wanted
        if any(s.operator in (">=", "==") for s in one.specifier)
    }
    for advisory in kept["advisories"]:
        name, fixed = advisory["package"], Version(advisory["fixed"])
        try:
            yield Try(f"{name}: {advisory['id']}", Version(version(name)) >= fixed)
        except PackageNotFoundError:
            continue
        if name in lowest:
            yield Try(f"{name} as required: {advisory['id']}", lowest[name] >= fixed)


CLASSES: dict[str, Attack] = {
    "isolation": isolation,
    "files": files,
    "addresses": addresses,
    "markup": markup,
    "origin": origin,
    "secrets": secrets,
    "bombs": bombs,
    "crowds": crowds,
    "launches": launches,
    "uploads": uploads,
    "pickles": pickles,
    "programs": programs,
    "dependencies": dependencies,
}
LONG = {"launches", "uploads"}  # of which there is no short selection
MEASURED = {"bombs", "crowds", *LONG}  # against another visitor's patience
