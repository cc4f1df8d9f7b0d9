"""What a look finds in conversations that one may not want to train on: a few kinds, each by rule.

    found = find(conversations, lengths, ["duplicates", "refusals"])
    found["duplicates"]          # {17: "the same as row 3"}: number of the conversation → why

The same rules choose the rows that `data.leave_out` names, so that what was seen is what is left
out. Nothing here is sure: rows are shown before they are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from phi3lora.data.conversation import Message, is_learnt
from phi3lora.data.similar import groups, text_of
from phi3lora.thoughts import split_thoughts

Conversation = Sequence[Message]
Why = dict[int, str]  # number of a conversation → why it was found
FAR = 3.0  # quartile ranges of the logarithm beyond which a length is odd; Tukey's "far out"
FEW = 20  # conversations below which no length is odd
LETTERS, SURE = 40, 0.9  # of a text whose language is asked, and from when the answer is believed
SHOWN = 300  # characters of a question and of an answer
PROSE = 200  # characters of an answer that should end like a sentence


@dataclass(frozen=True)
class Kind:
    """A kind of rows: its title, and what is meant by it in a sentence."""

    title: str
    meaning: str


KINDS: dict[str, Kind] = {
    "duplicates": Kind(
        "Duplicates", "The same conversation as an earlier row, but for case and white space."
    ),
    "near_duplicates": Kind(
        "Near-duplicates", "Nearly the same words as an earlier row (MinHash, four fifths)."
    ),
    "held_out": Kind(
        "Also held out", "The same or nearly the same as a row of the held-out split."
    ),
    "empty": Kind("Empty answers", "An answer that says nothing, such as `N/A` or three dots."),
    "cut": Kind("Cut answers", "An answer that stops in the middle of a sentence or of code."),
    "refusals": Kind("Refusals", "An answer that begins by refusing: “As an AI, I cannot …”."),
    "languages": Kind("Other languages", "Not in the language that most rows are in."),
    "lengths": Kind("Odd lengths", "Far longer or shorter than the others, by their quartiles."),
    "personal": Kind(
        "Personal data and keys", "Addresses of e-mail, numbers of phones and cards, access keys."
    ),
}


@dataclass(frozen=True)
class FoundRow:
    """A row to see: its source by its place in the config, its number, and why it was found."""

    source: int
    row: int
    why: str
    asked: str
    answer: str

    @property
    def place(self) -> str:
        """`row 17`, or `row 17 of source 2` where it is not of the first one."""
        return f"row {self.row}" + (f" of source {self.source + 1}" if self.source else "")


@dataclass(frozen=True)
class Finding:
    """All rows of one kind; `name` is what `data.leave_out` calls it."""

    name: str
    title: str
    meaning: str
    count: int
    rows: list[FoundRow]


def found_row(source: int, row: int, messages: Conversation, why: str) -> FoundRow:
    """A row with its last question and its answer, as a list shows them."""
    asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    return FoundRow(source, row, why, shorter(asked), shorter(messages[-1]["content"]))


def shorter(text: str) -> str:
    """A text as a row of a list shows it."""
    text = " ".join(text[: 4 * SHOWN].split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


def find(
    conversations: Iterable[Conversation],
    lengths: np.ndarray,
    kinds: Collection[str],
    signed: np.ndarray | None = None,
    held_out: np.ndarray | None = None,
    names: Callable[[int], str] = "row {}".format,
) -> dict[str, Why]:
    """Which conversations are of which kind, in the order of `KINDS`; they are read once.

    Args:
        conversations: those that are trained on.
        lengths: tokens of each.
        kinds: what to look for.
        signed: `signatures` of them, where near-duplicates are looked for.
        held_out: those of a held-out split of its own, if there is one.
        names: what to call a conversation by its number.
    """
    rules = [(name, rule) for name, rule in _RULES.items() if name in kinds]
    found: dict[str, Why] = {name: {} for name in KINDS if name in kinds}
    keys: list[int] = []
    codes: list[str] = []
    for number, messages in enumerate(conversations):
        text = text_of(messages)
        keys.append(_key(text))
        if "languages" in found:
            codes.append(language(text))
        answers = [split_thoughts(m["content"]).said for m in messages if is_learnt(m)]
        for name, rule in rules:
            if why := rule(text, answers):
                found[name][number] = why
    makers: dict[str, Callable[[], Why]] = {
        "duplicates": lambda: _duplicates(keys, names),
        "near_duplicates": lambda: _near_duplicates(keys, signed, names),
        "held_out": lambda: _also_held_out(signed, held_out),
        "languages": lambda: _other_languages(codes),
        "lengths": lambda: _odd_lengths(lengths),
    }
    return {name: makers[name]() if name in makers else why for name, why in found.items()}


def left_out_in_words(name: str) -> str:
    """The reason for which such a row is not used."""
    return f"{KINDS[name].title.lower()} (data.leave_out)"


# The same, or nearly


def _key(text: str) -> int:
    """Of a text whose case and white space do not count: 63 bits."""
    folded = " ".join(text.casefold().split()).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(folded, digest_size=8).digest(), "big") >> 1


def _duplicates(keys: Sequence[int], names: Callable[[int], str]) -> Why:
    first: dict[int, int] = {}
    return {
        number: f"the same as {names(first[key])}"
        for number, key in enumerate(keys)
        if first.setdefault(key, number) != number
    }


def _near_duplicates(
    keys: Sequence[int], signed: np.ndarray | None, names: Callable[[int], str]
) -> Why:
    if signed is None:
        return {}
    same = _duplicates(keys, names)
    return {
        number: f"nearly the same as {names(first)}"
        for number, first in enumerate(groups(signed).tolist())
        if first != number and number not in same
    }


def _also_held_out(signed: np.ndarray | None, held: np.ndarray | None) -> Why:
    if signed is None or held is None or not len(held):
        return {}
    like = groups(np.concatenate([held, signed]))
    of_held: dict[int, int] = {}
    for row, group in enumerate(like[: len(held)].tolist()):
        of_held.setdefault(group, row)
    return {
        number: f"the same or nearly the same as held-out row {of_held[group]}"
        for number, group in enumerate(like[len(held) :].tolist())
        if group in of_held
    }


# By an answer


_NOTHING = re.compile(
    r"(?:n/?a|none|null|nan|nil|nothing|unknown|undefined|tbd|todo|empty|no (?:answer|response)|-)?"
    r"[\W_]*",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W*(?:i(?:'|’)?m (?:very |really |so )?sorry,? (?:but )?(?:i|as an)\b.{0,40}"
    r"(?:can(?:'|’)?t|cannot|can not|unable|not able|won(?:'|’)?t)"
    r"|(?:sorry|unfortunately|i apologi[sz]e),? (?:but )?(?:as an|i (?:can(?:'|’)?t|cannot|am "
    r"(?:unable|not able)|won(?:'|’)?t))"
    r"|as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|i(?:'|’)?m (?:just |only )?an? (?:ai|(?:large )?language model)\b"
    r"|i (?:can(?:'|’)?t|cannot|am unable to|am not able to|won(?:'|’)?t) (?:assist|help|provide|"
    r"fulfil|comply|answer|do that|engage|support|create|generate|write))",
    re.IGNORECASE | re.DOTALL,
)
_OPEN_END = re.compile(r"(?:[,;:(\[{&+=–—]|\b(?:and|or|but|the|a|an|of|to|with|because|that))$")


def _empty(answer: str) -> str:
    return f"says {answer.strip()[:40]!r}" if _NOTHING.fullmatch(answer.strip()) else ""


def _refusal(answer: str) -> str:
    found = _REFUSAL.match(answer[:300])
    return f"begins {found.group().strip()[:60]!r}" if found else ""


def _cut(answer: str) -> str:
    """Why an answer looks as if it had been cut: open code, or no end to its last sentence."""
    text = answer.rstrip()
    if text.count("```") % 2:
        return "its code is not closed"
    line = text.rpartition("\n")[2]
    if _OPEN_END.search(line):
        return f"ends with {line[-20:]!r}"
    is_prose = len(text) >= PROSE and len(line.split()) >= 8 and "```" not in text
    return f"ends with {line[-20:]!r}" if is_prose and line[-1:].isalnum() else ""


# Languages, lengths, personal data


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language(text: str) -> str:
    """The language of a text by its code (`en`), empty where it is too short or unsure."""
    text = text[:1000]
    if sum(map(str.isalpha, text)) < LETTERS:
        return ""
    code, chance = _identifier().classify(text)
    return str(code) if chance >= SURE else ""


def _other_languages(said: Sequence[str]) -> Why:
    counted = Counter(code for code in said if code).most_common(1)
    main = counted[0][0] if counted else ""
    return {
        number: f"{code}, where most rows are {main}"
        for number, code in enumerate(said)
        if code not in ("", main)
    }


def _odd_lengths(lengths: np.ndarray) -> Why:
    if len(lengths) < FEW:
        return {}
    logs = np.log(np.maximum(lengths, 1))
    low, middle, high = np.percentile(logs, [25, 50, 75])
    reach = FAR * max(high - low, np.log(1.5) / FAR)  # rows of one length make half again odd
    odd = np.flatnonzero((logs < low - reach) | (logs > high + reach))
    usual = round(float(np.exp(middle)))
    return {
        int(number): f"{lengths[number]:,} tokens, the median is {usual:,}"
        for number in odd.tolist()
    }


_KEYS = (
    r"sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|"
    r"AIza[\w-]{35}|xox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_PATTERNS = {
    "an access key": re.compile(rf"(?<![\w-])(?:{_KEYS})"),
    "an e-mail address": re.compile(
        r"(?<![\w.+-])[\w.+-]{1,64}@(?!example\.)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{2,63}){1,4}\b"
    ),
    "a phone number": re.compile(r"(?<![\w.])(?:\+|00)\d{1,3}(?:[ ().-]{0,2}\d){8,12}(?![\d.])"),
    "an account number": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "a card number": re.compile(r"(?<![\d.])(?:\d[ -]?){12,18}\d(?![\d.])"),
}


def _personal(text: str) -> str:
    for what, pattern in _PATTERNS.items():
        if any(_is_real(what, match.group()) for match in pattern.finditer(text)):
            return what
    return ""


def _is_real(what: str, text: str) -> bool:
    """Whether the digits of a card add up (Luhn), and those of an account (ISO 13616)."""
    if what == "a card number":
        digits = [int(digit) for digit in text if digit.isdigit()]
        doubled = [d if i % 2 == 0 else (d * 2) % 9 or d for i, d in enumerate(reversed(digits))]
        return sum(doubled) % 10 == 0 and len(set(digits)) > 1
    if what == "an account number":
        code = text.replace(" ", "")
        return int("".join(str(int(one, 36)) for one in code[4:] + code[:4])) % 97 == 1
    return True


def _any(rule: Callable[[str], str]) -> Callable[[str, list[str]], str]:
    """A rule for answers as one for conversations: the first that it finds."""
    return lambda text, answers: next(filter(None, map(rule, answers)), "")


_RULES: dict[str, Callable[[str, list[str]], str]] = {
    "empty": _any(_empty),
    "cut": _any(_cut),
    "refusals": _any(_refusal),
    "personal": lambda text, answers: _personal(text),
}
