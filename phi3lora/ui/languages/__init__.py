"""The interface in other languages: a file each, from the English text to its translation.

    language_of(cookie, accept)     "fr": what was chosen here, else what the browser asks for
    words_of("fr")                  {"Launch": "Lancer", "{number} checks passed": "…"}

`{name}` stands for whatever is there in the page. Terms that the field leaves in English stay so.
The page puts the words in (languages.js); whatever has no translation is shown in English.
"""

from __future__ import annotations

import functools
import json
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

COOKIE = "phi3lora-language"
LANGUAGES = {
    "en": "English",
    "fr": "Français",
    "hu": "Magyar",
    "it": "Italiano",
    "ja": "日本語",
    "zh-MO": "繁體中文（澳門）",
}
_TRADITIONAL = ("zh-mo", "zh-hk", "zh-tw", "zh-hant")


def language_of(cookie: str, accept: str) -> str:
    """One of LANGUAGES for these two headers; English where none fits."""
    try:
        morsel = SimpleCookie(cookie).get(COOKIE)
    except CookieError:
        morsel = None
    if morsel is not None and morsel.value in LANGUAGES:
        return morsel.value
    return next((code for tag in _in_order(accept) if (code := _known(tag))), "en")


def _in_order(accept: str) -> list[str]:
    """The tags of an Accept-Language header, the most wanted first."""
    found: list[tuple[float, str]] = []
    for part in accept.split(",")[:20]:
        tag, _, weight = part.strip().lower().partition(";q=")
        try:
            found.append((-float(weight or 1), tag))
        except ValueError:
            continue
    return [tag for _, tag in sorted(found, key=lambda one: one[0])]


def _known(tag: str) -> str:
    if tag.startswith(_TRADITIONAL):
        return "zh-MO"
    short = tag.partition("-")[0]
    return short if short in LANGUAGES else ""


@functools.cache
def words_of(language: str) -> dict[str, str]:
    """Every translation of a language; none for English."""
    if language not in LANGUAGES or language == "en":
        return {}
    file = Path(__file__).with_name(f"{language}.json")
    words: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return words
