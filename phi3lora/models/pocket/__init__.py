"""Pocket Phi-3: a tiny, real `Phi3ForCausalLM` that ships with the package.

`CHECKPOINT` is its folder; `transformers` loads it like any other. `world` is what it knows,
`quiz` asks it, `pretrain` makes it anew.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
