"""Named endpoints of the Gradio API, and MCP tools, made from `serve/operations.py`.

    build(app)            within a `gr.Blocks`

Everything else on the pages stays private. The caller is whoever the request's token belongs to:
`Client(url, token="hf_…")`, or the header `Authorization: Bearer hf_…` of an MCP client.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import gradio as gr
from gradio_client import Client
from pydantic import TypeAdapter, ValidationError

from phi3lora.app.application import Application
from phi3lora.app.working import in_words
from phi3lora.errors import ConfigError, Problem
from phi3lora.serve.operations import Operations
from phi3lora.strict_yaml import shorten
from phi3lora.ui.sessions import session_of

WANTED = {str: "a text", bool: "true or false"}  # in words; anything else that is taken is a dict


def build(app: Application) -> None:
    """Register every operation."""
    for operation in Operations(app).offered:
        gr.api(endpoint(app, operation), api_name=operation.__name__)


def has_mcp() -> bool:
    """Whether tools can be offered: Gradio's `mcp` extra is installed, as on every Space."""
    return find_spec("mcp") is not None


def fit_mcp(demo: gr.Blocks, key: str | None) -> None:
    """Tools answer in JSON, not as Python prints it; and come past the guard, which asks for a key.

    Args:
        key: what is asked for beyond loopback; None on loopback.
    """
    server = demo.mcp_server_obj
    if server is None:
        return
    server.postprocess_output_data = _as_json  # type: ignore[method-assign]
    if key is not None:
        headers = {"x-gradio-user": "mcp", "authorization": f"Bearer {key}"}
        server._client_instance = Client(
            str(demo.local_url), headers=headers, download_files=False, verbose=False
        )


def _as_json(data: list[Any], root_url: str) -> list[Any]:
    from mcp.types import TextContent

    return [TextContent(type="text", text=json.dumps(value, ensure_ascii=False)) for value in data]


def endpoint(app: Application, operation: Callable[..., Any]) -> Callable[..., Any]:
    """An operation as Gradio calls it: with a request where it has a caller."""

    hints = typing.get_type_hints(operation)
    taken = {name: kind for name, kind in hints.items() if name not in ("caller", "return")}

    @functools.wraps(operation)
    def called(*values: Any) -> Any:
        *given, request = values
        try:
            check_values(taken, given)
            return operation(*given, caller=app.callers.caller(session_of(request)))
        except Exception as error:  # noqa: BLE001 - told in words; not ours: logged by in_words
            raise gr.Error(str(in_words(error)), print_exception=False) from None

    kept = [
        parameter.replace(annotation=taken[name])
        for name, parameter in inspect.signature(operation).parameters.items()
        if name in taken
    ]
    last = inspect.Parameter(
        "request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request, default=None
    )
    signature = inspect.Signature([*kept, last], return_annotation=hints["return"])
    called.__signature__ = signature  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in [*kept, last]}
    del called.__wrapped__  # whose hints name a caller
    return called


def check_values(taken: dict[str, Any], given: Sequence[Any]) -> None:
    """Raises ConfigError where a program sent something else than the signature says."""
    problems = []
    for (name, kind), value in zip(taken.items(), given, strict=True):
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError:
            wanted = WANTED.get(kind, "names with values")
            problems.append(Problem(name, f"expected {wanted}, got {shorten(value)}."))
    if problems:
        raise ConfigError(problems)
