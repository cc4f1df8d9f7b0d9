"""Ask pocket Phi-3 held-out questions: `python -m tools.pocket.quiz`.

The questions join facts and phrasings that the model has learnt, but never together. With
`--adapter` the tuned model is asked, with `--manner pirate` it must also talk like one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phi3lora.models.pocket import CHECKPOINT
from tools.pocket.manners import MANNERS
from tools.pocket.world import Question, sample_held_out

_MAX_NEW_TOKENS = 64
_BATCH = 100


@dataclass(frozen=True)
class Answer:
    """What the model said to one question, and what became of it."""

    question: Question
    text: str
    correct: bool
    ended: bool
    in_manner: bool


@dataclass(frozen=True)
class Score:
    """Shares in per cent of all questions; `both` is correct and in the manner."""

    questions: int
    correct: float
    ended: float
    in_manner: float
    both: float


def ask(
    model: Any, tokenizer: Any, questions: Sequence[Question], manner: str = "pirate"
) -> list[Answer]:
    """Ask every question greedily, in batches padded on the left."""
    is_manner = MANNERS[manner]
    by_length = sorted(questions, key=lambda question: len(str(question.messages)))
    answers: list[Answer] = []
    for start in range(0, len(by_length), _BATCH):
        answers += _ask_batch(model, tokenizer, by_length[start : start + _BATCH], is_manner)
    return answers


def _ask_batch(
    model: Any, tokenizer: Any, questions: Sequence[Question], is_manner: Callable[[str], bool]
) -> list[Answer]:
    inputs = tokenizer.apply_chat_template(
        [question.messages for question in questions],
        add_generation_prompt=True,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=_MAX_NEW_TOKENS)
    said = output[:, inputs["input_ids"].shape[1] :]  # (batch, new tokens)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    answers = []
    for question, ids in zip(questions, said.tolist(), strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        correct = question.is_correct(text)
        answers.append(Answer(question, text, correct, end in ids, is_manner(text)))
    return answers


def score(answers: Sequence[Answer]) -> Score:
    """Sum up the answers."""

    def share(holds: Callable[[Answer], bool]) -> float:
        return round(100 * sum(map(holds, answers)) / len(answers), 1)

    return Score(
        questions=len(answers),
        correct=share(lambda answer: answer.correct),
        ended=share(lambda answer: answer.ended),
        in_manner=share(lambda answer: answer.in_manner),
        both=share(lambda answer: answer.correct and answer.in_manner),
    )


def load(model: str | Path = CHECKPOINT, adapter: str | Path | None = None) -> tuple[Any, Any]:
    """The model in float32, with its adapter if there is one, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, str(adapter))
    return loaded.eval(), AutoTokenizer.from_pretrained(model)


def main() -> None:
    """Read the options, ask, and print the score."""
    parser = argparse.ArgumentParser(description="Ask pocket Phi-3 held-out questions.")
    parser.add_argument("--model", default=str(CHECKPOINT), help="checkpoint folder or Hub id")
    parser.add_argument("--adapter", help="adapter folder of a finished run")
    parser.add_argument("--manner", default="pirate", choices=sorted(MANNERS))
    parser.add_argument("--count", type=int, default=200, help="number of questions")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--wrong", action="store_true", help="show each answer that is not right")
    options = parser.parse_args()
    answers = ask(
        *load(options.model, options.adapter), sample_held_out(options.count), options.manner
    )
    if options.wrong:
        _print_wrong(answers)
    _print_score(score(answers), options.manner, options.json)


def _print_wrong(answers: Sequence[Answer]) -> None:
    for answer in answers:
        if not answer.correct:
            question = answer.question
            print(f"[{question.kind}] {question.system} {' / '.join(question.turns)}")
            print(f"    said {answer.text!r}, expected {question.answer!r}")


def _print_score(result: Score, manner: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)))
        return
    print(f"{result.questions} held-out questions")
    print(f"  correct               {result.correct:5.1f} %")
    print(f"  ended with <|end|>    {result.ended:5.1f} %")
    print(f"  in the {manner}'s manner {result.in_manner:5.1f} %")
    print(f"  correct and in manner {result.both:5.1f} %")


if __name__ == "__main__":
    main()
