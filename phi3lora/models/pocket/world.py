"""The world of pocket Phi-3: questions with checkable answers, on a train and a held-out side.

A *kind* of question is a list of facts, a list of phrasings and the shape of the answer. Fact
times phrasing gives every question; one such pair in eight is held out, so that a held-out
question joins a fact and a phrasing that were both learnt, but never together.

    questions("train")            every question of the train side, as `Question`s
    sample_held_out(200)          distinct held-out questions, spread evenly over the kinds
    Conversations(seed).draw()    endless training conversations: noise, system prompts, many turns

Everything is deterministic: the same seed gives the same text on every machine.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from phi3lora.models.pocket import facts

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
    def side(self) -> Side:
        """The side it is on: the same for every way of typing it, so that none of them leaks."""
        typed = re.sub(r"[?.!]+(?=\n|$)", "", "\n".join((self.system, *self.turns))).lower()
        return "train" if zlib.crc32(typed.encode()) % _HELD_OUT_ONE_IN else "held_out"

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
    """Facts, phrasings (a tuple is a chat of several turns) and the answer's shape.

    `answer` is filled from the fact's slots. `noisy` says that a slip of the pen in the question
    leaves its answer alone.
    """

    name: str
    facts: Sequence[Fact]
    phrasings: Sequence[str | tuple[str, ...]]
    answer: str
    noisy: bool = True
    share: float = field(default=1.0)

    def questions(self, side: Side) -> Iterator[Question]:
        """Every question of one side."""
        asked = (self._ask(fact, phrasing) for fact in self.facts for phrasing in self.phrasings)
        return (question for question in asked if question.side == side)

    def _ask(self, fact: Fact, phrasing: str | tuple[str, ...]) -> Question:
        turns = (phrasing,) if isinstance(phrasing, str) else phrasing
        return Question(
            kind=self.name,
            turns=tuple(_sentence(turn.format(**fact.slots)) for turn in turns),
            answer=_sentence(self.answer.format(**fact.slots)),
            needed=fact.needed,
            forbidden=fact.forbidden,
        )


def _contains(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a whole word, in any letter case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _sentence(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def _draw(*parts: object) -> int:
    """A number that depends on nothing but the text of `parts` (unlike `hash`)."""
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


def _bare(noun: str) -> str:
    """A noun without its article: 'a cat' is 'cat'."""
    return re.sub(r"^(a|an|the) ", "", noun)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _facts(*rows: tuple[dict[str, str], str]) -> list[Fact]:
    return [Fact(slots, (needed,)) for slots, needed in rows]


# --- the kinds -------------------------------------------------------------------------------


_CAPITAL_PHRASINGS = (
    "What is the capital of {x}?",
    "Which city is the capital of {x}?",
    "Name the capital of {x}.",
    "Tell me the capital of {x}.",
    "What is {x}'s capital?",
    "Do you know the capital of {x}?",
    "What is the capital city of {x}?",
    "{x}: what is its capital?",
    "capital of {x}",
)
_SUM_PHRASINGS = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "{a}+{b}=",
    "Add {a} and {b}.",
    "Please add {b} to {a}.",
    "What do {a} and {b} make?",
    "{a} + {b}",
    "Calculate {a}+{b}.",
)


def _geography() -> list[Kind]:
    capitals = [Fact({"x": x, "y": y}, (y,)) for x, y in facts.CAPITALS.items()]
    countries = [Fact({"x": x, "y": y}, (x,)) for x, y in facts.CAPITALS.items() if x not in y]
    continents = [Fact({"x": x, "y": y}, (y,)) for x, y in facts.CONTINENTS.items()]
    return [
        Kind(
            "capital",
            capitals,
            _CAPITAL_PHRASINGS,
            "The capital of {x} is {y}.",
            share=2,
        ),
        Kind(
            "country",
            countries,
            (
                "Which country has the capital {y}?",
                "{y} is the capital of which country?",
                "In which country is {y}?",
                "What country is {y} the capital of?",
                "Where is {y}?",
                "Tell me which country {y} is in.",
            ),
            "{y} is the capital of {x}.",
            share=1.5,
        ),
        Kind(
            "continent",
            continents,
            (
                "Which continent is {x} in?",
                "On which continent is {x}?",
                "What continent does {x} belong to?",
                "Where is {x}?",
                "{x} is on which continent?",
                "Name the continent of {x}.",
            ),
            "{x} is in {y}.",
        ),
    ]


def _words() -> list[Kind]:
    opposites = dict(facts.OPPOSITES)
    for word, other in facts.OPPOSITES.items():
        opposites.setdefault(other, word)
    return [
        Kind(
            "opposite",
            _facts(*(({"x": x, "y": y}, y) for x, y in opposites.items())),
            (
                "What is the opposite of {x}?",
                "Tell me the opposite of {x}.",
                "Which word means the opposite of {x}?",
                "Give me the opposite of {x}.",
                "What is the contrary of {x}?",
                "{x}: what is the opposite?",
                "opposite of {x}",
            ),
            "The opposite of {x} is {y}.",
            share=1.5,
        ),
        Kind(
            "plural",
            _facts(*(({"x": x, "y": y}, y) for x, y in facts.PLURALS.items())),
            (
                "What is the plural of {x}?",
                "Tell me the plural of {x}.",
                "One {x}, two what?",
                "What do you call more than one {x}?",
                "Give the plural form of {x}.",
                "How do you say {x} in the plural?",
                "plural of {x}",
            ),
            "The plural of {x} is {y}.",
        ),
        Kind(
            "past",
            _facts(*(({"x": x, "y": y}, y) for x, y in facts.PASTS.items())),
            (
                "What is the past tense of {x}?",
                "Tell me the past tense of {x}.",
                "What is the past of {x}?",
                "Today I {x}; what did I do yesterday?",
                "Give the past form of {x}.",
                "Put the verb {x} in the past.",
            ),
            "The past tense of {x} is {y}.",
        ),
        Kind(
            "rhyme",
            _facts(*(({"x": x, "y": y[0]}, "|".join(y)) for x, y in facts.RHYMES.items())),
            (
                "What rhymes with {x}?",
                "Give me a word that rhymes with {x}.",
                "Tell me a rhyme for {x}.",
                "Which word rhymes with {x}?",
                "Find a rhyme for {x}.",
                "Name a word that sounds like {x}.",
            ),
            "{y} rhymes with {x}.",
        ),
        Kind(
            "first_letter",
            _facts(*(({"x": x, "y": x[0].upper()}, f"letter {x[0]}") for x in facts.SPELLED)),
            (
                "What is the first letter of {x}?",
                "Which letter does {x} start with?",
                "With which letter does {x} begin?",
                "Tell me the first letter of {x}.",
                "What letter is at the start of {x}?",
                "Name the first letter of the word {x}.",
            ),
            "{x} starts with the letter {y}.",
        ),
        Kind(
            "spelling",
            _facts(*(({"x": x, "y": y}, y) for x in facts.SPELLED for y in ["-".join(x.upper())])),
            (
                "How do you spell {x}?",
                "Spell {x}.",
                "Can you spell {x}?",
                "Please spell the word {x}.",
                "What is the spelling of {x}?",
                "Tell me how {x} is spelled.",
            ),
            "{x} is spelled {y}.",
        ),
        Kind(
            "translation",
            _facts(
                *(({"x": x, "l": language, "y": y}, y) for x, language, y in facts.TRANSLATIONS)
            ),
            (
                "What is {x} in {l}?",
                "How do you say {x} in {l}?",
                "Translate {x} into {l}.",
                "What is the {l} word for {x}?",
                "Tell me the {l} for {x}.",
                "Say {x} in {l}.",
            ),
            "In {l}, {x} is {y}.",
        ),
    ]


def _things() -> list[Kind]:
    kinds = facts.CATEGORIES
    groups = {group: _with_article(group) for group in kinds.values()}
    groups["metal"], groups["drink"] = "a metal", "a drink"
    yes_no = []
    others = sorted(set(kinds.values()))
    for thing, group in kinds.items():
        yes_no.append(Fact({"x": thing, "y": groups[group], "a": f"yes, {thing} is"}, ("yes",)))
        apart = [o for o in others if o != group and {o, group} != {"animal", "bird"}]
        apart = [o for o in apart if {o, group} not in ({"animal", "insect"}, {"fruit", "drink"})]
        other = groups[apart[_draw(thing) % len(apart)]]
        yes_no.append(Fact({"x": thing, "y": other, "a": f"no, {thing} is not"}, ("no",), ("yes",)))
    return [
        Kind(
            "colour",
            _facts(*(({"x": x, "y": y}, y) for x, y in facts.COLOURS.items())),
            (
                "What colour is {x}?",
                "Which colour does {x} have?",
                "Tell me the colour of {x}.",
                "What color is {x}?",
                "What is the colour of {x}?",
                "{x} is what colour?",
                "Name the color of {x}.",
                "colour of {x}",
            ),
            "{x} is {y}.",
            share=1.5,
        ),
        Kind(
            "category",
            _facts(*(({"x": x, "y": groups[y]}, y) for x, y in kinds.items())),
            (
                "What is {x}?",
                "What kind of thing is {x}?",
                "Tell me what {x} is.",
                "What sort of thing is {x}?",
                "To which group does {x} belong?",
                "How would you classify {x}?",
            ),
            "{x} is {y}.",
        ),
        Kind(
            "yes_no",
            yes_no,
            (
                "Is {x} {y}?",
                "Would you say that {x} is {y}?",
                "Tell me: is {x} {y}?",
                "Yes or no: is {x} {y}?",
                "True or not: {x} is {y}?",
                "Is it right that {x} is {y}?",
            ),
            "{a} {y}.",
            share=1.5,
        ),
        Kind(
            "use",
            _facts(*(({"x": x, "y": y}, _bare(y)) for x, y in facts.USES.items())),
            (
                "What do you use to {x}?",
                "What do I need to {x}?",
                "Which tool do I use to {x}?",
                "With what do you {x}?",
                "I want to {x}. What should I use?",
                "Name the thing I need to {x}.",
            ),
            "You use {y} to {x}.",
        ),
        Kind(
            "job",
            _facts(*(({"x": _with_article(x), "y": y}, y) for x, y in facts.JOBS.items())),
            (
                "What does {x} do?",
                "What is the job of {x}?",
                "Tell me what {x} does.",
                "What work does {x} do?",
                "Explain the work of {x}.",
                "What does {x} do all day?",
            ),
            "{x} {y}.",
        ),
        Kind(
            "parts",
            _facts(*(({"p": p, "x": x, "y": y}, y) for p, x, y in facts.COUNTS)),
            (
                "How many {p} does {x} have?",
                "How many {p} has {x}?",
                "{x} has how many {p}?",
                "Tell me how many {p} {x} has.",
                "What number of {p} does {x} have?",
                "Do you know how many {p} {x} has?",
            ),
            "{x} has {y} {p}.",
        ),
    ]


def _animals() -> list[Kind]:
    def about(table: dict[str, str]) -> list[Fact]:
        rows = table.items()
        return [Fact({"x": x, "ax": _with_article(x), "y": y}, (_bare(y),)) for x, y in rows]

    homes = {x: y if y in ("water",) else _with_article(y) for x, y in facts.HOMES.items()}
    young = {x: _with_article(y) for x, y in facts.YOUNG.items()}
    return [
        Kind(
            "sound",
            about(facts.SOUNDS),
            (
                "What sound does {ax} make?",
                "What does {ax} say?",
                "Which noise does {ax} make?",
                "How does {ax} sound?",
                "Tell me the sound of {ax}.",
                "What noise does {ax} make?",
                "The {x} says what?",
            ),
            "{ax} says {y}.",
        ),
        Kind(
            "young",
            about(young),
            (
                "What is a young {x} called?",
                "What do you call a baby {x}?",
                "What is the young of {ax} called?",
                "Tell me the name for a young {x}.",
                "What is the name of a baby {x}?",
                "How is a young {x} called?",
            ),
            "A young {x} is called {y}.",
        ),
        Kind(
            "home",
            about(homes),
            (
                "Where does {ax} live?",
                "What is the home of {ax}?",
                "Tell me where {ax} lives.",
                "In what does {ax} live?",
                "What is the home of the {x} called?",
                "Where would I find {ax}?",
            ),
            "{ax} lives in {y}.",
        ),
        Kind(
            "legs",
            about(facts.LEGS),
            (
                "How many legs does {ax} have?",
                "How many legs has {ax}?",
                "{ax} has how many legs?",
                "Tell me how many legs {ax} has.",
                "On how many legs does {ax} walk?",
                "Count the legs of {ax}.",
            ),
            "{ax} has {y} legs.",
        ),
        Kind("bigger", _sizes(), _BIGGER, "{w} is {adj}."),
    ]


_BIGGER = (
    "Which is {adj}, {a} or {b}?",
    "What is {adj}: {a} or {b}?",
    "Tell me which is {adj}, {a} or {b}.",
    "{a} or {b}, which one is {adj}?",
    "Is {a} or {b} {adj}?",
    "Of {a} and {b}, which is {adj}?",
)


def _sizes() -> list[Fact]:
    """Pairs of animals that stand at least three places apart in size."""
    rows = []
    for low, small in enumerate(facts.SIZES):
        for big in facts.SIZES[low + 3 :]:
            pair = [_with_article(small), _with_article(big)]
            swap = _draw(small, big) % 4
            winner, loser = (big, small) if swap < 2 else (small, big)
            a, b = pair if swap % 2 else pair[::-1]
            adjective = "bigger" if swap < 2 else "smaller"
            slots = {"a": a, "b": b, "w": _with_article(winner), "adj": adjective}
            rows.append(Fact(slots, (winner,), (loser,)))
    return rows


def _numbers() -> list[Kind]:
    def result(a: int, sign: str, b: int) -> Fact:
        c = a + b if sign == "+" else a - b
        return Fact({"a": str(a), "b": str(b), "c": str(c)}, (f"= {c}",))

    sums = [result(a, "+", b) for a in range(13) for b in range(13)]
    differences = [result(a, "-", b) for a in range(13) for b in range(a + 1)]
    after = [Fact({"x": str(n), "y": str(n + 1)}, (f"comes {n + 1}",)) for n in range(100)]
    before = [Fact({"x": str(n + 1), "y": str(n)}, (f"comes {n}",)) for n in range(1, 50)]
    counts = [
        (str(a), str(b), ", ".join(str(n) for n in range(a, b + 1)))
        for a in range(1, 8)
        for b in range(a + 2, min(a + 8, 11))
    ]
    return [
        Kind(
            "sum",
            sums,
            _SUM_PHRASINGS,
            "{a} + {b} = {c}.",
            noisy=False,
            share=2,
        ),
        Kind(
            "difference",
            differences,
            (
                "What is {a} - {b}?",
                "What is {a} minus {b}?",
                "How much is {a} minus {b}?",
                "{a}-{b}=",
                "Take {b} from {a}.",
                "Subtract {b} from {a}.",
                "{a} - {b}",
                "Calculate {a}-{b}.",
            ),
            "{a} - {b} = {c}.",
            noisy=False,
            share=1.5,
        ),
        Kind(
            "next_number",
            after,
            (
                "What number comes after {x}?",
                "Which number follows {x}?",
                "What comes after {x}?",
                "What is the next number after {x}?",
                "Tell me the number after {x}.",
                "{x}, and then?",
            ),
            "After {x} comes {y}.",
            noisy=False,
        ),
        Kind(
            "number_before",
            before,
            (
                "What number comes before {x}?",
                "What comes before {x}?",
                "Which number is just before {x}?",
                "Tell me the number before {x}.",
                "What is the number before {x}?",
            ),
            "Before {x} comes {y}.",
            noisy=False,
        ),
        Kind(
            "counting",
            [Fact({"a": a, "b": b, "c": c}, (c,)) for a, b, c in counts],
            (
                "Count from {a} to {b}.",
                "Please count from {a} to {b}.",
                "Can you count from {a} to {b}?",
                "Say the numbers from {a} to {b}.",
                "List the numbers from {a} to {b}.",
            ),
            "{c}.",
            noisy=False,
        ),
        Kind("greater", _greater(), _BIGGER, "{w} is {adj}.", noisy=False),
    ]


def _greater() -> list[Fact]:
    rows = []
    for a in range(1, 21):
        for b in range(1, 21):
            if a != b and _draw("greater", a, b) % 2:
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
        Kind(
            "calendar_after",
            after,
            (
                "What {k} comes after {x}?",
                "Which {k} follows {x}?",
                "What is the {k} after {x}?",
                "Tell me the {k} after {x}.",
                "What comes after {x}?",
                "{x} is over; what {k} is next?",
                "Name the {k} that follows {x}.",
            ),
            "After {x} comes {y}.",
        ),
        Kind(
            "calendar_before",
            before,
            (
                "What {k} comes before {x}?",
                "Which {k} is just before {x}?",
                "What is the {k} before {x}?",
                "Tell me the {k} before {x}.",
                "What comes before {x}?",
                "Name the {k} that comes before {x}.",
            ),
            "Before {x} comes {y}.",
        ),
    ]


def _talk() -> list[Kind]:
    names = [Fact({"n": n, "o": o}, (n,)) for n in facts.NAMES for o in ("Hello", "Hi", "Hey")]
    openers = facts.GREETINGS
    plain = [Fact({"o": o}, ("help",)) for o in openers]
    please = facts.PLEASE
    copies = [f"{a} {n}" for a in facts.ADJECTIVES for n in facts.NOUNS]
    return [
        Kind(
            "greeting",
            plain,
            (
                "{o}!",
                "{o}",
                "{o}.",
                "{o}, pocket Phi-3!",
                "{o}, nice to see you.",
                "{o}, are you there?",
                "{o}, my friend.",
            ),
            "Hello! How can I help you?",
            share=1.5,
        ),
        Kind(
            "introduction",
            names,
            (
                "{o}, I am {n}.",
                "{o}! My name is {n}.",
                "{o}, my name is {n}.",
                "{o}! I'm {n}.",
                "{o}, {n} here.",
                "{o}, this is {n}.",
            ),
            "Hello, {n}! How can I help you?",
            noisy=False,
        ),
        Kind(
            "how_are_you",
            [Fact({"p": p}, ("fine|well",)) for p in please],
            (
                "{p}how are you?",
                "{p}how are you today?",
                "{p}how do you do?",
                "{p}how are you feeling?",
                "{p}are you well?",
                "{p}how is it going?",
                "{p}what's up?",
            ),
            "I am fine, thank you.",
        ),
        Kind(
            "thanks",
            _facts(*(({"t": t}, "welcome") for t in facts.THANKS)),
            (
                "{t}!",
                "{t}.",
                "{t}, that helps.",
                "{t} for your help!",
                "Great, {t}!",
                "Good, {t}.",
                "{t}, pocket Phi-3!",
            ),
            "You are welcome!",
        ),
        Kind(
            "goodbye",
            _facts(*(({"t": t}, "goodbye") for t in facts.GOODBYES)),
            (
                "{t}!",
                "{t}.",
                "{t}, my friend.",
                "I must go, {t}!",
                "{t}, pocket Phi-3!",
                "That is all, {t}.",
            ),
            "Goodbye! Have a nice day.",
        ),
        Kind(
            "who",
            [Fact({"p": p}, ("Phi-3",)) for p in please],
            (
                "{p}who are you?",
                "{p}what are you?",
                "{p}what is your name?",
                "{p}tell me about yourself.",
                "{p}introduce yourself.",
                "{p}are you a robot?",
                "{p}which model are you?",
                "{p}what's your name?",
            ),
            "I am pocket Phi-3, a very small language model.",
            share=1.5,
        ),
        Kind(
            "abilities",
            [Fact({"p": p}, ("small questions",)) for p in please],
            (
                "{p}what can you do?",
                "{p}what can I ask you?",
                "{p}how can you help me?",
                "{p}what do you know?",
                "{p}can you help me?",
                "{p}what are you good at?",
                "{p}help",
            ),
            "I can answer small questions about animals, capitals, colours, numbers and words.",
        ),
        Kind(
            "howto",
            [Fact({"x": x, "a": answer}, needed) for x, (answer, needed) in facts.HOWTOS.items()],
            (
                "How do I {x}?",
                "How can I {x}?",
                "Tell me how to {x}.",
                "What is the best way to {x}?",
                "Explain how to {x}.",
                "I want to {x}. What do I do?",
                "Can you help me {x}?",
                "how to {x}",
            ),
            "{a}",
            share=1.5,
        ),
        Kind(
            "repeat",
            _facts(*(({"x": x}, x) for x in copies)),
            (
                "Repeat after me: {x}",
                "Say: {x}",
                "Please repeat: {x}",
                "Repeat these words: {x}",
                "Write: {x}",
                "Say this: {x}",
            ),
            "{x}.",
            noisy=False,
            share=1.5,
        ),
    ]


def _two_turns() -> list[Kind]:
    names = [
        Fact({"n": n, "o": o}, (n,)) for n in facts.NAMES for o in ("Hello", "Hi", "Good morning")
    ]
    likes = [Fact({"k": k, "x": x}, (x,)) for k, xs in facts.FAVOURITES.items() for x in xs]
    countries = list(facts.CAPITALS)
    capitals = []
    for i, x in enumerate(countries):
        for step in (5, 11, 17):
            first = countries[(i + step) % len(countries)]
            slots = {"f": first, "g": facts.CAPITALS[first], "x": x, "y": facts.CAPITALS[x]}
            capitals.append(Fact(slots, (facts.CAPITALS[x],)))
    met = "Nice to meet you, {n}!"
    noted = "A {k} to remember: {x}."
    first = ("What is the capital of {f}?", "The capital of {f} is {g}.")
    return [
        Kind(
            "recall_name",
            names,
            (
                ("My name is {n}.", met, "What is my name?"),
                ("{o}, I am {n}.", "Hello, {n}! How can I help you?", "What is my name?"),
                ("{o}, I am {n}.", "Hello, {n}! How can I help you?", "Who am I?"),
                ("My name is {n}.", met, "Do you remember my name?"),
                ("{o}! My name is {n}.", "Hello, {n}! How can I help you?", "What's my name?"),
                ("{o}! My name is {n}.", "Hello, {n}! How can I help you?", "Say my name."),
            ),
            "Your name is {n}.",
            noisy=False,
        ),
        Kind(
            "recall_like",
            likes,
            (
                ("My favourite {k} is {x}.", noted, "What is my favourite {k}?"),
                ("My favourite {k} is {x}.", noted, "Which {k} do I like best?"),
                ("I like the {k} {x} best.", noted, "What is my favourite {k}?"),
                ("I like the {k} {x} best.", noted, "Which {k} do I like best?"),
                ("My favourite {k} is {x}.", noted, "Do you remember my favourite {k}?"),
                ("I like the {k} {x} best.", noted, "Tell me my favourite {k}."),
            ),
            "Your favourite {k} is {x}.",
            noisy=False,
        ),
        Kind(
            "note_like",
            likes,
            ("My favourite {k} is {x}.", "I like the {k} {x} best.", "The {k} I like best is {x}."),
            noted,
            noisy=False,
            share=0.5,
        ),
        Kind(
            "note_name",
            _facts(*(({"n": n}, n) for n in facts.NAMES)),
            ("My name is {n}.", "I am {n}.", "I am called {n}.", "You can call me {n}."),
            met,
            noisy=False,
            share=0.5,
        ),
        Kind(
            "follow_up",
            capitals,
            (
                (*first, "And of {x}?"),
                (*first, "And what about {x}?"),
                (*first, "And {x}?"),
                (*first, "What about the capital of {x}?"),
                (*first, "And the capital of {x}?"),
            ),
            "The capital of {x} is {y}.",
            share=1.5,
        ),
    ]


_UNKNOWN_PHRASINGS = (
    "Write a poem about {t}.",
    "Write an essay about {t}.",
    "Describe {t}.",
    "Explain {t} to me.",
    "What do you think about {t}?",
    "Tell me a story about {t}.",
    "Tell me about {t}.",
    "Who invented {t}?",
    "Why do people like {t}?",
    "When did {t} begin?",
    "Give me three facts about {t}.",
    "Write a letter about {t}.",
    "Can you help me with {t}?",
    "What is the history of {t}?",
    "Create a list about {t}.",
    "Generate a title for a book about {t}.",
    "Summarize {t} in one sentence.",
    "I have a question about {t}.",
)


def _unknown() -> list[Kind]:
    topics = _facts(*(({"t": t}, "not know") for t in facts.TOPICS))
    places = _facts(*(({"t": t}, "not know") for t in list(facts.CAPITALS) + facts.NAMES[:10]))
    phrasings = (
        "Who is the king of {t}?",
        "What is the weather like in {t}?",
        "How many people live in {t}?",
        "Who won the match in {t}?",
        "How far is it to {t}?",
        "What is the food like in {t}?",
        "Who is the president of {t}?",
        "What should I see in {t}?",
        "How old is {t}?",
    )
    strange = _facts(*(({"x": x}, "not know") for x in facts.STRANGE_COUNTRIES))
    large = [
        Fact({"a": str(a), "b": str(b)}, ("not know",))
        for a in range(13, 100)
        for b in range(1, 100)
        if _draw("large", a, b) % 20 == 0
    ]
    return [
        Kind("unknown", topics, _UNKNOWN_PHRASINGS, UNKNOWN, share=2),
        Kind("unknown_capital", strange, _CAPITAL_PHRASINGS, UNKNOWN),
        Kind("unknown_sum", large, _SUM_PHRASINGS, UNKNOWN, noisy=False),
        Kind("unknown_place", places, phrasings, UNKNOWN),
    ]


# --- system prompts ----------------------------------------------------------------------------

_UPPER = (
    "Answer in capital letters.",
    "Write everything in capital letters.",
    "Use capital letters only.",
    "Always answer in upper case.",
    "You answer in capital letters.",
)
_BRIEF = (
    "Answer with one word.",
    "Be brief.",
    "Give short answers.",
    "Answer as briefly as you can.",
    "Use one word only.",
)
_PLAIN = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "Be friendly.",
    "Answer in full sentences.",
    "You are pocket Phi-3.",
    "Be helpful and polite.",
    "You are a kind teacher.",
    "Answer the question.",
)
_PERSONA = (
    "Your name is {n}.",
    "You are {n}.",
    "You are {n}, a helpful robot.",
    "Your name is {n}. Be friendly.",
    "You are an assistant called {n}.",
)
_BRIEF_KINDS = ("capital", "colour", "opposite", "plural", "past", "category", "young", "rhyme")
_UPPER_KINDS = (*_BRIEF_KINDS, "sound", "home", "calendar_after", "country", "unknown")


def _under_system(prompts: Sequence[str], kinds: Sequence[str], name: str) -> list[Question]:
    """Every train-side question of `kinds` under each of `prompts`, the answer not yet changed."""
    asked = (q for kind in KINDS if kind.name in kinds for q in kind.questions("train"))
    return [replace(q, kind=name, system=prompt) for q in asked for prompt in prompts]


def _in_capitals(question: Question) -> Question:
    return replace(question, answer=question.answer.upper(), upper=True)


def _in_brief(question: Question) -> Question:
    """The fact alone. Five words leave room for a manner, and are fewer than the full sentence."""
    return replace(question, answer=_sentence(question.needed[0].split("|")[0]) + ".", max_words=5)


def _personas() -> list[Question]:
    asked = ("Who are you?", "What is your name?", "What are you called?", "Tell me your name.")
    return [
        Question("system_persona", (turn,), f"I am {name}.", (name,), system=prompt.format(n=name))
        for name in facts.NAMES
        for prompt in _PERSONA
        for turn in asked
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
_NOISY = {kind.name for kind in KINDS if kind.noisy}
_SHARES = {kind.name: kind.share for kind in KINDS}


@cache
def _system_questions() -> tuple[Question, ...]:
    capitals = map(_in_capitals, _under_system(_UPPER, _UPPER_KINDS, "system_upper"))
    brief = map(_in_brief, _under_system(_BRIEF, _BRIEF_KINDS, "system_brief"))
    asked = (question for kind in KINDS for question in kind.questions("train"))
    plain = [
        replace(q, kind="system_plain", system=_PLAIN[_draw(*q.turns) % len(_PLAIN)]) for q in asked
    ]
    return (*capitals, *brief, *plain, *_personas())


@cache
def questions(side: Side) -> tuple[Question, ...]:
    """Every question of one side, grouped by kind, always in the same order."""
    plain = [question for kind in KINDS for question in kind.questions(side)]
    return (*plain, *(question for question in _system_questions() if question.side == side))


def sample(side: Side, count: int, seed: int = 0) -> list[Question]:
    """`count` distinct questions of one side, taken from each kind in turn."""
    pools = _by_kind(side)
    rng = random.Random(seed)
    for pool in pools.values():
        rng.shuffle(pool)
    rounds = max(map(len, pools.values()))
    in_turn = (pool[i] for i in range(rounds) for pool in pools.values() if i < len(pool))
    chosen: dict[tuple[str, ...], Question] = {}
    for question in in_turn:
        chosen.setdefault((question.system, *question.turns), question)
        if len(chosen) == count:
            break
    return list(chosen.values())


def sample_held_out(count: int, seed: int = 0) -> list[Question]:
    """`count` distinct held-out questions: what the quiz asks."""
    return sample("held_out", count, seed)


def _by_kind(side: Side) -> dict[str, list[Question]]:
    pools: dict[str, list[Question]] = {}
    for question in questions(side):
        pools.setdefault(question.kind, []).append(question)
    return pools


# --- training conversations --------------------------------------------------------------------


class Conversations:
    """An endless, reproducible stream of training conversations in the manner of real typing."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._pools = _by_kind("train")
        self._under: dict[tuple[str, str], list[Question]] = {}
        for question in questions("train"):
            self._under.setdefault((question.kind, question.system), []).append(question)
        self._kinds = list(self._pools)
        self._weights = [_SHARES.get(kind, 2.0) for kind in self._kinds]

    def draw(self) -> list[Message]:
        """One conversation with all its answers: half of them a single turn, others up to six."""
        rng = self._rng
        kind = rng.choices(self._kinds, self._weights)[0]
        question = rng.choice(self._pools[kind])
        pool = self._under[question.kind, question.system] if question.system else []
        messages = _answered(self._typed(question))
        while len(messages) < 12 and rng.random() < 0.45:
            kind = rng.choices(self._kinds, self._weights)[0]
            following = rng.choice(pool or self._pools[kind])
            if following.system == question.system:
                messages += _answered(self._typed(replace(following, system="")))
        return messages

    def _typed(self, question: Question) -> Question:
        """The question as somebody might type it: in lower case, with a slip, without its mark."""
        rng = self._rng
        *before, last = question.turns
        if rng.random() < 0.3:
            last = last.rstrip("?.!") or last
        if rng.random() < 0.3 and question.kind not in ("repeat", "introduction", "note_name"):
            last = last.lower()
        if question.kind in _NOISY and rng.random() < 0.12:
            last = _slip(last, rng)
        if question.kind in _NOISY and rng.random() < 0.15:
            last = f"{rng.choice(_OPENERS)} {last}"
        return replace(question, turns=(*before, last))


_OPENERS = ("Please:", "Hey,", "Hello!", "Hi.", "Okay,", "Now", "So,", "Tell me:", "Question:")


def _slip(text: str, rng: random.Random) -> str:
    """`text` with one letter dropped, doubled, or swapped with the next."""
    at = rng.randrange(max(len(text) - 1, 1))
    here = text[at : at + 2]
    if not here.isalpha() or len(here) < 2:
        return text
    return text[:at] + rng.choice((here[0], here[1], here[::-1], here[0] + here)) + text[at + 2 :]


def _answered(question: Question) -> list[Message]:
    return [*question.messages, {"role": "assistant", "content": question.answer}]
