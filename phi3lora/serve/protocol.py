"""OpenAI's chat completions, as far as this engine can answer them: requests in, JSON out.

    asked = parse(body)                          ApiError, in OpenAI's form, for what cannot be done
    asked.messages(), asked.options()            for the engine
    completion(asked, answer, name)              the whole answer
    chunk(...), error(...)                       a piece of a stream, a refusal

Source: https://platform.openai.com/docs/api-reference/chat. Fields that would change the answer and
cannot be obeyed are refused; those that do not (`user`, `metadata`, `store`) are ignored.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phi3lora.app.comparing import with_calls
from phi3lora.chat.options import Options
from phi3lora.errors import ConfigError, DataError

DEFAULT_TOKENS = 512  # new tokens where a request names no limit
MOST_STOPS, LONGEST_STOP, MOST_TOOLS = 4, 100, 128
ROLES = {"developer": "system"}
# What would change the answer and is not built: (field, values that ask for nothing).
UNABLE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "audio": (),
    "prediction": (),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
}


class ApiError(Exception):
    """A refusal with its HTTP status, in OpenAI's form.

    Attributes:
        kind: `type` of the form, such as `invalid_request_error`.
        param: the field that it is about.
        code: a word that programs compare, such as `model_not_found`.
        after: seconds after which asking again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.after = after

    def body(self) -> dict[str, Any]:
        """What OpenAI's clients read of an answer that is no success."""
        told = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}


class Part(BaseModel):
    """A stretch of a message; only text can be read."""

    type: str
    text: str | None = None


class Turn(BaseModel):
    """One message of a request."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Its words, and the calls that it made. Raises ApiError for an image or a sound."""
        if self.tool_calls:
            try:
                return with_calls(self._words(), self.tool_calls)
            except DataError as error:
                raise ApiError(400, f"tool_calls: {error}.", param="messages") from None
        return self._words()

    def _words(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        if other := [part.type for part in self.content if part.text is None]:
            raise ApiError(400, f"Phi-3 reads text; got {other[0][:40]!r}.", param="messages")
        return "".join(part.text or "" for part in self.content)


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request as it came; `top_k`, `min_p` and `repetition_penalty` are spelt as vLLM does."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, max_length=500)
    turns: list[Turn] = Field(alias="messages", min_length=1, max_length=1000)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=MOST_TOOLS)

    def messages(self) -> list[dict[str, str]]:
        """The conversation, ending with the user's words or with what a tool answered."""
        found = self._turns()
        if self.tools and found[0]["role"] == "system":
            found = found[1:] or found
        if found[-1]["role"] not in ("user", "tool"):
            raise ApiError(400, "The last message must be the user's.", param="messages")
        return found

    def _turns(self) -> list[dict[str, str]]:
        return [
            {"role": ROLES.get(turn.role, turn.role), "content": turn.text()} for turn in self.turns
        ]

    def options(self) -> Options:
        """How to sample. OpenAI's default temperature is 1; without a seed each answer is new."""
        top_k = self.top_k if self.top_k is not None and self.top_k > 0 else 0  # -1: all, as vLLM
        begin = self._turns()[0]  # tools stand at the system message
        made = Options(
            system=begin["content"] if self.tools and begin["role"] == "system" else "",
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=top_k,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            max_new_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS,
            seed=time.time_ns() % 2**63 if self.seed is None else self.seed,
            tools=json.dumps(self.tools) if self.tools else "",
        )
        try:
            made.check()
        except ConfigError as error:
            first = error.problems[0]
            raise ApiError(400, str(error), param=_spelt(first.field)) from None
        return made

    def stops(self) -> list[str]:
        """Texts that end the answer, and are not part of it."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > MOST_STOPS or any(not 0 < len(one) <= LONGEST_STOP for one in given):
            message = f"at most {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters"
            raise ApiError(400, f"stop: expected {message}.", param="stop")
        return given


def _spelt(name: str) -> str:
    return {"max_new_tokens": "max_tokens"}.get(name, name)


def parse(body: bytes) -> ChatRequest:
    """A request's JSON. Raises ApiError."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.") from None
    try:
        asked = ChatRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{where}: {first['msg']}.", param=where) from None
    for name, idle in UNABLE.items():
        value = values.get(name)
        if value is not None and value not in idle:
            raise ApiError(400, f"{name}: this server cannot do that; leave it out.", param=name)
    return asked


@dataclass
class Answer:
    """An answer as far as it has come.

    Attributes:
        text: without stop texts.
        finish: `stop` where it ended by itself or at a stop text, `length` at the limit.
        prompt, tokens: tokens that were read and written.
    """

    text: str = ""
    finish: Literal["stop", "length"] | None = None
    prompt: int = 0
    tokens: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, int]:
        """Tokens in OpenAI's words."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt + self.tokens,
        }


def completion(name: str, model: str, answer: Answer) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
    head = {"id": name, "object": "chat.completion", "created": answer.created, "model": model}
    return {**head, "choices": [choice], "usage": answer.usage()}


def chunk(
    name: str, model: str, answer: Answer, delta: dict[str, str], *, last: bool = False
) -> dict[str, Any]:
    """A piece of an answer."""
    finish = answer.finish if last else None
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**_head(name, model, answer), "choices": [choice]}


def usage_chunk(name: str, model: str, answer: Answer) -> dict[str, Any]:
    """The end of a stream whose reader wants to know what it cost."""
    return {**_head(name, model, answer), "choices": [], "usage": answer.usage()}


def _head(name: str, model: str, answer: Answer) -> dict[str, Any]:
    kind = "chat.completion.chunk"
    return {"id": name, "object": kind, "created": answer.created, "model": model}
