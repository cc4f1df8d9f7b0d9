"""`phi3lora votes`: blind votes counted, exported, pushed as a dataset, and trained on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3lora.chat.options import BASE, Options
from phi3lora.cli.root import app
from phi3lora.cli.shared import AsJson, Changes, here, tell, with_changes
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, Problem
from phi3lora.methods import GRPOSection

if TYPE_CHECKING:
    from phi3lora.chat.votes import Tally

votes = typer.Typer(
    help="Blind votes: count them, take them as rows, publish them, train on them.",
    no_args_is_help=True,
)
app.add_typer(votes, name="votes")
Adapter = Annotated[
    str,
    typer.Argument(metavar="NAME", help="What was compared with its base: a run's id, or another."),
]


@votes.command(name="show")
def show_votes(
    adapter: Adapter,
    against: Annotated[
        str, typer.Option(metavar="NAME", help="Count the votes beside this one, not the base.")
    ] = "",
    strength: Annotated[
        float,
        typer.Option(help="Count the votes on the adapter at this strength, as `chat` names it."),
    ] = Options.strength,
    against_strength: Annotated[
        float, typer.Option(help="Count the votes beside the other one at this strength.")
    ] = Options.against_strength,
    as_json: AsJson = False,
) -> None:
    """Show how many votes there are, who won, and whether they suffice to train on."""
    from phi3lora.cli.terminal import print_json, print_line

    application, caller = here()
    options = Options(strength=strength, against_strength=against_strength)
    standing = application.voting.standing(adapter, caller, against, options)
    tally = standing.tally
    if as_json:
        print_json({**asdict(standing), **_rate(tally), "method": standing.method})
        return
    other = against or BASE
    counts = (
        f"{tally.tuned} tuned, {tally.base} {other}, {tally.ties} ties, {tally.both_bad} both bad"
    )
    print_line(f"{tally.votes} blind votes: {counts}")
    if tally.win_rate is not None:
        print_line(f"tuned {tally.in_words()}")
    print_line(standing.summary())


@votes.command(name="standings")
def show_standings(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Two, three or more that were compared blind; `base` is the base itself.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show how several stand among each other by the blind votes on every two of them."""
    from phi3lora.cli.terminal import print_json, print_standings

    application, caller = here()
    standings = application.voting.standings([_named(name) for name in names], caller)
    if not as_json:
        print_standings(standings)
        return
    met = [
        {"name": one.name, "against": one.against or BASE, **asdict(one.tally), **_rate(one.tally)}
        for one in standings.meetings
    ]
    placed = [
        {**asdict(one), "name": one.name or BASE, **_rate(one.tally)} for one in standings.places
    ]
    print_json({"places": placed, "meetings": met})


def _named(name: str) -> str:
    """A subject's name as everywhere below: the base has an empty one."""
    return "" if name == BASE else name


def _rate(tally: Tally) -> dict[str, Any]:
    return {"win_rate": tally.win_rate, "interval": tally.interval, "verdict": tally.verdict}


@votes.command(name="judge")
def judge_answers(
    adapter: Adapter,
    questions: Annotated[
        Path, typer.Argument(metavar="FILE", help="A text file with one question on each line.")
    ],
    pattern: Annotated[
        str, typer.Option(help="Regular expression that a good answer matches as a whole.")
    ] = "",
    length: Annotated[
        int | None, typer.Option(help="Characters that a good answer does not exceed.")
    ] = None,
    json_answers: Annotated[
        bool, typer.Option("--json-answers", help="A good answer is one valid JSON value.")
    ] = False,
    function: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="Python function of your own that gives an answer a number: it is called with the "
            "prompt, the answer and an empty reference.",
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(metavar="NAME", help="Compare with this run or adapter, not with the base."),
    ] = "",
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest answer, in tokens.")
    ] = Options.max_new_tokens,
) -> None:
    """Ask both each question and vote by a rule: the answer that earns more is the better one."""
    from phi3lora.cli.terminal import print_line

    application, caller = here()
    rule = rule_of(pattern, length, json_answers, function)
    options = Options(temperature=0, max_new_tokens=max_new_tokens)
    votes = application.voting.judge(adapter, _lines(questions), rule, options, caller, against)
    for number, vote in enumerate(votes, 1):
        print_line(f"{number}: {vote.winner or vote.choice}")
    show_votes(adapter, against)


def rule_of(
    pattern: str, length: int | None, json_answers: bool, function: str | None
) -> GRPOSection:
    """What is rewarded, checked as the options of `method: grpo` are. Raises ConfigError."""
    if not (pattern or length or json_answers or function):
        message = "expected a pattern, a length, JSON or a function to judge by."
        raise ConfigError([Problem("", message)])
    changes = {
        "grpo_config.exact_reward": 0.0,
        "grpo_config.pattern": pattern,
        "grpo_config.length": length,
        "grpo_config.json_reward": float(json_answers),
        "grpo_config.function": function,
    }
    return RunConfig(method="grpo").with_values(changes).grpo_config


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("FILE", f"{file} cannot be read: {error}.")]) from None
    return [line.strip() for line in lines if line.strip()]


@votes.command(name="export")
def export_votes(
    adapter: Adapter,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file of JSON lines that is written.")
    ] = Path("votes.jsonl"),
) -> None:
    """Write the votes as JSON lines: both conversations, who won, and how they were sampled."""
    application, caller = here()
    number = application.voting.export(adapter, output, caller)
    tell(f"{output}: {number} votes")


@votes.command(name="push")
def push_votes(
    adapter: Adapter,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The dataset's name, USER/NAME.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a dataset that everybody can read.")
    ] = False,
) -> None:
    """Publish the votes on the Hub, as a dataset with a card."""
    application, caller = here()
    tell(application.voting.push(adapter, repo, caller, private=not public))


@votes.command(name="train")
def train_votes(
    adapter: Adapter,
    method: Annotated[
        str | None,
        typer.Option(help="How to learn from them: dpo from winners, kto from bad answers too."),
    ] = None,
    changes: Changes = None,
    output: Annotated[
        Path | None,
        typer.Option("--config", help="Write the configuration to this file and train nothing."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train on the votes, from what was compared: DPO, or KTO where many answers are bad."""
    from phi3lora.cli.training import follow

    application, caller = here(helper=True)
    config = with_changes(application.voting.config(adapter, caller, method), changes)
    if output is not None:
        output.write_text(config.to_yaml(), encoding="utf-8")
        tell(f"{output}: train it with `phi3lora train {output}`")
        return
    try:
        run = application.launching.launch(config, caller)
    finally:
        application.close()
    tell(f"Run {run.id} in {run.folder.resolve()}")
    follow(run, 0, as_json)
