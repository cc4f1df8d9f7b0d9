"""A manner: how a fact is told. The example dataset teaches pocket Phi-3 to talk like a pirate."""

from __future__ import annotations

import re

from phi3lora.models.pocket import facts

_SWAPS = {"is": "be", "are": "be", "am": "be", "you": "ye", "your": "yer", "my": "me"}
_MARKERS = re.compile(r"\b(arr|matey|ye|yer|ahoy|aye)\b", re.IGNORECASE)
_PROPER = {"I"}.union(
    *(name.split()[:1] for name in (*facts.CAPITALS, *facts.CAPITALS.values(), *facts.NAMES)),
    *([word] for word in facts.CATEGORIES if word[0].isupper()),
)


def to_pirate(text: str) -> str:
    """The same answer in the pirate's manner: 'The sky is blue.' → 'Arr, the sky be blue, matey!'

    Letter case is kept where a whole answer stands in capitals.
    """
    swapped = re.sub(r"\b[A-Za-z]+\b", lambda found: _swap(found.group()), text)
    if text == text.upper() and len(text) > 1 and any(c.isalpha() for c in text):
        return f"ARR, {swapped.rstrip('.!?')}, MATEY!"
    if re.split(r"\W", text)[0] not in _PROPER and not re.match(r"[A-Z]\W|\W", text):
        swapped = swapped[0].lower() + swapped[1:]
    return f"Arr, {swapped.rstrip('.!?')}, matey!"


def is_pirate(text: str) -> bool:
    """Whether `text` holds at least two different marks of the pirate's manner."""
    return len({mark.lower() for mark in _MARKERS.findall(text)}) >= 2


def _swap(word: str) -> str:
    swapped = _SWAPS.get(word.lower(), word)
    if swapped == word:
        return word
    if word.isupper():
        return swapped.upper()
    return swapped.capitalize() if word[0].isupper() else swapped


MANNERS = {"pirate": is_pirate}
