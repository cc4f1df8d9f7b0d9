"""What the Publish dialog asks beside the name: title, licence, languages, what goes along.

fields = HeadFields(run_id)           three fields over the card
along = AlongFields()                 a box for each export that may lie beside the result
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.card_head import LICENCES, CardHead, head_of
from phi3lora.app.publishing import Along, Also
from phi3lora.errors import ConfigError
from phi3lora.ui.widgets import text_of

TITLES: dict[Also, str] = {
    "gguf-adapter": "GGUF adapter",
    "gguf": "Merged GGUF",
}


class HeadFields:
    """Title, licence and languages, as the card has them."""

    def __init__(self) -> None:
        self.title = gr.Textbox(label="Title", max_lines=1, elem_id="card-title")
        with gr.Row():
            self.licence = gr.Dropdown(
                list(LICENCES),
                value=None,
                label="Licence",
                allow_custom_value=True,
                elem_id="card-licence",
                min_width=160,
                info="The base's own, if nothing is chosen",
            )
            self.languages = gr.Textbox(
                label="Languages",
                max_lines=1,
                elem_id="card-languages",
                placeholder="en, uk",
                min_width=160,
                info="Codes with commas between them",
            )

    @property
    def all(self) -> list[Any]:
        """The fields, in the order of `CardHead`."""
        return [self.title, self.licence, self.languages]


class AlongFields:
    """A box for each export, with its size, or why there is none."""

    def __init__(self) -> None:
        self.boxes = {
            kind: gr.Checkbox(False, label=title, elem_id=f"also-{kind}", min_width=220)
            for kind, title in TITLES.items()
        }

    @property
    def all(self) -> list[Any]:
        """Components, in the order in which their values reach a handler."""
        return list(self.boxes.values())


def head_from(values: Sequence[Any]) -> CardHead:
    """What three fields say. Raises DataError for what is no text."""
    return CardHead(*(text_of(value) for value in values))


def head_values(card: str) -> list[Any]:
    """What the fields show of a card; nothing of one that cannot be read."""
    try:
        head = head_of(card)
    except ConfigError:
        head = CardHead()
    return [head.title, head.licence or None, head.languages]


def along_values(offers: Sequence[Along]) -> list[Any]:
    """The boxes for a run: each with about how much it is, or off with the reason."""
    found = {offer.kind: offer for offer in offers}
    return [along_box(title, found.get(kind)) for kind, title in TITLES.items()]


def along_box(title: str, offer: Along | None) -> Any:
    """With the size of what it adds; off where that cannot be had, and why."""
    if offer is None:
        return gr.update(value=False, interactive=False, label=title, info=None)
    size = f", about {words.size(offer.size)}" if offer.size else ""
    return gr.update(
        value=False,
        interactive=not offer.refusal,
        label=f"{title}{size}",
        info=offer.refusal or None,
    )


def chosen(values: Sequence[Any]) -> tuple[Also, ...]:
    """Which exports were ticked."""
    return tuple(kind for kind, value in zip(TITLES, values, strict=True) if value is True)
