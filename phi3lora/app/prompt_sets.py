"""A set of prompts asked in one go: each a conversation of its own, the answers as rows of a table.

for answered in ask_all(comparing, subject, prompts_in(text), options, caller=caller): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from phi3lora.app.callers import Caller
from phi3lora.app.comparing import Comparing, Subject
from phi3lora.chat.options import Options, Pair
from phi3lora.errors import DataError

MOST = 100  # prompts of a set


@dataclass(frozen=True)
class Answered:
    """A prompt and what was said to it; without an adapter there is a base alone."""

    prompt: str
    base: str
    tuned: str = ""


def prompts_in(text: str) -> list[str]:
    """A prompt on each line, in order and each once. Raises DataError for none, or too many."""
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise DataError("The set has no prompt; write each on a line of its own.")
    if len(prompts) > MOST:
        raise DataError(
            f"A set has at most {MOST} prompts, got {len(prompts)}; ask them in several sets."
        )
    return prompts


def ask_all(
    comparing: Comparing,
    subject: Subject,
    prompts: Sequence[str],
    options: Options,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    caller: Caller,
) -> Iterator[Answered | str]:
    """Answers prompt by prompt, and in words what is being waited for. Raises Phi3LoraError.

    An answer that was stopped is left out, and so is whatever comes after it.
    """
    for prompt in prompts:
        if should_stop():
            return
        base, last = [{"role": "user", "content": prompt}], Pair()
        tuned = base if subject.result else []
        for last in comparing.reply(subject, base, tuned, options, should_stop, caller=caller):
            if last.note:
                yield last.note
        if should_stop():
            return
        yield Answered(prompt, last.base, last.tuned)
