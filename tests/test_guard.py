"""Who may speak to the app at all, over real HTTP: on one's own machine, beyond it, on a Space."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from phi3lora.app import uploads
from phi3lora.app.application import Application
from phi3lora.app.callers import Caller, Session
from phi3lora.app.signed_out import SignedOut
from phi3lora.errors import DataError
from phi3lora.settings import Settings
from phi3lora.ui import guard, watch
from phi3lora.ui.app import build, serve
from phi3lora.ui.guard import CLOSED, MAX_BODY, Rules, depth, rules_for
from phi3lora.ui.senders import AT_ONCE, CREDIT, EARNED, Turns
from phi3lora.ui.sessions import BROWSER
from phi3lora.ui.watch import sender

FORM = "multipart/form-data; boundary=X"
PART = b'Content-Disposition: form-data; name="files"; filename="a.jsonl"'
FILE = b"--X\r\n" + PART + b"\r\n\r\n{}\r\n--X--\r\n"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class App:
    port: int
    application: Application

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request; `host_` and the like become headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.strip("_").replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        try:
            return Answer(answer.status, fields, answer.read())
        finally:
            connection.close()


def start(settings: Settings, host: str = "127.0.0.1") -> Iterator[App]:
    application = Application.open(settings)
    demo = serve(build(application), application, host, None, block=False)
    yield App(int(demo.server_port), application)
    demo.close()
    application.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    yield from start(Settings(home=tmp_path_factory.mktemp("here")))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    home = tmp_path_factory.mktemp("space")
    yield from start(Settings(home=home, space_id="ann/space", who_may_train="signed-in"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:7860", "[::1]", "[::1]:1"])
def test_the_machines_own_names_are_answered(here: App, host: str) -> None:
    assert here.ask("GET", "/", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:7860",
        "localhost.",
        "[::1].evil",
        "0.0.0.0",
        "2130706433",
        "127.1",
        "",
        "user@localhost",
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", "/pulse", "/gradio_api/info"])
def test_other_names_are_refused_reads_too(here: App, host: str, path: str) -> None:
    answer = here.ask("GET", path, host=host)
    assert answer.status == 403
    assert b"name is not the app's" in answer.body


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://[", "", "http://127.0.0.1", "http://localhost.evil"],
)
def test_another_sites_page_gets_no_rights(here: App, origin: str) -> None:
    """An origin of another port is another site's, too."""
    for path in ("/", "/config", "/pulse"):
        answer = here.ask("GET", path, origin=origin)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {"origin": origin, "access_control_request_method": "POST"}
    assert here.ask("OPTIONS", "/gradio_api/queue/join", **asked).status == 403
    joined = here.ask("POST", "/gradio_api/queue/join", b"{}", origin=origin)
    assert (joined.status, b"another site's page" in joined.body) == (403, True)


def test_every_answer_keeps_the_page_to_itself(here: App) -> None:
    for path, host in (("/", "localhost"), ("/theme.css", "localhost"), ("/", "evil.example")):
        headers = here.ask("GET", path, host=host).headers
        policy = headers["content-security-policy"]
        for name in ("img-src", "form-action", "connect-src", "frame-ancestors"):
            assert f"{name} 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


def test_only_a_cookie_of_this_process_names_a_browser(here: App) -> None:
    name = here.ask("GET", "/").headers["set-cookie"].split(";")[0]
    assert "set-cookie" not in here.ask("GET", "/", cookie=name).headers
    for planted in ("phi3lora=planted", f"{name[:-1]}x", "phi3lora=.", f"a=b; {name[:-2]}"):
        fresh = here.ask("GET", "/", cookie=planted).headers["set-cookie"]
        assert fresh.split(";")[0] != planted
        assert "HttpOnly" in fresh
        assert "SameSite=Lax" in fresh


def test_closed_routes_are_closed(here: App) -> None:
    for path in ("/monitoring", "/gradio_api/proxy=http://x", "/gradio_api/token"):
        assert here.ask("GET", path).status == 404


def test_a_large_or_deep_body_is_refused_in_words(here: App) -> None:
    join = "/gradio_api/queue/join"
    large = here.ask("POST", join, b" " * (MAX_BODY + 1))
    assert (large.status, b"5 MB" in large.body) == (413, True)
    deep = here.ask("POST", join, b"[" * 5000 + b"]" * 5000, content_type="application/json")
    assert (deep.status, b"levels" in deep.body) == (400, True)
    wide = json.dumps({"data": ["[" * 500] + [[]] * 500, "fn_index": 0}).encode()
    assert here.ask("POST", join, wide, content_type="application/json").status == 400  # no session
    huge = b'{"data": [' + b"9" * 6000 + b'], "fn_index": 0, "session_hash": "a"}'
    assert here.ask("POST", join, huge, content_type="application/json").status in (400, 422)


def test_depth_is_counted_in_linear_time() -> None:
    assert depth(b'{"a": [[1], "[[[[", {"b\\"[": []}]}') == 4
    assert depth(b"]]]][") <= 1
    for text in (b'\\"' * 500_000, b'"' * 999_999, b"[" * 500_000):
        began = time.process_time()
        depth(text)
        assert time.process_time() - began < 5  # quadratic would take hours


def test_headers_that_never_end_are_hung_up_on(here: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEADER_SECONDS", 0.2)
    for beginning in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
        with socket.create_connection(("127.0.0.1", here.port), timeout=30) as slow:
            slow.sendall(beginning)
            assert slow.recv(1000).partition(b"\r\n")[0] in (b"", b"HTTP/1.1 400 Bad Request")
    assert here.ask("GET", "/pulse").status == 200


# Beyond loopback


def test_beyond_loopback_a_token_in_the_address_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3lora.app.callers.stored_token", lambda: "hf_of_this_machine")
    for app in start(Settings(home=tmp_path), "0.0.0.0"):
        said = capsys.readouterr().err
        key = re.search(r"/\?token=(\S+)", said)
        assert key is not None
        assert "reads files of this machine" in said
        for path in ("/", "/config", "/pulse", "/gradio_api/file=/etc/passwd", "/assets/x.js"):
            assert app.ask("GET", path).status == 401
            assert app.ask("GET", f"{path}?token=guess").status == 401
            assert app.ask("GET", path, cookie="phi3lora-key=guess").status == 401
        assert app.ask("POST", f"/gradio_api/queue/join?token={key[1]}", b"{}").status == 401
        came = app.ask("GET", f"/compare?token={key[1]}&adapter=a%2Fb")
        assert (came.status, came.headers["location"]) == (303, "/compare?adapter=a%2Fb")
        assert "HttpOnly" in came.headers["set-cookie"]
        cookie = came.headers["set-cookie"].split(";")[0]
        assert app.ask("GET", "/", cookie=cookie).status == 200
        assert app.ask("GET", "/", host="box.lan", cookie=cookie).status == 200
        assert app.ask("GET", "/config", authorization=f"Bearer {key[1]}").status == 200
        elsewhere = app.ask("GET", f"//evil.example/?token={key[1]}")
        assert elsewhere.headers.get("location", "/").startswith("/evil")
        callers = app.application.callers
        assert callers.caller(Session()).token is None
        callers.beyond_loopback = False
        assert callers.caller(Session()).token == "hf_of_this_machine"


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", {"localhost", "127.0.0.1", "[::1]"}),
        ("localhost", {"localhost", "127.0.0.1", "[::1]"}),
        ("::1", {"localhost", "127.0.0.1", "[::1]"}),
        ("127.0.0.7", {"localhost", "127.0.0.1", "[::1]", "127.0.0.7"}),
    ],
)
def test_hosts_of_loopback(tmp_path: Path, host: str, names: set[str]) -> None:
    rules = rules_for(Settings(home=tmp_path), host)
    assert (rules.hosts, rules.key) == (names, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "box.lan", "[2001:db8::1]"])
def test_hosts_beyond_loopback_need_a_key(tmp_path: Path, host: str) -> None:
    rules = rules_for(Settings(home=tmp_path), host)
    assert len(rules.key or "") >= 32
    assert rules.key not in repr(rules)
    assert rules_for(Settings(home=tmp_path), host).key != rules.key


def test_a_proxys_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHI3LORA_HOSTS", "Lab.example, other.example")
    assert {"lab.example", "other.example"} <= set(rules_for(Settings(tmp_path), "::1").hosts or ())
    assert "frame-ancestors 'self' https://huggingface.co" in (
        rules_for(Settings(tmp_path, space_id="ann/space"), "0.0.0.0").policy
    )
    assert Rules().policy.count("huggingface") == 0


# On a Space


def test_an_upload_needs_a_session_on_a_space(space: App) -> None:
    made_up = {"cookie": f"{BROWSER}=ann; other=1"}
    for claimed in ({}, {"authorization": "Bearer hf_made_up"}, made_up):
        answer = space.ask("POST", "/gradio_api/upload", FILE, content_type=FORM, **claimed)
        assert (answer.status, b"Sign in first" in answer.body) == (401, True)


@pytest.fixture
def signed_in(space: App, monkeypatch: pytest.MonkeyPatch) -> App:
    """Sessions without OAuth: a header is the session's token."""

    def token(connection: Any) -> str | None:
        connection = getattr(connection, "request", connection)
        return getattr(connection, "headers", {}).get("x-token")

    monkeypatch.setattr(watch, "page_token", token)
    return space


def test_an_upload_is_its_owners(signed_in: App) -> None:
    up = signed_in.ask("POST", "/gradio_api/upload", FILE, content_type=FORM, x_token="ann")
    path = json.loads(up.body)[0]
    for spelled in (f"={path}", f"=/tmp/..{path}", f"/{path}", f"=/{path}"):
        for who in ({}, {"x_token": "eve"}):
            assert signed_in.ask("GET", f"/gradio_api/file{spelled}", **who).status == 403
    assert signed_in.ask("GET", f"/gradio_api/file={path}", x_token="ann").body == b"{}"


@pytest.mark.parametrize("kind", ["gradio.FileData", "gradio.\\u0046ileData"])
def test_a_call_names_no_file_but_ones_own(signed_in: App, kind: str) -> None:
    """Not another's upload by its path, and no address, which Gradio would fetch from inside."""
    up = signed_in.ask("POST", "/gradio_api/upload", FILE, content_type=FORM, x_token="ann")
    path = json.loads(up.body)[0]

    def join(path: str, who: str) -> Answer:
        file = f'{{"path": "{path}", "meta": {{"_type": "{kind}"}}}}'
        body = f'{{"fn_index": 0, "session_hash": "{who}", "data": [[{{"deep": {file}}}]]}}'
        sent = {"content_type": "application/json", "x_token": who}
        return signed_in.ask("POST", "/gradio_api/queue/join", body.encode(), **sent)

    for named in (path, f"/tmp/..{path}", "http://127.0.0.1:9/x", "/etc/passwd", "\\u0000"):
        answer = join(named, "eve")
        assert (answer.status, b"not uploaded in this session" in answer.body) == (403, True)
    assert join(path, "ann").status == 200


def test_a_session_is_its_owners(signed_in: App) -> None:
    """Its answers, and the values that its page left on the server, are for who began it."""

    def join(session: str, who: str) -> int:
        body = f'{{"fn_index": 0, "session_hash": "{session}", "data": []}}'.encode()
        sent = {"content_type": "application/json", "x_token": who}
        return signed_in.ask("POST", "/gradio_api/queue/join", body, **sent).status

    assert (join("anns", "ann"), join("anns", "eve"), join("eves", "eve")) == (200, 403, 200)
    assert join("anns", "ann") == 200
    for path in ("queue/data?session_hash=anns", "heartbeat/anns"):
        assert signed_in.ask("GET", f"/gradio_api/{path}", x_token="eve").status == 403


def test_two_tabs_of_a_browser_that_nobody_signed_in_with_share_a_cookie(space: App) -> None:
    """The second one's answer may replace the first one's cookie in the middle."""
    body = b'{"fn_index": 0, "session_hash": "first", "data": []}'
    for cookie in ("one", "two"):
        sent = {"content_type": "application/json", "cookie": f"{BROWSER}={cookie}"}
        assert space.ask("POST", "/gradio_api/queue/join", body, **sent).status == 200


def test_an_agent_is_known_by_its_token_alone() -> None:
    sent = [(b"cookie", b"session=anns"), (b"authorization", b"Bearer hf_1")]
    scope = {"type": "http", "headers": sent, "session": {"oauth_info": {"access_token": "hf_2"}}}
    asking = HTTPConnection(watch.without_cookies(scope))
    assert (asking.cookies, asking.session) == ({}, {})
    assert asking.headers["authorization"] == "Bearer hf_1"


def test_uploads_have_a_quota(signed_in: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HOURLY_BYTES", 3 * len(FILE))
    codes = [
        signed_in.ask("POST", "/gradio_api/upload", FILE, content_type=FORM, x_token="bob").status
        for _ in range(4)
    ]
    assert codes == [200, 200, 200, 413]
    other = signed_in.ask("POST", "/gradio_api/upload", FILE, content_type=FORM, x_token="amy")
    assert other.status == 200
    chunked = {"content_type": FORM, "x_token": "amy", "transfer_encoding": "chunked"}
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(FILE), FILE)
    assert signed_in.ask("POST", "/gradio_api/upload", body, **chunked).status == 413


def test_one_account_is_one_visitor_however_often_it_signs_in() -> None:
    def visitor(token: str, account: str = "", cookie: str = "") -> str:
        info = {"access_token": token, "expires_at": time.time() + 60, "userinfo": {"sub": account}}
        scope = {"type": "http", "headers": [(b"cookie", cookie.encode())], "session": {}}
        scope["session"] = {"oauth_info": info} if token else {}
        return watch.visitor_of(HTTPConnection(scope))

    assert visitor("hf_1", "7") == visitor("hf_2", "7") != visitor("hf_3", "8")
    assert visitor("hf_1") != visitor("hf_2")
    assert visitor("hf_1", "7") != "7"
    assert visitor("") == ""


def test_uploads_leave_room_on_the_disk(
    signed_in: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what comes nor what is kept takes the last of it."""
    disk = SimpleNamespace(total=10_000, free=1_000 + 2 * len(FILE))
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda folder: disk)
    sent = {"content_type": FORM, "x_token": "kim"}
    assert signed_in.ask("POST", "/gradio_api/upload", FILE, **sent).status == 200
    disk.free = 999 + len(FILE)
    answer = signed_in.ask("POST", "/gradio_api/upload", FILE, **sent)
    assert (answer.status, answer.body.decode().strip()) == (507, uploads.NO_ROOM)
    (tmp_path / "rows.jsonl").write_text("x" * 100)
    disk.free = 1_050
    settings = Settings(home=tmp_path / "home", space_id="ann/space")
    with pytest.raises(DataError, match="nearly full"):
        uploads.keep(tmp_path / "rows.jsonl", "eve", settings, set())
    disk.free = 1_100
    assert uploads.keep(tmp_path / "rows.jsonl", "eve", settings, set()).exists()


def test_every_handler_is_called_by_the_queue(settings: Settings) -> None:
    """Gradio calls the others at `/run/predict`, which the guard closes: Stop was one of them."""
    assert CLOSED.match("/gradio_api/run/predict")
    handlers = build(Application.open(settings)).fns.values()
    assert len(handlers) > 50
    assert [fn.name for fn in handlers if fn.fn is not None and not fn.queue] == []


def test_one_visitor_does_not_fill_the_queue(
    signed_in: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    launching = signed_in.application.launching
    monkeypatch.setattr(launching, "runs", lambda caller: [][: go_on.wait(60)])
    monkeypatch.setattr(watch, "MOST_CALLS", 2)

    def call(who: str) -> Answer:
        sent = {"content_type": "application/json", "x_token": who}
        return signed_in.ask("POST", "/gradio_api/call/list_runs", b'{"data": []}', **sent)

    answers = [call("eve") for _ in range(3)]
    assert [one.status for one in answers] == [200, 200, 503]
    assert b"2 calls of yours have not ended" in answers[-1].body
    assert call("ann").status == 200
    go_on.set()
    while call("eve").status != 200:
        time.sleep(0.05)


def test_kept_uploads_have_a_quota_and_an_expiry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path / "home", space_id="ann/space")
    monkeypatch.setattr(uploads, "QUOTA", 250)

    def drop(name: str, named: set[Path]) -> Path:
        (tmp_path / name).write_text(name * 50)
        return uploads.keep(tmp_path / name, "eve", settings, named)

    one, two = drop("aa", set()), drop("bb", set())
    with pytest.raises(DataError, match="would exceed"):
        drop("cc", set())
    monkeypatch.setattr(uploads, "EXPIRES", -1.0)
    three = drop("cc", {one})
    assert [file.exists() for file in (one, two, three)] == [True, False, True]
    assert not two.parent.exists()
    (tmp_path / "dd").write_text("x" * 500)
    here = Settings(home=tmp_path / "own")
    assert uploads.keep(tmp_path / "dd", "local", here, set()).stat().st_size == 500


def test_sign_out_ends_the_session_here(signed_in: App) -> None:
    def uploads_as(token: str) -> int:
        up = signed_in.ask("POST", "/gradio_api/upload", FILE, content_type=FORM, x_token=token)
        return up.status

    assert uploads_as("hf_session_1") == 200
    foreign = signed_in.ask("GET", "/logout", x_token="hf_session_1", sec_fetch_site="cross-site")
    assert foreign.status == 403
    assert uploads_as("hf_session_1") == 200
    signed_in.ask("GET", "/logout", x_token="hf_session_1", sec_fetch_site="same-origin")
    assert uploads_as("hf_session_1") == 401
    assert uploads_as("hf_session_2") == 200


def test_an_ended_session_stays_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "signed-out.txt"
    SignedOut(path).end("hf_secret_of_ann")
    again = SignedOut(path)
    assert again.ended("hf_secret_of_ann")
    assert not again.ended("hf_other")
    assert not again.ended(None)
    assert "secret" not in path.read_text()
    path.write_bytes(b"\xff\n\nx y z\nabc nan\n")
    assert not SignedOut(path).ended("hf_secret_of_ann")


def test_anonymous_visitors_load_no_base_of_their_own(space: App, here: App) -> None:
    for name, refused in (("pocket", False), ("auto", False), ("eve/million-layers", True)):
        for app, caller in ((space, Caller("")), (space, Caller("ann")), (here, Caller())):
            callers = app.application.callers
            if refused and app is space and not caller.name:
                with pytest.raises(Exception, match="sign in with Hugging Face"):
                    callers.check_listed(name, caller)
            else:
                callers.check_listed(name, caller)
    space.application.callers.listed_bases.add("ann/base")
    space.application.callers.check_listed("ann/base", Caller(""))


def test_a_crowd_of_one_visitor_holds_up_nobody_else() -> None:
    """Four of eve's requests are worked on at once; ann's is not behind the others."""

    async def walk() -> None:
        turns, go_on, began = Turns(), asyncio.Event(), list[str]()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            began.append(scope["who"])
            if scope["who"] == "eve":
                await go_on.wait()
            await send({"type": "http.response.start"})
            await never.wait()  # eve reads nothing of it

        async def nothing(*_: Any) -> None: ...

        never = asyncio.Event()

        def ask(who: str) -> asyncio.Task[None]:
            scope = {"who": who, "path": "/"}
            return asyncio.create_task(turns.answer(who, app, scope, nothing, nothing))

        crowd = [ask("eve") for _ in range(50)]
        await asyncio.sleep(0)
        crowd.append(ask("ann"))
        await settle()
        assert began == ["eve"] * AT_ONCE + ["ann"]
        go_on.set()  # an answer that has begun is no turn any more, however slowly it is read
        await settle()
        assert began.count("eve") == 50
        crowd.append(ask("eve"))
        for task in crowd:  # they hang up, one before its turn
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        assert turns._of == {}

    async def settle() -> None:
        for _ in range(500):
            await asyncio.sleep(0)

    asyncio.run(walk())


def test_who_asks_for_much_work_waits_for_their_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that take half a second each: a few are drawn at once, then fewer than asked for."""
    now, slept = 100.0, dict[str, list[float]]()

    async def sleep(seconds: float) -> None:
        nonlocal now
        slept[who].append(seconds)
        now += seconds

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal now
        now += 0.0 if scope["path"].startswith("/assets/") else 0.5
        await send({"type": "http.response.start"})

    async def nothing(*_: Any) -> None: ...

    monkeypatch.setattr("phi3lora.ui.senders.time.monotonic", lambda: now)
    monkeypatch.setattr("phi3lora.ui.senders.asyncio.sleep", sleep)
    turns = Turns()
    for who, path, times in (("eve", "/", 30), ("ann", "/", 5), ("bob", "/assets/a.js", 1000)):
        slept[who] = []
        for _ in range(times):
            asyncio.run(turns.answer(who, app, {"path": path}, nothing, nothing))
    few = int(CREDIT / 0.5)
    assert few <= 30 - len(slept["eve"]) <= 2 * few
    assert slept["eve"][-1] == pytest.approx(0.5 / EARNED - 0.5)
    assert not slept["ann"]
    assert not slept["bob"]


@pytest.mark.parametrize(
    ("headers", "who"),
    [
        ({"x-forwarded-for": "6.6.6.6, 10.0.0.7"}, "10.0.0.7"),  # what it claims comes first
        ({"x-forwarded-for": " "}, "9.9.9.9"),
        ({"cookie": f"{BROWSER}=ann"}, "ann"),
        ({"authorization": "Bearer hf_made_up"}, "9.9.9.9"),  # nobody has checked it
    ],
)
def test_who_sends_is_a_visitor_or_an_address(headers: dict[str, str], who: str) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "headers": raw, "client": ("9.9.9.9", 1)}
    assert sender(HTTPConnection(scope)) == who
