"""Title, licence and languages of a model card, read from it and written into it.

head = head_of(card)                       CardHead("Pirate", "mit", "en, uk")
card = with_head(card, replace(head, licence="apache-2.0"))

What is not changed stays as it is written, to the letter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from phi3lora.errors import HubError
from phi3lora.strict_yaml import front_matter, without_front_matter, write_yaml

LONGEST_TITLE = 200
# What the Hub names most often; any other identifier of its list may be typed.
LICENCES = ("mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail", "other")
_HEADING = re.compile(r"^# (.*)$", re.MULTILINE)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")


@dataclass(frozen=True)
class CardHead:
    """What a card says first.

    Attributes:
        title: its heading.
        licence: an identifier of the Hub's list.
        languages: codes of ISO 639, with commas between them.
    """

    title: str = ""
    licence: str = ""
    languages: str = ""


def head_of(card: str) -> CardHead:
    """What a card says now; empty where it does not. Raises ConfigError for a broken head."""
    values = front_matter(card)
    heading = _HEADING.search(without_front_matter(card))
    return CardHead(
        heading[1].strip() if heading else "",
        str(values.get("license") or ""),
        _listed(values.get("language")),
    )


def with_head(card: str, head: CardHead) -> str:
    """The card with these; an empty one leaves what is there.

    Raises HubError for what the Hub would not take, ConfigError for a card that cannot be read.
    """
    now, values = head_of(card), front_matter(card)
    changes: dict[str, Any] = {}
    if head.licence.strip() and head.licence.strip() != now.licence:
        changes["license"] = _licence(head.licence.strip())
    if head.languages.strip() and _codes(head.languages) != _codes(now.languages, checked=False):
        changes["language"] = _codes(head.languages)
    if changes:
        card = f"---\n{write_yaml({**values, **changes})}---\n{without_front_matter(card)}"
    title = _title(head.title)
    if title and title != now.title:
        card = _titled(card, title)
    return card


def wanted(draft: str, text: str, head: CardHead) -> CardHead:
    """What of a head is still to be written into a text that was drafted and then edited.

    A field counts where it was changed and the text was not; the text is the last word.
    """
    first, now = head_of(draft), head_of(text)
    names = ("title", "licence", "languages")
    return CardHead(
        **{
            name: value
            for name in names
            if (value := getattr(head, name).strip()) != getattr(first, name)
            and getattr(now, name) == getattr(first, name)
        }
    )


def _titled(card: str, title: str) -> str:
    """With this heading, or one more at the top of the text."""
    body = without_front_matter(card)
    front = card[: len(card) - len(body)]
    heading = f"# {title}"
    if _HEADING.search(body):
        return front + _HEADING.sub(lambda _: heading, body, count=1)
    return f"{front}\n{heading}\n\n{body.lstrip()}"


def _title(title: str) -> str:
    """A line. Raises HubError for one that is too long."""
    line = " ".join(title.split())
    if len(line) > LONGEST_TITLE:
        raise HubError(f"A title has at most {LONGEST_TITLE} characters, this one has {len(line)}.")
    return line


def _licence(name: str) -> str:
    if not _LICENCE.fullmatch(name):
        raise HubError(
            f"A licence is an identifier of the Hub such as mit, apache-2.0 or other, got {name!r}."
        )
    return name


def _codes(text: str, *, checked: bool = True) -> list[str]:
    codes = [code for code in re.split(r"[\s,;]+", text) if code]
    wrong = [code for code in codes if not _LANGUAGE.fullmatch(code)]
    if checked and wrong:
        raise HubError(f"A language is a code such as en, uk or zh, got {wrong[0]!r}.")
    return codes


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")
