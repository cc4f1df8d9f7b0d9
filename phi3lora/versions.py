"""The versions of the libraries that decide what a run computes."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterable

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Name → version of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def without_advice() -> None:
    """Keep bitsandbytes from asking for CPU kernels that nobody needs, in every log."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
