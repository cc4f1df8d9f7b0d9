"""Both answers from a server of OpenAI's protocol, instead of the engine in the app.

server = Server("http://gpu:8000/v1", base="microsoft/Phi-3.5-mini-instruct", tuned="pirate")
chat = RemoteChat(server, key)          a chat.answering.Answering

A vLLM with `--enable-lora` is the way to large audiences. Which weights answer by a name is the
server's word alone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from phi3lora.chat.answering import Answering, Room, Tell
from phi3lora.chat.options import Options, Pair, Side
from phi3lora.chat.requests import Request
from phi3lora.config import ModelConfig
from phi3lora.errors import ConfigError, ModelError, Problem
from phi3lora.redaction import redact

SILENCE = 120.0  # seconds without a token, after which a server is given up
NO_KEY = "none"
POLL = 0.05  # seconds between two polls of what has come, and of whether to stop


@dataclass(frozen=True)
class Server:
    """Where answers come from.

    Attributes:
        url: of the protocol, `/v1` included.
        base, tuned: names of the two models there; without a second one the base answers alone.
    """

    url: str
    base: str
    tuned: str = ""

    @property
    def host(self) -> str:
        """What to call it."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


@dataclass(frozen=True)
class _Piece:
    """What one answer has come to: more of its text, or its end, or why there is none."""

    side: Side
    text: str = ""
    tokens: int = 0
    prompt: int = 0
    finish: str = ""
    error: Exception | None = None


class RemoteChat(Answering):
    """Asks both models at once; a reader that goes hangs up."""

    def __init__(self, server: Server, key: str | None = None) -> None:
        self.server, self._key = server, key

    def fits(self, base: ModelConfig | str | None = None, token: str | None = None) -> Room:
        """Nothing is loaded here."""
        return Room(True, 0, 0)

    def release(self) -> None:
        """Nothing is held here."""

    def _load(self, request: Request, progress: Tell | None) -> list[str]:
        if progress is not None:
            progress(f"asking {self.server.host}")
        return [*self._unlisted(), promise(self.server)]

    def _unlisted(self) -> list[str]:
        """What the server does not say it has; `transformers serve` has more than it lists.

        Raises ModelError where nobody answers, or not us.
        """
        from huggingface_hub.utils import httpx

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            answer = httpx.get(f"{self._url}/models", headers=headers, timeout=20)
            if answer.status_code in (401, 403):
                answer.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ModelError(
                f"{self.server.host}, which answers here (PHI3LORA_CHAT_URL), is not ready: "
                f"{_reason(error)}"
            ) from None
        listed = _names(answer)
        if listed is None:
            return [f"{self.server.host} does not say which models it has."]
        return [
            f"{self.server.host} does not list a model {name!r}, but {', '.join(listed)[:300]}."
            for name in filter(None, (self.server.base, self.server.tuned))
            if name not in listed
        ]

    @property
    def _url(self) -> str:
        return self.server.url.rstrip("/")

    def _answer(self, request: Request) -> Iterator[Pair]:
        if request.options.strength != 1:
            message = f"{self.server.host} answers at full strength. Set it to 1."
            raise ConfigError([Problem("strength", message)])
        return self._asked(request)

    def _asked(self, request: Request) -> Iterator[Pair]:
        names: dict[Side, str] = {"base": self.server.base, "tuned": self.server.tuned}
        asked = {side: talk for side, talk in request.conversations.items() if names[side]}
        pieces: queue.Queue[_Piece] = queue.Queue()
        gone = threading.Event()
        for side, talk in asked.items():
            body = _body(names[side], talk, request.options)
            threading.Thread(
                target=self._stream, args=(side, body, gone.is_set, pieces), daemon=True
            ).start()
        try:
            yield from _pairs(pieces, set(asked), request.should_stop)
        finally:
            gone.set()

    def _stream(
        self,
        side: Side,
        body: dict[str, Any],
        gone: Callable[[], bool],
        pieces: queue.Queue[_Piece],
    ) -> None:
        """One answer, piece by piece, until its end or until nobody reads it any more."""
        from huggingface_hub import InferenceClient

        # With no key at all the client would take the Hub token that is stored here.
        key = self._key or NO_KEY
        tokens, finish = 0, ""
        try:
            with InferenceClient(base_url=self._url, api_key=key, timeout=SILENCE) as client:
                for chunk in client.chat_completion(**body, stream=True):
                    if gone():
                        return
                    usage = chunk.usage
                    for choice in chunk.choices[:1]:
                        text, finish = choice.delta.content or "", choice.finish_reason or finish
                        tokens += bool(text)
                        pieces.put(_Piece(side, text, tokens))
                    if usage is not None:
                        tokens = usage.completion_tokens
                        pieces.put(_Piece(side, "", tokens, usage.prompt_tokens))
            pieces.put(_Piece(side, "", tokens, finish=finish or "length"))
        except Exception as error:  # noqa: BLE001 - raised by whoever reads the answer
            told = ModelError(f"{self.server.host} did not answer: {_reason(error)}")
            pieces.put(_Piece(side, error=told))


def _names(answer: Any) -> list[str] | None:
    """The models of a list; None where it is no list."""
    try:
        return [str(one["id"]) for one in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return None


def promise(server: Server) -> str:
    """What the columns mean, said on the page."""
    tuned = f", tuned is its {server.tuned!r}" if server.tuned else ""
    return (
        f"Answers come from {server.host}: base is its model {server.base!r}{tuned}. That these "
        "differ by an adapter alone is that server's word."
    )


def _body(model: str, messages: list[Any], options: Options) -> dict[str, Any]:
    """A request's fields; those that are not OpenAI's go along only where they say something."""
    system = [{"role": "system", "content": options.system}] if options.system else []
    usual = Options()
    more = {
        name: getattr(options, name)
        for name in ("top_k", "min_p", "repetition_penalty")
        if getattr(options, name) != getattr(usual, name)
    }
    return {
        "model": model,
        "messages": [*system, *messages],
        "max_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "stream_options": {"include_usage": True},
        "extra_body": more or None,
    }


def _pairs(
    pieces: queue.Queue[_Piece], open_sides: set[Side], should_stop: Callable[[], bool]
) -> Iterator[Pair]:
    """Pairs as pieces come; the first error of either side is raised."""
    pair = Pair(done_base="base" not in open_sides, done_tuned="tuned" not in open_sides)
    while not pair.done:
        if should_stop():
            pair = replace(pair, done_base=True, done_tuned=True)
            break
        try:
            piece = pieces.get(timeout=POLL)
        except queue.Empty:
            continue
        if piece.error is not None:
            raise piece.error
        pair = _with(pair, piece)
        if not pair.done:
            yield pair
    yield pair


def _with(pair: Pair, piece: _Piece) -> Pair:
    side = piece.side
    changes: dict[str, Any] = {side: getattr(pair, side) + piece.text}
    changes[f"tokens_{side}"] = piece.tokens
    changes[f"prompt_{side}"] = piece.prompt or getattr(pair, f"prompt_{side}")
    if piece.finish:
        changes |= {f"done_{side}": True, f"stopped_{side}": piece.finish == "stop"}
    return replace(pair, **changes)


def _reason(error: Exception) -> str:
    """What went wrong in a sentence without a key in it, the server's own where it has one."""
    response = getattr(error, "response", None)
    if response is None:
        return redact(f"{type(error).__name__}: {error}")[:300]
    try:
        told = response.json()["error"]
        said = told.get("message", told) if isinstance(told, dict) else told
    except (ValueError, KeyError, TypeError, RuntimeError):  # no JSON, or a stream not read
        said = ""
    return redact(f"HTTP {response.status_code}. {said}".strip())[:300]
