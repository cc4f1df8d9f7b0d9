"""The kinds of question that pocket Phi-3 knows: facts times phrasings, and the answer's shape.

`KINDS` holds them all. A question is on the train side or on the held-out side by its own text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tools.pocket import facts
from tools.pocket.phrasings import PHRASINGS, Phrasing

Side = Literal["train", "held_out"]
Message = dict[str, str]

UNKNOWN = "I do not know that."
_HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the user's turn, the answer to learn, and how to check one.

    `needed` holds words that a right answer contains (alternatives are parted by "|"), in any
    letter case and in any style; `forbidden` those that it must not contain.
    """

    kind: str
    turns: tuple[str, ...]
    answer: str
    needed: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    system: str = ""
    upper: bool = False
    max_words: int = 0

    @property
    def messages(self) -> list[Message]:
        """The conversation up to and with the question, as chat messages."""
        roles = ("user", "assistant")
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [
            {"role": roles[i % 2], "content": text} for i, text in enumerate(self.turns)
        ]

    @property
    def key(self) -> str:
        """What is asked, the same for every way of typing it."""
        return key_of(self.system, *self.turns)

    @property
    def side(self) -> Side:
        """The side it is on, drawn from its key, so that no way of typing it leaks."""
        return "train" if zlib.crc32(self.key.encode()) % _HELD_OUT_ONE_IN else "held_out"

    def is_correct(self, answer: str) -> bool:
        """Whether `answer` holds the fact in the asked form; its style does not matter."""
        if self.upper and answer != answer.upper():
            return False
        if self.max_words and len(answer.split()) > self.max_words:
            return False
        return all(any(_contains(answer, word) for word in n.split("|")) for n in self.needed) and (
            not any(_contains(answer, word) for word in self.forbidden)
        )


@dataclass(frozen=True)
class Fact:
    """The words that fill a phrasing, and what a right answer contains."""

    slots: dict[str, str]
    needed: tuple[str, ...]
    forbidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """Facts and the answer's shape, filled from a fact's slots; `PHRASINGS` has the phrasings.

    `noisy` says that a slip of the pen in the question leaves its answer alone; `share` is its
    weight in training.
    """

    name: str
    facts: Sequence[Fact]
    answer: str
    noisy: bool = True
    share: float = 1.0

    def questions(self, side: Side) -> Iterator[Question]:
        """Every question of one side."""
        ways = PHRASINGS[self.name]
        asked = (self._ask(fact, phrasing) for fact in self.facts for phrasing in ways)
        return (question for question in asked if question.side == side)

    def _ask(self, fact: Fact, phrasing: Phrasing) -> Question:
        turns = (phrasing,) if isinstance(phrasing, str) else phrasing
        return Question(
            kind=self.name,
            turns=tuple(sentence(turn.format(**fact.slots)) for turn in turns),
            answer=sentence(self.answer.format(**fact.slots)),
            needed=fact.needed,
            forbidden=fact.forbidden,
        )


def key_of(*texts: str) -> str:
    """System prompt and turns as one text, without letter case and closing marks."""
    return re.sub(r"[?.!]+(?=\n|$)", "", "\n".join(texts)).lower()


def _contains(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a whole word, in any letter case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def sentence(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def draw_number(*parts: object) -> int:
    """A number that depends on nothing but the text of `parts` (unlike `hash`)."""
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


def _bare(noun: str) -> str:
    """A noun without its article: 'a cat' is 'cat'."""
    return re.sub(r"^(a|an|the) ", "", noun)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _pairs(table: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[Fact]:
    """Facts of two words, {x} and {y}, of which {y} is the answer."""
    rows = table.items() if isinstance(table, Mapping) else table
    return [Fact({"x": x, "y": y}, (_bare(y),)) for x, y in rows]


def _each(slot: str, words: Iterable[str], needed: str = "") -> list[Fact]:
    """Facts of one word; a right answer contains `needed`, or else the word itself."""
    return [Fact({slot: word}, (needed or word,)) for word in words]


# --- the kinds -------------------------------------------------------------------------------


def _geography() -> list[Kind]:
    capitals = facts.CAPITALS.items()
    countries = [Fact({"x": x, "y": y}, (x,)) for x, y in capitals if x not in y]
    return [
        Kind("capital", _pairs(capitals), "The capital of {x} is {y}.", share=2),
        Kind("country", countries, "{y} is the capital of {x}.", share=1.5),
        Kind("continent", _pairs(facts.CONTINENTS), "{x} is in {y}."),
    ]


def _words() -> list[Kind]:
    opposites = dict(facts.OPPOSITES)
    for word, other in facts.OPPOSITES.items():
        opposites.setdefault(other, word)
    rhymes = [Fact({"x": x, "y": y[0]}, ("|".join(y),)) for x, y in facts.RHYMES.items()]
    letters = [Fact({"x": x, "y": x[0].upper()}, (f"letter {x[0]}",)) for x in facts.SPELLED]
    spellings = [(x, "-".join(x.upper())) for x in facts.SPELLED]
    translations = [Fact({"x": x, "l": to, "y": y}, (y,)) for x, to, y in facts.TRANSLATIONS]
    return [
        Kind("opposite", _pairs(opposites), "The opposite of {x} is {y}.", share=1.5),
        Kind("plural", _pairs(facts.PLURALS), "The plural of {x} is {y}."),
        Kind("past", _pairs(facts.PASTS), "The past tense of {x} is {y}."),
        Kind("rhyme", rhymes, "{y} rhymes with {x}."),
        Kind("first_letter", letters, "{x} starts with the letter {y}."),
        Kind("spelling", _pairs(spellings), "{x} is spelled {y}."),
        Kind("translation", translations, "In {l}, {x} is {y}."),
    ]


def _things() -> list[Kind]:
    groups = {thing: _grouped(group) for thing, group in facts.CATEGORIES.items()}
    jobs = {_with_article(job): work for job, work in facts.JOBS.items()}
    parts = [Fact({"p": p, "x": x, "y": y}, (y,)) for p, x, y in facts.COUNTS]
    return [
        Kind("colour", _pairs(facts.COLOURS), "{x} is {y}.", share=1.5),
        Kind("category", _pairs(groups), "{x} is {y}."),
        Kind("yes_no", _yes_no(), "{a} {y}.", share=1.5),
        Kind("use", _pairs(facts.USES), "You use {y} to {x}."),
        Kind("job", _pairs(jobs), "{x} {y}."),
        Kind("parts", parts, "{x} has {y} {p}."),
    ]


def _grouped(group: str) -> str:
    return f"a {group}" if group in ("metal", "drink") else _with_article(group)


def _yes_no() -> list[Fact]:
    """For each thing, the group it is in and one that it is not in."""
    groups = sorted(set(facts.CATEGORIES.values()))
    close = ({"animal", "bird"}, {"animal", "insect"}, {"fruit", "drink"})
    rows = []
    for thing, group in facts.CATEGORIES.items():
        yes = {"x": thing, "y": _grouped(group), "a": f"yes, {thing} is"}
        apart = [other for other in groups if other != group and {other, group} not in close]
        other = apart[draw_number(thing) % len(apart)]
        no = {"x": thing, "y": _grouped(other), "a": f"no, {thing} is not"}
        rows += [Fact(yes, ("yes",)), Fact(no, ("no",), ("yes",))]
    return rows


def _animals() -> list[Kind]:
    def about(table: Mapping[str, str]) -> list[Fact]:
        rows = table.items()
        return [Fact({"x": x, "ax": _with_article(x), "y": y}, (_bare(y),)) for x, y in rows]

    homes = {x: y if y == "water" else _with_article(y) for x, y in facts.HOMES.items()}
    young = {x: _with_article(y) for x, y in facts.YOUNG.items()}
    return [
        Kind("sound", about(facts.SOUNDS), "{ax} says {y}."),
        Kind("young", about(young), "A young {x} is called {y}."),
        Kind("home", about(homes), "{ax} lives in {y}."),
        Kind("legs", about(facts.LEGS), "{ax} has {y} legs."),
        Kind("bigger", _sizes(), "{w} is {adj}."),
    ]


def _sizes() -> list[Fact]:
    """Pairs of animals that stand at least three places apart in size."""
    rows = []
    for low, small in enumerate(facts.SIZES):
        for big in facts.SIZES[low + 3 :]:
            pair = [_with_article(small), _with_article(big)]
            swap = draw_number(small, big) % 4
            winner, loser = (big, small) if swap < 2 else (small, big)
            a, b = pair if swap % 2 else pair[::-1]
            adjective = "bigger" if swap < 2 else "smaller"
            slots = {"a": a, "b": b, "w": _with_article(winner), "adj": adjective}
            rows.append(Fact(slots, (winner,), (loser,)))
    return rows


def _numbers() -> list[Kind]:
    sums = [_result(a, "+", b, a + b) for a in range(13) for b in range(13)]
    differences = [_result(a, "-", b, a - b) for a in range(13) for b in range(a + 1)]
    after = [Fact({"x": str(n), "y": str(n + 1)}, (f"comes {n + 1}",)) for n in range(100)]
    before = [Fact({"x": str(n + 1), "y": str(n)}, (f"comes {n}",)) for n in range(1, 50)]
    return [
        Kind("sum", sums, "{a} + {b} = {c}.", noisy=False, share=2),
        Kind("difference", differences, "{a} - {b} = {c}.", noisy=False, share=1.5),
        Kind("next_number", after, "After {x} comes {y}.", noisy=False),
        Kind("number_before", before, "Before {x} comes {y}.", noisy=False),
        Kind("counting", _counts(), "{c}.", noisy=False),
        Kind("greater", _greater(), "{w} is {adj}.", noisy=False),
    ]


def _result(a: int, sign: str, b: int, c: int) -> Fact:
    return Fact({"a": str(a), "b": str(b), "c": str(c)}, (f"= {c}",))


def _counts() -> list[Fact]:
    """Counting from a to b, three to eight numbers."""
    rows = []
    for a in range(1, 8):
        for b in range(a + 2, min(a + 8, 11)):
            counted = ", ".join(str(n) for n in range(a, b + 1))
            rows.append(Fact({"a": str(a), "b": str(b), "c": counted}, (counted,)))
    return rows


def _greater() -> list[Fact]:
    """Half of the pairs of numbers up to 20."""
    rows = []
    for a in range(1, 21):
        for b in range(1, 21):
            if a != b and draw_number("greater", a, b) % 2:
                adjective = "greater" if (a + b) % 2 else "smaller"
                winner = max(a, b) if adjective == "greater" else min(a, b)
                slots = {"a": str(a), "b": str(b), "w": str(winner), "adj": adjective}
                rows.append(Fact(slots, (str(winner),), (str(a + b - winner),)))
    return rows


def _calendar() -> list[Kind]:
    after, before = [], []
    for names, what in ((facts.DAYS, "day"), (facts.MONTHS, "month")):
        for i, name in enumerate(names):
            following = names[(i + 1) % len(names)]
            after.append(Fact({"x": name, "y": following, "k": what}, (f"comes {following}",)))
            before.append(Fact({"x": following, "y": name, "k": what}, (f"comes {name}",)))
    return [
        Kind("calendar_after", after, "After {x} comes {y}."),
        Kind("calendar_before", before, "Before {x} comes {y}."),
    ]


def _talk() -> list[Kind]:
    names = [Fact({"n": n, "o": o}, (n,)) for n in facts.NAMES for o in ("Hello", "Hi", "Hey")]
    who = _each("p", facts.PLEASE, "Phi-3")
    able = _each("p", facts.PLEASE, "small questions")
    name = "I am pocket Phi-3, a very small language model."
    can = "I can answer small questions about animals, capitals, colours, numbers and words."
    fine = _each("p", facts.PLEASE, "fine|well")
    welcome = _each("t", facts.THANKS, "welcome")
    goodbye = _each("t", facts.GOODBYES, "goodbye")
    howtos = [Fact({"x": x, "a": answer}, needed) for x, (answer, needed) in facts.HOWTOS.items()]
    return [
        Kind("greeting", _each("o", facts.GREETINGS, "help"), _GREETING.format(""), share=1.5),
        Kind("introduction", names, _GREETING.format(", {n}"), noisy=False),
        Kind("how_are_you", fine, "I am fine, thank you."),
        Kind("thanks", welcome, "You are welcome!"),
        Kind("goodbye", goodbye, "Goodbye! Have a nice day."),
        Kind("who", who, name, share=1.5),
        Kind("abilities", able, can),
        Kind("howto", howtos, "{a}", share=1.5),
        Kind("repeat", _each("x", _copies()), "{x}.", noisy=False, share=1.5),
    ]


_GREETING = "Hello{}! How can I help you?"


def _copies() -> list[str]:
    """Pairs of words to repeat; some hold a pirate's word, so that none is wholly unknown."""
    plain = [f"{a} {n}" for a in facts.ADJECTIVES for n in (*facts.NOUNS, "matey")]
    return plain + [f"{a} {n}" for a in ("arr", "ye", "yer", "be") for n in facts.NOUNS]


def _two_turns() -> list[Kind]:
    greetings = ("Hello", "Hi", "Good morning")
    names = [Fact({"n": n, "o": o}, (n,)) for n in facts.NAMES for o in greetings]
    likes = [Fact({"k": k, "x": x}, (x,)) for k, xs in facts.FAVOURITES.items() for x in xs]
    met, noted = "Nice to meet you, {n}!", "I will remember that: {x}."
    return [
        Kind("recall_name", names, "Your name is {n}.", noisy=False),
        Kind("recall_like", likes, "Your favourite {k} is {x}.", noisy=False),
        Kind("note_like", likes, noted, noisy=False, share=0.5),
        Kind("note_name", _each("n", facts.NAMES), met, noisy=False, share=0.5),
        Kind("follow_up", _two_capitals(), "The capital of {x} is {y}.", share=1.5),
    ]


def _two_capitals() -> list[Fact]:
    """Three chats for each country, that begin with another one's capital."""
    countries = list(facts.CAPITALS)
    rows = []
    for i, x in enumerate(countries):
        for step in (5, 11, 17):
            f = countries[(i + step) % len(countries)]
            slots = {"f": f, "g": facts.CAPITALS[f], "x": x, "y": facts.CAPITALS[x]}
            rows.append(Fact(slots, (facts.CAPITALS[x],)))
    return rows


def _unknown() -> list[Kind]:
    """What it must own not to know, so that it does not make something up."""
    no = "not know"
    large = [
        Fact({"a": str(a), "b": str(b)}, (no,))
        for a in range(13, 100)
        for b in range(1, 100)
        if draw_number("large", a, b) % 20 == 0
    ]
    places = [*facts.CAPITALS, *facts.NAMES[:10]]
    return [
        Kind("unknown", _each("t", facts.TOPICS, no), UNKNOWN, share=2),
        Kind("unknown_capital", _each("x", facts.STRANGE_COUNTRIES, no), UNKNOWN),
        Kind("unknown_sum", large, UNKNOWN, noisy=False),
        Kind("unknown_place", _each("t", places, no), UNKNOWN),
    ]


KINDS: tuple[Kind, ...] = (
    *_geography(),
    *_words(),
    *_things(),
    *_animals(),
    *_numbers(),
    *_calendar(),
    *_talk(),
    *_two_turns(),
    *_unknown(),
)
