"""Markdown of strangers as HTML that asks nobody: no HTML of theirs, no pictures, no links.

    rendered("**Arr!**")                          what a model or an author wrote
    rendered("Arr, it be", differs_from="It is")  the words that the other text lacks are marked

The words of code are never marked: colours there would be read as syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

# A word, or a letter of scripts that are written without spaces.
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
MOST_WORDS = 2000  # of an answer whose differences are looked for
ALIKE = 0.12  # below this share of common words everything would be marked
OPEN, CLOSE = '<mark class="differs">', "</mark>"


@cache
def _parser(links: bool) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table")
    return parser.disable(["image"] if links else ["image", "link", "autolink", "reference"])


def rendered(text: str, differs_from: str = "", *, links: bool = False) -> str:
    """HTML of a text in Markdown.

    Args:
        links: whether addresses may be clicked: one's own may, what a model said is shown as it is.
    """
    parser = _parser(links)
    tokens = parser.parse(text)
    for token in tokens:
        _safe_links(token)
    _no_empty_heads(tokens)
    if differs_from:
        _mark(tokens, differs_from)
    return str(parser.renderer.render(tokens, parser.options, {}))


def _no_empty_heads(tokens: list[Token]) -> None:
    """An empty cell of a table's head is no heading: a screen reader would announce nothing."""
    for place, token in enumerate(tokens):
        if token.type == "th_open" and not tokens[place + 1].content:
            token.tag = tokens[place + 2].tag = "td"


def _safe_links(token: Token) -> None:
    """Links open beside the page and tell nobody where the reader came from."""
    for child in token.children or []:
        if child.type == "link_open":
            child.attrSet("target", "_blank")
            child.attrSet("rel", "noopener noreferrer nofollow")


def _mark(tokens: list[Token], other: str) -> None:
    """Mark the words of the text that the other one lacks."""
    texts = [child for token in tokens for child in token.children or [] if child.type == "text"]
    ours = [word for child in texts for word in WORDS.findall(child.content)]
    theirs = WORDS.findall(other)
    if len(ours) > MOST_WORDS or len(theirs) > MOST_WORDS:
        return
    same = common(ours, theirs)
    if sum(same) < ALIKE * len(ours):
        return
    flags = iter(same)
    for token in tokens:
        if token.children:
            token.children = [part for child in token.children for part in _parts(child, flags)]


def common(ours: list[str], theirs: list[str]) -> list[bool]:
    """For each of our words, whether the other text has it at its place."""
    same = [False] * len(ours)
    a, b = ([word.lower() for word in words] for words in (ours, theirs))
    for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        same[block.a : block.a + block.size] = [True] * block.size
    return same


def _parts(child: Token, same: Iterator[bool]) -> list[Token]:
    """A text as pieces, each run of differing words between marks."""
    if child.type != "text":
        return [child]
    parts: list[Token] = []
    end, marked = 0, False
    for word in WORDS.finditer(child.content):
        differs = not next(same)
        gap = child.content[end : word.start()]
        if marked and not differs:
            parts.append(_raw(CLOSE))
        parts.append(_text(gap))
        if differs and not marked:
            parts.append(_raw(OPEN))
        parts.append(_text(word.group()))
        end, marked = word.end(), differs
    if marked:
        parts.append(_raw(CLOSE))
    return [*parts, _text(child.content[end:])]


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _raw(tag: str) -> Token:
    """One of our own two tags; nothing that came from outside gets here."""
    return Token("html_inline", "", 0, content=tag)
