"""Messages → token ids, and which of them carry loss.

    rendered = render(tokenizer, messages, max_length=1024)
    segments(tokenizer, rendered, messages)       # the same as text, for people to see

The tokenizer's own chat template is asked once for each pattern of roles what stands around the
contents. The text is then cut at the template's control tokens, and nowhere else: each stretch
between two of them, the template's words and contents together, is encoded as plain text, so that
the ids equal `apply_chat_template`'s for every template, and `<|end|>` in a message stays seven
characters and never ends a turn. They differ, on purpose, only where a message contains a control
token as text. A model's own marks (`<think>`, `<|tool_call|>`) are tokens in assistants' answers.

Loss is on the answers' tokens and on the control token that ends each (`<|end|>`), on nothing else:
not on the `<|endoftext|>` that the template appends, and not on padding. A token that holds the
end of the template's words and the beginning of an answer is learnt with the answer.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict
from weakref import WeakKeyDictionary

from phi3lora.data.conversation import TOOLS, Message, is_learnt, uses_tools
from phi3lora.data.templates import Refused, write
from phi3lora.data.tools import CALL, CALL_END
from phi3lora.errors import DataError, ModelError
from phi3lora.models.phi3 import MARKS, PADS, STOPS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What the tokenizers library takes for white space beside a control token (Unicode's White_Space);
# Python's own `strip` also takes the four separators \x1c to \x1f.
_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACE += "\u2028\u2029\u202f\u205f\u3000"
_CONTROL = re.compile(r"</?[^<>\s]*>")  # how control tokens look that are not called special
# Private characters where a content belongs, between separators that a trimming template takes off.
_TRIMMED = "\x1f"
_SLOT = re.compile(f"({_TRIMMED}?)\ue000(\\d+)\ue001({_TRIMMED}?)")
_MOST_PATTERNS = 1000
# Roles under which a template may write what a tool answered, each with a token of its own.
_RESULTS = ("tool_response", "tool")

SystemMessages = Literal["merge", "drop", "refuse"]
NO_SYSTEM = "a system message, which the base's chat template does not write"


class Segment(TypedDict):
    """A stretch of the rendered text, and whether its tokens carry loss."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class Rendered:
    """A conversation in tokens; `supervised` has one entry for each id.

    `whole` is how many tokens there were before the cut.
    """

    input_ids: list[int]
    supervised: list[bool]
    truncated: bool = False
    whole: int = 0

    @property
    def labels(self) -> list[int]:
        """The ids that carry loss, -100 elsewhere."""
        pairs = zip(self.input_ids, self.supervised, strict=True)
        return [token if learnt else -100 for token, learnt in pairs]


def render(tokenizer: Any, messages: Sequence[Message], max_length: int | None = None) -> Rendered:
    """One conversation in tokens, cut to `max_length`."""
    return render_many(tokenizer, [messages], max_length)[0]


def render_many(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], max_length: int | None = None
) -> list[Rendered]:
    """As `render`, for many at once: contents are encoded as one batch, on all cores."""
    renderer = _renderer(tokenizer)
    max_length = length_limit(tokenizer, max_length)
    fitting = [renderer.fitting(messages) for messages in conversations]
    patterns = [renderer.pattern(messages, prompt=False) for messages in fitting]
    return renderer.encode(patterns, fitting, max_length)


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], policy: SystemMessages = "merge"
) -> list[int]:
    """Ids up to the mark after which the model answers; `policy` is that of `fit_system`."""
    renderer = _renderer(tokenizer)
    messages = renderer.fitting(messages, policy)
    pattern = renderer.pattern(messages, prompt=True)
    return renderer.encode([pattern], [messages], None)[0].input_ids


def segments(tokenizer: Any, rendered: Rendered, messages: Sequence[Message]) -> list[Segment]:
    """The rendered text in stretches of equal supervision.

    Their texts join to what the template writes, or to the part of it that `rendered` kept.
    """
    renderer = _renderer(tokenizer)
    messages = renderer.fitting(messages)
    pattern = renderer.pattern(messages, prompt=False)
    return _segments(pattern, messages, renderer, len(rendered.input_ids))


def pieces(tokenizer: Any, rendered: Rendered, most: int) -> list[Segment]:
    """The first `most` tokens, a segment each; a piece of a character shows as its token's name."""
    names = tokenizer.convert_ids_to_tokens(rendered.input_ids[:most])
    texts = [tokenizer.decode([token]) for token in rendered.input_ids[:most]]
    # Decoding a token by itself loses the space that SentencePiece writes before it.
    written = (
        f" {text}" if name.startswith("▁") and not text.startswith(" ") else text
        for name, text in zip(names, texts, strict=True)
    )
    return [
        Segment(text=name if "\ufffd" in text else text, supervised=supervised)
        for text, name, supervised in zip(written, names, rendered.supervised, strict=False)
    ]


def length_limit(tokenizer: Any, max_length: int | None) -> int | None:
    """The limit asked for, or what the base can read where that is less."""
    return None if max_length is None else min(max_length, tokenizer.model_max_length)


def fit_system(
    tokenizer: Any, messages: list[Message], policy: SystemMessages = "merge"
) -> list[Message]:
    """The conversation as the template can write it.

    Where the template writes no system message, it goes before the first question (`merge`), is
    left out (`drop`), or is an error (`refuse`).

    Raises DataError, with a reason that is the same for all such conversations, for `refuse`, for
    tools and for roles that the template does not write.
    """
    renderer = _renderer(tokenizer)
    fitting = renderer.fitting(messages, policy)
    renderer.pattern(fitting, prompt=False)
    return fitting


def writes_system(tokenizer: Any) -> bool:
    """Whether the chat template writes system messages."""
    return _renderer(tokenizer).writes_system


def writes_tools(tokenizer: Any) -> bool:
    """Whether the chat template writes tools, and the model has marks for calls of them."""
    return bool(_renderer(tokenizer).result_role)


def merged_system(messages: Sequence[Message]) -> list[Message]:
    """The system message before the first question, a blank line between them."""
    system, rest = messages[0]["content"], list(messages[1:])
    if not system:
        return rest
    for place, message in enumerate(rest):
        if message["role"] == "user":
            rest[place] = {"role": "user", "content": f"{system}\n\n{message['content']}"}
            return rest
    return [{"role": "user", "content": system}, *rest]


class TemplateParts(NamedTuple):
    """What a chat template writes around contents.

    `texts` has one more entry than there are messages; `strips` says on which sides of a content
    (left, right) white space is swallowed; `end` is the control token that ends an answer;
    `joined` whether ordinary text stands right beside a content, so that both are encoded
    together, or a content is trimmed.
    """

    texts: list[str]
    strips: tuple[bool, bool]
    end: str
    joined: bool


def template_parts(tokenizer: Any, messages: Sequence[Message]) -> TemplateParts:
    """The template taken apart for these roles; the last message is an answer."""
    pattern = _renderer(tokenizer).pattern(messages, prompt=False)
    strips = (
        all(stretch.strip_left for stretch in pattern.stretches),
        any(stretch.strip_right for stretch in pattern.stretches),
    )
    end = next((mark.text for mark in reversed(pattern.marks) if mark.learnt), "")
    return TemplateParts(pattern.texts, strips, end, not all(s.alone for s in pattern.stretches))


def stop_tokens(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Ids that end an answer: the checkpoint's own and Phi-3's, whichever it forgot."""
    named = getattr(generation_config, "eos_token_id", None)
    ids = {named} if isinstance(named, int) else set(named or ())
    vocabulary = tokenizer.get_vocab()
    ids |= {vocabulary[name] for name in STOPS if name in vocabulary}
    return sorted(ids | ({tokenizer.eos_token_id} - {None}))


def pad_token(tokenizer: Any) -> int:
    """The id to pad with: `<unk>`, or another that no conversation holds, or else the tokenizer's.

    Phi-4-mini has only `<|endoftext|>`. It will do: loss and attention go by position, not by id.
    """
    vocabulary = tokenizer.get_vocab()
    learnt = set(stop_tokens(tokenizer))
    own = [name for name in (tokenizer.unk_token, *PADS, tokenizer.pad_token) if name]
    for name in own:
        if name in vocabulary and vocabulary[name] not in learnt:
            return int(vocabulary[name])
    if tokenizer.pad_token in vocabulary:
        return int(vocabulary[tokenizer.pad_token])
    if tokenizer.eos_token_id is not None:
        return int(tokenizer.eos_token_id)
    raise ModelError(
        "The tokenizer has no token to pad with: expected a pad token, <unk> or an end of text. "
        "Take the checkpoint's own tokenizer."
    )


def decode_answer(tokenizer: Any, tokens: Sequence[int]) -> str:
    """An answer as text: without control tokens, but with the model's own marks (`<think>`)."""
    hidden = _renderer(tokenizer).hidden
    return str(tokenizer.decode([t for t in tokens if t not in hidden], skip_special_tokens=False))


@dataclass(frozen=True)
class _Mark:
    """A control token that the template writes; `learnt` where it ends an answer."""

    text: str
    id: int
    learnt: bool = False


@dataclass(frozen=True)
class _Slot:
    """Where a message's content belongs, or its `tools`; on which sides the template trims it."""

    index: int
    tools: bool
    trim_left: bool
    trim_right: bool
    supervised: bool
    answer: bool = False

    def content(self, messages: Sequence[Message]) -> str:
        """What the template writes of the message."""
        message = messages[self.index]
        text = (message.get("tools") or "") if self.tools else message["content"]
        text = text.lstrip() if self.trim_left else text
        return text.rstrip() if self.trim_right else text


@dataclass(frozen=True)
class _Stretch:
    """What stands between two control tokens: the template's words and contents, in order.

    `strip_left` and `strip_right` say whether the control token beside it swallows white space.
    """

    parts: tuple[str | _Slot, ...]
    strip_left: bool
    strip_right: bool

    @cached_property
    def slots(self) -> list[_Slot]:
        return [part for part in self.parts if isinstance(part, _Slot)]

    @cached_property
    def alone(self) -> bool:
        """One content as it is, and nothing beside it but white space that is swallowed."""
        left = self.strip_left or not isinstance(self.parts[0], str)
        right = self.strip_right or not isinstance(self.parts[-1], str)
        words = [part for part in self.parts if isinstance(part, str)]
        slot = self.slots[0]
        plain = len(self.slots) == 1 and not (slot.trim_left or slot.trim_right)
        return plain and left and right and not "".join(words).strip(_SPACE)

    @cached_property
    def learnt(self) -> Literal["all", "some", "none"]:
        """How many of its tokens carry loss."""
        if not any(slot.supervised for slot in self.slots):
            return "none"
        alone = len(self.slots) == 1 and not any(isinstance(part, str) for part in self._kept)
        return "all" if alone else "some"

    @cached_property
    def _kept(self) -> tuple[str | _Slot, ...]:
        """The parts less the template's white space that a control token swallows for certain."""
        parts = list(self.parts)
        if self.strip_left and isinstance(parts[0], str) and not parts[0].strip(_SPACE):
            del parts[0]
        if self.strip_right and isinstance(parts[-1], str) and not parts[-1].strip(_SPACE):
            del parts[-1]
        return tuple(parts)

    @cached_property
    def is_answer(self) -> bool:
        """Whether it holds assistants' words alone, where the model's own marks are tokens."""
        return all(slot.answer for slot in self.slots)

    def text(self, messages: Sequence[Message]) -> str:
        """The whole text of a conversation, which is then tokenized."""
        text = self._join(self._kept, messages)
        text = text.lstrip(_SPACE) if self.strip_left else text
        return text.rstrip(_SPACE) if self.strip_right else text

    def written(self, messages: Sequence[Message]) -> tuple[str, int]:
        """What the template writes, and how much of its beginning is swallowed."""
        whole = self._join(self.parts, messages)
        return whole, len(whole) - len(whole.lstrip(_SPACE)) if self.strip_left else 0

    def learnt_spans(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Where in `text` the answers stand, with the words that lead to the end of the last."""
        place = -self.written(messages)[1]
        spans = []
        for part in self.parts:
            length = len(part if isinstance(part, str) else part.content(messages))
            if isinstance(part, _Slot) and part.supervised:
                spans.append((max(place, 0), place + length))
            place += length
        if len(self.parts) > 1 and self.parts[-2] is self.slots[-1] and self.slots[-1].supervised:
            spans[-1] = (spans[-1][0], place)
        return spans

    @staticmethod
    def _join(parts: Sequence[str | _Slot], messages: Sequence[Message]) -> str:
        return "".join(p if isinstance(p, str) else p.content(messages) for p in parts)


@dataclass(frozen=True)
class _Constant:
    """What the template writes between two stretches, whatever the contents are."""

    marks: list[_Mark | str]  # control tokens, and words between two of them
    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class _Pattern:
    """A template filled with roles but no contents: a stretch between each two constants.

    `texts` is what stands between the contents, as text.
    """

    constants: list[_Constant]
    stretches: list[_Stretch]
    texts: list[str] = field(default_factory=list)

    @property
    def marks(self) -> list[_Mark]:
        """All control tokens, in order."""
        return [m for constant in self.constants for m in constant.marks if isinstance(m, _Mark)]


class _Renderer:
    """A tokenizer taken apart: its template, and its vocabulary with and without control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        if not tokenizer.chat_template:
            raise ModelError(
                "The tokenizer has no chat template: expected Phi-3's, found none. Use an instruct "
                "checkpoint, such as microsoft/Phi-3-mini-4k-instruct."
            )
        backend = tokenizer.backend_tokenizer.to_str()
        self.template = tokenizer.chat_template
        self.chosen = str(tokenizer.get_chat_template())
        self.names = dict(tokenizer.special_tokens_map)
        self.whole = _whole(Tokenizer.from_str(backend))
        self.plain = _whole(_without_control_tokens(backend))
        added = tokenizer.added_tokens_decoder
        self.added = {token.content: (number, token) for number, token in added.items()}
        self.hidden = {
            n for n, token in added.items() if token.special and token.content not in MARKS
        }
        own = [name for name in MARKS if name in self.added]
        # In answers the model's own marks are tokens; a vocabulary without any needs no second.
        self.answers = _whole(_without_control_tokens(backend, own)) if own else self.plain
        self.control = re.compile(
            "|".join(re.escape(name) for name in sorted(self.added, key=len, reverse=True))
            or "(?!)"
        )
        self.patterns: dict[tuple[Any, ...], _Pattern] = {}

    @cached_property
    def writes_system(self) -> bool:
        """Whether the template has a place for a system message; asked once."""
        talk: list[Message] = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
        ]
        try:
            return 0 in _order(self._write(talk, prompt=False))
        except Refused:
            pass
        try:
            self._write(talk[1:], prompt=False)
        except Refused:
            return True  # it refuses more than the system message, and will say what
        return False

    @cached_property
    def result_role(self) -> str:
        """The role under which the template writes what a tool answered; empty where tools are
        not written: what can be called, the calls and the answers are all needed.
        """
        if not {CALL, CALL_END} <= set(self.added):
            return ""
        talk: list[Message] = [
            {"role": "system", "content": "s", "tools": "t"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
            {"role": "tool", "content": "r"},
            {"role": "assistant", "content": "a"},
        ]
        for role in (role for role in _RESULTS if f"<|{role}|>" in self.added):
            try:
                if sorted(_order(self._write(talk, prompt=False, result=role))) == _slots(talk):
                    return role
            except Refused:
                continue
        return ""

    def fitting(
        self, messages: Sequence[Message], policy: SystemMessages = "merge"
    ) -> list[Message]:
        """The messages as the template can write them.

        Raises DataError for a system message or tools that it does not write.
        """
        messages = messages if isinstance(messages, list) else list(messages)
        if uses_tools(messages) and not self.result_role:
            raise DataError(TOOLS)
        if not messages or messages[0]["role"] != "system" or self.writes_system:
            return messages
        if policy == "refuse":
            raise DataError(NO_SYSTEM)
        return messages[1:] if policy == "drop" else merged_system(messages)

    def pattern(self, messages: Sequence[Message], prompt: bool) -> _Pattern:
        """The template for these roles; asked once, since Jinja is slow.

        Phi-3.5's template skips a system message without content, so that is part of the key.
        Raises DataError where the template does not write them.
        """
        key = (prompt, *((m["role"], *_parts_of(m), is_learnt(m)) for m in messages))
        if key not in self.patterns:
            if len(self.patterns) > _MOST_PATTERNS:
                self.patterns.clear()
            self.patterns[key] = self._take_apart(messages, prompt)
        return self.patterns[key]

    def encode(
        self,
        patterns: Sequence[_Pattern],
        conversations: Sequence[Sequence[Message]],
        max_length: int | None,
    ) -> list[Rendered]:
        """Stretches in few batches, then each conversation put together."""
        pairs = list(zip(patterns, conversations, strict=True))
        batches: dict[_Way, list[str]] = {}
        for pattern, messages in pairs:
            for stretch in pattern.stretches:
                batches.setdefault(self._way(stretch), []).append(stretch.text(messages))
        encoded = {way: iter(_encode_batch(*way, texts)) for way, texts in batches.items()}
        return [
            _assemble(
                pattern,
                messages,
                [next(encoded[self._way(stretch)]) for stretch in pattern.stretches],
                max_length,
            )
            for pattern, messages in pairs
        ]

    def _way(self, stretch: _Stretch) -> _Way:
        """With which vocabulary a stretch is encoded, and whether places in its text are needed."""
        return _Way(self.answers if stretch.is_answer else self.plain, stretch.learnt == "some")

    def encoder(self, stretch: _Stretch) -> Tokenizer:
        """The vocabulary for a stretch."""
        return self._way(stretch).tokenizer

    def _write(self, messages: Sequence[Message], prompt: bool, result: str = "") -> str:
        """The template with slots for contents and tools."""
        filled: list[dict[str, str]] = []
        for i, message in enumerate(messages):
            is_tool = message["role"] == "tool"
            role = (result or self.result_role) if is_tool else message["role"]
            content, tools = _parts_of(message)
            filled.append({"role": role, "content": _slot(2 * i) if content else ""})
            if tools:
                filled[-1]["tools"] = _slot(2 * i + 1)
        return write(self.chosen, filled, prompt=prompt, names=self.names)

    def _take_apart(self, messages: Sequence[Message], prompt: bool) -> _Pattern:
        text = self._write(messages, prompt)
        if sorted(_order(text)) != _slots(messages):
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"The chat template does not write every message of {roles}: it wrote "
                f"{len(_order(text))} of {len(_slots(messages))}. Leave out the roles that it does "
                "not know."
            )
        return self._pattern_of(self._parts(text, messages), _SLOT.sub("\ue000", text))

    def _parts(self, text: str, messages: Sequence[Message]) -> Iterator[str | _Slot | _Mark]:
        """Control tokens, words and slots, in order; what ends an answer is learnt."""
        words = _SLOT.split(text)
        answered = False
        for place in range(0, len(words), 4):
            for piece in self._pieces(words[place]):
                if isinstance(piece, _Mark):
                    yield _Mark(piece.text, piece.id, answered)
                    answered = False
                else:
                    yield piece
            if place + 1 < len(words):
                left, number, right = words[place + 1 : place + 4]
                index, tools = divmod(int(number), 2)
                answered = is_learnt(messages[index])
                answer = messages[index]["role"] == "assistant"
                yield _Slot(index, bool(tools), not left, not right, answered, answer)

    def _pieces(self, words: str) -> Iterator[str | _Mark]:
        """Words of the template cut at control tokens."""
        place = 0
        for found in self.control.finditer(words):
            if found.start() > place:
                yield words[place : found.start()]
            yield _Mark(found.group(), self.added[found.group()][0])
            place = found.end()
        if place < len(words):
            yield words[place:]

    def _pattern_of(self, parts: Iterator[str | _Slot | _Mark], texts: str) -> _Pattern:
        """Constants and stretches in turn, from what the template writes."""
        constants: list[list[_Mark | str]] = [[]]
        stretches: list[_Stretch] = []
        between: list[str | _Slot] = []

        def close(after: _Mark | None) -> None:
            before = next((m for m in reversed(constants[-1]) if isinstance(m, _Mark)), None)
            left = before is not None and bool(self.added[before.text][1].rstrip)
            right = after is not None and bool(self.added[after.text][1].lstrip)
            if any(isinstance(part, _Slot) for part in between):
                stretches.append(_Stretch(tuple(between), left, right))
                constants.append([])
            elif between:
                constants[-1].append("".join(map(str, between)))
            between.clear()

        for part in parts:
            if isinstance(part, _Mark):
                close(part)
                constants[-1].append(part)
            else:
                between.append(part)
        close(None)
        return _Pattern([self._constant(c) for c in constants], stretches, texts.split("\ue000"))

    def _constant(self, marks: list[_Mark | str]) -> _Constant:
        """In tokens; the words between control tokens lose the white space that those swallow."""
        text = "".join(mark if isinstance(mark, str) else mark.text for mark in marks)
        ids = self.whole.encode(text, add_special_tokens=False).ids
        mask = [False] * len(ids)
        if marks and isinstance(marks[0], _Mark):  # the first control token behind an answer
            mask[0] = marks[0].learnt
        return _Constant(marks, ids, mask)


class _Way(NamedTuple):
    """How a stretch is encoded: with which vocabulary, and whether places in the text are kept."""

    tokenizer: Any
    offsets: bool


def _encode_batch(tokenizer: Tokenizer, offsets: bool, texts: list[str]) -> list[Any]:
    """Places in the text cost a third more, so they are kept only where they are needed."""
    if offsets:
        return list(tokenizer.encode_batch(texts, add_special_tokens=False))
    return list(tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def _slot(number: int) -> str:
    """What is written where a content belongs: of message i it is slot 2 i, of its tools the next.

    The template trims a content where the separator beside it is gone.
    """
    return f"{_TRIMMED}\ue000{number}\ue001{_TRIMMED}"


def _order(text: str) -> list[int]:
    """Which slots the template wrote, in its order."""
    return [int(found.group(2)) for found in _SLOT.finditer(text)]


def _slots(messages: Sequence[Message]) -> list[int]:
    """The slots that it should write, in the order of the messages."""
    return [
        2 * i + part
        for i, message in enumerate(messages)
        for part, there in enumerate(_parts_of(message))
        if there
    ]


def _parts_of(message: Message) -> tuple[bool, bool]:
    """Whether a message has a content, and tools; a system message may be without the first."""
    return message["role"] != "system" or bool(message["content"]), bool(message.get("tools"))


def _whole(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, made to neither cut nor pad."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_control_tokens(backend: str, but: Sequence[str] = ()) -> Tokenizer:
    """The vocabulary for contents: no text in it becomes a control token, `but` these.

    `encode_special_tokens` would leave `</s>`, which Phi-3 adds without calling it special. Tokens
    beyond the model's own vocabulary are numbered as they come when a tokenizer is read, so those
    that go leave a name behind that nobody can write, and the others keep their ids.
    """
    from tokenizers import Tokenizer

    values = json.loads(backend)
    vocabulary = values["model"].get("vocab", {})
    named = set(vocabulary) if isinstance(vocabulary, dict) else {name for name, _ in vocabulary}
    kept = []
    for token in values["added_tokens"]:
        ordinary = not token["special"] and not _CONTROL.fullmatch(token["content"])
        if token["content"] in but or ordinary:
            kept.append(token)
        elif token["content"] not in named:
            kept.append(token | {"content": f"\ue002{secrets.token_hex(16)}\ue003"})
    values["added_tokens"] = kept
    values["post_processor"] = None
    return Tokenizer.from_str(json.dumps(values))


_renderers: WeakKeyDictionary[Any, _Renderer] = WeakKeyDictionary()


def _renderer(tokenizer: Any) -> _Renderer:
    """Taking a tokenizer apart takes a moment, so it is done once for each."""
    known = _renderers.get(tokenizer)
    if known is None or known.template != tokenizer.chat_template:
        known = _renderers[tokenizer] = _Renderer(tokenizer)
    return known


def _assemble(
    pattern: _Pattern, messages: Sequence[Message], encodings: list[Any], max_length: int | None
) -> Rendered:
    """Constants and stretches in turn."""
    first = pattern.constants[0]
    ids, mask = list(first.ids), list(first.mask)
    rest = zip(pattern.stretches, encodings, pattern.constants[1:], strict=True)
    for stretch, encoding, constant in rest:
        content = encoding.ids
        ids += content
        mask += _mask(stretch, messages, encoding, len(content))
        ids += constant.ids
        mask += constant.mask
    truncated = max_length is not None and len(ids) > max_length
    return Rendered(ids[:max_length], mask[:max_length], truncated, len(ids))


def _mask(stretch: _Stretch, messages: Sequence[Message], encoding: Any, count: int) -> list[bool]:
    """Which tokens of a stretch are an answer's."""
    if stretch.learnt != "some":
        return [stretch.learnt == "all"] * count
    spans = stretch.learnt_spans(messages)
    return [
        any(start < stop and (end > begin or start >= begin) for begin, stop in spans)
        for start, end in encoding.offsets
    ]


def _segments(
    pattern: _Pattern, messages: Sequence[Message], renderer: _Renderer, limit: int
) -> list[Segment]:
    """Pieces up to `limit` tokens; neighbours of the same supervision become one."""
    pieces = list(_pieces(pattern, messages, renderer))
    whole = limit >= sum(len(piece.ends) for piece in pieces)
    result: list[Segment] = []
    for piece in pieces:
        text = piece.text if whole else piece.first(limit)
        limit -= len(piece.ends)
        if text and result and result[-1]["supervised"] == piece.supervised:
            result[-1]["text"] += text
        elif text:
            result.append({"text": text, "supervised": piece.supervised})
        if limit <= 0 and not whole:
            break
    return result


@dataclass(frozen=True)
class _Piece:
    """A stretch of text; `ends` are the places in it where its tokens end."""

    text: str
    supervised: bool
    ends: list[int]

    def first(self, tokens: int) -> str:
        """The text of the first tokens; all of it where it has no more."""
        return self.text if tokens >= len(self.ends) else self.text[: self.ends[tokens - 1]]


def _pieces(
    pattern: _Pattern, messages: Sequence[Message], renderer: _Renderer
) -> Iterator[_Piece]:
    yield from _constant_pieces(pattern.constants[0], renderer)
    for stretch, constant in zip(pattern.stretches, pattern.constants[1:], strict=True):
        yield from _stretch_pieces(stretch, messages, renderer.encoder(stretch))
        yield from _constant_pieces(constant, renderer)


def _stretch_pieces(
    stretch: _Stretch, messages: Sequence[Message], tokenizer: Tokenizer
) -> Iterator[_Piece]:
    """White space that is swallowed, and what is left in pieces of equal supervision."""
    whole, swallowed = stretch.written(messages)
    text = stretch.text(messages)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    mask = _mask(stretch, messages, encoding, len(encoding.ids))
    if swallowed:
        yield _Piece(whole[:swallowed], False, [])
    cuts = [0, *(i for i in range(1, len(mask)) if mask[i] != mask[i - 1]), len(mask)]
    places = [0, *(encoding.offsets[i][0] for i in cuts[1:-1]), len(text)]
    for (first, last), (start, stop) in zip(pairwise(cuts), pairwise(places), strict=True):
        ends = [max(min(end, stop) - start, 0) for _, end in encoding.offsets[first:last]]
        yield _Piece(text[start:stop], any(mask[first:last]), ends)
    if len(whole) > swallowed + len(text):
        yield _Piece(whole[swallowed + len(text) :], False, [])


def _constant_pieces(constant: _Constant, renderer: _Renderer) -> Iterator[_Piece]:
    text = "".join(mark if isinstance(mark, str) else mark.text for mark in constant.marks)
    ends = [end for _, end in renderer.whole.encode(text, add_special_tokens=False).offsets]
    first = constant.marks[0] if constant.marks else ""
    learnt = first.text if isinstance(first, _Mark) and first.learnt else ""
    if learnt:  # by its name alone: its place in the text takes in the white space it swallows
        yield _Piece(learnt, True, [len(learnt)])
        ends = ends[1:]
    yield _Piece(text[len(learnt) :], False, [end - len(learnt) for end in ends])
