"""The third step of the Train page: how much is trained, from one slider to every option.

    step = AmountStep(app, fields)
    step.on_strength(level, *values)       the numbers that a position of the slider stands for

Every option that no other step shows is in `#options`, behind a search (train.js filters).
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from phi3lora.app.application import Application
from phi3lora.app.strength import NAMES
from phi3lora.methods import BY_METHOD
from phi3lora.ui import form, show
from phi3lora.ui.code import PlainCode
from phi3lora.ui.folds import NUMBERS, fold_of
from phi3lora.ui.steps import step
from phi3lora.ui.widgets import Fields, element_id


class AmountStep:
    """The slider, the numbers it stands for, all other options, and the same as YAML or code."""

    def __init__(self, app: Application, fields: Fields, level: int | None) -> None:
        self.app, self.fields = app, fields
        with step("step-amount", 3, "How much", "") as self.line:
            self.strength = gr.Slider(
                1,
                len(NAMES),
                value=level or 3,
                step=1,
                label="How much to train",
                info="Gentle keeps most of what the base can do. Strong takes in more of your "
                "examples, and forgets more.",
                elem_id="strength",
                buttons=[],
            )
            gr.HTML(
                '<p class="ends" aria-hidden="true"><span>gentle</span><span>usual</span>'
                "<span>strong</span></p>",
                apply_default_css=False,
                js_on_load=None,
            )
            self._folds()

    def _folds(self) -> None:
        with gr.Accordion(
            "Fine-tune the numbers", open=False, elem_classes="fold", elem_id="numbers"
        ):
            for row in NUMBERS:
                with gr.Row():
                    for name in row:
                        self.fields.add(name, min_width=150)
            gr.HTML(rules(), apply_default_css=False, js_on_load=None)
            self.derived = gr.HTML(elem_id="derived")
        self._options()
        with gr.Accordion("As YAML", open=False, elem_classes="fold", elem_id="as-yaml"):
            self.yaml = gr.Textbox(
                label="This configuration as YAML",
                lines=14,
                max_lines=28,
                show_label=False,
                buttons=["copy"],
                elem_classes="mono",
                elem_id="yaml",
            )
            self.drawn = gr.State("")
            with gr.Row(elem_classes="actions"):
                self.use_yaml = gr.Button("Use this configuration", size="md")
                self.save_yaml = gr.Button("Save as a file", size="md", elem_id="save-yaml")
                self.load_yaml = gr.Button("Load a file", size="md", elem_id="load-yaml")
        with gr.Accordion("As plain code", open=False, elem_classes="fold", elem_id="as-code"):
            self.code = PlainCode(self.app)

    def _options(self) -> None:
        count = sum(1 for _ in form.widgets())
        with gr.Accordion(
            f"All {count} options", open=False, elem_classes="fold", elem_id="options"
        ):
            gr.HTML(search_box(), apply_default_css=False, js_on_load=None)
            self.methods: dict[str, gr.Column] = {}
            for section, title in form.SECTIONS.items():
                names = [
                    spec.field
                    for spec in form.widgets()
                    if spec.section == section
                    and spec.field not in self.fields.by_name
                    and fold_of(spec.field) == "options"
                ]
                if names:
                    own = section in BY_METHOD.values()  # shown while its method is chosen
                    with gr.Column(visible=not own, elem_classes="option-section") as column:
                        if own:
                            self.methods[section] = column
                        gr.HTML(f"<h3>{show.text(title)}</h3>", js_on_load=None)
                        with gr.Row(elem_classes="options"):
                            for name in names:
                                self.fields.add(name, min_width=220)

    def on_method(self, method: str) -> list[Any]:
        """The options of the chosen method alone."""
        return [gr.update(visible=BY_METHOD.get(method) == section) for section in self.methods]


def rules() -> str:
    """The rules of thumb by field, for the browser to put behind a question mark at each."""
    found = {
        element_id(spec.field): [spec.title, spec.rule] for spec in form.widgets() if spec.rule
    }
    return f'<div id="rules" data-rules="{show.text(json.dumps(found))}"></div>'


def search_box() -> str:
    """The search over all options, and where those are that stand elsewhere on the page."""
    elsewhere = [
        {
            "title": spec.title,
            "words": f"{spec.field} {spec.title} {spec.help}".lower(),
            "field": element_id(spec.field),
            "fold": fold_of(spec.field),
        }
        for spec in form.widgets()
        if fold_of(spec.field) != "options" and spec.field != "data.path"
    ]
    return (
        '<label class="option-search"><span>Search</span><input type="search" id="option-search" '
        'placeholder="neftune, warm-up, seed …" autocomplete="off"></label>'
        '<p id="option-found" role="status" data-found="{number} options match" '
        'data-one="{number} option matches" '
        'data-none="No option has these words."></p>'
        f'<div id="option-elsewhere" data-options="{show.text(json.dumps(elsewhere))}"></div>'
    )
