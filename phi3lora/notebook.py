"""The same abilities from Python, in a notebook or a script: five functions, and a run.

    import phi3lora

    phi3lora.inspect("rows.jsonl")                          what will be trained
    phi3lora.estimate("pocket", data="rows.jsonl")          the checks before a launch, and memory
    run = phi3lora.train("pocket", data="rows.jsonl")       with a progress bar
    phi3lora.ask("Hello", "USER/NAME")                      base and tuned, side by side
    phi3lora.list_runs()                                    what was trained on this machine

    run.ask("Hello"); run.publish("USER/NAME"); run.resume()

Each is what the page and the terminal do, by the same application. Options are given by section,
as dictionaries with the names that transformers and PEFT use: `training_config={"max_steps": 20}`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora import words
from phi3lora.app.application import Application
from phi3lora.app.callers import Caller, terminal_caller
from phi3lora.app.publishing import TERMINAL_SIGN_IN, Publication
from phi3lora.config import RunConfig
from phi3lora.errors import ConfigError, Problem, TrainingError
from phi3lora.events import Event, Stage, Step
from phi3lora.legacy import translate_fields
from phi3lora.recipes import find_config
from phi3lora.settings import Settings

if TYPE_CHECKING:
    from phi3lora.data.inspection import Inspection
    from phi3lora.runs.store import Run as StoredRun
    from phi3lora.training.preflight import Preflight

Config = str | Path | RunConfig
Data = str | Path | Mapping[str, Any]
Question = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Answers:
    """What both said; `tuned` is empty where the base was asked alone."""

    base: str
    tuned: str

    def __str__(self) -> str:
        return f"base:  {self.base}\ntuned: {self.tuned}" if self.tuned else self.base


@dataclass(frozen=True)
class Run:
    """A training of this machine: how it stands, and what can be done with its result.

    Attributes:
        folder: holds its config, events, checkpoints, result and report.
    """

    folder: Path

    @property
    def id(self) -> str:
        """Its name on the page and in the terminal."""
        return self._stored().id

    @property
    def title(self) -> str:
        """As lists and the model card show it."""
        return self._stored().title

    @property
    def status(self) -> str:
        """`finished`, `stopped`, `failed`, `running` and so on, as of now."""
        return self._stored().status

    @property
    def message(self) -> str:
        """What is to be said of it: the verdict of its evaluation, or why it failed."""
        return self._stored().message

    @property
    def loss(self) -> float | None:
        """The last training loss, in nats a token; None before the first."""
        losses = _here()[0].views.view(self._stored()).losses
        return losses[-1][1] if losses else None

    def ask(self, question: Question, **sampling: Any) -> Answers:
        """Ask base and tuned; see `ask`."""
        return ask(question, str(self.folder), **sampling)

    def resume(self, *, batch_size: int | None = None, progress: bool = True) -> Run:
        """Go on from its last checkpoint until it ends. Raises RunError, TrainingError.

        Args:
            batch_size: rows that are computed at once from now on, for a run that ran out of
                memory; an update is made of as many rows as before.
        """
        application, caller = _here()
        stored = self._stored()
        begin = stored.events_end()
        return _follow(
            application.launching.resume(stored, caller, batch_size=batch_size), begin, progress
        )

    def publish(self, repo: str, *, private: bool = False) -> str:
        """Put its result on the Hub with its evidence; the address.

        Args:
            repo: `USER/NAME`, yours by the token of `hf auth login`.

        Raises RunError while it has no result, AccessError without a token, HubError.
        """
        application, caller = _here()
        caller.needed_token(TERMINAL_SIGN_IN)
        what = Publication(repo, private)
        return application.publishing.push(self._stored(), what, caller).url

    def __repr__(self) -> str:
        return f"<Run {self.id}: {self.title}, {self.status}>"

    def _stored(self) -> StoredRun:
        application, caller = _here()
        return application.launching.find(str(self.folder), caller)


def inspect(data: Data, limit: int | None = None, **options: Any) -> Inspection:
    """What a dataset holds and what of it would be trained: format, counts, a preview.

    Args:
        data: a file, a dataset's id on the Hub, `example:NAME`, or the section `data` of a run:
            `{"path": "rows.jsonl", "format": "messages"}`.
        limit: read this many rows at most.
        options: of a run, by section, as `train` takes them.

    Raises DataError or HubError where it cannot be read, ConfigError for unknown options.
    """
    application, caller = _here()
    return application.datasets.inspect(_config(RunConfig(), data, options), caller, limit)


def estimate(config: Config = "pocket", data: Data | None = None, **options: Any) -> Preflight:
    """The checks before a launch, with memory, steps and time; nothing is made.

    Takes what `train` takes. `.checks` holds level, what was found and what to do of each;
    `.estimate` the figures; `.inspection` the data. What is wrong is in it, not raised.
    """
    application, caller = _here()
    return application.launching.preflight(_config(config, data, options), caller)


def train(
    config: Config = "pocket",
    data: Data | None = None,
    *,
    folder: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Train in a process of its own, watch it with a progress bar, and return the run.

    Interrupting (a notebook's stop button, Ctrl-C) saves and stops: the run can be resumed.

    Args:
        config: a recipe's name, a YAML file, or a `RunConfig`.
        data: a file, a dataset's id on the Hub, `example:NAME`, or the section `data` of a run,
            instead of the config's.
        folder: becomes the run's; the same call with the same folder goes on from there.
        force: train even where a check is red.
        progress: show a bar.
        options: of a run, by section: `training_config={"max_steps": 20}`, `peft_config={"r": 8}`.

    Raises Phi3LoraError with every red check and then makes no run; TrainingError for a run that
    failed.
    """
    application, caller = _here()
    wanted = _config(config, data, options)
    if folder is None:
        return _follow(application.launching.launch(wanted, caller, force=force), 0, progress)
    place = Path(folder).expanduser()
    run = application.launching.launch_in(place, wanted, caller, force=force)
    return _follow(run, 0, progress)


def ask(question: Question, adapter: str | Run = "", **sampling: Any) -> Answers:
    """Ask base and tuned the same; the model stays loaded for the next question.

    Args:
        question: a text, or a conversation as a list of `{"role": ..., "content": ...}`.
        adapter: a run, its id or folder, an adapter on the Hub, `USER/NAME`; empty for the base
            alone.
        sampling: fields of `phi3lora.chat.options.Options`: `temperature=0.7`, `seed=1`.

    Raises RunError, AdapterError, ModelError or HubError, ConfigError for sampling out of bounds.
    """
    application, caller = _here()
    name = str(adapter.folder) if isinstance(adapter, Run) else adapter
    subject = application.comparing.subject(name, caller)
    text = isinstance(question, str)
    messages = [{"role": "user", "content": question}] if text else [dict(m) for m in question]  # type: ignore[arg-type]
    *_, last = application.comparing.reply(
        subject, messages, messages, _sampling(sampling), caller=caller
    )
    return Answers(last.base, last.tuned)


def list_runs() -> list[Run]:
    """The runs of this machine, newest first."""
    application, caller = _here()
    return [Run(run.folder) for run in application.launching.runs(caller)]


def _here() -> tuple[Application, Caller]:
    """The application of this process, and whoever runs it."""
    return _application(Settings.from_environment()), terminal_caller()


@cache
def _application(settings: Settings) -> Application:
    return Application.open(settings, helper=False)


def _config(config: Config, data: Data | None, options: Mapping[str, Any]) -> RunConfig:
    """A config with options by section; old names are translated, and told as warnings."""
    notices: list[str] = []
    if not isinstance(config, RunConfig):
        config, notices = find_config(str(config))
    sections: dict[str, Any] = dict(options)
    if data is not None:
        sections["data"] = data if isinstance(data, Mapping) else {"path": str(data)}
    values: dict[str, Any] = {}
    for section, given in sections.items():
        if isinstance(given, Mapping):
            values |= {f"{section}.{name}": value for name, value in given.items()}
        else:
            values[section] = given
    values, translated = translate_fields(values)
    for notice in [*notices, *translated]:
        warnings.warn(notice, stacklevel=3)
    return config.with_values(values)


def _sampling(given: Mapping[str, Any]) -> Any:
    from phi3lora.chat.options import SETTINGS, Options

    existing = {*SETTINGS, "system", "tools"}
    if unknown := sorted(given.keys() - existing):
        names = ", ".join(sorted(existing))
        raise ConfigError([Problem(unknown[0], f"no such option of an answer; there are {names}.")])
    return Options(**given)


def _follow(run: StoredRun, begin: int, progress: bool) -> Run:
    """Show a run's events to its end. An interrupt asks it to save and stop, and still waits."""
    application, _ = _here()
    with _bar(progress) as show:
        try:
            for event in run.follow(begin):
                show(event)
        except KeyboardInterrupt:
            application.launching.stop(run)
            for event in run.follow(run.events_end()):
                show(event)
    run = run.refresh()
    if run.status == "failed":
        raise TrainingError(run.message)
    return Run(run.folder)


@contextmanager
def _bar(wanted: bool) -> Iterator[Any]:
    """Shows events as a bar: a widget where the notebook has them, else a line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no widgets
        from tqdm.auto import tqdm

    with tqdm(disable=not wanted, unit="step", desc="Starting") as bar:

        def show(event: Event) -> None:
            if isinstance(event, Stage):
                bar.set_description(event.name.capitalize())
            elif isinstance(event, Step):
                bar.total = event.total_steps
                bar.set_description("Training", refresh=False)
                loss = {} if event.loss is None else {"loss": words.figure(event.loss)}
                bar.set_postfix(loss, refresh=False) if loss else None
                bar.update(event.step - bar.n)

        yield show
