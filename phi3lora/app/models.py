"""Choosing a base: the family with its sizes, contexts and licences, and what fits on a device.

bases(hardware)                  the family, as a list of choices
models.bases()                   the same for the device on which a run here would compute
models.suggested(caller)         ids to choose from, the caller's own among them
"""

from __future__ import annotations

from dataclasses import dataclass

from phi3lora.app.callers import Caller
from phi3lora.app.preflights import Preflights
from phi3lora.config import POCKET
from phi3lora.hub.access import search_models
from phi3lora.models.family import FAMILY, Fit, fit, fit_in_words
from phi3lora.models.hardware import AMPERE, GIB, Hardware
from phi3lora.training.speed import card_named

OWN = 8  # of the caller's own checkpoints that are suggested


@dataclass(frozen=True)
class Base:
    """One checkpoint to choose.

    Attributes:
        path: as `model.path` takes it.
        size: its weights in words, `3.8 B`.
        context: tokens that a conversation may have.
        note: what it is for, in a few words.
        fit: `fits` (LoRA in 16 bits), `tight` (QLoRA in 4 bits) or `no`.
        here: the same in words, with the reason.
    """

    path: str
    size: str
    parameters: int
    context: int
    licence: str
    note: str
    fit: Fit
    here: str

    @property
    def name(self) -> str:
        """Without whose it is: `Phi-3-mini-4k-instruct`."""
        return self.path.rpartition("/")[2]

    @property
    def title(self) -> str:
        """One line for a list of choices."""
        facts = (self.name, self.size, f"{self.context:,} tokens", self.licence, self.here)
        return " · ".join(facts)


def bases(hardware: Hardware) -> list[Base]:
    """The family, smallest generation first, with what fits on this device."""
    return [
        Base(
            path=member.path,
            size=member.size,
            parameters=member.parameters,
            context=member.context,
            licence=member.licence,
            note=member.note,
            fit=fit(member, hardware),
            here=fit_in_words(member, hardware),
        )
        for member in FAMILY
    ]


# What people rent or are lent, and its memory in GiB.
CARDS = {"T4": 16, "L4": 24, "A10G": 24, "A100": 80, "ZeroGPU": 70}


def fits_on(path: str) -> dict[str, Fit]:
    """Whether a base of the family can be trained on each card; nothing for another base."""
    member = next((one for one in FAMILY if one.path == path), None)
    if member is None or path == POCKET:
        return {}
    return {name: fit(member, _card(name, size)) for name, size in CARDS.items()}


def _card(name: str, size: int) -> Hardware:
    memory, known = size * GIB, card_named(name)  # what ZeroGPU lends is newer than all of these
    bfloat16 = known is None or known.capability >= AMPERE
    return Hardware("cuda", name, memory, memory, bfloat16, cores=1)


class Models:
    """Everything about bases before one is loaded."""

    def __init__(self, preflights: Preflights) -> None:
        self._preflights = preflights

    def bases(self) -> list[Base]:
        """The family, with what fits where a run would compute.

        torch is asked about the device in the helper process, not in the one with the pages.
        """
        return bases(self._preflights.hardware())

    def suggested(self, caller: Caller) -> list[str]:
        """Ids: the bundled one, the caller's own of type phi3, the family. Raises HubError."""
        page = search_models("", caller.token, limit=len(FAMILY) + OWN)
        return ["auto", POCKET, *(found.id for found in page)]
