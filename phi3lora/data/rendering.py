"""Messages → token ids, and which of them carry loss.

    rendered = render(tokenizer, messages, max_length=1024)
    segments(tokenizer, rendered, messages)       # the same as text, for people to see

The tokenizer's own chat template is asked once for each pattern of roles what stands between the
contents. Contents are then encoded apart from it, as plain text, so `<|end|>` in a message stays
seven characters and never ends a turn. For Phi-3 the ids equal `apply_chat_template`'s: there
every content stands between two control tokens, so the template's tokenizer cuts at the same
places, and white space that a control token swallows is cut off here as well. They differ, on
purpose, only where a message contains a control token as text. (A template that puts ordinary text
right beside a content would be encoded apart from it; no phi3-type checkpoint has one.)

Loss is on the answers' tokens and on the control token that ends each (`<|end|>`), on nothing else:
not on the `<|endoftext|>` that the template appends, and not on padding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict
from weakref import WeakKeyDictionary

from phi3lora.data.conversation import Message, is_learnt
from phi3lora.errors import DataError, ModelError
from phi3lora.models.phi3 import PADS, STOPS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What the tokenizers library takes for white space beside a control token (Unicode's White_Space);
# Python's own `strip` also takes the four separators \x1c to \x1f.
_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACE += "\u2028\u2029\u202f\u205f\u3000"
_CONTROL = re.compile(r"</?[^<>\s]*>")  # how control tokens look that are not called special
_SLOT = re.compile("\ue000(\\d+)\ue001")  # private characters: where a content belongs


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
    patterns = [renderer.pattern(tokenizer, messages, prompt=False) for messages in conversations]
    return renderer.encode(patterns, conversations, max_length)


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids up to the mark after which the model answers."""
    renderer = _renderer(tokenizer)
    pattern = renderer.pattern(tokenizer, messages, prompt=True)
    return renderer.encode([pattern], [messages], None)[0].input_ids


def segments(tokenizer: Any, rendered: Rendered, messages: Sequence[Message]) -> list[Segment]:
    """The rendered text in stretches of equal supervision.

    Their texts join to what the template writes, or to the part of it that `rendered` kept.
    """
    renderer = _renderer(tokenizer)
    pattern = renderer.pattern(tokenizer, messages, prompt=False)
    return _segments(pattern, messages, renderer, len(rendered.input_ids))


class TemplateParts(NamedTuple):
    """What a chat template writes around contents.

    `texts` has one more entry than there are messages; `strips` says on which sides of a content
    (left, right) white space is swallowed; `end` is the control token that ends an answer.
    """

    texts: list[str]
    strips: tuple[bool, bool]
    end: str


def template_parts(tokenizer: Any, messages: Sequence[Message]) -> TemplateParts:
    """The template taken apart for these roles; the last message is an answer."""
    pattern = _renderer(tokenizer).pattern(tokenizer, messages, prompt=False)
    strips = (
        all(slot.strip_left for slot in pattern.slots),
        any(slot.strip_right for slot in pattern.slots),
    )
    texts = [literal.text for literal in pattern.literals]
    return TemplateParts(texts, strips, pattern.literals[-1].end)


def stop_tokens(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Ids that end an answer: the checkpoint's own and Phi-3's, whichever it forgot."""
    named = getattr(generation_config, "eos_token_id", None)
    ids = {named} if isinstance(named, int) else set(named or ())
    vocabulary = tokenizer.get_vocab()
    ids |= {vocabulary[name] for name in STOPS if name in vocabulary}
    return sorted(ids | ({tokenizer.eos_token_id} - {None}))


def pad_token(tokenizer: Any) -> int:
    """The id to pad with: `<unk>`, or else one that no conversation holds."""
    vocabulary = tokenizer.get_vocab()
    learnt = set(stop_tokens(tokenizer))
    own = [name for name in (tokenizer.unk_token, *PADS, tokenizer.pad_token) if name]
    for name in own:
        if name in vocabulary and vocabulary[name] not in learnt:
            return int(vocabulary[name])
    raise ModelError(
        "The tokenizer has no token to pad with: expected <unk> or a placeholder, found only "
        f"{', '.join(own) or 'none'}, which must be learnt. Take the checkpoint's own tokenizer."
    )


@dataclass(frozen=True)
class _Literal:
    """What the template writes around contents; `end` is the control token that ends an answer."""

    text: str
    ids: list[int]
    mask: list[bool]  # loss on the token that ends an answer alone
    end: str = ""


@dataclass(frozen=True)
class _Slot:
    """Where a message's content belongs, on which sides white space is swallowed."""

    index: int
    strip_left: bool
    strip_right: bool
    supervised: bool


@dataclass(frozen=True)
class _Pattern:
    """A template filled with roles but no contents: a slot between each two literals."""

    literals: list[_Literal]
    slots: list[_Slot]


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
        self.marks = _whole(Tokenizer.from_str(backend))
        self.plain = _whole(_without_control_tokens(backend))
        self.added = list(tokenizer.added_tokens_decoder.values())
        self.patterns: dict[tuple[Any, ...], _Pattern] = {}

    def pattern(self, tokenizer: Any, messages: Sequence[Message], prompt: bool) -> _Pattern:
        """The template for these roles; asked once, since Jinja is slow.

        Phi-3.5's template skips a system message without content, so that is part of the key.
        """
        key = (prompt, *((m["role"], _has_slot(m), is_learnt(m)) for m in messages))
        if key not in self.patterns:
            if len(self.patterns) > 1000:
                self.patterns.clear()
            self.patterns[key] = self._ask(tokenizer, messages, prompt)
        return self.patterns[key]

    def encode(
        self,
        patterns: Sequence[_Pattern],
        conversations: Sequence[Sequence[Message]],
        max_length: int | None,
    ) -> list[Rendered]:
        """Contents in one batch, then each conversation put together."""
        pairs = zip(patterns, conversations, strict=True)
        texts = [_content(slot, messages) for p, messages in pairs for slot in p.slots]
        contents = iter(self.plain.encode_batch_fast(texts, add_special_tokens=False))
        return [_assemble(pattern, contents, max_length) for pattern in patterns]

    def _ask(self, tokenizer: Any, messages: Sequence[Message], prompt: bool) -> _Pattern:
        """Fill the template with slots for contents and take it apart at them."""
        filled = [
            {"role": message["role"], "content": f"\ue000{i}\ue001" if _has_slot(message) else ""}
            for i, message in enumerate(messages)
        ]
        text = tokenizer.apply_chat_template(filled, tokenize=False, add_generation_prompt=prompt)
        *between, last = _SLOT.split(text)
        literals, order = [*between[::2], last], [int(index) for index in between[1::2]]
        if order != [i for i, message in enumerate(messages) if _has_slot(message)]:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"The chat template does not write every message of {roles}: it wrote "
                f"{len(order)} of {len(messages)}. Leave out the roles that it does not know."
            )
        slots = [
            self._slot(i, before, after, is_learnt(messages[i]))
            for i, before, after in zip(order, literals, literals[1:], strict=False)
        ]
        answered = [False, *(slot.supervised for slot in slots)]
        pairs = zip(literals, answered, strict=True)
        return _Pattern([self._literal(text, after) for text, after in pairs], slots)

    def _slot(self, index: int, before: str, after: str, supervised: bool) -> _Slot:
        """Whether the control tokens beside a content swallow its white space."""
        before, after = before.rstrip(_SPACE), after.lstrip(_SPACE)
        left = any(token.rstrip and before.endswith(token.content) for token in self.added)
        right = any(token.lstrip and after.startswith(token.content) for token in self.added)
        return _Slot(index, left, right, supervised)

    def _literal(self, text: str, after_answer: bool) -> _Literal:
        """A part of the template in tokens; behind an answer its first control token is learnt."""
        ids = self.marks.encode(text, add_special_tokens=False).ids
        marks = (token.content for token in self.added if text.startswith(token.content))
        end = max(marks, key=len, default="") if after_answer else ""
        return _Literal(text, ids, [bool(end), *[False] * (len(ids) - 1)] if ids else [], end)


def _has_slot(message: Message) -> bool:
    return message["role"] != "system" or bool(message["content"])


def _whole(tokenizer: Tokenizer) -> Tokenizer:
    """Neither cuts nor pads."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_control_tokens(backend: str) -> Tokenizer:
    """The vocabulary for contents: no text in it becomes a control token.

    `encode_special_tokens` would leave `</s>`, which Phi-3 adds without calling it special.
    """
    from tokenizers import Tokenizer

    values = json.loads(backend)
    values["added_tokens"] = [
        token
        for token in values["added_tokens"]
        if not token["special"] and not _CONTROL.fullmatch(token["content"])
    ]
    values["post_processor"] = None
    return Tokenizer.from_str(json.dumps(values))


_renderers: WeakKeyDictionary[Any, _Renderer] = WeakKeyDictionary()


def _renderer(tokenizer: Any) -> _Renderer:
    """Taking a tokenizer apart takes a moment, so it is done once for each."""
    known = _renderers.get(tokenizer)
    if known is None or known.template != tokenizer.chat_template:
        known = _renderers[tokenizer] = _Renderer(tokenizer)
    return known


def _content(slot: _Slot, messages: Sequence[Message]) -> str:
    """What of the content becomes tokens."""
    text = messages[slot.index]["content"]
    text = text.lstrip(_SPACE) if slot.strip_left else text
    return text.rstrip(_SPACE) if slot.strip_right else text


def _assemble(pattern: _Pattern, contents: Iterator[Any], max_length: int | None) -> Rendered:
    """Literals and contents in turn; takes as many from `contents` as there are slots."""
    first = pattern.literals[0]
    ids, mask = list(first.ids), list(first.mask)
    for slot, literal in zip(pattern.slots, pattern.literals[1:], strict=True):
        content = next(contents).ids
        ids += content
        mask += [slot.supervised] * len(content)
        ids += literal.ids
        mask += literal.mask
    truncated = max_length is not None and len(ids) > max_length
    return Rendered(ids[:max_length], mask[:max_length], truncated, len(ids))


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
    yield from _literal_pieces(pattern.literals[0], renderer.marks)
    for slot, literal in zip(pattern.slots, pattern.literals[1:], strict=True):
        text, learnt = messages[slot.index]["content"], _content(slot, messages)
        before = text[: len(text) - len(text.lstrip(_SPACE))] if slot.strip_left else ""
        yield _Piece(before, False, [])
        yield _Piece(learnt, slot.supervised, _ends(renderer.plain, learnt))
        yield _Piece(text[len(before) + len(learnt) :], False, [])
        yield from _literal_pieces(literal, renderer.marks)


def _literal_pieces(literal: _Literal, marks: Tokenizer) -> Iterator[_Piece]:
    ends, mark = _ends(marks, literal.text), len(literal.end)
    if mark:
        yield _Piece(literal.end, True, [mark])
        ends = ends[1:]
    yield _Piece(literal.text[mark:], False, [end - mark for end in ends])


def _ends(tokenizer: Tokenizer, text: str) -> list[int]:
    return [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]
