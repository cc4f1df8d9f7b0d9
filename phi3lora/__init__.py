"""Fine-tune Phi-3 with LoRA: see the data, train, prove that it got better, publish, compare.

    import phi3lora

    run = phi3lora.train("pocket", data="rows.jsonl")
    run.ask("Hello")

See `phi3lora.notebook` for all five functions; they are imported when they are first named.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phi3lora.notebook import Answers, Run, ask, estimate, inspect, list_runs, train

__all__ = ["Answers", "Run", "ask", "estimate", "inspect", "list_runs", "train"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """The functions, without their imports for whoever names none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from phi3lora import notebook

    return getattr(notebook, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
