"""`/v1/models` and `/v1/chat/completions`: OpenAI's protocol over the one engine of the app.

routes(app, caller_of, catalog)       for the app's own server, and for `phi3lora serve`
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from phi3lora.app.application import Application
from phi3lora.app.callers import Caller
from phi3lora.app.working import in_words
from phi3lora.errors import AccessError, HubError, ModelError
from phi3lora.serve.catalog import Catalog, Served
from phi3lora.serve.protocol import (
    Answer,
    ApiError,
    ChatRequest,
    chunk,
    completion,
    parse,
    usage_chunk,
)

CallerOf = Callable[[Request], Caller]
AT_ONCE, HOURLY = 2, 300  # answers for one stranger at a time, and within an hour
HOUR = 3600.0
SIGN_IN = 'Give your Hugging Face token as the API key: `api_key="hf_…"`.'
END = "data: [DONE]\n\n"


class Limits:
    """How much one stranger may ask; on one's own machine there is no limit."""

    def __init__(self, strangers: bool) -> None:
        self._strangers = strangers
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._asked: dict[str, deque[float]] = {}

    @contextmanager
    def one(self, caller: Caller) -> Iterator[None]:
        """Room for one answer. ApiError 429 where there is none."""
        self._enter(caller.name)
        try:
            yield
        finally:
            with self._lock:
                self._open[caller.name] -= 1

    def _enter(self, name: str) -> None:
        now = time.monotonic()
        with self._lock:
            asked = self._asked.setdefault(name, deque())
            while asked and now - asked[0] > HOUR:
                asked.popleft()
            if self._strangers and self._open.get(name, 0) >= AT_ONCE:
                raise _too_many(f"At most {AT_ONCE} answers at a time.", 1)
            if self._strangers and len(asked) >= HOURLY:
                raise _too_many(f"At most {HOURLY} answers an hour.", int(HOUR - now + asked[0]))
            asked.append(now)
            self._open[name] = self._open.get(name, 0) + 1


def _too_many(message: str, after: int) -> ApiError:
    kind = "rate_limit_error"
    return ApiError(429, message, kind=kind, code="rate_limit_exceeded", after=max(after, 1))


class Door:
    """The routes' work."""

    def __init__(self, app: Application, caller_of: CallerOf, catalog: Catalog) -> None:
        self._app, self._caller_of, self._catalog = app, caller_of, catalog
        self._limits = Limits(app.settings.on_space)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""

        def listed() -> list[dict[str, Any]]:
            return [_entry(one) for one in self._catalog.listed(self._known(request))]

        return JSONResponse({"object": "list", "data": await run_sync(listed)})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""

        def found() -> dict[str, Any]:
            name = str(request.path_params["name"])
            return _entry(self._catalog.find(name, self._known(request)))

        return JSONResponse(await run_sync(found))

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        asked = parse(await request.body())
        caller = await run_sync(self._known, request)
        served = await run_sync(self._catalog.find, asked.model, caller)
        gone = threading.Event()
        answers = self._answers(asked, served, caller, gone)
        if asked.stream:
            first = await run_sync(_first, answers)  # what is refused at once is no stream
            events = _events(asked, first, answers)
            return StreamingResponse(events, media_type="text/event-stream", headers=NOT_STORED)
        answer = await _while_listening(request, gone, lambda: deque(answers, maxlen=1)[0])
        return JSONResponse(completion(_name(), asked.model, answer))

    def _known(self, request: Request) -> Caller:
        """Who asks. ApiError 401 for nobody."""
        caller = self._caller_of(request)
        if caller.anonymous:
            raise ApiError(401, SIGN_IN, kind="authentication_error", code="invalid_api_key")
        return caller

    def _answers(
        self, asked: ChatRequest, served: Served, caller: Caller, gone: threading.Event
    ) -> Iterator[Answer]:
        """The answer as it grows; the last has its end."""
        messages: list[Any] = asked.messages()
        options, stops = asked.options(), asked.stops()
        with self._limits.one(caller):
            pairs = self._app.comparing.reply(
                served.subject,
                messages,
                messages,
                options,
                gone.is_set,
                caller=caller,
                sides=(served.side,),
            )
            yield from answers_of(pairs, served, stops)


def answers_of(pairs: Iterator[Any], served: Served, stops: list[str]) -> Iterator[Answer]:
    """One side of the pairs, held back where a stop text may have begun, and ended at one."""
    made = Answer()
    for pair in pairs:
        side = served.side
        text, done = getattr(pair, side), getattr(pair, f"done_{side}")
        made.prompt, made.tokens = getattr(pair, f"prompt_{side}"), getattr(pair, f"tokens_{side}")
        ends = [place for place in map(text.find, stops) if place >= 0]
        if ends:
            made.text, made.finish = text[: min(ends)], "stop"
        elif done:
            made.text, made.finish = text, "stop" if getattr(pair, f"stopped_{side}") else "length"
        else:
            made.text = text[: len(text) - _begun(text, stops)]
        yield made
        if made.finish:
            return


def _first(answers: Iterator[Answer]) -> Answer:
    """The first that says something; before it the model may be loaded, or room waited for."""
    answer = next(answers)
    while not (answer.tokens or answer.finish):
        answer = next(answers)
    return answer


def _begun(text: str, stops: list[str]) -> int:
    """Characters at the end that may be the beginning of a stop text."""
    sizes = (size for stop in stops for size in range(len(stop) - 1, 0, -1))
    return max((size for size in sizes if any(text.endswith(s[:size]) for s in stops)), default=0)


NOT_STORED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _events(asked: ChatRequest, first: Answer, answers: Iterator[Answer]) -> Iterator[str]:
    """A stream of server-sent events; an error in its middle is the last one but the end."""
    name, sent = _name(), 0
    yield _event(chunk(name, asked.model, first, {"role": "assistant", "content": ""}))
    answer = first
    try:
        while True:
            if len(answer.text) > sent:
                delta = {"content": answer.text[sent:]}
                yield _event(chunk(name, asked.model, answer, delta))
                sent = len(answer.text)
            if answer.finish:
                break
            answer = next(answers)
        yield _event(chunk(name, asked.model, answer, {}, last=True))
        if asked.stream_options and asked.stream_options.include_usage:
            yield _event(usage_chunk(name, asked.model, answer))
    except Exception as error:  # noqa: BLE001 - told to the reader, and logged by `refusal`
        yield _event(refusal(error).body())
    yield END


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"


async def _while_listening(
    request: Request, gone: threading.Event, work: Callable[[], Answer]
) -> Answer:
    """Work in a thread, which is told when its reader has gone."""
    done: list[Answer | Exception] = []

    def settle() -> None:
        try:
            done.append(work())
        except Exception as error:  # noqa: BLE001 - raised below, outside of the group
            done.append(error)

    async def listen() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await run_sync(settle)
        tasks.cancel_scope.cancel()
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]


def refusal(error: Exception) -> ApiError:
    """Any error in OpenAI's form."""
    from phi3lora.chat.engine import BusyError

    if isinstance(error, ApiError):
        return error
    told = in_words(error)
    if isinstance(told, BusyError):
        return ApiError(503, str(told), kind="server_error", code="busy", after=5)
    if isinstance(told, AccessError):
        return ApiError(403, str(told), kind="permission_error")
    if isinstance(told, HubError):
        return ApiError(502, str(told), kind="server_error")
    if isinstance(told, ModelError) and "tokens" in str(told):
        return ApiError(400, str(told), param="messages", code="context_length_exceeded")
    if type(error) is not type(told):
        return ApiError(500, str(told), kind="server_error")
    return ApiError(400, str(told))


def told(route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Any]:
    """A route whose errors have OpenAI's form."""

    async def answered(request: Request) -> Response:
        try:
            return await route(request)
        except Exception as error:  # noqa: BLE001 - a fault of ours is logged by `in_words`
            refused = refusal(error)
        headers = {"Retry-After": str(refused.after)} if refused.after else None
        return JSONResponse(refused.body(), refused.status, headers)

    return answered


def _entry(one: Served) -> dict[str, Any]:
    result = {"id": one.name, "object": "model", "created": one.created, "owned_by": "phi3lora"}
    if one.side == "tuned":  # as vLLM says it of a LoRA
        result |= {"root": one.name, "parent": one.subject.base.path}
    return result


def _name() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def routes(app: Application, caller_of: CallerOf, catalog: Catalog | None = None) -> list[Route]:
    """What a server adds to answer OpenAI's clients."""
    door = Door(app, caller_of, catalog or Catalog(app))
    return [
        Route("/v1/models", told(door.models), methods=["GET"]),
        Route("/v1/models/{name:path}", told(door.model), methods=["GET"]),
        Route("/v1/chat/completions", told(door.chat), methods=["POST"]),
    ]
