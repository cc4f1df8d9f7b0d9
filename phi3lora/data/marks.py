"""Transcripts in plain text: turns between the marks that a chat template, or a person, writes.

    transcript("<|user|>\\nHi<|end|>\\n<|assistant|>\\nHello")     # two messages; None for prose

A style has marks that begin a turn and marks that end one. A text is split once at the marks that
begin turns, so that work grows with its length however many there are. The end of the text ends
the last answer, since most notebooks leave its closing mark out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from phi3lora.data.cells import ROLES
from phi3lora.data.conversation import Message

_STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "[gMASK]<sop>")
_ENDS = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<|endoftext|>")
# What looks like the name of whoever speaks next, at the beginning of a text.
_LIKE_A_MARK = re.compile(
    r"<[|\w][^<>\n]{0,40}>|\[/?[A-Z_]{3,20}\]|#{1,4} ?\w{1,20} ?:|(\w{1,20}) ?:\s", re.ASCII
)


@dataclass(frozen=True)
class Style:
    """Marks of one chat template.

    Attributes:
        name: whose it is.
        opening: what begins a turn; its one group is the role.
        ends: what ends one.
        strip: whether the white space after `opening` and before a missing end is no content.
        preamble: whether text before the first mark is the system's message.
    """

    name: str
    opening: re.Pattern[str]
    ends: tuple[str, ...] = _ENDS
    strip: bool = True
    preamble: bool = False


STYLES = (
    Style("Phi-3 and Zephyr", re.compile(r"<\|(system|user|assistant|prompter)\|>\s*")),
    Style(
        "ChatML and Phi-4",
        re.compile(r"<\|im_start\|>(system|user|assistant)(?:\n|<\|im_sep\|>)"),
        strip=False,
    ),
    Style(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>\s*"),
    ),
    Style("Gemma", re.compile(r"<start_of_turn>(user|model|system)\s*")),
    Style(
        "USER: and ASSISTANT:",
        re.compile(r"(?:(?<=\s)|(?<=</s>)|(?<![\s\S]))(SYSTEM|USER|ASSISTANT):\s*"),
        preamble=True,
    ),
    Style(
        "Human: and Assistant:",
        re.compile(r"^(Human|User|Assistant|System|Bot|AI):\s*", re.MULTILINE),
        preamble=True,
    ),
)
_INSTRUCTION = re.compile(r"\[(/?)INST\]")
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_HEADING = r"(#{2,3} ?(%s) ?:\s*)"
_FAMILIES = tuple(
    re.compile(_HEADING % names)
    for names in (
        "System|Human|User|Assistant",
        "System|Instruction|Input|Response|Output|Answer",
        "System|Context|Question|Answer|Response",
        "System|Human|User|Instruction|Input|Assistant|Response",
    )
)
_ANY_HEADING = re.compile(_HEADING % "Human|User|Assistant|Instruction|Input|Context|Question")


def transcript(text: str) -> list[Message] | None:
    """The turns of a text that has a person's and an answer's; None for any other."""
    if "[INST]" in text and (turns := _instructed(text)):
        return turns
    for style in STYLES:
        turns = _split(text, style)
        if any(turn["role"] == "assistant" for turn in turns):
            return turns
    return _headed(text)


def unknown_mark(text: str) -> str:
    """What stands at the beginning of a text like the mark of a role; empty where nothing does."""
    found = _LIKE_A_MARK.match(text.lstrip())
    if found is None or found.group(0) in _STARTS:
        return ""
    word = found.group(1)
    if word is not None and word.lower() not in (*ROLES, "q", "a"):
        return ""  # a heading, a time of day, "Note: …"
    return found.group(0).strip()


def _split(text: str, style: Style) -> list[Message]:
    """Turns between the marks of one style; none where it does not mark two of them."""
    preamble, *parts = style.opening.split(text)
    names, contents = parts[::2], parts[1::2]
    if len(names) < (2 if style.preamble else 1):
        return []
    turns = _preamble(preamble) if style.preamble else []
    for name, said in zip(names, contents, strict=True):
        role, content = ROLES[name.lower()], _until_end(said, style)
        if role != "system" or content.strip():
            turns.append({"role": role, "content": content})
    return turns if style.preamble is False or _answers_follow(turns) else []


def _answers_follow(turns: Sequence[Message]) -> bool:
    """Whether words that also stand in prose mark turns here: a person's comes first."""
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    return spoken[:2] == ["user", "assistant"]


def _preamble(text: str) -> list[Message]:
    for start in _STARTS:
        text = text.strip().removeprefix(start)
    return [{"role": "system", "content": text.strip()}] if text.strip() else []


def _until_end(said: str, style: Style) -> str:
    """A turn's content: up to the mark that ends it, or all of it without its last blanks."""
    places = [place for mark in style.ends if (place := said.find(mark)) >= 0]
    if places:
        content = said[: min(places)]
        return content.strip() if style.preamble else content
    return said.rstrip() if style.strip or style.preamble else said.rstrip("\n")


def _instructed(text: str) -> list[Message] | None:
    """Llama 2 and Mistral: `<s>[INST] <<SYS>>…<</SYS>> question [/INST] answer </s>`."""
    _, *parts = _INSTRUCTION.split(text)
    turns: list[Message] = []
    for slash, said in zip(parts[::2], parts[1::2], strict=True):
        said = said.replace("<s>", "").partition("</s>")[0]
        if not slash and not turns and (system := _SYSTEM.match(said)):
            if system.group(1).strip():
                turns.append({"role": "system", "content": system.group(1).strip()})
            said = said[system.end() :]
        if said.strip():
            turns.append({"role": "assistant" if slash else "user", "content": said.strip()})
    return turns if any(turn["role"] == "assistant" for turn in turns) else None


def _headed(text: str) -> list[Message] | None:
    """Turns under `###` headings; what stands before the first one is the system's message.

    The first heading says which words are headings here: `### Input:` in an answer to
    `### Human:` is a part of that answer.
    """
    first = _ANY_HEADING.search(text)
    if first is None:
        return None
    for family in _FAMILIES:
        turns = _under(text, family) if family.match(first.group(1)) else []
        if any(turn["role"] == "assistant" for turn in turns) and len(turns) > 1:
            return turns
    return None


def _under(text: str, family: re.Pattern[str]) -> list[Message]:
    preamble, *parts = family.split(text)
    turns, before = _preamble(preamble), ""
    for mark, name, said in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        _add_headed(turns, name.lower(), before, mark, _without_end(said.strip()))
        before = name.lower()
    return turns


def _without_end(said: str) -> str:
    for mark in _ENDS:
        said = said.removesuffix(mark).rstrip()
    return said


def _add_headed(turns: list[Message], heading: str, before: str, mark: str, said: str) -> None:
    """A heading's text as a turn, or as more of the turn before it."""
    follows = bool(turns) and turns[-1]["role"] == "user"
    if heading == "input" and before == "instruction" and follows:
        turns[-1]["content"] += f"\n\n{said}" if said else ""
    elif heading == "question" and before == "context" and follows:
        turns[-1]["content"] += f"\n\n{said}"
    elif heading == "input" and turns and turns[-1]["role"] == "assistant":
        turns[-1]["content"] += f"\n\n{mark}{said}"
    else:
        role = "user" if heading in ("input", "context") else ROLES.get(heading, "assistant")
        turns.append({"role": role, "content": said})
