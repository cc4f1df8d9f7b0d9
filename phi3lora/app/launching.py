"""From a config to a run and its end: preflight → gate → create → queue; then what is done to it.

launching = Launching(settings, store, queue, views, preflights)
launching.preflight(config, caller)         checks and estimate; nothing is made
run = launching.launch(config, caller)      Phi3LoraError, and no run, where a check is red
launching.further(run)                      the config of a run that goes on from that one's result
launching.stop(run); launching.resume(run, caller); launching.delete(run)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3lora.app.callers import Caller, check_may_look, check_may_train, why_not_train
from phi3lora.app.machines import Machines
from phi3lora.app.preflights import Preflights
from phi3lora.app.views import Follower
from phi3lora.config import RunConfig
from phi3lora.errors import LimitError, Phi3LoraError, RunError
from phi3lora.hub.backup import RunRepo, list_runs
from phi3lora.hub.jobs import JobRequest
from phi3lora.hub.preflight import check_pause
from phi3lora.models.hardware import visible_gpus
from phi3lora.runs import bin
from phi3lora.runs.backends import backend_for
from phi3lora.runs.backends.quota import quota_check
from phi3lora.runs.copies import restore
from phi3lora.runs.group import dismiss
from phi3lora.runs.life import holder
from phi3lora.runs.permission import check_paths
from phi3lora.runs.queue import Queue
from phi3lora.runs.renewal import renew
from phi3lora.runs.store import (
    ACTIVE,
    LOCAL,
    Run,
    RunStore,
    changed,
    open_run,
    with_whole_paths,
)
from phi3lora.settings import Settings
from phi3lora.training.launcher import as_launched, is_first, launched
from phi3lora.training.offers import Offer
from phi3lora.training.preflight import Preflight, blocking

if TYPE_CHECKING:
    from phi3lora.evaluation.report import Report
    from phi3lora.events import Emit

LATELY = 20  # runs among which one like the next is looked for
FURTHER = ", further"  # after the title of a run that goes on from another's result
LONGEST_TITLE = 100


class Launching:
    """The life of runs, for everybody who asks."""

    def __init__(
        self,
        settings: Settings,
        store: RunStore,
        queue: Queue,
        views: Follower,
        preflights: Preflights,
    ) -> None:
        self.settings, self.store, self.queue = settings, store, queue
        self._views = views
        self._preflights = preflights
        self.machines = Machines(settings, preflights)

    # Runs there are

    def runs(self, caller: Caller) -> list[Run]:
        """The caller's runs, newest first."""
        return self.store.list(caller.name)

    def run(self, run_id: str, caller: Caller) -> Run:
        """The caller's run. RunError if it is not theirs, or is not at all."""
        return self.store.get(run_id, caller.name)

    def find(self, name: str, caller: Caller) -> Run:
        """A run by its id, or on one's own machine by its folder. Raises RunError."""
        folder = Path(name).expanduser()
        if caller.name == LOCAL and folder.is_dir():
            return open_run(folder)
        return self.run(name, caller)

    def position(self, run: Run) -> int | None:
        """Its place in the queue, from 1; None if it does not wait."""
        return self.queue.position(run)

    def process(self, run: Run) -> int | None:
        """The process that computes it, or waits to, on this machine."""
        return holder(run.folder) if run.status in ACTIVE else None

    def renew(self, caller: Caller) -> None:
        """Hand a new sign-in to the caller's runs that are at work: their backups go on with it."""
        for run in self.runs(caller):
            if caller.token and run.status in ACTIVE and _is_kept(run):
                renew(run.folder, caller.token)

    # Before a run, and its beginning

    @property
    def devices(self) -> int:
        """How many GPUs of this machine may train a run together; 0 where it has none."""
        return 1 if self.settings.zero_gpu else len(visible_gpus())

    def inspection(self, config: RunConfig, caller: Caller) -> Any:
        """The data that a preflight is about, as soon as it is read; None where it cannot be.

        Raises AccessError, as the preflight does.
        """
        check_may_look(config, caller, self.settings)
        check_paths(config, caller.name, self.settings)
        return self._preflights.inspection(config, caller.token, caller.name)

    def preflight(
        self, config: RunConfig, caller: Caller, job: JobRequest | None = None
    ) -> Preflight:
        """The data as it will be trained, the checks before launch, and the estimate.

        Args:
            job: the machine of the Hub that it is for, and what it may cost.

        Raises AccessError for who may not train here (bundled data is shown to everybody), or may
        not name such a file.
        """
        check_may_look(config, caller, self.settings)
        check_paths(config, caller.name, self.settings)
        speed = self._speed(config, caller, job.flavor if job else None)
        if job:
            return self.machines.preflight(config, job, caller, speed)
        found = self._preflights.preflight(config, caller.token, speed, caller.name)
        found = self.machines.here(found, caller)
        paused = check_pause(config, caller.name, self.settings)
        found = replace(found, checks=[*found.checks, *paused])
        if backend_for(config, self.settings) == "zerogpu":
            check = quota_check(config, found, caller.known_identity())
            found = replace(found, checks=[*found.checks, check])
        return found

    def why_not(self, caller: Caller) -> str:
        """Why this visitor may not launch here; empty for who may."""
        return why_not_train(caller, self.settings)

    def offers(self, config: RunConfig, caller: Caller) -> list[Offer]:
        """What a run would take on machines of the Hub, cheapest by the hour first.

        Raises AccessError for who may not train here, HubError where prices cannot be had.
        """
        check_may_train(caller, self.settings)
        check_paths(config, caller.name, self.settings)
        return self.machines.offers(
            config, caller, lambda flavor: self._speed(config, caller, flavor)
        )

    def _speed(self, config: RunConfig, caller: Caller, flavor: str | None) -> float | None:
        """Tokens per second of the caller's last finished run like this one, if there is.

        Args:
            flavor: of the Job's machine; None for this one.
        """
        for run in self.runs(caller)[:LATELY]:
            like = run.state.flavor == flavor and _same_base(run, config)
            if run.status == "finished" and like:
                step = self._views.view(run).step
                if step is None or step.tokens_per_second is None:
                    return None
                return step.tokens_per_second * config.devices / run.config.devices
        return None

    def launch(
        self,
        config: RunConfig,
        caller: Caller,
        folder: Path | None = None,
        *,
        force: bool = False,
        job: JobRequest | None = None,
    ) -> Run:
        """Check, make a run, and put it into the queue, or send it to a machine of the Hub.

        Args:
            folder: becomes the run's; new or empty.
            force: launch over red checks, too.
            job: the machine of the Hub on which it computes, and what it may cost.

        Raises Phi3LoraError with every red check, and RunError as the queue does.
        """
        check_may_train(caller, self.settings)
        self.queue.check_limits(caller.name)  # before anything is read or made
        if not force and (red := blocking(self.preflight(config, caller, job))):
            raise Phi3LoraError("Not launched.\n" + "\n".join(red))
        check_paths(config, caller.name, self.settings)
        if force and config.model.adapter is not None:  # before a run is made for nothing
            from phi3lora.runs.starting import find

            find(config.model.adapter, caller.name, self.settings, caller.token)
        title = config.title or default_title(config)
        run = self.store.create(config, caller.name, title, folder, job)
        try:
            return self.queue.submit(run, caller.token)
        except LimitError:  # others of theirs were faster: nothing is left of this one
            self.store.delete(run)
            raise

    def further(self, run: Run) -> RunConfig:
        """The config of a new run with all options of this one, that begins where it ended.

        Raises RunError while it has nothing whole to begin from.
        """
        stored = self.settings.runs_folder / run.id
        is_stored = stored.exists() and stored.samefile(run.folder)
        return further(run, run.id if is_stored else str(run.folder.resolve()))

    def launch_in(
        self,
        folder: Path,
        config: RunConfig,
        caller: Caller,
        *,
        force: bool = False,
        job: JobRequest | None = None,
    ) -> Run:
        """Launch in a folder, or go on with the run that it holds if that is the same.

        A run that is finished, or computes already, is returned as it is. Raises RunError where
        the folder holds another run.
        """
        if not (folder / "state.json").exists():
            return self.launch(config, caller, folder, force=force, job=job)
        run = open_run(folder)
        if different := differences(run.config, _divided_alike(config, run.config)):
            raise RunError(
                f"{folder} holds another run: it differs in {', '.join(different)}. Name another "
                f"folder, or delete that run with `phi3lora runs delete {folder}`."
            )
        if run.status in ACTIVE or run.status == "finished":
            dismiss(config.model.device == "cpu")
            return run
        return self.queue.submit(run, caller.token)

    # Among several processes that `torchrun` or `accelerate launch` started

    def as_launched(self, config: RunConfig) -> RunConfig:
        """The config with as many devices as there are processes; ConfigError if it wants others.

        Without a launcher the config as it is.
        """
        if not launched():
            return config
        from phi3lora.isolation import end_with_parent

        end_with_parent()  # each of the launcher's processes, the first one with its worker too
        return as_launched(config)

    def takes_part(self) -> bool:
        """Whether this process trains what another one launches, and has nothing to decide."""
        return launched() and not is_first()

    def take_part(self, config: RunConfig, caller: Caller) -> None:
        """Train what the first process launches, to its end. Raises what the training raises."""
        from phi3lora.runs.member import take_part

        take_part(config.model.device == "cpu", self.settings, caller.token)

    # What is done to a run

    def stop(self, run: Run) -> Run:
        """Ask it to save and stop."""
        return self.queue.stop(run)

    def cancel(self, run: Run) -> Run:
        """Take it out of the queue before it has begun."""
        return self.queue.cancel(run)

    def resume(
        self,
        run: Run,
        caller: Caller,
        accept_changes: bool = False,
        job: JobRequest | None = None,
        batch_size: int | None = None,
    ) -> Run:
        """Put the caller's run into the queue again; it goes on from its last checkpoint.

        Args:
            accept_changes: even if its data, base or libraries changed since its first start.
            job: another machine of the Hub, or another cap, for a run that computes there.
            batch_size: rows that are computed at once from now on, for a run that ran out of
                memory; an update is made of as many rows as before.

        Raises RunError where the run does not compute there, ConfigError for a batch size that
        does not divide the rows of an update.
        """
        check_may_train(caller, self.settings)
        check_paths(run.config, run.owner, self.settings, run.folder)
        if job is not None:
            run = with_job(run, job)
        if batch_size is not None:
            self.queue.check_resumable(run)  # nothing is changed of one that cannot go on
            self.queue.check_limits(caller.name)
            run = self.store.rebatch(run, batch_size)
        return self.queue.resume(run, caller.token, accept_changes=accept_changes)

    def compute(self, run: Run, caller: Caller) -> Iterator[Run]:
        """Compute a run on a GPU that is lent by the call, while the caller's page is open.

        Yields the run after each slice; nothing for a run that computes by itself, or is over.
        The browser's request must stand behind the call: its visitor's quota is spent.
        """
        if run.state.backend != "zerogpu" or run.status not in ("paused", "interrupted"):
            return
        from phi3lora.runs.backends.zerogpu import drive

        check_may_train(caller, self.settings)
        check_paths(run.config, run.owner, self.settings, run.folder)
        yield from drive(run, self.settings, caller.token)

    def delete(self, run: Run) -> None:
        """Remove it with all its files. RunError while it computes or waits."""
        self.store.delete(run)

    def discard(self, run: Run) -> None:
        """Put it into the bin, for 30 days. RunError while it computes or waits."""
        bin.discard(self.store, run)

    def discarded(self, caller: Caller) -> list[Run]:
        """The caller's runs in the bin, the last one first."""
        return bin.discarded(self.store, caller.name)

    def recover(self, run_id: str, caller: Caller) -> Run:
        """Take the caller's run out of the bin. RunError where it is not in it."""
        return bin.recover(self.store, run_id, caller.name)

    def empty_bin(self, caller: Caller) -> int:
        """Remove the caller's runs in the bin for good; how many there were."""
        return bin.empty(self.store, caller.name)

    def rename(self, run: Run, title: str) -> Run:
        """Call it something else. RunError while it computes or waits, or without a title."""
        return self.store.rename(run, title)

    def backed_up(self, caller: Caller) -> list[RunRepo]:
        """The caller's runs that are on the Hub, newest first. Raises HubError, AccessError."""
        return list_runs(caller.needed_token())

    def missing(self, caller: Caller) -> list[RunRepo]:
        """Those of them that are not here; none where nobody is signed in. Raises HubError."""
        if caller.token is None:
            return []
        here = {run.id for run in self.runs(caller)}
        return [copy for copy in self.backed_up(caller) if copy.id not in here]

    def restore(self, repo: str, caller: Caller) -> Run:
        """Fetch a run that was backed up. Raises RunError, HubError, or AccessError."""
        check_may_train(caller, self.settings)
        token = caller.needed_token("Sign in first; runs are backed up to one's own account.")
        return restore(self.store, repo, token, caller.name)

    def evaluate(
        self,
        run: Run,
        rows: int | None,
        caller: Caller,
        emit: Emit = lambda event: None,
    ) -> Report:
        """Score base and tuned on the run's held-out rows, and write its report.

        Raises RunError while it computes or its device is in use.
        """
        from phi3lora.evaluation.report import evaluate

        if run.status in ACTIVE:
            raise RunError(f"Run {run.id} is {run.status}; wait for its end, or stop it, first.")
        cache = self.settings.cache_folder / run.owner
        with self._device(run):
            return evaluate(
                run.config, run.folder, rows, emit=emit, token=caller.token, cache_folder=cache
            )

    @contextmanager
    def _device(self, run: Run) -> Iterator[None]:
        """Hold the run's device: a training beside it would take memory, both might fail."""
        from phi3lora.runs.backends.local import device_kind, devices
        from phi3lora.runs.worker import lock_one, take

        self.settings.home.mkdir(parents=True, exist_ok=True)
        kind = device_kind(run.config)
        held = lock_one(self.settings, devices(kind))
        if held is None:
            busy = [other for other in self.store.all() if other.status in ("running", "stopping")]
            who = ", ".join(other.id for other in busy if other.state.device == kind)
            raise RunError(
                f"The device is in use by {who or 'another run'}; wait for its end, or stop it, "
                "first."
            )
        name, descriptor = held
        try:
            take([name])
            yield
        finally:
            os.close(descriptor)


def _divided_alike(config: RunConfig, other: RunConfig) -> RunConfig:
    """A config whose updates have as many rows as the other's, in passes of the other's size."""
    config = with_whole_paths(config)
    same = (config.devices, config.effective_batch) == (other.devices, other.effective_batch)
    rows = other.training_config.per_device_train_batch_size
    return config.with_batch(rows) if same else config


def with_job(run: Run, job: JobRequest) -> Run:
    """A run that is to go on on another machine of the Hub. Raises RunError."""
    if run.state.backend != "jobs":
        raise RunError(f"Run {run.id} computes on this machine; it cannot go on in a Job.")
    if run.status in ACTIVE:
        raise RunError(f"Run {run.id} is {run.status}; stop it first.")
    return changed(run, flavor=job.flavor, at_most=job.at_most)


def further(run: Run, name: str) -> RunConfig:
    """A run's config with its result as the start; `name` is what the new config calls that run.

    The result of PiSSA or OLoRA has twice the rank that was asked for: it is described as it is.
    """
    from phi3lora.lora.options import plain_options

    folder, config = run.result.ready(), run.config
    title = f"{run.title.removesuffix(FURTHER)[: LONGEST_TITLE - len(FURTHER)]}{FURTHER}"
    changes: dict[str, Any] = {"title": title, "hub.repo": None}
    if run.result.kind == "model":
        return config.with_values({**changes, "model.path": str(folder), "model.revision": None})
    return config.with_values({**changes, "model.adapter": name, **plain_options(config)})


def default_title(config: RunConfig) -> str:
    """What a run without a title is called: its data's name."""
    return Path(config.data.path.removeprefix("example:")).stem.capitalize()


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Dotted names of the options that differ."""
    return list(_differences(old.model_dump(), new.model_dump()))


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in new:
        before, after = old.get(name), new[name]
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name


def _is_kept(run: Run) -> bool:
    """Whether a run writes to the Hub while it is at work."""
    try:
        return run.state.backend == "jobs" or run.config.hub.backup
    except Phi3LoraError:
        return True  # nobody knows: it takes the sign-in if it listens for one


def _same_base(run: Run, config: RunConfig) -> bool:
    """Whether a run's speed says something about this config's."""
    try:
        theirs = run.config.model
    except Phi3LoraError:
        return False
    ours = config.model
    return (theirs.path, theirs.quantization) == (ours.path, ours.quantization)
