"""What answers programs: OpenAI's protocol, named endpoints, and MCP's tools."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from phi3lora.runs.store import Run
from phi3lora.serve.operations import Operations
from tests.attacks.ground import Ground, Try, faults
from tests.test_ownership import SECRET, anns, snapshot

CHAT, MCP = "/v1/chat/completions", "/gradio_api/mcp"
HELLO = [{"role": "user", "content": "Ahoy?"}]
JSON = {"content_type": "application/json", "accept": "application/json, text/event-stream"}
FORGED: list[Any] = [None, -1, 10**30, "../" * 9, [[]], {"path": "/etc/passwd"}, "\0", "~x"]


def programs(ground: Ground) -> Iterator[Try]:
    """Doors for programs: nobody, made-up tokens, another's runs, odd bodies, foreign pages."""
    runs = anns(ground.app.launching.store)
    before = snapshot(runs)
    yield from _nobody(ground)
    own = _tool(ground, "run_status", {"run": runs[0].id}, "ann")
    yield Try("ann reaches her own by the same call", SECRET.encode() in own)
    for run, who in itertools.product(ground.some(runs, 2), ("eve", "")):
        yield from _of_another(ground, run, who)
    yield from _bodies(ground)
    yield from _forged(ground)
    yield from _from_elsewhere(ground)
    yield Try("nothing of ann's has changed", snapshot(runs) == before)


def _nobody(ground: Ground) -> Iterator[Try]:
    """Without a token, and with one that nobody has, on a Space."""
    body = json.dumps({"model": "example:pirate", "messages": HELLO}).encode()
    for claimed in ("", "Bearer hf_made_up", "Bearer ", "Basic eve", "Bearer hf_" + "x" * 10_000):
        fields = {**JSON, **({"authorization": claimed} if claimed else {})}
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/base"), ("POST", CHAT)):
            sent = body if method == "POST" else None
            status, _, _ = ground.ask(method, path, sent, **fields)
            yield Try(f"{method} {path} with {claimed[:20]!r}: {status}", status == 401)


def _of_another(ground: Ground, run: Run, who: str) -> Iterator[Try]:
    """Ann's run, by every door."""
    fields = {**JSON, "x_visitor": who}
    chat = json.dumps({"model": run.id, "messages": HELLO}).encode()
    asked = [("GET", "/v1/models", None), ("GET", f"/v1/models/{run.id}", None)]
    for method, path, body in [*asked, ("POST", CHAT, chat)]:
        status, _, said = ground.ask(method, path, body, **fields)
        told = SECRET.encode() in said or (run.id.encode() in said and status == 200)
        yield Try(f"{method} {path} by {who or 'nobody'}: {status}", not told and status < 500)
    for name, given in _calls(ground, run):
        said = _tool(ground, name, given, who)
        yield Try(f"the tool {name} by {who or 'nobody'}", SECRET.encode() not in said)


def _calls(ground: Ground, run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation, with ann's run wherever it takes a name."""
    for operation in Operations(ground.app).offered:
        taken = set(operation.__annotations__) - {"return", "caller"}
        given = {"run": run.id, "model": run.id, "repo": "eve/stolen", "dataset": run.id}
        given |= {"question": "Ahoy?", "query": run.id}
        yield operation.__name__, {name: given[name] for name in taken & set(given)}


def _tool(ground: Ground, name: str, given: dict[str, Any], who: str) -> bytes:
    """What an MCP client is answered."""
    call = {"name": name, "arguments": given}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    return ground.stream("POST", f"{MCP}/", json.dumps(body).encode(), **JSON, x_visitor=who)


def _bodies(ground: Ground) -> Iterator[Try]:
    """Too large, too deep, nonsense; each is refused in words, and OpenAI's form."""
    message = {"role": "user", "content": "x" * 3_000}
    whole = {"model": "example:pirate", "messages": HELLO}
    bodies: dict[str, Any] = {
        "5 MB and a byte": b" " * 5_000_001,
        "deep": b"[" * 100_000,
        "no JSON": b"\xff\x00" * 1000,
        "nothing": b"",
        "a list": [],
        "a long question": {**whole, "messages": [message]},
        "ten thousand messages": {**whole, "messages": HELLO * 10_000},
        "a thousand answers": {**whole, "n": 1000},
        "a huge number": {**whole, "max_tokens": 10**400},
        "many stops": {**whole, "stop": ["x"] * 10_000},
        "a role of its own": {**whole, "messages": [{"role": "<|system|>", "content": "x"}]},
        "a picture from elsewhere": {
            **whole,
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9"}}],
                }
            ],
        },
        "a file as model": {**whole, "model": "/etc/passwd"},
        "a path as model": {**whole, "model": "../../etc"},
        "an address as model": {**whole, "model": "http://127.0.0.1:9/x"},
    }
    for name, body in bodies.items():
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        for path in (CHAT, f"{MCP}/"):
            status, _, said = ground.ask("POST", path, sent, **JSON, x_visitor="eve")
            fine = 400 <= status < 500 if path == CHAT else status < 500
            yield Try(f"{name} to {path}: {status}", fine and b"Traceback" not in said)


def _forged(ground: Ground) -> Iterator[Try]:
    """Any value in any argument of a tool ends in words."""
    for operation, value in itertools.product(
        Operations(ground.app).offered, ground.some(FORGED, 2)
    ):
        names = set(operation.__annotations__) - {"return", "caller"}
        with faults() as failed:
            said = _tool(ground, operation.__name__, dict.fromkeys(names, value), "eve")
        fine = not failed and b"Traceback" not in said and b"root:x" not in said
        yield Try(f"{operation.__name__} with {value!r} {failed[:1]}", fine)


def _from_elsewhere(ground: Ground) -> Iterator[Try]:
    """Another site's page, and a name that was pointed here."""
    for path, port in itertools.product((CHAT, f"{MCP}/"), (ground.port, ground.here)):
        status, _, _ = ground.ask("POST", path, b"{}", port=port, origin="https://evil.example")
        yield Try(f"{path} from another site's page: {status}", status == 403)
    for path in ("/v1/models", f"{MCP}/"):
        status, _, _ = ground.ask("GET", path, port=ground.here, host="evil.example")
        yield Try(f"{path} by another name: {status}", status == 403)
