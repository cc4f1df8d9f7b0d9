"""The second step of the Train page: which base, and how it is loaded.

    step = ModelStep(app, fields)
    step.cards                    three ways to begin, and whether each fits on this machine
    step.on_fit()                 their words, once the machine was asked

Each card is a recipe; the recipes of the guide stand in a fold, by what they do.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.models import Base, fits_on
from phi3lora.config import PHI3_MINI, POCKET
from phi3lora.errors import Phi3LoraError
from phi3lora.recipes import describe, recipes
from phi3lora.ui.sessions import session_of
from phi3lora.ui.steps import step
from phi3lora.ui.widgets import Fields

# A card: the recipe that it fills in, its title, and what it is for.
CARDS = {
    "pocket": ("Try it out", "The bundled pocket model: a minute on any computer, no download."),
    "phi3-mini-lora": ("Phi-3-mini", "The best quality. LoRA in 16 bits, for a GPU of 16 GB."),
    "phi3-mini-qlora": ("Phi-3-mini in 4 bits", "Half the memory. QLoRA, for a GPU of 8 GB."),
}
ASKED_OF = {"pocket": POCKET, "phi3-mini-lora": PHI3_MINI, "phi3-mini-qlora": PHI3_MINI}
UNKNOWN = "asking this machine …"
FITS, FITS_NOT = "✓ fits here", "✗ does not fit here"
SAID = {"fits": "✓ fits", "tight": "≈ tight: in 4 bits", "no": "✗ does not fit"}
Choices = list[tuple[str, str]]


class ModelStep:
    """The components that choose a base, and what they offer."""

    def __init__(self, app: Application, fields: Fields, first: str) -> None:
        self.app = app
        with step("step-model", 2, "Model", "", then="step-amount") as self.line:
            self.cards = gr.Radio(
                card_choices(None),
                value=first,
                label="Where to start",
                show_label=False,
                elem_classes="cards three",
                elem_id="recipe",
            )
            self.notes = gr.HTML(visible=False, elem_id="recipe-notes")
            with gr.Row():
                self.base = fields.add(
                    "model.path", choices=family_choices(None), min_width=240, scale=2
                )
                fields.add("model.quantization", min_width=160)
            self.fits = gr.HTML(elem_id="fits", apply_default_css=False)
            if app.launching.devices > 1:
                with gr.Row():
                    fields.add("devices", min_width=160)
                    fields.add("distributed", min_width=160)
            with gr.Accordion(
                "More recipes: those of the guide", open=False, elem_classes="fold", elem_id="more"
            ):
                self.more = gr.Radio(
                    [(recipe_card(name), name) for name in recipes() if name not in CARDS],
                    value=None,
                    label="Recipes of the guide",
                    show_label=False,
                    elem_classes="cards lines",
                    elem_id="more-recipes",
                )

    def on_fit(self) -> tuple[Any, Any]:
        """What fits on the machine that trains; the cards stay as they are where it is not told."""
        try:
            found = self.app.models.bases()
        except Phi3LoraError:
            return gr.skip(), gr.skip()
        return gr.update(choices=card_choices(found)), gr.update(choices=family_choices(found))

    def on_bases(self, request: gr.Request) -> Any:
        """The family, and the caller's own bases; without the Hub the family alone."""
        try:
            caller = self.app.callers.caller(session_of(request))
            known = family_choices(self.app.models.bases())
            mine = self.app.models.suggested(caller)
        except Phi3LoraError:
            return gr.skip()
        paths = {path for _, path in known}
        return gr.update(choices=[*known, *((path, path) for path in mine if path not in paths)])


def recipe_card(name: str) -> str:
    """A recipe in two lines: what it does, and where it comes from or what it needs."""
    does, _, more = describe(name).partition(": ")
    return f"{does}\n{more[:1].upper()}{more[1:]}"


def card_choices(bases: list[Base] | None) -> Choices:
    """The cards as (words, recipe): title, purpose, and whether it fits, a line each."""
    return [
        (f"{title}\n{purpose}\n{card_fit(recipe, bases)}", recipe)
        for recipe, (title, purpose) in CARDS.items()
    ]


def card_fit(recipe: str, bases: list[Base] | None) -> str:
    """Whether a card's base fits on this machine: in 16 bits, or in 4 where the card says so."""
    if bases is None:
        return UNKNOWN
    base = next(base for base in bases if base.path == ASKED_OF[recipe])
    if base.fit == "tight" and recipe == "phi3-mini-lora":
        return SAID["tight"]
    return FITS_NOT if base.fit == "no" else FITS


def fits_line(path: str) -> str:
    """On which cards a base can be trained; by words and signs, not by colour alone."""
    cells = "".join(
        f"<li><b>{name}</b> <span>{SAID[found]}</span></li>"
        for name, found in fits_on(path).items()
    )
    return f'<ul class="fits" aria-label="On other cards">{cells}</ul>' if cells else ""


def family_choices(bases: list[Base] | None) -> Choices:
    """Every base that is known, with its size, context, licence and whether it fits."""
    automatic = ("auto: Phi-3-mini where there is a GPU, else pocket", "auto")
    known = bases or []
    listed = [(base.title, base.path) for base in known] or [(POCKET, POCKET)]
    return [automatic, *listed]
