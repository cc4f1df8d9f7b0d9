"""A small, honest Hub on loopback for tests and for machines without internet.

It speaks to the real ``huggingface_hub`` and ``datasets`` clients. Unknown routes
answer 404 and are listed. It is never part of what runs in production.

``huggingface_hub`` reads ``HF_ENDPOINT`` when it is imported. So either name
``tests.hub.fixtures`` in ``pytest_plugins`` (it sets the environment before the first
import and brings the ``hub`` fixture), or run the client in a process of its own with
``hub.env(home)``, or pass ``HfApi(endpoint=hub.url)``.
"""

from .server import LoopbackHub

__all__ = ["LoopbackHub"]
