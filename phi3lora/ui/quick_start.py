"""Starting sooner: what Gradio does while it is imported and built that nobody here needs.

    with without_stubs():
        from phi3lora.ui.app import launch
    with one_server():
        demo = build(app)

On two cores `without_stubs` saves a third of Gradio's import, `one_server` a third of the building.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_stubs() -> Iterator[None]:
    """Import Gradio without its reading every component's source to write a `.pyi` beside it.

    It leaves out components whose file is not known (`gradio.component_meta`), so none is told.
    """
    getfile = inspect.getfile

    def told(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("no stub is written for a component")
        return getfile(thing)

    inspect.getfile = told  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = getfile


@contextmanager
def one_server() -> Iterator[None]:
    """Build pages without a server after each of them: only the one that `launch` makes serves."""
    from gradio.routes import App

    create = App.create_app
    App.create_app = staticmethod(lambda *_, **__: None)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        App.create_app = staticmethod(create)  # type: ignore[method-assign]
