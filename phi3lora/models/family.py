"""The family: the checkpoints that can be trained, with size, context, licence, and what fits here.

    for member in FAMILY: member.path, member.parameters, member.context, member.licence
    fit(member, hardware)        # "fits", "tight" or "no"

Sizes are those of the published `config.json`s; nothing is asked of the Hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from phi3lora.config import PHI3_MINI, POCKET
from phi3lora.models.base import BaseInfo, check_base
from phi3lora.models.hardware import GIB, Hardware

Fit = Literal["fits", "tight", "no"]
# Beside the weights: adapter, optimizer and activations of a short batch, and the libraries.
BESIDE = 3 * GIB
# Templates that write no system message.
SILENT = ("Phi-3-medium", "Phi-4-reasoning")
# In what the weights of a base may be held while an adapter is trained.
PRECISIONS = ("bfloat16", "float32", "int8", "nf4", "fp4")
# Bytes of a weight in 4 bits with its constants, and of embedding and head, which stay float32.
FOUR_BITS, WHOLE = 0.53, 4


@dataclass(frozen=True)
class Member:
    """One checkpoint of the family.

    Attributes:
        path: as `model.path` takes it.
        context: tokens that a conversation may have.
        shape: (vocabulary, hidden, intermediate, layers, heads, key/value heads, tied).
        note: what it is for, in a few words.
        template: which of the family's chat templates it comes with.
    """

    path: str
    context: int
    shape: tuple[int, int, int, int, int, int, bool] | None
    note: str
    template: str
    licence: str = "MIT"

    @cached_property
    def base(self) -> BaseInfo:
        """Layers, widths and heads; read from the folder, or as listed, without asking the Hub."""
        if self.shape is None:
            return check_base(self.path)
        vocabulary, hidden, intermediate, layers, heads, key_value_heads, tied = self.shape
        return BaseInfo(
            name=self.path,
            folder=None,
            commit=None,
            vocabulary=vocabulary,
            hidden=hidden,
            intermediate=intermediate,
            layers=layers,
            heads=heads,
            key_value_heads=key_value_heads,
            tied=tied,
            max_length=self.context,
        )

    @property
    def system(self) -> bool:
        """Whether its chat template writes system messages."""
        return self.template not in SILENT

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        return self.base.parameters

    @property
    def size(self) -> str:
        """Its weights in words: `3.8 B`."""
        if self.parameters >= 1e9:
            return f"{self.parameters / 1e9:.1f} B"
        return f"{self.parameters / 1e6:.1f} M"


MINI = (32064, 3072, 8192, 32, 32, 32, False)
MEDIUM = (32064, 5120, 17920, 40, 40, 10, False)
PHI4 = (100352, 5120, 17920, 40, 40, 10, False)
PHI4_MINI = (200064, 3072, 8192, 32, 24, 8, True)
LONG = 131_072
FAMILY = (
    Member(POCKET, 2048, None, "bundled; for trying everything out on a CPU", "Phi-3-mini"),
    Member(PHI3_MINI, 4096, MINI, "the guide's base", "Phi-3-mini"),
    Member("microsoft/Phi-3-mini-128k-instruct", LONG, MINI, "long conversations", "Phi-3-mini"),
    Member("microsoft/Phi-3.5-mini-instruct", LONG, MINI, "more languages", "Phi-3.5-mini"),
    Member("microsoft/Phi-3-medium-4k-instruct", 4096, MEDIUM, "larger", "Phi-3-medium"),
    Member("microsoft/Phi-3-medium-128k-instruct", LONG, MEDIUM, "larger, long", "Phi-3-medium"),
    Member("microsoft/Phi-4-mini-instruct", LONG, PHI4_MINI, "calls tools", "Phi-4-mini"),
    Member(
        "microsoft/Phi-4-mini-reasoning",
        LONG,
        PHI4_MINI,
        "thinks before it answers",
        "Phi-4-mini-reasoning",
    ),
    Member("microsoft/phi-4", 16_384, PHI4, "larger, and stronger at reasoning", "Phi-4"),
    Member("microsoft/Phi-4-reasoning", 32_768, PHI4, "writes its thoughts", "Phi-4-reasoning"),
    Member("microsoft/Phi-4-reasoning-plus", 32_768, PHI4, "writes longer ones", "Phi-4-reasoning"),
)


def fit(member: Member, hardware: Hardware) -> Fit:
    """Whether a checkpoint can be trained on a device, by its memory in all.

    It fits where LoRA in 16 bits does, and is tight where only QLoRA in 4 bits does. Without a GPU
    only pocket fits: a step of the others takes minutes there.
    """
    if member.path == POCKET:
        return "fits"
    if hardware.device == "cpu":
        return "no"
    if lora_bytes(member) <= hardware.memory_total:
        return "fits"
    return "tight" if qlora_bytes(member) <= hardware.memory_total else "no"


def fit_in_words(member: Member, hardware: Hardware) -> str:
    """What `fit` says, with the reason where it is not a plain yes."""
    found = fit(member, hardware)
    if found == "fits":
        return "fits here"
    if found == "tight":
        return "tight here: in 4 bits (model.quantization: nf4)"
    if hardware.device == "cpu":
        return "does not fit here: it needs a GPU"
    return f"does not fit here: it needs {qlora_bytes(member) / GIB:.0f} GiB of a GPU's memory"


def lora_bytes(member: Member) -> int:
    """Memory that training an adapter over 16-bit weights takes, about."""
    return 2 * member.parameters + BESIDE


def qlora_bytes(member: Member) -> int:
    """Memory that training in 4 bits takes, about."""
    base = member.base
    linear = base.layers * sum(rows * columns for rows, columns in base.shapes.values())
    return int(FOUR_BITS * linear + WHOLE * (base.parameters - linear) + BESIDE)


def table() -> str:
    """The family as a table for docs/loading.md."""
    heads = ["checkpoint", "weights", "context", "licence", "template", "system messages"]
    heads += ["precisions", "LoRA from", "QLoRA from"]
    kinds = "| --- | ---: | ---: | --- | --- | --- | --- | ---: | ---: |"
    lines = [f"| {' | '.join(heads)} |", kinds]
    for member in FAMILY:
        small = member.path == POCKET
        cells = (
            f"`{member.path}`",
            member.size,
            f"{member.context:,}",
            member.licence,
            member.template,
            "in the template" if member.system else "before the first question",
            ", ".join(PRECISIONS),
            "a CPU" if small else f"{lora_bytes(member) / GIB:.0f} GiB",
            "a CPU" if small else f"{qlora_bytes(member) / GIB:.0f} GiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
