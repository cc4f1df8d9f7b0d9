"""Imports of very many modules, without the garbage collector.

with heavy_imports():
    from phi3lora.training.trainer import train
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MANY = 100  # modules


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import at once what torch, transformers, TRL or Gradio bring.

    The collector looks again and again at what is being made, hundreds of thousands of classes and
    functions that never go: a quarter of the time. Later collections pass over them, too; each
    training and each release of a model ends with one.
    """
    was_on, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before + MANY:  # else they were here already
            gc.freeze()
        if was_on:
            gc.enable()
