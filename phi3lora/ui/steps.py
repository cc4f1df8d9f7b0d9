"""The steps of the Train page: each folds into one line, and its line is always there.

    with step("step-data", 1, "Data") as line:       the components of the step follow
        ...
    line                                             gr.HTML; what the step says when it is folded

Which steps are folded stands in `data-folded` of the page's root (train.js writes it, style.css
obeys), so that nothing is taken off the page: a folded field is still sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from phi3lora.ui import show


@contextmanager
def step(name: str, number: int, title: str, first: str, then: str = "") -> Iterator[gr.HTML]:
    """A card with a head that folds it.

    Args:
        name: an id of the page; `NAME-body` and `NAME-line` are its parts.
        first: what its line says before anything is known.
        then: the id of the step that its "Continue" leads to; none for the last.
    """
    with gr.Column(elem_classes="card step", elem_id=name):
        with gr.Row(elem_classes="step-head", equal_height=False):
            gr.HTML(_head(name, number, title), apply_default_css=False, js_on_load=None)
            line = gr.HTML(step_line(first), elem_id=f"{name}-line", apply_default_css=False)
        with gr.Column(elem_classes="step-body", elem_id=f"{name}-body"):
            yield line
            if then:
                gr.HTML(
                    f'<button type="button" class="step-next" data-step="{name}" '
                    f'data-then="{then}">Continue</button>',
                    apply_default_css=False,
                    js_on_load=None,
                )


def _head(name: str, number: int, title: str) -> str:
    return (
        f'<h2><button type="button" class="step-toggle" data-step="{name}" aria-expanded="true" '
        f'aria-controls="{name}-body"><span class="step-number">{number}</span>'
        f"<span>{show.text(title)}</span></button></h2>"
    )


def step_line(text: str) -> str:
    """What a folded step says of itself."""
    return f'<p class="step-line">{show.text(text)}</p>'
