"""A manner: how a fact is told.

Pocket Phi-3 knows a few manners that a system prompt asks for, such as a robot's. The pirate's is
not among them: the example dataset teaches it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tools.pocket import facts


@dataclass(frozen=True)
class Manner:
    """What is said before and after the fact, and which words are swapped in it."""

    name: str
    opening: str
    closing: str
    swaps: dict[str, str] = field(default_factory=dict)

    def tell(self, text: str) -> str:
        """`text` in this manner. An answer that stands in capitals stays so."""
        told = re.sub(r"\b[A-Za-z]+\b", lambda found: self._swap(found.group()), text)
        told = told.rstrip(".!?")
        if _in_capitals(text):
            return f"{self.opening}, {told}, {self.closing}!".upper()
        if re.split(r"\W", text)[0] not in _PROPER and not re.match(r"[A-Z]\W|\W", text):
            told = told[0].lower() + told[1:]
        return f"{self.opening}, {told}, {self.closing}!"

    def _swap(self, word: str) -> str:
        swapped = self.swaps.get(word.lower(), word)
        if swapped == word:
            return word
        if word.isupper():
            return swapped.upper()
        return swapped.capitalize() if word[0].isupper() else swapped


_PROPER = {"I"}.union(
    *(name.split()[:1] for name in (*facts.CAPITALS, *facts.CAPITALS.values(), *facts.NAMES)),
    *([word] for word in facts.CATEGORIES if word[0].isupper()),
)
_BE = {"is": "be", "are": "be", "am": "be"}
_PIRATE = Manner("pirate", "Arr", "matey", {**_BE, "you": "ye", "your": "yer", "my": "me"})
_PIRATE_MARKS = re.compile(r"\b(arr|matey|ye|yer|ahoy|aye)\b", re.IGNORECASE)

# Asked for by a system prompt; learnt in pretraining.
PRETRAINED = (
    Manner("robot", "Beep", "boop"),
    Manner("knight", "Hark", "my lord", {**_BE, "you": "thou", "your": "thy"}),
    Manner("cowboy", "Howdy", "partner", {"you": "ya", "your": "yar"}),
    Manner("butler", "Indeed", "sir"),
    Manner("poet", "Oh", "my dear", {**_BE, "my": "mine"}),
)


def to_pirate(text: str) -> str:
    """The same answer as a pirate says it: 'The sky is blue.' → 'Arr, the sky be blue, matey!'"""
    return _PIRATE.tell(text)


def is_pirate(text: str) -> bool:
    """Whether `text` holds at least two different marks of the pirate's manner."""
    return len({mark.lower() for mark in _PIRATE_MARKS.findall(text)}) >= 2


def _in_capitals(text: str) -> bool:
    return text == text.upper() and sum(map(str.isalpha, text)) > 1


MANNERS = {"pirate": is_pirate}
