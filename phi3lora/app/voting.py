"""Blind votes as rows: counted, exported, pushed as a dataset, and trained on.

voting = Voting(settings, comparing, datasets, launching)
voting.standing("run-id", caller)             how many there are, and what they suffice for
voting.export("run-id", Path("votes.jsonl"), caller)
voting.config("run-id", caller)               a run that learns from them

What people typed is shown to whoever the compared run belongs to, and at their own machine to
anybody. Votes whose voter did not agree to have it kept are counted and nothing else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phi3lora.app.callers import SIGN_IN, Caller
from phi3lora.app.comparing import (
    Comparing,
    Meeting,
    Place,
    Sides,
    Subject,
    draw_sides,
    named_for_votes,
    without_strength,
)
from phi3lora.app.datasets import Datasets
from phi3lora.app.launching import LONGEST_TITLE, Launching
from phi3lora.chat.options import SETTINGS, Options
from phi3lora.chat.votes import Choice, Tally, Vote
from phi3lora.config import POCKET, DataConfig, RunConfig
from phi3lora.errors import AccessError, ConfigError, HubError, Problem, RunError
from phi3lora.methods import GRPOSection
from phi3lora.runs.permission import check_function
from phi3lora.settings import Settings
from phi3lora.training.rewards import Answer, earned, rewards_of

ENOUGH = 20  # answers of each kind, or pairs, from which training on them is offered
SLOWER = 20  # by how much the learning rate is below that of the run, as papers have it
SLOWER_POCKET = 10  # pocket is small; measured: from five on its answers fall apart
TITLE = " after votes"
VOTES = "votes.jsonl"  # as a dataset holds them


@dataclass(frozen=True)
class Standing:
    """What the votes on an adapter suffice for.

    Attributes:
        tally: all votes.
        pairs: votes with a winner, both answers to the same conversation, of which all was kept.
        bad: votes for `both bad`, likewise.
        untold: votes of which nothing was kept.
    """

    tally: Tally
    pairs: int
    bad: int
    untold: int

    @property
    def method(self) -> str | None:
        """What can be trained on them: `dpo`, or `kto` where many are bad; None for too few."""
        if self.pairs >= ENOUGH:
            return "dpo"
        return "kto" if self.pairs + 2 * self.bad >= ENOUGH else None

    def summary(self) -> str:
        """The number, and what is missing, in a sentence."""
        have = f"{self.pairs} pairs with a winner and {self.bad} with two bad answers"
        if self.method is None:
            return f"{have}: {ENOUGH} pairs are enough to train on, or {ENOUGH // 2} bad ones."
        return f"{have}: enough to train on with {self.method.upper()}."


@dataclass(frozen=True)
class Standings:
    """How several stand by the votes on every two of them: the best first, and each two."""

    places: list[Place]
    meetings: list[Meeting]


class Voting:
    """What can be done with votes."""

    def __init__(
        self, settings: Settings, comparing: Comparing, datasets: Datasets, launching: Launching
    ) -> None:
        self.settings = settings
        self._comparing, self._datasets, self._launching = comparing, datasets, launching

    def standing(
        self, adapter: str, caller: Caller, against: str = "", options: Options | None = None
    ) -> Standing:
        """Counts alone, which whoever may compare the adapter may see.

        The tally is of the votes beside `against`, or the base, at the strengths that the options
        name; the rest of all votes on it.
        """
        self._comparing.opposed(adapter, against, caller)
        votes = self._comparing.votes(adapter)
        usable = [vote for vote in votes if _is_usable(vote)]
        return Standing(
            self._comparing.tally(*named_for_votes(adapter, against, options or Options())),
            pairs=sum(vote.winner is not None for vote in usable),
            bad=sum(vote.choice == "both bad" for vote in usable),
            untold=sum(vote.row() is None for vote in votes),
        )

    def standings(self, names: Sequence[str], caller: Caller) -> Standings:
        """How two, three or more stand among each other; an empty name is the base.

        Raises ConfigError for fewer than two, and what `Comparing.subject` does.
        """
        if len(set(names)) < 2:
            message = "expected two or more to compare; `base` is the base itself."
            raise ConfigError([Problem("NAME", message)])
        for name in names:
            self._comparing.subject(without_strength(name), caller)
        return Standings(self._comparing.tournament(names), self._comparing.meetings(names))

    def cast(
        self,
        adapter: str,
        sides: Sides,
        choice: Choice,
        left: list[dict[str, str]],
        right: list[dict[str, str]],
        options: Options,
        caller: Caller,
        *,
        consent: bool = False,
        against: str = "",
    ) -> Vote:
        """Write a vote down, with what was said where it may be kept.

        Args:
            left, right: the conversation with each, the answer that is voted on last.
            consent: whether the voter agreed; at one's own machine nobody has to.
            against: what stood in the base's place; empty for the base.

        Raises RunError if this pair of answers has a vote, and what `Comparing.subject` does.
        """
        subject = self._comparing.opposed(adapter, against, caller)
        named, other = named_for_votes(adapter, against, options)
        questions = [turn["content"] for turn in left if turn["role"] == "user"]
        vote = Vote(named, sides.pair, choice, sides.left, against=other)
        if consent or not self.settings.on_space:
            system = [{"role": "system", "content": options.system}] if options.system else []
            vote = replace(
                vote,
                prompt=questions[-1],
                left_said=[*system, *left],
                right_said=[*system, *right],
                settings={name: getattr(options, name) for name in SETTINGS},
                model=subject.base.path,
            )
        self._comparing.vote(vote)
        return vote

    def judge(
        self,
        adapter: str,
        questions: Iterable[str],
        rule: GRPOSection,
        options: Options,
        caller: Caller,
        against: str = "",
    ) -> Iterator[Vote]:
        """Ask both each question, and vote for the answer that earns more by a rule.

        Equal answers are a tie, and both bad where neither earns anything. What is rewarded is
        said as for `method: grpo`; an exact answer is not known here.

        Raises ConfigError for a rule that cannot be, AccessError for a function on a Space, and
        what asking raises.
        """
        check_function(rule.function, self.settings)
        rewards = rewards_of(rule.model_copy(update={"exact_reward": 0.0}))
        if not rewards:
            message = "expected a pattern, a length, JSON or a function to judge by."
            raise ConfigError([Problem("rule", message)])
        subject = self._comparing.opposed(adapter, against, caller)
        for question in questions:
            asked: list[Any] = [{"role": "user", "content": question}]
            *_, pair = self._comparing.reply(subject, asked, asked, options, caller=caller)
            sides = draw_sides(blind=True)
            said = [getattr(pair, side) for side in sides.order]
            left, right = ([*asked, {"role": "assistant", "content": text}] for text in said)
            scores = [earned(rewards, Answer(asked, text, "")) for text in said]
            choice = _judged(*scores)
            yield self.cast(adapter, sides, choice, left, right, options, caller, against=against)

    def rows(self, adapter: str, caller: Caller) -> list[dict[str, Any]]:
        """Rows of the format `comparison`, ties too. Raises AccessError, RunError for none."""
        self._check_owner(adapter, caller)
        found = [row for vote in self._comparing.votes(adapter) if (row := vote.row())]
        if not found:
            raise RunError(
                f"There are no votes on {adapter!r} of which both answers were kept. Compare it "
                "blind first: on the page, or with `phi3lora chat --blind`."
            )
        return found

    def refusal(self, adapter: str, caller: Caller) -> str:
        """Why this caller may not see what was said; empty where they may. Raises as `subject`."""
        try:
            self._check_owner(adapter, caller)
        except AccessError as error:
            return str(error)
        return ""

    def _check_owner(self, adapter: str, caller: Caller) -> Subject:
        """On a Space others' words are for the owner of the compared run alone."""
        subject = self._comparing.subject(adapter, caller)
        own = any(run.id == adapter for run in self._comparing.runs(caller))
        if self.settings.on_space and not own:
            raise AccessError(
                "What people said while they compared is for the owner of the run that was "
                "compared; these votes are about something else."
            )
        return subject

    def export(self, adapter: str, file: Path, caller: Caller) -> int:
        """Write the votes as JSON lines; how many there are."""
        rows = self.rows(adapter, caller)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_lines(rows))
        return len(rows)

    def push(self, adapter: str, repo: str, caller: Caller, *, private: bool = True) -> str:
        """Publish the votes as a dataset with a card; its address.

        An earlier one by this name is brought up to date. Raises AccessError without a token or
        for others' votes, RunError for none, HubError for a name that is somebody's, or something,
        else, and for an open dataset that is meant to be private.
        """
        from phi3lora.hub.sending import create, send

        rows = self.rows(adapter, caller)
        token = caller.needed_token(SIGN_IN)
        _check_target(repo, caller, token, private)
        card = dataset_card(repo, rows, self._comparing.tally(adapter))
        url = create(token, repo, kind="dataset", private=private)
        contents = {VOTES: _lines(rows), "README.md": card.encode()}
        send(token, repo, contents, f"{len(rows)} votes", kind="dataset")
        return url

    def config(self, adapter: str, caller: Caller, method: str | None = None) -> RunConfig:
        """A run that goes on from the compared one and learns from its votes.

        Args:
            method: `dpo` or `kto`; None for what the votes suffice for.

        Raises RunError where there are too few, AccessError for others' votes.
        """
        standing = self.standing(adapter, caller)
        chosen = method or standing.method
        if chosen is None or (chosen == "dpo" and standing.pairs < ENOUGH):
            raise RunError(f"Not enough votes yet: {standing.summary()}")
        rows = self.rows(adapter, caller)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "votes.jsonl"
            file.write_bytes(_lines(rows))
            kept = self._datasets.keep_upload(file, caller)
        return self._further(adapter, caller, chosen, kept)

    def _further(self, adapter: str, caller: Caller, method: str, data: Path) -> RunConfig:
        """The compared run's config with its result as the start, and votes for data."""
        run = self._launching.run(adapter, caller)
        config = self._launching.further(run)
        section = DataConfig(
            path=str(data),
            format="comparison",
            system_messages=config.data.system_messages,
        )
        rate = config.training_config.learning_rate
        changes = {
            "method": method,
            "title": f"{run.title[: LONGEST_TITLE - len(TITLE)]}{TITLE}",
            "adapter": "peft",
            "training_config.packing": False,
            "training_config.label_smoothing_factor": 0.0,
            "training_config.metric_for_best_model": None,
            "training_config.max_steps": -1,
            "training_config.per_device_train_batch_size": 4,
            "training_config.learning_rate": rate
            / (SLOWER_POCKET if _is_pocket(config) else SLOWER),
            **{f"data.{name}": value for name, value in section.model_dump().items()},
        }
        return config.with_values(changes)


def _check_target(repo: str, caller: Caller, token: str, private: bool) -> None:
    """Raises HubError where votes would stand in another's place, in another dataset's, or open."""
    from phi3lora.hub.client import find_repo, is_hub_id
    from phi3lora.hub.upload import BARE, check_owner

    if repo.count("/") != 1 or not is_hub_id(repo):
        raise HubError(f"Expected a repository such as USER/NAME, got {repo!r}.")
    check_owner(repo, caller.needed_identity())
    info = find_repo("dataset", repo, token)
    files = {sibling.rfilename for sibling in info.siblings or ()} if info else set()
    if files - BARE - {VOTES}:
        raise HubError(
            f"{repo} holds something else than votes; choose another name, so that nothing of it "
            "is lost."
        )
    if info is not None and private and not info.private:
        raise HubError(
            f"{repo} is open to everybody on the Hub. Make it private in its settings there, "
            "choose another name, or untick Private."
        )


def _judged(left: float, right: float) -> Choice:
    """The choice of a rule that gave both sides a number."""
    if left == right:
        return "tie" if left > 0 else "both bad"
    return "left" if left > right else "right"


def dataset_card(repo: str, rows: list[dict[str, Any]], tally: Tally) -> str:
    """README.md of a dataset of votes."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        tags=["phi3lora", "preference", "dpo", "human-feedback"],
        task_categories=["text-generation"],
        pretty_name=repo.rpartition("/")[2],
        configs=[{"config_name": "default", "data_files": VOTES}],
    )
    models = " and ".join(sorted({f"`{row[side]}`" for row in rows for side in _MODELS}))
    rate = ""
    if tally.win_rate is not None:
        low, high = tally.interval
        rate = (
            f" The tuned model won {tally.win_rate:.0%} of the votes with a winner (95 % interval "
            f"{low:.0%} to {high:.0%})."
        )
    return _CARD.format(
        yaml=data.to_yaml(),
        repo=repo,
        name=repo.rpartition("/")[2],
        count=len(rows),
        models=models,
        rate=rate,
    )


_MODELS = ("model_a", "model_b")
_CARD = """---
{yaml}
---

# {name}

{count} blind votes between answers of {models}, collected with phi3lora: two answers to the same
question stood side by side, nobody saw whose they were, and one was called better, both bad, or a
tie.{rate}

| column | meaning |
| --- | --- |
| `conversation_a`, `conversation_b` | the conversation with each; the last turn was voted on |
| `winner` | `a`, `b`, `tie` or `both bad` |
| `model_a`, `model_b` | who answered |
| `settings` | how both were sampled |
| `time` | of the vote, in seconds since 1970 |

Who voted is not known. Voters on a shared app agreed to have their question and both answers kept,
trained on and published.

```yaml
method: dpo
data:
  path: {repo}
  format: comparison
```
"""


def _is_usable(vote: Vote) -> bool:
    """Whether both answers were kept, to the very same conversation."""
    return vote.row() is not None and vote.left_said[:-1] == vote.right_said[:-1]


def _is_pocket(config: RunConfig) -> bool:
    return config.model.path in (POCKET, "auto") or Path(config.model.path).name == "checkpoint"


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
