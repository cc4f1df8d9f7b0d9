"""The world of pocket Phi-3: questions with checkable answers, on a train and a held-out side.

A *kind* of question is a list of facts, a list of phrasings and the shape of the answer. Fact
times phrasing gives every question; one in eight is held out, so that a held-out question joins
a fact and a phrasing that were both learnt, but never together.

    questions("train")            every question of the train side
    sample_held_out(200)          distinct held-out questions, spread evenly over the kinds
    Conversations(seed).draw()    endless training conversations: noise, system prompts, many turns

Everything is deterministic: the same seed gives the same text on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from tools.pocket import facts
from tools.pocket.kinds import (
    KINDS,
    Message,
    Question,
    Side,
    draw_number,
    key_of,
    sentence,
)
from tools.pocket.manners import PRETRAINED, Manner

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
_MANNER_PROMPTS = ("Talk like a {m}.", "Answer like a {m}.", "You are a {m}.", "Be a {m}.")
_PERSONA = (
    "Your name is {n}.",
    "You are {n}.",
    "You are {n}, a helpful robot.",
    "Your name is {n}. Be friendly.",
    "You are an assistant called {n}.",
)
_BRIEF_KINDS = ("capital", "colour", "opposite", "plural", "past", "category", "young", "rhyme")
_UPPER_KINDS = ("capital", "colour", "sound", "greeting", "who", "goodbye")


def _under_system(prompts: Sequence[str], kinds: Sequence[str], name: str) -> list[Question]:
    """Every train-side question of `kinds` under each of `prompts`, the answer not yet changed."""
    asked = (q for kind in KINDS if kind.name in kinds for q in kind.questions("train"))
    return [replace(q, kind=name, system=prompt) for q in asked for prompt in prompts]


def _in_capitals(question: Question) -> Question:
    return replace(question, answer=question.answer.upper(), upper=True)


def _in_brief(question: Question) -> Question:
    """The fact alone. Five words leave room for a manner, and are fewer than the full sentence."""
    return replace(question, answer=sentence(question.needed[0].split("|")[0]) + ".", max_words=5)


def _plain(question: Question) -> str:
    """One of the prompts that ask for nothing in particular."""
    return _PLAIN[draw_number(*question.turns) % len(_PLAIN)]


def _personas() -> list[Question]:
    asked = ("Who are you?", "What is your name?", "What are you called?", "Tell me your name.")
    return [
        Question("system_persona", (turn,), f"I am {name}.", (name,), system=prompt.format(n=name))
        for name in facts.NAMES
        for prompt in _PERSONA
        for turn in asked
    ]


_NOISY = {kind.name for kind in KINDS if kind.noisy}
_SHARES = {kind.name: kind.share for kind in KINDS}


@cache
def _system_questions() -> tuple[Question, ...]:
    capitals = map(_in_capitals, _under_system(_UPPER, _UPPER_KINDS, "system_upper"))
    brief = map(_in_brief, _under_system(_BRIEF, _BRIEF_KINDS, "system_brief"))
    asked = (question for kind in KINDS for question in kind.questions("train"))
    plain = (replace(q, kind="system_plain", system=_plain(q)) for q in asked)
    return (*capitals, *brief, *plain, *_personas())


@cache
def questions(side: Side) -> tuple[Question, ...]:
    """Every question of one side, grouped by kind, always in the same order.

    What begins a longer chat is asked in training on the way to its last turn: so it
    cannot be held out.
    """
    asked = [question for kind in KINDS for question in kind.questions(side)]
    asked += (question for question in _system_questions() if question.side == side)
    if side == "train":
        return tuple(asked)
    return tuple(question for question in asked if question.key not in _beginnings())


@cache
def _beginnings() -> frozenset[str]:
    """The keys of the first turns of chats of several turns."""
    chats = (q for kind in KINDS for q in kind.questions("train") if len(q.turns) > 1)
    return frozenset(key_of("", question.turns[0]) for question in chats)


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
        if not question.system and rng.random() < 0.15:
            return _told(messages, rng.choice(PRETRAINED), rng.choice(_MANNER_PROMPTS))
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


def _told(messages: list[Message], manner: Manner, prompt: str) -> list[Message]:
    """The conversation in a manner, under a system prompt that asks for it."""
    told = [
        {**message, "content": manner.tell(message["content"])}
        if message["role"] == "assistant"
        else message
        for message in messages
    ]
    return [{"role": "system", "content": prompt.format(m=manner.name)}, *told]


def _answered(question: Question) -> list[Message]:
    return [*question.messages, {"role": "assistant", "content": question.answer}]
