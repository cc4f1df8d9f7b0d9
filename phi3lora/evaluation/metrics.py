"""Metrics: one row's score, and what two models' scores on the same rows say.

    compare(base_scores, tuned_scores)  →  [Comparison(name="loss", base=…, tuned=…, low=…, …)]

Pure functions over plain data; nothing here knows of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np

from phi3lora import words

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
RESAMPLES = 2_000
ENOUGH_ROWS = 8  # below, resampling so few rows finds too narrow an interval
Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class RowScore:
    """How one model did on one held-out row.

    Attributes:
        nll: negative log-likelihood of the reference, in nats, summed over supervised tokens.
        tokens: supervised tokens of the reference.
        correct: of those, how many were the model's first choice.
        answer: what the model said itself, greedily.
        stopped: whether it ended the answer by itself within the limit.
        length: tokens of the answer.
        rouge: ROUGE F-measures of the answer against the reference, 0 to 1.
        rejected_nll, rejected_tokens: the same of a worse answer; no tokens where there is none.
            `tokens` is 0 where there is no better one.
        reward, rejected_reward: by how much it is likelier than under the base, in nats times the
            method's beta.
        earned: what `answer` earned by rewards that can be read; None where none are given.
    """

    nll: float
    tokens: int
    correct: int
    answer: str
    stopped: bool
    length: int
    rouge: dict[str, float]
    rejected_nll: float = 0.0
    rejected_tokens: int = 0
    reward: float = 0.0
    rejected_reward: float = 0.0
    earned: float | None = None

    @property
    def is_pair(self) -> bool:
        """Whether there is a better and a worse answer."""
        return bool(self.tokens and self.rejected_tokens)


@dataclass(frozen=True)
class Metric:
    """A figure of a whole set of rows: the ratio of two sums over rows, maybe transformed.

    `less` is taken off it: a figure of its own.
    """

    name: str
    title: str
    above: Callable[[RowScore], float]
    below: Callable[[RowScore], float]
    more_is_better: bool | None  # None: neither
    transform: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio
    less: Metric | None = None

    def exists(self, scores: Sequence[RowScore]) -> bool:
        """Whether any row has what is measured."""
        own = any(self.below(score) for score in scores)
        return own and (self.less is None or self.less.exists(scores))

    def of(self, scores: Sequence[RowScore], counts: np.ndarray) -> np.ndarray:
        """The figure for each resample; `counts` (resamples, rows) says how often a row is in."""
        above = np.array([self.above(score) for score in scores], dtype=float)
        below = np.array([self.below(score) for score in scores], dtype=float)
        found = self.transform((counts @ above) / np.maximum(counts @ below, 1e-12))
        return found if self.less is None else found - self.less.of(scores, counts)


def _one(_: RowScore) -> float:
    return 1.0


def _referenced(row: RowScore) -> bool:
    """Whether the data has a good answer to compare with."""
    return row.tokens > 0


def _preferred(row: RowScore) -> float:
    """Whether the better answer is the likelier one by token; half where both are as likely."""
    if not row.is_pair:
        return 0.0
    better, worse = row.nll / row.tokens, row.rejected_nll / row.rejected_tokens
    return 0.5 if better == worse else float(better < worse)


def _rewarded(row: RowScore) -> float:
    """Whether the better answer has the higher reward; half for the base, which has none."""
    if not row.is_pair:
        return 0.0
    difference = row.reward - row.rejected_reward
    return 0.5 if difference == 0 else float(difference > 0)


# What learning from preferences promises; the first ones say whether it did.
PREFERENCES = (
    Metric("win_rate", "Better answer is likelier by token", _preferred, lambda r: r.is_pair, True),
    Metric(
        "reward_accuracy",
        "Better answer has the higher reward",
        _rewarded,
        lambda row: row.is_pair,
        True,
    ),
    Metric(
        "reward_margin",
        "Reward of better less worse answers",
        lambda row: row.reward,
        lambda row: row.tokens > 0,
        True,
        less=Metric(
            "rejected_reward",
            "Reward of worse answers",
            lambda row: row.rejected_reward,
            lambda row: row.rejected_tokens > 0,
            False,
        ),
    ),
)
# What learning from rewards promises.
EARNED = Metric(
    "earned",
    "Reward of the model's own answer",
    lambda row: row.earned or 0.0,
    lambda row: row.earned is not None,
    True,
)
METRICS = (
    Metric("loss", words.LOSS_BY_TOKEN, lambda row: row.nll, lambda row: row.tokens, False),
    Metric("perplexity", "Perplexity", lambda row: row.nll, lambda row: row.tokens, False, np.exp),
    Metric("token_accuracy", "Token accuracy", lambda row: row.correct, lambda r: r.tokens, True),
    Metric("rouge1", "ROUGE-1", lambda row: row.rouge["rouge1"], _referenced, True),
    Metric("rouge2", "ROUGE-2", lambda row: row.rouge["rouge2"], _referenced, True),
    Metric("rougeL", "ROUGE-L", lambda row: row.rouge["rougeL"], _referenced, True),
    Metric("rougeLsum", "ROUGE-Lsum", lambda row: row.rouge["rougeLsum"], _referenced, True),
    Metric("stopped", "Answers that end by themselves", lambda row: row.stopped, _one, True),
    Metric("empty", "Empty answers", lambda row: not row.answer.strip(), _one, False),
    Metric("length", "Mean answer length, tokens", lambda row: row.length, _one, None),
)
DECISIVE = ("loss", "rougeL")
DECISIVE_OF_PREFERENCES = ("win_rate", "reward_margin")


@dataclass(frozen=True)
class Comparison:
    """Base against tuned in one figure; `low` to `high` holds 95 % of bootstrap differences."""

    name: str
    title: str
    base: float
    tuned: float
    difference: float
    low: float
    high: float
    more_is_better: bool | None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes no difference at all."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> Verdict:
        """What this figure alone says."""
        if not self.significant or self.more_is_better is None:
            return "cannot tell"
        return "better" if (self.low > 0) == self.more_is_better else "worse"


def rouge_scores(answer: str, reference: str) -> dict[str, float]:
    """ROUGE-1/2/L/Lsum F-measures with Porter stemming (rouge-score, Google's implementation)."""
    return {name: score.fmeasure for name, score in _scorer().score(reference, answer).items()}


def compare(base: Sequence[RowScore], tuned: Sequence[RowScore], seed: int = 0) -> list[Comparison]:
    """Every metric for both models, with a paired bootstrap interval of the difference.

    Rows are drawn with replacement, the same ones for both models (Koehn 2004), so that a row
    that is hard for both does not blur the difference.
    """
    counts = _resamples(len(base), seed)
    whole = np.ones((1, len(base)))
    found = []
    judged = any(score.rejected_tokens or not score.tokens for score in base)
    wanted = [metric for metric in PREFERENCES if judged and metric.exists(base)]
    wanted += [EARNED] if EARNED.exists(base) else []
    for metric in (*wanted, *METRICS):
        ours, theirs = (float(metric.of(scores, whole)[0]) for scores in (tuned, base))
        spread = metric.of(tuned, counts) - metric.of(base, counts)
        low, high = np.percentile(spread, [2.5, 97.5])
        found.append(
            Comparison(
                name=metric.name,
                title=metric.title,
                base=theirs,
                tuned=ours,
                difference=ours - theirs,
                low=float(low),
                high=float(high),
                more_is_better=metric.more_is_better,
            )
        )
    return found


def verdict(comparisons: Sequence[Comparison], rows: int) -> Verdict:
    """Better if loss or ROUGE-L clearly gained and neither clearly lost; worse the other way.

    Where answers are judged, the better ones' likelihood against the worse ones' decides instead:
    methods that compare may well make both less likely. Where answers earn rewards, these decide:
    an answer may be right in other words than the data's. A handful of rows proves nothing, however
    far apart their scores are.
    """
    if rows < ENOUGH_ROWS:
        return "cannot tell"
    names = {item.name for item in comparisons}
    decisive: tuple[str, ...] = DECISIVE
    if "reward_margin" in names:
        decisive = DECISIVE_OF_PREFERENCES
    elif EARNED.name in names:
        decisive = (EARNED.name,)
    said = {item.verdict for item in comparisons if item.name in decisive}
    if "better" in said and "worse" not in said:
        return "better"
    if "worse" in said and "better" not in said:
        return "worse"
    return "cannot tell"


def rewarded(base: Sequence[RowScore], tuned: Sequence[RowScore], beta: float) -> list[RowScore]:
    """The tuned scores with the rewards that DPO implies: β · (log p tuned - log p base).

    Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, section 5.
    """
    return [
        replace(
            after,
            reward=beta * (before.nll - after.nll),
            rejected_reward=beta * (before.rejected_nll - after.rejected_nll),
        )
        for before, after in zip(base, tuned, strict=True)
    ]


def gains(base: Sequence[RowScore], tuned: Sequence[RowScore]) -> list[float]:
    """For each row, by how many nats a token tuned beats base; negative where it lost.

    Of a pair, the better answer's gain less the worse one's; of rewarded answers, the reward's.
    """
    return [
        after.earned - before.earned
        if after.earned is not None and before.earned is not None
        else _likelier(before, after)
        for before, after in zip(base, tuned, strict=True)
    ]


def _likelier(before: RowScore, after: RowScore) -> float:
    return (
        before.nll / max(before.tokens, 1)
        - after.nll / max(after.tokens, 1)
        - (before.rejected_nll - after.rejected_nll) / max(before.rejected_tokens, 1)
    )


def _resamples(rows: int, seed: int) -> np.ndarray:
    """(RESAMPLES, rows): how often each row is in each resample."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)


@cache
def _scorer() -> Any:
    """One scorer a process: building its stemmer takes longer than a score."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGES), use_stemmer=True)
