"""The pocket Phi-3: a real `Phi3ForCausalLM` of a few million parameters, bundled.

It makes every feature work on a CPU without a download. `tools/pocket` makes it and examines it.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
CHECKPOINT = _HERE / "checkpoint"
PIRATE = _HERE / "pirate"  # an adapter of it, and its report, made by `tools.pocket.adapter`


def prompts() -> list[str]:
    """Questions it can answer and was not trained on, to suggest in a chat."""
    return (_HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()
