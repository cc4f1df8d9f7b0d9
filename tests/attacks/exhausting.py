"""Exhaustion: what one visitor may take from the others."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from phi3lora.app.preflights import OF_STRANGERS, WORKERS, PreflightPool
from phi3lora.chat.options import Options
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
# Two helpers at their bound, beside the app itself and workers that wait for their turn.
MOST_MEMORY = WORKERS * (OF_STRANGERS.bytes or 0) + 4 * GIB
CROWD, LOOKS, LAUNCHES, CHATS = 200, 200, 1000, 50


ANSWERED = 'data-do=\\"again'  # stands under an answer that has ended


def exhaustion(ground: Ground) -> Iterator[Try]:
    """Bodies, bombs, crowds, launches, uploads: others wait 3 s at most, memory is bounded."""
    yield from _bodies(ground)
    yield from _talk()
    yield from _bombs(ground)
    yield from _crowd(ground, 30)
    if ground.full:
        yield from _beside_another()


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
    """Each read in a helper as a stranger's: an answer in words, and the memory it may take."""
    settings = Settings(ground.folder / "bombs", space_id="ann/space")
    mine = settings.uploads("eve")
    mine.mkdir(parents=True, exist_ok=True)
    pool = PreflightPool(settings)
    try:
        for name in BOMBS if ground.full else FEW_BOMBS:
            config = RunConfig().with_values(
                {"data.path": str(BOMBS[name](mine)), "model.path": "pocket", "data.max_rows": 50}
            )
            most, ended = _read(pool, config)
            fine = ended and most <= (OF_STRANGERS.bytes or 0) + GIB
            yield Try(f"{name}: {most / GIB:.1f} GB, {ended}", bool(fine))
    finally:
        pool.close()


def _read(pool: PreflightPool, config: RunConfig) -> tuple[int, str]:
    """The most bytes that helpers held, and how it ended; empty where not in words."""
    most, done = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, *(one._bytes() for one in [*pool._busy, *pool._idle] if one), 0)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        found = pool.preflight(config, person="eve")
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


def _beside_another() -> Iterator[Try]:
    import tempfile

    attacks: dict[str, Callable[[Space, threading.Event], str]] = {
        f"{CROWD} slow senders": lambda space, over: _hold(space, over, slow_sender),
        f"{CROWD} slow readers": lambda space, over: _hold(space, over, slow_reader),
        f"{LOOKS} previews of bombs": _looks,
        f"{CHATS} endless chats": _chats,
        f"{LAUNCHES} launches": _launches,
        "uploads until the disk is full": _uploads,
    }
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        for name, attack in attacks.items():
            place = Path(folder) / name.replace(" ", "-")
            with served(place, PHI3LORA_ATTACKED="1") as space:
                yield from _measured(space, name, attack)


def _measured(
    space: Space, name: str, attack: Callable[[Space, threading.Event], str]
) -> Iterator[Try]:
    """An attack, while ann opens the first page and asks a question again and again."""
    over, pages, answers, most = threading.Event(), [], [], space.memory()
    with ThreadPoolExecutor(1) as attacker:
        under_way = attacker.submit(attack, space, over)
        time.sleep(1)
        while not (under_way.done() and len(answers) >= 5):
            began = time.monotonic()
            space.get("/", "ann")
            pages.append(time.monotonic() - began)
            began = time.monotonic()
            said = space.call("on_ask", "ann", message="Ahoy?")
            answers.append(time.monotonic() - began if ANSWERED in said else float("inf"))
            most = max(most, space.memory())
            if len(answers) >= 10:
                over.set()
        wrong = under_way.result()
    for what, waited in (("first page", pages), ("answer", answers)):
        longest = max(waited)
        yield Try(f"{name}: ann's {what} within {longest:.2f} s", longest < PATIENCE)
    yield Try(f"{name}: {most / GIB:.1f} GB at most", most < MOST_MEMORY)
    yield Try(f"{name}: {wrong or 'kept within bounds'}", not wrong)


def _hold(space: Space, over: threading.Event, connect: Callable[[int, ExitStack], None]) -> str:
    with ExitStack() as stack:
        for _ in range(CROWD):
            connect(space.port, stack)
        over.wait(120)
    return ""


def _looks(space: Space, over: threading.Event) -> str:
    mine = Settings(space.home / "space").uploads("eve")
    mine.mkdir(parents=True)
    bombs = [make(mine) for make in BOMBS.values()]
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(space.call, "on_preflight", "eve", field_data_path=str(bomb))
            for bomb in itertools.islice(itertools.cycle(bombs), LOOKS)
        ]
        said = [one.result() for one in asked]
    wrong = [one[-300:] for one in said if '"success":true' not in one]
    return f"{len(wrong)} previews failed: {wrong[0]}" if wrong else ""


def _chats(space: Space, over: threading.Event) -> str:
    """The longest answers that can be asked for, by fifty visitors who never read them."""

    def ask(number: int) -> None:
        with suppress(OSError, http.client.HTTPException):
            space.call(
                "on_ask",
                f"eve{number}",
                message="x " * 999,
                max_new_tokens=4096,
                temperature=5.0,
            )

    with ThreadPoolExecutor(CHATS) as pool:
        list(pool.map(ask, range(CHATS)))
    return ""


def _launches(space: Space, over: threading.Event) -> str:
    with ThreadPoolExecutor(8) as pool:
        said = list(
            pool.map(
                lambda _: space.call(
                    "on_launch",
                    "eve",
                    field_data_path="example:pirate",
                    field_model_path="pocket",
                    field_data_max_rows="8",
                ),
                range(LAUNCHES),
            )
        )
    runs = [path for path in (space.home / "space" / "runs").iterdir() if path.is_dir()]
    begun = sum('"success":true' in one for one in said)
    few = 0 < len(runs) <= 20 and begun == len(runs)
    return "" if few else f"{begun} of {LAUNCHES} launches began, {len(runs)} runs are there"


def _uploads(space: Space, over: threading.Event) -> str:
    """Parts of 64 MB by one visitor, eight at a time, until they are refused."""
    from phi3lora.ui.watch import HOURLY_BYTES

    head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="%d.jsonl"\r\n\r\n'

    def upload(number: int) -> int:
        body = head % number + b"%d" % number * (8 * MIB) + b"\r\n--X--\r\n"
        connection = http.client.HTTPConnection("127.0.0.1", space.port, timeout=120)
        fields = {"Content-Type": "multipart/form-data; boundary=X", "x-visitor": "eve"}
        with suppress(OSError):
            connection.request("POST", "/gradio_api/upload", body, fields)
            return connection.getresponse().status
        return 413  # it hung up on what it would not read

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(upload, range(100, 100 + HOURLY_BYTES // (16 * MIB))))
    there = sum(f.stat().st_size for f in space.home.rglob("*") if f.is_file())
    fine = 413 in codes and set(codes) <= {200, 413} and there <= HOURLY_BYTES + GIB
    return "" if fine else f"{there / GIB:.1f} GB are there, after {set(codes)}"
