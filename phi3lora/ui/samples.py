"""Answers of a run to its held-out prompts, evaluation by evaluation.

samples(view.answers)      HTML; nothing where the run was not asked to
"""

from __future__ import annotations

from phi3lora.events import Answered
from phi3lora.ui import show


def samples(told: list[Answered]) -> str:
    """A table for each prompt: what the data answers, then the model, the newest step first."""
    if not told:
        return ""
    prompts = [(row.prompt, row.expected) for row in told[-1].rows]
    tables = "".join(_table(place, *asked, told) for place, asked in enumerate(prompts))
    return f"{show.heading('Sample answers', 'To held-out prompts, at each evaluation.')}{tables}"


def _table(place: int, prompt: str, expected: str, told: list[Answered]) -> str:
    said = [
        (f"{one.step:,}", one.rows[place].answer) for one in reversed(told) if place < len(one.rows)
    ]
    rows = [*said, ("Data", expected)]
    return f'<p class="sampled">{show.text(prompt)}</p>{show.table(("Step", "Answer"), rows)}'
