"""Exhaustion: what one visitor may take from the others."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from phi3lora.app.preflights import OF_STRANGERS, WORKERS, PreflightPool
from phi3lora.chat.options import SETTINGS, Options
from phi3lora.chat.requests import check_lengths
from phi3lora.config import RunConfig
from phi3lora.errors import Phi3LoraError
from phi3lora.settings import Settings
from phi3lora.ui.guard import MAX_BODY
from tests.attacks.ground import Ground, Try, refused
from tests.attacks.served import Space, served

JOIN = "/gradio_api/queue/join"
MIB, GIB = 2**20, 2**30
PATIENCE = 3.0  # seconds that another visitor waits for a first page, and for an answer
SLOWER = 3.0  # times what it took just before, where the machine is busy with something else
# Two helpers at their bound, beside the app itself and workers that wait for their turn.
MOST_MEMORY = WORKERS * (OF_STRANGERS.bytes or 0) + 4 * GIB
LONGEST_ATTACK = 100.0  # seconds for which previews and launches are begun
BOMBS_READ = 5  # of those that are looked at beside ann
CROWD, LOOKS, LAUNCHES, CHATS, STREAMS = 200, 200, 1000, 50, 60
SMALL_DISK = 512 * MIB
LONGEST = int(
    (SETTINGS["max_new_tokens"].slider or (0, 0))[1]
)  # tokens that the page lets one ask for
REFUSED = ("unfinished runs", "within 24 hours", "previews of yours are waiting")
Attack = Callable[[Space, threading.Event], str]  # what is wrong afterwards; "" where nothing is


ANSWERED = 'data-do=\\"again'  # stands under an answer that has ended


def bombs(ground: Ground) -> Iterator[Try]:
    """Bodies, questions, and files that are small until they are unpacked: memory is bounded."""
    yield from _bodies(ground)
    yield from _talk()
    yield from _bombs(ground)
    if ground.full:
        yield from _beside_another(ground, LOOKING, _lay_bombs)


def crowds(ground: Ground) -> Iterator[Try]:
    """Slow senders and readers, a full queue, left streams, long chats: others wait 3 s at most."""
    yield from _crowd(ground, 30)
    if ground.full:
        yield from _beside_another(ground, CROWDS)


def launches(ground: Ground) -> Iterator[Try]:
    """A thousand launches by one visitor, or those of 100 s: few runs, others wait 3 s at most."""
    yield from _beside_another(ground, LAUNCHING)


def uploads(ground: Ground) -> Iterator[Try]:
    """Uploads up to the quota, on a small disk, and on a full one: others are served."""
    yield from _beside_another(ground, UPLOADING)
    yield from _small_disk()


def _bodies(ground: Ground) -> Iterator[Try]:
    """Requests that are too large, too deep, or nonsense."""
    bodies = {
        "5 MB and a byte": b" " * (MAX_BODY + 1),
        "deep": b"[" * 100_000,
        "quotes": b'"' * 1_000_000 + b"[" * 200,
        "a huge integer": b'{"data": [' + b"9" * 50_000 + b"]}",
        "no JSON": b"\xff\x00" * 1000,
    }
    for name, body in bodies.items():
        status, _, _ = ground.ask("POST", JOIN, body, content_type="application/json")
        yield Try(name, 400 <= status < 500)
    status, _, _ = ground.ask("POST", "/gradio_api/upload", b"x" * 1000)
    yield Try("an upload by nobody", status == 401)


def _talk() -> Iterator[Try]:
    """Questions, conversations and options without bounds."""
    long = [{"role": "user", "content": "x" * 3_000}]
    yield Try("a long question", refused(lambda: check_lengths(long)))
    talk = [{"role": "assistant", "content": "x" * 60_000}] * 2
    yield Try("a long conversation", refused(lambda: check_lengths(talk)))
    huge = [float("inf"), float("nan"), 10**400, -1, "9", None, True]
    for name, value in itertools.product(("temperature", "top_k", "max_new_tokens"), huge):
        options = Options(**{name: value})  # type: ignore[arg-type]
        fine = name == "temperature" and value in (float("inf"), 10**400)
        yield Try(f"{name} {str(value)[:9]}", fine or refused(options.check))


# Files that are small and unpack to more than there is


def parquet(folder: Path, compression: str) -> Path:
    """A few KB that are 16 GB: one long text, which every row names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = "x" * (8 * MIB)
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([text]))
    path = folder / f"{compression}.parquet"
    pq.write_table(pa.table({"text": rows}), path, compression=compression, write_statistics=False)
    return path


def packed(folder: Path) -> Path:
    """A gzip file of 1 MB that is 1 GB of one line."""
    import gzip

    path = folder / "line.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b'{"text": "')
        for _ in range(1024):
            file.write(b"x" * MIB)
    return path


def sparse(folder: Path, name: str, start: bytes) -> Path:
    """1 GB without a line break, of which the disk holds a few KB."""
    path = folder / name
    path.write_bytes(start)
    os.truncate(path, GIB)
    return path


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


BOMBS: dict[str, Callable[[Path], Path]] = {
    "Parquet of 16 GB": lambda folder: parquet(folder, "zstd"),
    "gzip within Parquet": lambda folder: parquet(folder, "gzip"),
    "gzip of 1 GB": packed,
    "JSONL, a line of 1 GB": lambda folder: sparse(folder, "line.jsonl", b'{"text": "'),
    "CSV, a line of 1 GB": lambda folder: sparse(folder, "line.csv", b'a,b\n1,"'),
    "JSON of 1 GB": lambda folder: sparse(folder, "line.json", b'[{"text": "'),
    "a million columns": lambda folder: written(
        folder, "wide.csv", b",".join(b"c%d" % n for n in range(10**6)) + b"\n1\n"
    ),
    "a million keys": lambda folder: written(
        folder, "wide.jsonl", b"{" + b",".join(b'"c%d":1' % n for n in range(10**6)) + b"}\n"
    ),
    "deep JSON": lambda folder: written(folder, "deep.json", b"[" * 10**7),
    "deep JSONL": lambda folder: written(folder, "deep.jsonl", b'{"a":' * 10**6 + b"\n"),
    "markers": lambda folder: written(
        folder, "marks.jsonl", json.dumps({"text": "<|user|>" * 200_000}).encode() + b"\n"
    ),
}
FEW_BOMBS = ("JSONL, a line of 1 GB", "a million columns", "deep JSONL")


def _bombs(ground: Ground) -> Iterator[Try]:
    """Each read in a helper as a stranger's: an answer in words, and the memory it may take.

    Two at a time, of two strangers.
    """
    settings = Settings(ground.folder / "bombs", space_id="ann/space")
    mine = settings.uploads("eve")
    mine.mkdir(parents=True, exist_ok=True)
    pool = PreflightPool(settings)
    try:
        names = list(BOMBS) if ground.full else FEW_BOMBS
        values = {"model.path": "pocket", "data.max_rows": 50}
        configs = [
            RunConfig().with_values({"data.path": str(BOMBS[name](mine)), **values})
            for name in names
        ]
        with ThreadPoolExecutor(WORKERS) as two:
            asked = [
                two.submit(_read, pool, config, f"eve{number}")
                for number, config in enumerate(configs)
            ]
            for name, one in zip(names, asked, strict=True):
                most, ended = one.result()
                fine = ended and most <= (OF_STRANGERS.bytes or 0) + GIB
                yield Try(f"{name}: {most / GIB:.1f} GB, {ended}", bool(fine))
    finally:
        pool.close()


def _read(pool: PreflightPool, config: RunConfig, who: str) -> tuple[int, str]:
    """The most bytes that a helper held meanwhile, and how it ended; empty where not in words."""
    most, done = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, *(one._bytes() for one in [*pool._busy, *pool._idle] if one), 0)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        found = pool.preflight(config, person=who)
    except Phi3LoraError as error:
        return most, str(error)
    finally:
        done.set()
        looking.join()
    return most, "; ".join(check.found for check in found.checks)[:200] or "nothing to say"


# Crowds


def _crowd(ground: Ground, size: int) -> Iterator[Try]:
    """Connections that send slowly, and some that ask again and again; another's first page."""
    with ExitStack() as stack:
        for _ in range(size):
            slow_sender(ground.port, stack)
        with ThreadPoolExecutor(size // 10) as busy:
            asked = [busy.submit(ground.ask, "GET", "/config") for _ in range(size // 10)]
            status, _, _ = ground.ask("GET", "/", x_visitor="ann")
            yield Try(f"a first page beside {size} slow requests", status == 200)
            yield Try("the others' pages", all(one.result()[0] == 200 for one in asked))


def slow_sender(port: int, stack: ExitStack) -> None:
    """A request whose body never comes."""
    one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
    one.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{" % JOIN.encode())


def slow_reader(port: int, stack: ExitStack) -> None:
    """Many answers are asked for, and not a byte of them is read."""
    one = stack.enter_context(socket.socket())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.connect(("127.0.0.1", port))
    one.sendall(b"GET /config HTTP/1.1\r\nHost: x\r\nx-visitor: eve\r\n\r\n" * 20)


# Beside another visitor: the app in a process of its own, and a clock


def _beside_another(
    ground: Ground, attacks: dict[str, Attack], lay: Callable[[Path], object] = lambda home: None
) -> Iterator[Try]:
    """Each attack on an app of its own, with what it `lay`s into the app's folder before."""
    for name, attack in ((name, one) for name, one in attacks.items() if ground.part in name):
        with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
            lay(Path(folder))
            with served(Path(folder), PHI3LORA_ATTACKED="1") as space:
                yield from _measured(space, name, attack)


def _measured(space: Space, name: str, attack: Attack) -> Iterator[Try]:
    """An attack, while ann opens the first page and asks a question again and again."""
    before = [_visit(space) for _ in range(3)]
    over, beside, most = threading.Event(), [], space.memory()
    with ThreadPoolExecutor(1) as attacker:
        under_way = attacker.submit(attack, space, over)
        time.sleep(1)
        while not (under_way.done() and len(beside) >= 5):
            beside.append(_visit(space))
            most = max(most, space.memory())
            if len(beside) >= 10:
                over.set()
        wrong = under_way.result()
    for what, quiet, waited in zip(
        ("first page", "answer"), zip(*before, strict=True), zip(*beside, strict=True), strict=True
    ):
        told = f"{name}: ann's {what} within {max(waited):.2f} s, {max(quiet):.2f} s before"
        yield Try(told, max(waited) < max(PATIENCE, SLOWER * max(quiet)))
    yield Try(f"{name}: {most / GIB:.1f} GB at most", most < MOST_MEMORY)
    yield Try(f"{name}: {wrong or 'made, and kept within bounds'}", not wrong)


def _visit(space: Space) -> tuple[float, float]:
    """Seconds in which ann gets the first page, and an answer."""
    began = time.monotonic()
    space.get("/", "ann")
    opened = time.monotonic()
    said = space.call("on_ask", "ann", message="Ahoy?")
    answered = time.monotonic() - opened if ANSWERED in said else float("inf")
    return opened - began, answered


def _hold(space: Space, over: threading.Event, connect: Callable[[int, ExitStack], None]) -> str:
    with ExitStack() as stack:
        for _ in range(CROWD):
            connect(space.port, stack)
        over.wait(120)
    return ""


def _full_queue(space: Space, over: threading.Event) -> str:
    """Calls by one visitor, of which nobody hears the end, as many as the queue has room for."""
    from phi3lora.ui.app import WAITING

    def begin(_: int) -> int:
        return space.begin("on_ask", "eve", message="x " * 900, max_new_tokens=LONGEST)

    with ThreadPoolExecutor(8) as pool:
        codes = Counter(pool.map(begin, range(2 * WAITING)))
    over.wait(60)
    fine = codes[200] > 0 and codes[503] > 0 and codes.keys() == {200, 503}
    return "" if fine else f"of so many calls were answered {dict(codes)}"


def _left_streams(space: Space, over: threading.Event) -> str:
    """Long answers asked for at every door for programs, by visitors who read nothing and go."""
    call = {"name": "ask", "arguments": {"question": "x " * 900}}
    chat = {
        "model": "example:pirate",
        "messages": [{"role": "user", "content": "x " * 900}],
        "max_tokens": LONGEST,
        "stream": True,
    }
    tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    named = {"data": ["x " * 900, "example:pirate", None]}
    doors = {
        "/v1/chat/completions": chat,
        "/gradio_api/mcp/": tool,
        "/gradio_api/call/ask": named,
    }

    def leave(number: int) -> tuple[str, bool]:
        path, body = list(doors.items())[number % len(doors)]
        with ExitStack() as stack, suppress(OSError):
            reader = unread(space.port, stack, path, body, f"eve{number}")
            reader.settimeout(20.0)
            begun = reader.recv(12) == b"HTTP/1.1 200"
            time.sleep(2.0)  # the answer goes on, and nobody takes it
            return path, begun
        return path, False

    with ThreadPoolExecutor(12) as pool:
        begun = Counter(path for path, answered in pool.map(leave, range(STREAMS)) if answered)
    return "" if all(begun[path] for path in doors) else f"only these began: {dict(begun)}"


def unread(port: int, stack: ExitStack, path: str, body: Any, who: str) -> socket.socket:
    """A request of which no more than the beginning of the answer can be taken."""
    one = stack.enter_context(socket.socket())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.connect(("127.0.0.1", port))
    sent = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nx-visitor: {who}\r\nContent-Type: application/json\r\n"
        f"Accept: application/json, text/event-stream\r\nContent-Length: {len(sent)}\r\n\r\n"
    )
    one.sendall(head.encode() + sent)
    return one


def _lay_bombs(home: Path) -> None:
    mine = Settings(home / "space").uploads("eve")
    mine.mkdir(parents=True)
    for make in BOMBS.values():
        make(mine)


def _looks(space: Space, over: threading.Event) -> str:
    """Previews of bombs, eight at a time, most of them refused, until several bombs were read.

    The bombs lie there before: writing them takes longer than ann's first answers.
    """
    bombs = sorted(Settings(space.home / "space").uploads("eve").iterdir())
    bombs.sort(key=lambda bomb: bomb.suffix == ".parquet")  # these take all of their 60 s
    said: list[str] = []
    read: set[Path] = set()
    end = time.monotonic() + LONGEST_ATTACK

    def looks(number: int) -> None:
        while time.monotonic() < end:
            if len(said) >= LOOKS and over.is_set() and len(read) >= BOMBS_READ:
                return
            left = [bomb for bomb in bombs if bomb not in read] or bombs
            bomb = left[number % len(left)]
            one = space.call("on_preflight", "eve", field_data_path=str(bomb))
            said.append(one)
            if not any(words in one for words in REFUSED):
                read.add(bomb)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(looks, range(8)))
    wrong = [one[-300:] for one in said if '"success":true' not in one]
    if wrong:
        return f"{len(wrong)} of {len(said)} previews failed: {wrong[0]}"
    few = len(said) < LOOKS / 4 or len(read) < BOMBS_READ  # who asks so often is let wait
    return f"{len(said)} previews, {len(read)} of {len(bombs)} bombs read" if few else ""


def _chats(space: Space, over: threading.Event) -> str:
    """The longest answers that can be asked for, by fifty visitors."""

    def ask(number: int) -> bool:
        with suppress(OSError, http.client.HTTPException):
            said = space.call(
                "on_ask",
                f"eve{number}",
                message="x " * 999,
                max_new_tokens=LONGEST,
                temperature=2.0,
            )
            return ANSWERED in said
        return False

    with ThreadPoolExecutor(CHATS) as pool:
        answered = sum(pool.map(ask, range(CHATS)))
    return "" if answered == CHATS else f"{answered} of {CHATS} were answered"


def _launches(space: Space, over: threading.Event) -> str:
    """Eight at a time, as many as the app takes of one visitor, whom it lets wait ever longer."""
    end = time.monotonic() + LONGEST_ATTACK

    def launches(_: int) -> str:
        return launch(space, "eve") if time.monotonic() < end else ""

    with ThreadPoolExecutor(8) as pool:
        said = [one for one in pool.map(launches, range(LAUNCHES)) if one]
    runs = [path for path in (space.home / "space" / "runs").iterdir() if path.is_dir()]
    begun = sum('"success":true' in one for one in said)
    refused = sum(any(words in one for words in REFUSED) for one in said)
    few = (
        0 < len(runs) <= 20 and begun == len(runs) and begun + refused == len(said) > LAUNCHES / 10
    )
    told = f"of {len(said)} {begun} began, {refused} were refused, {len(runs)} remain"
    return "" if few else told


def launch(space: Space, who: str) -> str:
    """What a visitor is answered who launches a small run."""
    return space.call(
        "on_launch",
        who,
        field_data_path="example:pirate",
        field_model_path="pocket",
        field_data_max_rows="64",
    )


def _uploads(space: Space, over: threading.Event) -> str:
    """Parts of 64 MB by one visitor, eight at a time, until they are refused."""
    from phi3lora.ui.watch import HOURLY_BYTES

    size = 64 * MIB
    with ThreadPoolExecutor(8) as pool:
        numbers = range(HOURLY_BYTES // size + 16)
        codes = list(pool.map(lambda number: upload(space.port, number, size), numbers))
    there = sum(f.stat().st_size for f in space.home.rglob("*") if f.is_file())
    fine = set(codes) == {200, 413} and there <= HOURLY_BYTES + GIB
    return "" if fine else f"{there / GIB:.1f} GB are there, after {set(codes)}"


def upload(port: int, number: int, size: int) -> int:
    """The status that eve's upload of so many bytes is answered with."""
    head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="%d.jsonl"\r\n\r\n'
    body = head % number + (b"%08d" % number) * (size // 8) + b"\r\n--X--\r\n"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    fields = {"Content-Type": "multipart/form-data; boundary=X", "x-visitor": "eve"}
    with suppress(OSError):
        connection.request("POST", "/gradio_api/upload", body, fields)
    with suppress(OSError, http.client.HTTPException):  # it may hang up on what it will not read
        return connection.getresponse().status
    return 413


CROWDS: dict[str, Attack] = {
    f"{CROWD} slow senders": lambda space, over: _hold(space, over, slow_sender),
    f"{CROWD} slow readers": lambda space, over: _hold(space, over, slow_reader),
    "a full queue": _full_queue,
    f"{STREAMS} streams that are left": _left_streams,
    f"{CHATS} endless chats": _chats,
}
LOOKING: dict[str, Attack] = {f"{LOOKS} previews of bombs": _looks}
LAUNCHING: dict[str, Attack] = {f"{LAUNCHES} launches": _launches}
UPLOADING: dict[str, Attack] = {"uploads up to the quota": _uploads}


# A small disk


def _small_disk() -> Iterator[Try]:
    """Uploads until they are refused, then a disk without a byte: ann is served all the same."""
    from tests.faults.trials import may_mount, mount

    if not may_mount():
        yield Try("a small disk: not tried, this user may not mount one", True)
        return
    with tempfile.TemporaryDirectory(prefix="attacks-disk-") as folder:
        mount(f"size={SMALL_DISK}", folder)
        try:
            with served(Path(folder), PHI3LORA_ATTACKED="1") as space:
                yield from _filled(space)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=False)


def _filled(space: Space) -> Iterator[Try]:
    codes = [upload(space.port, number, SMALL_DISK // 16) for number in range(20)]
    left = shutil.disk_usage(space.home).free
    yield Try(f"uploads end in words: {codes}", 200 in codes and codes[-1] == 507)
    yield Try(f"{left / MIB:.0f} MB are left", left >= SMALL_DISK // 10 - MIB)
    yield Try("ann's answer beside them", _visit(space)[1] < float("inf"))
    filler = space.home / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    yield Try("the disk is full", shutil.disk_usage(space.home).free < 4096)
    yield Try("ann's answer on a full disk", _visit(space)[1] < float("inf"))
    yield Try("an upload ends in words", upload(space.port, 99, MIB) == 507)
    said = launch(space, "ann")
    yield Try(f"a launch ends in words: {said[-200:]}", "disk" in said or "room" in said)
    filler.unlink()
    said = launch(space, "ann")
    yield Try(f"and begins once there is room: {said[-200:]}", '"success":true' in said)
