"""Form widgets as Gradio components, and our errors as messages on the page.

fields = Fields(config)
fields.add("peft_config.r")          makes the component, here and now
config, notices = fields.config(values)
"""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import gradio as gr

from phi3lora.config import RunConfig
from phi3lora.errors import (
    AccessError,
    AdapterError,
    ConfigError,
    DataError,
    HubError,
    ModelError,
    Phi3LoraError,
    RunError,
    StoredConfigError,
    UnexpectedError,
)
from phi3lora.strict_yaml import shorten
from phi3lora.ui import form

Handler = TypeVar("Handler", bound=Callable[..., Any])
# What stands over a message, by what went wrong; the first that fits.
TITLES: dict[type[Phi3LoraError], str] = {
    StoredConfigError: "The run",
    ConfigError: "Check the form",
    DataError: "Check the data",
    ModelError: "The base model",
    AdapterError: "The adapter",
    AccessError: "Not allowed",
    HubError: "The Hugging Face Hub",
    RunError: "The run",
    UnexpectedError: "Something failed",
    Phi3LoraError: "Not possible",
}
SPECS = {spec.field: spec for spec in form.widgets()}


class Fields:
    """The components of a form by field, in the order in which they were added."""

    def __init__(self, start: RunConfig | None = None) -> None:
        self.by_name: dict[str, Any] = {}
        self._start = form.to_widgets(start or RunConfig())

    @property
    def components(self) -> list[Any]:
        """All of them, as inputs or outputs of an event."""
        return list(self.by_name.values())

    def add(self, name: str, **changes: Any) -> Any:
        """The component of a field; `changes` go to its constructor."""
        self.by_name[name] = component(SPECS[name], **{"value": self._start[name], **changes})
        return self.by_name[name]

    def config(self, shown: Iterable[Any]) -> tuple[RunConfig, list[str]]:
        """The config that the components show. Raises ConfigError."""
        return form.from_widgets(dict(zip(self.by_name, shown, strict=True)))

    def fill(self, config: RunConfig, keep: Iterable[str] = ()) -> list[Any]:
        """Updates that show this config; fields in `keep` stay as they are."""
        values, kept = form.to_widgets(config), set(keep)
        return [gr.skip() if name in kept else values[name] for name in self.by_name]


def component(spec: form.Widget, **changes: Any) -> Any:
    """The Gradio component of a widget, with its title and help line."""
    common: dict[str, Any] = {
        "label": spec.title,
        "info": spec.help,
        "value": form.to_widget(spec, spec.default),
        "elem_id": element_id(spec.field),
        "interactive": True,
        **changes,
    }
    if "choices" in common:
        return gr.Dropdown(allow_custom_value=True, **common)
    if spec.kind == "number":
        # Gradio's Number makes 0 of nothing when a fold opens (gradio#6728), and a browser makes
        # 1 of 0,001. A text stays as it was typed, and what is no number is said at the field.
        empty = "not set" if spec.optional else None
        common["elem_classes"] = "number"
        return gr.Textbox(max_lines=1, placeholder=empty, **common)
    if spec.kind == "choice":
        return gr.Dropdown(choices=list(spec.choices), filterable=False, **common)
    if spec.kind == "combo":
        return gr.Dropdown(choices=list(spec.choices), allow_custom_value=True, **common)
    if spec.kind == "checkbox":
        return gr.Checkbox(**common)
    if "max_lines" in common:
        return gr.Textbox(**common)
    lines = 3 if spec.field == "data.system_prompt" else 1
    return gr.Textbox(lines=lines, max_lines=8, **common)


def element_id(field: str) -> str:
    """`peft_config.r` as an id of the page: `field-peft_config-r`."""
    return "field-" + field.replace(".", "-")


def message_of(error: Phi3LoraError) -> str:
    """What a notice on the page says, with the form's own titles, escaped."""
    text = "\n".join(form.problem_lines(error)) if isinstance(error, ConfigError) else str(error)
    return html.escape(text, quote=False).replace("\n", "<br>")


def shown(handler: Handler) -> Handler:
    """Turn our errors into a notice on the page; the one place that does.

    Where the handler takes a text it gets one, whatever a program sent in the page's name.
    """
    parameters = inspect.signature(handler).parameters.values()
    kinds = {place: str(one.annotation) for place, one in enumerate(parameters)}

    def checked(args: tuple[Any, ...]) -> Iterator[Any]:
        for place, value in enumerate(args):
            kind = kinds.get(place, "")
            none = kind == "str | None" and value is None
            yield text_of(value) if kind in ("str", "str | None") and not none else value

    @functools.wraps(handler)
    def once(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*checked(args), **kwargs)
        except Phi3LoraError as error:
            raise _notice(error) from None

    @functools.wraps(handler)
    def stream(*args: Any, **kwargs: Any) -> Any:
        try:
            yield from handler(*checked(args), **kwargs)
        except Phi3LoraError as error:
            raise _notice(error) from None

    return stream if inspect.isgeneratorfunction(handler) else once  # type: ignore[return-value]


def text_of(value: Any) -> str:
    """A text as it came; Gradio says None for an empty one. Raises DataError for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    raise DataError(f"Expected a text, got {shorten(value)}; reload the page and try again.")


def told(event: gr.EventData, name: str) -> str:
    """A text that the page's script sent with an event; empty where there is none."""
    values = event._data
    return text_of(values.get(name)) if isinstance(values, dict) else ""


def texts_told(event: gr.EventData, name: str) -> list[str] | None:
    """Texts, likewise; None where the event says nothing of them."""
    values = event._data
    if not isinstance(values, dict) or name not in values:
        return None
    if not isinstance(values[name], list):
        raise DataError(f"Expected texts, got {shorten(values[name])}; reload the page.")
    return [text_of(value) for value in values[name]]


def _notice(error: Phi3LoraError) -> gr.Error:
    """Its title stands in the message: the browser's part of Gradio 6.31 reads another name for
    titles than the server sends, and says "Error" over every one, which style.css hides."""
    title = next(words for kind, words in TITLES.items() if isinstance(error, kind))
    message = f"<strong>{title}</strong><br>{message_of(error)}"
    return gr.Error(message, title=title, duration=12, print_exception=False)
