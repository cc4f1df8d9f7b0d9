"""`phi3lora chat`: base and tuned side by side, blind, or the base alone."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3lora.chat.options import BASE, BOTH, SETTINGS, Options
from phi3lora.cli.root import app
from phi3lora.cli.shared import AsJson, here, tell
from phi3lora.config import ModelConfig
from phi3lora.errors import ConfigError, DataError, Problem
from phi3lora.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phi3lora.app.application import Application
    from phi3lora.app.callers import Caller
    from phi3lora.app.comparing import Subject
    from phi3lora.chat.options import Pair, Side

RESULT = "/tool "  # how a line begins that is what a tool answered
VOTES = {"a": "left", "b": "right", "t": "tie", "n": "both bad"}


def _sampling(name: str) -> Any:
    """The flag of a sampling option, described where its slider is."""
    return typer.Option(help=SETTINGS[name].help)


@app.command()
def chat(
    adapter: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="A run's id, a folder with an adapter, a model or a run, or an adapter on the "
            "Hub, USER/NAME; without it the base answers alone.",
        ),
    ] = "",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Let this one answer in the base's place; it is named as --adapter is. Given "
            "twice, with --blind, each question draws two of the three; `base` is the base itself.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base that answers where no adapter is named.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Ask this one question, print the answers and exit.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask every line of this file, each as a conversation of its own, print a table "
            "of the answers and exit.",
        ),
    ] = None,
    blind: Annotated[
        bool,
        typer.Option("--blind", help="Hide which answer is whose until you have voted for one."),
    ] = False,
    system: Annotated[
        str, typer.Option(help="The system prompt that is put before the conversation.")
    ] = "",
    tools: Annotated[
        str,
        typer.Option(
            metavar="JSON",
            help="What the model may call, as JSON or a file of it, for bases whose chat template "
            "takes tools (Phi-4-mini). A line that begins with `/tool ` is what a tool answered.",
        ),
    ] = "",
    temperature: Annotated[float, _sampling("temperature")] = Options.temperature,
    top_k: Annotated[int, _sampling("top_k")] = Options.top_k,
    top_p: Annotated[float, _sampling("top_p")] = Options.top_p,
    min_p: Annotated[float, _sampling("min_p")] = Options.min_p,
    repetition_penalty: Annotated[
        float, _sampling("repetition_penalty")
    ] = Options.repetition_penalty,
    max_new_tokens: Annotated[int, _sampling("max_new_tokens")] = Options.max_new_tokens,
    seed: Annotated[int, _sampling("seed")] = Options.seed,
    strength: Annotated[float, _sampling("strength")] = Options.strength,
    against_strength: Annotated[float, _sampling("against_strength")] = Options.against_strength,
    as_json: AsJson = False,
) -> None:
    """Ask base and tuned the same, or two adapters, side by side."""
    options = Options(
        system=system,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        seed=seed,
        strength=strength,
        against_strength=against_strength,
        tools=_text_or_file(tools),
    )
    names = [adapter, *("" if name == BASE else name for name in against or [""])]
    _check(names, model, prompt, prompts, blind, as_json)
    asked = _lines_of(prompts) if prompts else []
    application, caller = here()
    subject = application.comparing.opposed(adapter, names[1], caller)
    if model:
        subject = replace(subject, base=ModelConfig(path=model))
    for note in application.comparing.load(subject, caller):
        tell(note)
    if asked:
        _ask_set(application, caller, subject, asked, options, as_json)
        return
    talk = Talk(application, caller, subject, names, options, blind)
    if prompt is None:
        talk.converse()
    else:
        talk.ask_once(prompt, as_json)


def _check(
    names: list[str],
    model: str | None,
    prompt: str | None,
    prompts: Path | None,
    blind: bool,
    as_json: bool,
) -> None:
    wrong, adapter = [], names[0]
    if any(names[1:]) and not adapter:
        wrong.append(Problem("--against", "stands beside an --adapter; name one."))
    if len(names) > 2 and (not blind or len(names) > 3):
        wrong.append(Problem("--against", "is given once, or twice for a --blind tournament."))
    if as_json and prompt is None and prompts is None:
        problem = "answers one question or a set; give it with --prompt or --prompts."
        wrong.append(Problem("--json", problem))
    if prompts is not None and (prompt is not None or blind):
        wrong.append(Problem("--prompts", "asks in the open; leave out --prompt and --blind."))
    if blind and not adapter:
        wrong.append(Problem("--blind", "hides which of two answers is whose; name an --adapter."))
    if blind and as_json:
        wrong.append(Problem("--blind", "asks you for a vote; leave out --json."))
    if model and adapter:
        wrong.append(Problem("--model", "is for the base alone; an adapter names its own base."))
    if wrong:
        raise ConfigError(wrong)


def _lines_of(file: Path) -> list[str]:
    """The prompts of a file, one on each line. Raises DataError."""
    from phi3lora.app.prompt_sets import prompts_in

    try:
        return prompts_in(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise DataError(f"{file} cannot be read: {reason}.") from None


def _ask_set(
    application: Application,
    caller: Caller,
    subject: Subject,
    prompts: list[str],
    options: Options,
    as_json: bool,
) -> None:
    """Ask them one after the other; a JSON object a line, or a table at the end."""
    from phi3lora.app.comparing import titles
    from phi3lora.app.prompt_sets import ask_all
    from phi3lora.cli.terminal import print_answers, print_json

    rows = []
    for said in ask_all(application.comparing, subject, prompts, options, caller=caller):
        if isinstance(said, str):
            tell(said)
            continue
        rows.append(said)
        if as_json:
            print_json(asdict(said))
    if not as_json:
        names = titles(subject, options) if subject.result else ("Base",)
        print_answers(names, [(row.prompt, row.base, row.tuned) for row in rows])


def _text_or_file(given: str) -> str:
    """JSON as it was typed, or what the file of that name holds."""
    if not given or given.lstrip()[:1] in "[{":
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError([Problem("--tools", f"{given!r} cannot be read: {error}.")]) from None


class Talk:
    """A conversation at a terminal."""

    def __init__(
        self,
        application: Application,
        caller: Caller,
        subject: Subject,
        names: list[str],
        options: Options,
        blind: bool,
    ) -> None:
        self._comparing, self._caller, self._subject = application.comparing, caller, subject
        self._voting = application.voting
        self._names, self._options, self._blind = names, options, blind
        self._meeting = (names[0], names[1])  # who answers
        self._voted = False
        self._base: list[dict[str, str]] = []
        self._tuned: list[dict[str, str]] = []

    def _answers(self, prompt: str) -> Iterator[Pair]:
        is_result = prompt.startswith(RESULT)
        question = {
            "role": "tool" if is_result else "user",
            "content": prompt.removeprefix(RESULT),
        }
        self._base.append(question)
        self._tuned.append(question)
        return self._comparing.reply(
            self._subject, self._base, self._tuned, self._options, caller=self._caller
        )

    def ask_once(self, prompt: str, as_json: bool) -> None:
        """One question, its answers, and nothing more."""
        from phi3lora.cli.terminal import print_json

        if not as_json:
            self._show(prompt)
            return
        *_, last = self._answers(prompt)
        names = ("base", "tuned", "stopped_base", "stopped_tuned", "tokens_base", "tokens_tuned")
        found = {name: getattr(last, name) for name in names}
        against = {"against": self._names[1]} if self._names[1] else {}
        print_json({**found, **against})

    def converse(self) -> None:
        """Ask and answer until an empty line or the end of the input."""
        while prompt := _read_line("you: "):
            last = self._show(prompt)
            self._base.append({"role": "assistant", "content": last.base})
            self._tuned.append({"role": "assistant", "content": last.tuned})
        if self._blind:
            self._sum_up()

    def _sum_up(self) -> None:
        """How all blind votes stand on what was compared here."""
        from phi3lora.app.comparing import titles
        from phi3lora.cli.terminal import print_line, print_standings

        if len(self._names) > 2:
            print_standings(self._voting.standings(self._names, self._caller))
            return
        adapter, against = self._names
        tally = self._voting.standing(adapter, self._caller, against, self._options).tally
        _, tuned = titles(self._subject, self._options)
        print_line(f"{counted(tally.votes, 'blind vote')}: {tuned} {tally.in_words()}")

    def _show(self, prompt: str) -> Pair:
        from phi3lora.app.comparing import draw_sides, titles
        from phi3lora.cli.terminal import print_pair

        if self._voted:  # a vote ends a conversation: the next two answers have one history
            self._base, self._tuned, self._voted = [], [], False
        if len(self._names) > 2:
            self._draw()
        both = self._subject.result is not None
        sides = draw_sides(blind=self._blind)
        order: tuple[Side, ...] = sides.order if both else ("base",)
        called = dict(zip(BOTH, titles(self._subject, self._options), strict=True))
        if self._subject.against is None:
            called = {side: called[side].lower() for side in BOTH}
        last = print_pair(
            self._answers(prompt), order, ("A", "B") if self._blind else [called[s] for s in order]
        )
        if self._blind:
            self._vote(sides, last, [called[side] for side in order])
        return last

    def _draw(self) -> None:
        """Two of the three for the next question, which begins a conversation of its own."""
        from phi3lora.app.comparing import draw_two

        self._meeting = draw_two(self._names)
        self._subject = self._comparing.opposed(*self._meeting, self._caller)
        self._base, self._tuned = [], []

    def _vote(self, sides: Any, last: Pair, called: list[str]) -> None:
        """Ask which answer is better, count it, and say whose they were."""
        from phi3lora.cli.terminal import print_line

        said = _read_line("better: a, b, t (tie), n (neither), or Enter to skip: ").lower()
        if choice := VOTES.get(said[:1]):
            self._voted = True
            asked = {"base": self._base, "tuned": self._tuned}
            left, right = (
                [*asked[side], {"role": "assistant", "content": getattr(last, side)}]
                for side in sides.order
            )
            self._voting.cast(
                self._meeting[0],
                sides,
                choice,  # type: ignore[arg-type]
                left,
                right,
                self._options,
                self._caller,
                against=self._meeting[1],
            )
        print_line(f"A was {called[0]}, B was {called[1]}.\n")


def _read_line(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        return ""
