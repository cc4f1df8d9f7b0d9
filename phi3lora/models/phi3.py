"""Where the shape of a Phi-3 is known: names, widths, slices, class, stop tokens; one table.

    PHI3.fused["qkv_proj"]                          # ("q", "k", "v")
    PHI3.linear(base)["qkv_proj"]                   # (3072, 9216), as (in, out)
    PHI3.slice_rows(base)["qkv_proj"]               # {"q": 3072, "k": 3072, "v": 3072}

It imports nothing, so the configuration may ask it as well as the training does. The names are
those of transformers' `Phi3ForCausalLM` (`transformers/models/phi3/modeling_phi3.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

QKV, OUT = "qkv_proj", "o_proj"
GATE_UP, DOWN = "gate_up_proj", "down_proj"
EMBEDDING, HEAD = "embed_tokens", "lm_head"

# Control tokens that end an answer in one generation of the family or another.
STOPS = ("<|end|>", "<|endoftext|>", "<|assistant|>", "<|im_end|>")
# Tokens that no conversation holds, so padding with them hides nothing that is learnt.
PADS = ("<unk>", "<|placeholder1|>", "<|dummy_0|>", "<|dummy_85|>", "<|pad|>")
# What a model writes inside its answers, as tokens of their own: thoughts, and calls of tools.
MARKS = (
    *("<think>", "</think>"),
    *("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>"),
    *("<|tool_response|>", "<|/tool_response|>"),
)
# LongRoPE switches to its long factors past this many positions, unless the config says another.
LONGROPE_START = 4096


class Shape(Protocol):
    """The numbers of a base that decide every width; `models.base.BaseInfo` is one."""

    @property
    def hidden(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def key_value_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...


@dataclass(frozen=True)
class Widths:
    """The Shape of a model that is loaded."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int

    @classmethod
    def of(cls, config: Any) -> Widths:
        """From a transformers config."""
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            key_value_heads=config.num_key_value_heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )


@dataclass(frozen=True)
class Family:
    """One type of model: how its modules are called, and which of them are fused.

    Attributes:
        model_type: as `config.json` says it.
        model_class, config_class: of transformers.
        attention_class: of the module that holds the attention's projections.
        blocks: the linear layers of a decoder layer, and the module each lies in.
        fused: projections that hold several, and those in the order of their rows.
    """

    model_type: str
    model_class: str
    config_class: str
    attention_class: str
    blocks: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]]

    @property
    def split_names(self) -> dict[str, str]:
        """What other families call the parts of a fused projection, and where they are here."""
        return {f"{part}_proj": whole for whole, parts in self.fused.items() for part in parts}

    @property
    def presets(self) -> dict[str, list[str]]:
        """The words that `peft_config.target_modules` takes, and the modules they mean."""
        return {
            "all-linear": list(self.blocks),
            "attention": [name for name, block in self.blocks.items() if block == "self_attn"],
            "mlp": [name for name, block in self.blocks.items() if block == "mlp"],
            "embedding": [EMBEDDING],
        }

    def linear(self, shape: Shape) -> dict[str, tuple[int, int]]:
        """`(in, out)` of the linear layers that every decoder layer has."""
        rows = self.slice_rows(shape)
        return {
            QKV: (shape.hidden, sum(rows[QKV].values())),
            OUT: (shape.heads * shape.head_size, shape.hidden),
            GATE_UP: (shape.hidden, sum(rows[GATE_UP].values())),
            DOWN: (shape.intermediate, shape.hidden),
        }

    def slice_rows(self, shape: Shape) -> dict[str, dict[str, int]]:
        """Rows of each part of a fused projection; k and v have fewer in grouped-query models."""
        queries = shape.heads * shape.head_size
        keys = shape.key_value_heads * shape.head_size
        rows = {QKV: (queries, keys, keys), GATE_UP: (shape.intermediate, shape.intermediate)}
        return {
            name: dict(zip(parts, rows[name], strict=True)) for name, parts in self.fused.items()
        }

    def path(self, layer: int, name: str) -> str:
        """Where a linear layer of one decoder layer lies: `model.layers.0.mlp.down_proj`."""
        return f"model.layers.{layer}.{self.blocks[name]}.{name}"

    def load_class(self) -> Any:
        """The class of transformers that computes it."""
        import transformers

        return getattr(transformers, self.model_class)


PHI3 = Family(
    model_type="phi3",
    model_class="Phi3ForCausalLM",
    config_class="Phi3Config",
    attention_class="Phi3Attention",
    blocks={QKV: "self_attn", OUT: "self_attn", GATE_UP: "mlp", DOWN: "mlp"},
    fused={QKV: ("q", "k", "v"), GATE_UP: ("gate", "up")},
)
