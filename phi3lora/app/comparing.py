"""Base against tuned: a name becomes one `Subject`, which is loaded, asked and voted on.

comparing = Comparing(settings, store, views, callers)
subject = comparing.subject("ann/pirate", caller)      run, folder, Hub id, whole model, or ""
for note in comparing.load(subject, caller): ...
for pair in comparing.reply(subject, base, tuned, options, caller=caller): ...
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from phi3lora import words
from phi3lora.app.callers import Caller, Callers
from phi3lora.app.shared import Asked, Recent, Shared
from phi3lora.app.views import Follower
from phi3lora.app.working import Put, in_thread
from phi3lora.chat.options import BOTH, Options, Pair, Side
from phi3lora.chat.requests import check_lengths
from phi3lora.chat.votes import Tally, Vote, VoteBook
from phi3lora.config import POCKET, ModelConfig, RunConfig
from phi3lora.data.conversation import Unusable
from phi3lora.data.rendering import SystemMessages
from phi3lora.data.tools import calls
from phi3lora.errors import (
    AccessError,
    AdapterError,
    ConfigError,
    DataError,
    Phi3LoraError,
    RunError,
)
from phi3lora.hub.access import stored_token
from phi3lora.hub.adapters import fetch_adapter
from phi3lora.hub.client import is_hub_id
from phi3lora.hub.facts import read_report
from phi3lora.lora.folder import read_adapter_config
from phi3lora.lora.result import result_in
from phi3lora.models import pocket
from phi3lora.runs.store import ID, Run, RunStore, open_run
from phi3lora.settings import Settings
from phi3lora.strict_yaml import front_matter

if TYPE_CHECKING:
    from phi3lora.chat.answering import Answering

Kind = Literal["base", "adapter", "loralib", "model"]
ANSWER_FRAME = 0.08  # seconds between two frames of a growing answer
# Where many grow, times their number: each frame is work of the loop that serves everybody.
SHARED_FRAME, SLOWEST_FRAME = 0.03, 0.3
FEW = 3  # prompts of a report, below which the pocket model's are suggested too
LONGEST_PROMPT = 160
CONFIG_FILE = "config.yaml"
SETTLED = 3  # steps after which a run takes no more memory


@dataclass(frozen=True)
class Subject:
    """What is compared.

    Attributes:
        base: as it is loaded.
        result: the folder beside it: an adapter, or a whole model; None for the base alone.
        kind: what the result is.
        name: what to call it.
        system_messages: what its training did with them where the base's template has no place.
        against: what answers in the base's place; None for the base itself.
    """

    base: ModelConfig
    result: Path | None = None
    kind: Kind = "base"
    name: str = "base"
    system_messages: SystemMessages = "merge"
    against: Subject | None = None

    @property
    def other_base(self) -> ModelConfig | None:
        """The base of what it stands against, where that is another one.

        The same weights are loaded once, as this subject wants them.
        """
        other = self.against.base if self.against else self.base
        kind = (self.base.path, self.base.revision, self.base.quantization)
        return None if kind == (other.path, other.revision, other.quantization) else other


@dataclass(frozen=True)
class Sample:
    """A held-out prompt, and both answers."""

    prompt: str
    base: str
    tuned: str


BASE_ALONE = Subject(ModelConfig())
# A trained adapter that comes along: something to compare for whoever has trained nothing yet.
BUNDLED = "example:pirate"
PIRATE = Subject(ModelConfig(path=POCKET), pocket.PIRATE, "adapter", "Pocket pirate")


@dataclass(frozen=True)
class Sides:
    """Who stands on which side, and which pair of answers it is.

    Attributes:
        left: whose answer is on the left.
        pair: any name that no other pair of answers has; a vote is counted once for each.
    """

    left: Side = "base"
    pair: str = ""

    @property
    def order(self) -> tuple[Side, Side]:
        """Whose answer stands left, and whose right."""
        return ("base", "tuned") if self.left == "base" else ("tuned", "base")


def draw_sides(*, blind: bool) -> Sides:
    """Sides for a new pair of answers: the base is left, unless nobody shall know."""
    left: Side = secrets.choice(("base", "tuned")) if blind else "base"
    return Sides(left, secrets.token_hex(8))


def draw_two(names: Sequence[str]) -> tuple[str, str]:
    """Two of several names that meet in a round; the base, an empty one, stands second."""
    first, second = secrets.SystemRandom().sample(list(dict.fromkeys(names)), 2)
    return (first, second) if first else (second, first)


@dataclass(frozen=True)
class Place:
    """How one of several stands in a tournament: rounds won, of those that had a winner."""

    name: str
    won: int = 0
    decided: int = 0

    @property
    def tally(self) -> Tally:
        """The same rounds as a tally against all others, for a win rate with its interval."""
        return Tally(self.won, self.decided - self.won)


@dataclass(frozen=True)
class Meeting:
    """The votes on two of several; the tally's `tuned` is `name`, its `base` is `against`."""

    name: str
    against: str
    tally: Tally


class Comparing:
    """Names into subjects, subjects into answers, answers into votes.

    Attributes:
        settled: the only name that there is to compare; empty where one chooses.
    """

    settled: str = ""

    def __init__(
        self, settings: Settings, store: RunStore, views: Follower, callers: Callers
    ) -> None:
        self.settings = settings
        self._store, self._views, self._callers = store, views, callers
        self._book = VoteBook(settings.home / "votes.jsonl")
        self._recent = Recent()
        self._engine: Answering | None = None
        self._answers = 0  # that are asked for and have not ended
        self._lock = threading.Lock()

    # What a name means

    def subject(self, name: str, caller: Caller, revision: str | None = None) -> Subject:
        """What this caller means by a name.

        The bundled adapter, for everybody; a run of theirs by its id; on one's own machine a
        folder: of a run, an adapter, or a whole model; an adapter on the Hub, `USER/NAME`; the
        base alone by an empty name. Raises RunError, AdapterError, HubError or AccessError.
        """
        if not name:
            return BASE_ALONE
        if name == BUNDLED:
            return PIRATE
        if ID.fullmatch(name) and (run := self._own(name, caller)):
            return subject_of(run)
        local = not self.settings.on_space
        folder = _named_folder(name)
        if local and folder is not None:
            return _in_folder(folder)
        if is_hub_id(name):
            found = fetch_adapter(name, caller.token, self.settings.cache_folder, revision)
            base = ModelConfig(path=found.base, revision=found.revision)
            return Subject(base, found.folder, "adapter", name, system_messages_in(found.folder))
        if local:
            raise RunError(
                f"There is no run {name!r}, and no folder of that name with a result in it; "
                "`phi3lora runs list` names the runs, and USER/NAME an adapter on the Hub."
            )
        raise AccessError(
            "Choose one of your finished runs, or an adapter on the Hub, USER/NAME; folders "
            "cannot be named here."
        )

    def opposed(self, name: str, against: str, caller: Caller) -> Subject:
        """What is meant by a name, beside something else than its base.

        An empty `against` is the base, and so is everything where there is nothing to choose.
        Raises what `subject` does.
        """
        if self.settled or not (name and against):
            return self.subject(name or against, caller)
        return replace(self.subject(name, caller), against=self.subject(against, caller))

    def _own(self, run_id: str, caller: Caller) -> Run | None:
        return next((run for run in self._store.list(caller.name) if run.id == run_id), None)

    def runs(self, caller: Caller) -> list[Run]:
        """The caller's runs that can be compared, newest first."""
        return [run for run in self._store.list(caller.name) if run.has_result]

    def called(self, name: str, caller: Caller) -> str:
        """What to call a subject without opening it: a run of the caller's by its title."""
        if name in ("", BUNDLED):
            return PIRATE.name if name else "Base"
        run = self._own(name, caller)
        return run.title if run else name

    def suggestions(self, name: str, caller: Caller) -> list[str]:
        """Prompts to try: held-out ones of the run's report, else of the pocket world."""
        folder = self._reported(name, caller)
        prompts = held_out_prompts(folder) if folder else []
        if len(prompts) < FEW:
            prompts += pocket.prompts()
        return prompts

    def kept_answers(self, name: str, caller: Caller) -> Sample | None:
        """A held-out prompt with what both said to it, from the run's report; None without one."""
        folder = self._reported(name, caller)
        return best_sample(folder) if folder else None

    def _reported(self, name: str, caller: Caller) -> Path | None:
        """The folder of what is compared here and now, which may hold a report."""
        run = self._own(name, caller)
        return pocket.PIRATE if name == BUNDLED else run.folder if run else None

    # Answers

    def load(self, subject: Subject, caller: Caller) -> Iterator[str]:
        """Load base and result; says what it does while it does it, then what fell back.

        Raises Phi3LoraError: whatever stops the loading is told.
        """
        self._check(subject, caller)

        def work(put: Put) -> list[str]:
            engine, other = self.engine(), subject.against
            return engine.load(
                subject.base,
                subject.result,
                token=caller.token,
                progress=put,
                against=other.result if other else None,
                against_base=subject.other_base,
            )

        for told in in_thread(work, ANSWER_FRAME):
            yield from told if isinstance(told, list) else [told]

    def reply(
        self,
        subject: Subject,
        base: list[Any],
        tuned: list[Any],
        options: Options,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        caller: Caller,
        sides: tuple[Side, ...] = BOTH,
    ) -> Iterator[Pair]:
        """The answers as they grow, a dozen times a second at most. Raises Phi3LoraError."""
        self._check(subject, caller)
        if self.settings.on_space:
            check_lengths([*base, *tuned, options.first()])
        pairs = self.engine().reply(
            base,
            tuned,
            replace(options, system_messages=subject.system_messages),
            should_stop,
            base=subject.base,
            adapter=subject.result,
            token=caller.token,
            sides=sides,
            against=subject.against.result if subject.against else None,
            against_base=subject.other_base,
        )
        last = 0.0
        with self._growing():
            for pair in pairs:
                if pair.done or time.monotonic() - last > self._frame:
                    last = time.monotonic()
                    yield pair

    @contextmanager
    def _growing(self) -> Iterator[None]:
        """Count an answer that is asked for, until it has ended."""
        with self._lock:
            self._answers += 1
        try:
            yield
        finally:
            with self._lock:
                self._answers -= 1

    @property
    def _frame(self) -> float:
        """Seconds between two frames of an answer, among so many."""
        return max(ANSWER_FRAME, min(SHARED_FRAME * self._answers, SLOWEST_FRAME))

    def _check(self, subject: Subject, caller: Caller) -> None:
        """Whether this caller may have the base loaded, or answer here. Raises Phi3LoraError."""
        self._callers.check_base(subject.base, caller)
        if subject.other_base:
            self._callers.check_base(subject.other_base, caller)

    def engine(self) -> Answering:
        """The chat, shared by everybody; it loads nothing before it is asked."""
        with self._lock:
            if self._engine is None:
                self._engine = self._new_engine()
            return self._engine

    def _new_engine(self) -> Answering:
        if self.settings.zero_gpu:
            from phi3lora.runs.backends.zerogpu import LentChat

            return LentChat(self.settings)
        from phi3lora.chat.whole import Chat

        return Chat(self.settings, self._training_needs)

    def quota_message(self) -> str:
        """What an answer takes of the visitor's GPU quota; empty where the GPU is the app's own."""
        if not self.settings.zero_gpu:
            return ""
        from phi3lora.runs.backends.zerogpu import asks

        return asks(Options())

    def room_message(self) -> str:
        """Why there is no room for the chat beside a training; empty where there is."""
        if self._engine is None:
            return ""
        room = self._engine.fits()
        return "" if room.fits else room.message

    def _training_needs(self) -> int | None:
        """Bytes that a run may yet take of the chat's device; None where none computes there.

        Asked once a second. A run that has made a few steps has been at its peak, and what is free
        stays free.
        """
        from phi3lora.models.hardware import detect_hardware
        from phi3lora.runs.backends.local import card_of
        from phi3lora.training.estimate import estimate

        running = [run for run in self._store.all() if run.status in ("running", "stopping")]
        if running:
            own = card_of(detect_hardware())
            running = [run for run in running if own in (run.state.cards or [own])]
        if not running:
            return None
        needs = 0
        for run in running:
            step = self._views.view(run).step
            if step is not None and step.step >= SETTLED:
                continue
            try:
                hardware = detect_hardware(run.config.model.device)
                needs += estimate(run.config, hardware).memory_bytes
            except Phi3LoraError:
                continue  # the run itself will say so
        return needs

    # Links

    def share(self, asked: Asked, shared: Shared, caller: Caller) -> None:
        """Remember an answer for links to it, where whoever has the link may see it.

        On a Space that is what somebody who is not signed in was answered.
        """
        if not self.settings.on_space or caller.anonymous:
            self._recent.put(asked, shared)

    def shared(self, asked: Asked, caller: Caller) -> Shared | None:
        """What is known of a link without asking anybody: answered lately, or in the report."""
        if found := self._recent.get(asked):
            return found
        if asked.against or asked.settings:
            return None
        sample = self.kept_answers(asked.adapter, caller)
        if sample is None or asked.question not in ("", sample.prompt.strip()):
            return None
        return Shared(sample.prompt, ("Base", "Tuned"), (sample.base, sample.tuned))

    # Votes

    def vote(self, vote: Vote) -> None:
        """Write a blind vote down. RunError if this pair of answers has one.

        Who may compare what it is about is for `app.voting` to find out first.
        """
        self._book.record(vote)

    def tally(self, adapter: str, against: str = "") -> Tally:
        """Blind votes on an adapter beside its base, or beside something else."""
        return self._book.tally(adapter, against)

    def meetings(self, names: Sequence[str]) -> list[Meeting]:
        """The votes on every two of several; "" is the base, which stands second."""
        pairs = combinations(sorted(dict.fromkeys(names), key=lambda name: not name), 2)
        return [Meeting(one, other, self.tally(one, other)) for one, other in pairs]

    def tournament(self, names: Sequence[str]) -> list[Place]:
        """How several stand by the votes on every two of them, the best first; "" is the base."""
        won, decided = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        for met in self.meetings(names):
            won[met.name] += met.tally.tuned
            won[met.against] += met.tally.base
            for each in (met.name, met.against):
                decided[each] += met.tally.tuned + met.tally.base
        places = [Place(name, won[name], decided[name]) for name in won]
        return sorted(places, key=lambda one: -one.won / max(one.decided, 1))

    def votes(self, adapter: str) -> list[Vote]:
        """The votes themselves; who may see what was said is `app.voting`'s to decide."""
        return self._book.votes(adapter)


class ComparingOne(Comparing):
    """One adapter and nothing else, whatever is named: for a comparison Space.

    It is read with the token that its owner gave to the Space, if there is one: whoever may open
    the Space may ask the adapter.
    """

    def __init__(self, other: Comparing, repo: str, revision: str | None = None) -> None:
        super().__init__(other.settings, other._store, other._views, other._callers)
        self.repo = self.settled = repo
        self._revision = revision
        self._subject: Subject | None = None
        self._fetching = threading.Lock()

    def subject(self, name: str, caller: Caller, revision: str | None = None) -> Subject:
        """The adapter and its base, fetched once."""
        with self._fetching:
            if self._subject is None:
                owner = Caller(caller.name, stored_token())
                self._subject = super().subject(self.repo, owner, self._revision)
                self._callers.listed_bases.add(self._subject.base.path)
            return self._subject

    def suggestions(self, name: str, caller: Caller) -> list[str]:
        """The held-out prompts of its card; else those of the pocket world."""
        prompts = [row["prompt"] for row in self._on_card(caller)]
        return prompts or super().suggestions(name, caller)

    def kept_answers(self, name: str, caller: Caller) -> Sample | None:
        """A held-out prompt with what both said to it, from its card; None without one."""
        for row in self._on_card(caller):
            if row.get("base") and row.get("tuned"):
                return Sample(row["prompt"], row["base"], row["tuned"])
        return None

    def _on_card(self, caller: Caller) -> list[dict[str, str]]:
        """The samples of its card; why it cannot be had is said where it is loaded."""
        try:
            result = self.subject(self.repo, caller).result
        except Phi3LoraError:
            return []
        return _samples_on_card(result) if result else []


def _samples_on_card(folder: Path) -> list[dict[str, str]]:
    """Held-out rows on the card beside a result, those with a short prompt."""
    from phi3lora.hub.card import samples_of

    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    return [row for row in samples_of(card) if 0 < len(row["prompt"]) <= LONGEST_PROMPT]


def with_calls(content: str, tool_calls: list[dict[str, Any]]) -> str:
    """An assistant's turn as the model writes it: its words, then its calls of tools.

    Raises DataError for a call that does not name what it calls.
    """
    try:
        return content + calls(tool_calls)
    except Unusable as reason:
        raise DataError(str(reason)) from None


def _named_folder(name: str) -> Path | None:
    """A folder of this machine by that name; None where there is none."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, `~nobody`, a NUL
        return None


def subject_of(run: Run) -> Subject:
    """What a run made, beside its base. RunError while there is nothing whole."""
    base = run.config.model.model_copy(update={"adapter": None})  # what it went on from is in it
    system = run.config.data.system_messages
    return Subject(base, run.result.ready(), run.result.kind, run.title, system)


def _in_folder(folder: Path) -> Subject:
    """A run, an adapter or a whole model that lies in a folder of this machine."""
    if (folder / "state.json").exists():
        return subject_of(open_run(folder))
    if result_in(folder).kind == "model":
        base, kind = _base_on_card(folder), "model"
    else:
        named = read_adapter_config(folder).get("base_model_name_or_path") or POCKET
        base, kind = str(named), "adapter"
    system = system_messages_in(folder)
    return Subject(ModelConfig(path=base), folder, kind, folder.name, system)  # type: ignore[arg-type]


def system_messages_in(folder: Path) -> SystemMessages:
    """What a training did with system messages, by the config that lies beside its result."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return "merge"
    try:
        return RunConfig.from_yaml(file)[0].data.system_messages
    except Phi3LoraError:  # somebody else's config.yaml
        return "merge"


def _base_on_card(folder: Path) -> str:
    """The base that the card beside a whole model names. AdapterError where it names none."""
    try:
        named = front_matter((folder / "README.md").read_text(encoding="utf-8")).get("base_model")
    except (OSError, ValueError, ConfigError):
        named = None
    if isinstance(named, list):
        named = named[0] if named else None
    if not named:
        raise AdapterError(
            f"{folder} holds a whole model that does not say what it was trained from; name its "
            "run instead, or write `base_model` into the head of its README.md."
        )
    return str(named)


def best_sample(folder: Path) -> Sample | None:
    """The short held-out prompt on which tuned gained most; None where it gained nothing."""
    for row in read_report(folder).get("gained") or []:
        sample = Sample(*(str(row.get(name, "")) for name in ("prompt", "base", "tuned")))
        if 0 < len(sample.prompt) <= LONGEST_PROMPT and sample.base and sample.tuned:
            return sample
    return None


def titles(subject: Subject, options: Options, *, among_three: bool = False) -> tuple[str, str]:
    """What to call the columns of base and tuned: names where two adapters stand there, or three.

    Args:
        among_three: whether this is a round of a tournament, where two may be tuned.
    """
    if subject.against is None:
        return "Base", _scaled_name(subject.name if among_three else "Tuned", options.strength)
    other = _scaled_name(subject.against.name, options.against_strength)
    own = _scaled_name(subject.name, options.strength)
    return (other, own) if other != own else (f"{other} (1)", f"{own} (2)")


_SCALED = re.compile(r"(.+) × [0-9.e+-]+")


def _scaled_name(name: str, strength: float) -> str:
    """`Pirate`, or `Pirate × 0.5`: what has another strength is another thing to vote on."""
    return name if strength == 1 else f"{name} × {strength:g}"


def without_strength(name: str) -> str:
    """The subject of a name that votes are counted under: of `Pirate × 0.5`, `Pirate`."""
    found = _SCALED.fullmatch(name)
    return found[1] if found else name


def named_for_votes(adapter: str, against: str, options: Options) -> tuple[str, str]:
    """The names under which a pair's votes are counted; an empty one is the base."""
    if not adapter:
        return _scaled_name(against, options.strength), ""
    other = _scaled_name(against, options.against_strength) if against else ""
    return _scaled_name(adapter, options.strength), other


def about(subject: Subject) -> list[str]:
    """What is compared, in a few words: size, base, and the report's verdict."""
    if subject.against is not None:
        own, other = (" · ".join(about(replace(one, against=None))) for one in _both(subject))
        return [f"{subject.name}: {own}", f"beside {subject.against.name}: {other}"]
    if subject.result is None:
        return []
    base = subject.base.path
    files = [file for file in subject.result.glob("*.safetensors") if file.is_file()]
    size = words.size(sum(file.stat().st_size for file in files))
    kinds = {"adapter": f"LoRA {size} on {base}", "loralib": f"loralib {size} on {base}"}
    found = [kinds.get(subject.kind, f"{size}, trained from {base}")]
    for folder in (subject.result, subject.result.parent):
        report = read_report(folder)
        if verdict := VERDICTS.get(str(report.get("verdict"))):
            found.append(f"{verdict} on {words.counted(report.get('rows', 0), 'held-out row')}")
            break
    return found


def _both(subject: Subject) -> tuple[Subject, Subject]:
    return subject, subject.against or BASE_ALONE


VERDICTS = {
    "better": "better than its base",
    "worse": "worse than its base",
    "cannot tell": "not to be told from its base",
}


def held_out_prompts(folder: Path) -> list[str]:
    """Prompts of a report's samples, short ones of one turn."""
    values = read_report(folder)
    samples = [*values.get("gained", []), *values.get("lost", [])]
    prompts = [str(sample.get("prompt", "")) for sample in samples]
    return [prompt for prompt in dict.fromkeys(prompts) if 0 < len(prompt) <= LONGEST_PROMPT]
