"""The process that follows a run's Job: send the run, watch, and fetch what it came to.

    python -m phi3lora.runs.follower FOLDER [LOCK]

It holds the run's lock as a worker does, and is the one that writes here: the state, the Job's log,
and the events that the Job leaves in the run's repository. It outlives the app. A Job whose
outcome was not fetched stands in the state: it is followed again, and no second one is started. A
stop is asked for through the repository, so that the Job saves first; one that does not hear is
cancelled. A sign-in that has run out is waited for, and a new one is taken (see `renewal`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

from phi3lora import words
from phi3lora.errors import HubError
from phi3lora.events import Ended, Event, EventLog, Notice, Stage
from phi3lora.files import write_whole
from phi3lora.hub.access import identity
from phi3lora.hub.backup import (
    FOLDERS,
    HERE,
    SMALL,
    RunNote,
    ask_to_stop,
    checkpoints_in,
    fetch_events,
    fetch_outcome,
    ready_repo,
    run_files,
    step_of,
)
from phi3lora.hub.client import Absent, Unreachable
from phi3lora.hub.jobs import (
    JobState,
    Order,
    cancel,
    find_flavor,
    job_state,
    log_of,
    submit,
    time_limit,
)
from phi3lora.hub.sending import send
from phi3lora.hub.shipping import command, files
from phi3lora.isolation import hide_process, receive_token
from phi3lora.runs.afterwards import tell_end
from phi3lora.runs.copies import rows_that_leave
from phi3lora.runs.redaction import RedactedStream, redact, redact_event
from phi3lora.runs.remote import ACCEPT, KEY, SECONDS
from phi3lora.runs.renewal import renewable
from phi3lora.runs.store import JobRef, Run, RunState, changed, open_run, read_state
from phi3lora.runs.worker import end, explain, hold
from phi3lora.settings import Settings

EVENTS_POLLS = 3  # polls of the Job for one of its repository
LOG_SECONDS = 60.0  # for the end of the log, once the Job is over
OUTCOME = ".outcome"
MARK = "===== Job {} ====="  # in the log: what follows is the Job's own
SIGN_IN_AGAIN = "The sign-in has ended. Its Job goes on; sign in again to follow it."
TRACKERS = {"wandb": "WANDB_API_KEY", "trackio": ""}  # and the keys that they ask for


def main() -> int:
    """Follow the Job of the run whose folder is the first argument. Returns the exit status."""
    leaving = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leaving.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = Settings.from_environment()
    if settings.on_space:
        hide_process()
    token = receive_token() or ""
    sys.stdout = cast(TextIO, RedactedStream(sys.stdout, token))
    sys.stderr = cast(TextIO, RedactedStream(sys.stderr, token))
    folder = Path(sys.argv[1])
    hold(folder, int(sys.argv[2]) if len(sys.argv) > 2 else None)
    follower = Follower(open_run(folder), settings, token, leaving)
    with renewable(folder, follower.sign_in):
        status = follower.work()
    if not (settings.on_space or leaving.is_set()):  # there the app does, which knows where to
        tell_end(open_run(folder), settings)
    return status


class Follower:
    """One run and its Job."""

    def __init__(self, run: Run, settings: Settings, token: str, leaving: threading.Event) -> None:
        self.run, self._settings, self._leaving = run, settings, leaving
        self._token = token
        self._commit: str | None = None  # of the repository, as it was read last
        self._lines = 0  # of the Job's log that stand in ours
        self._log: threading.Thread | None = None
        self._asked: float | None = None  # when the Job was asked to stop

    def sign_in(self, token: str) -> None:
        """Go on with another token: the owner has signed in again."""
        self._token = token

    def work(self) -> int:
        """From the upload to the outcome. Returns the exit status; whatever happens is written."""
        try:
            if self.run.state.job is None:
                self._send()
            else:
                self._lines = _lines_after(self.run, MARK.format(self.run.state.job.id))
            last = self._watch()
            return 0 if last is None else self._collect(last)
        except Exception as error:  # noqa: BLE001 - a run never ends without a word
            message, status = explain(error, self._token)
            with suppress(OSError):
                self._emit(Ended(outcome="failed", message=message))
            end(self.run, "failed", message, status)
            return status

    # There

    def _send(self) -> None:
        """The run's files into its repository, and the Job. Raises HubError, RunError."""
        run, token = self.run, self._token
        self._say("sending the run to the Hub")
        who = identity(token)
        flavor = find_flavor(run.state.flavor or "", token)
        seconds = time_limit(flavor, run.state.at_most or 0.0, who.seconds_left)
        rows = rows_that_leave(run.config, run.owner, self._settings, run.folder)
        note = RunNote(run.id, run.title, run.state.created)
        repo = ready_repo(run.config, note, token, self._notify)
        newest = max(checkpoints_in(repo, token), key=step_of, default=None)
        config = run.config.with_values({"hub.backup": True, "hub.repo": repo})
        self._emit(Stage(name=f"waiting for a machine ({flavor.name})"))
        tracker = run.config.training_config.report_to
        extras = [tracker] if tracker in TRACKERS else []
        state = run_files(run.folder, note, config, token, rows, newest)
        commit = send(token, repo, {**state, **files(*extras)}, "Send the run to a Job")
        key = secrets.token_hex(8)
        job = submit(
            Order(
                run=run.id,
                owner=who.name,
                flavor=flavor.name,
                command=command(repo, str(commit.oid)),
                seconds=seconds,
                environment={
                    KEY: key,
                    SECONDS: str(seconds),
                    "PHI3LORA_POLL_SECONDS": str(self._settings.poll_seconds),
                    **({ACCEPT: "1"} if run.state.accept_changes else {}),
                },
                secrets={"HF_TOKEN": token, **_tracker_keys(run, self._settings)},
            ),
            token,
        )
        self._began(
            JobRef(
                id=job.id,
                key=job.environment.get(KEY, key),
                owner=who.name,
                repo=repo,
                url=job.url,
                flavor=flavor.name,
                seconds=seconds,
                dollars_per_second=flavor.dollars_per_second,
            )
        )

    def _began(self, job: JobRef) -> None:
        """Write the Job down before anything else: it costs."""
        message = f"Waits for a machine ({job.flavor}): {job.url}"
        self.run = changed(self.run, job=job, message=message)
        sys.stdout.write(f"{MARK.format(job.id)}\n")

    # Watching

    @property
    def job(self) -> JobRef:
        """Where it computes; the state has it from the moment that the Hub took it."""
        assert self.run.state.job is not None
        return self.run.state.job

    def _watch(self) -> JobState | None:
        """Until the Job is over; how it stands then. None where this process is to go."""
        polls = 0
        while not self._leaving.is_set():
            state = self._poll()
            if state is not None:
                self._show(state)
                if state.over:
                    return state
                self._stop_if_asked(state)
            elif self._gives_up():
                return None
            if polls % EVENTS_POLLS == 0:
                self._fetch_events()
            polls += 1
            self._leaving.wait(self._settings.poll_seconds)
        return None

    def _poll(self) -> JobState | None:
        """How the Job stands; None where the Hub does not say, which is told if it should be."""
        try:
            found = job_state(self.job.id, self.job.owner, self._token)
        except Unreachable:
            return None
        except HubError:
            self._message(SIGN_IN_AGAIN)
            return None
        return found or JobState(self.job.id, self.job.url, "DELETED")

    def _show(self, state: JobState) -> None:
        """What the Job does, as the run's state and log."""
        if state.stage != "SCHEDULING" and self.run.state.started is None:
            self.run = changed(self.run, status="running", started=time.time(), message="")
        elif self.run.state.message == SIGN_IN_AGAIN:
            self._message("")
        if state.stage != "SCHEDULING" and (self._log is None or not self._log.is_alive()):
            self._log = threading.Thread(target=self._copy_log, daemon=True, name="log")
            self._log.start()

    def _copy_log(self) -> None:
        """Append the Job's lines that are not here yet, as they come."""
        try:
            for number, line in enumerate(log_of(self.job.id, self.job.owner, self._token), 1):
                if number > self._lines:
                    self._lines = number
                    sys.stdout.write(redact(line.rstrip("\n"), self._token) + "\n")
        except HubError:  # it is read again with the next poll
            return

    def _stop_if_asked(self, state: JobState) -> None:
        """Ask the Job to save and stop; cancel one that has not begun, or does not answer."""
        if not self.run.stop_file.exists():
            return
        now = time.monotonic()
        deaf = self._asked is not None and now - self._asked > self._settings.stop_seconds
        with suppress(HubError):  # tried again at the next poll
            if state.stage == "SCHEDULING" or deaf:
                cancel(self.job.id, self.job.owner, self._token)
            elif self._asked is None:
                try:
                    ask_to_stop(self.job.repo, self.job.key, self._token)
                except Absent:  # nothing could be saved there either
                    cancel(self.job.id, self.job.owner, self._token)
                self._asked = now

    def _gives_up(self) -> bool:
        """Whether somebody wants it to stop, and the Hub has not answered for long enough."""
        if not self.run.stop_file.exists():
            return False
        self._asked = self._asked or time.monotonic()
        return time.monotonic() - self._asked > self._settings.stop_seconds

    def _fetch_events(self) -> None:
        """What is new of the run's events, as the whole file: it has one writer there."""
        with suppress(HubError):  # tried again later; at the end it is told
            found = fetch_events(self.job.repo, self._token, self._commit)
            if found is not None:
                self._commit, data = found
                self._take_events(data.replace(HERE.encode(), str(self.run.folder).encode()))

    def _take_events(self, data: bytes) -> None:
        if len(data) > self.run.events_end():
            write_whole(self.run.folder / "events.jsonl", data)

    # What it came to

    def _collect(self, last: JobState) -> int:
        """Fetch the outcome, and write it down. Returns the exit status. Raises HubError."""
        if self._log is not None:
            self._log.join(LOG_SECONDS)
        folder = self.run.folder
        place = folder / OUTCOME
        shutil.rmtree(place, ignore_errors=True)
        try:
            gone = False
            fetch_outcome(self.job.repo, self._token, place, folder)
        except Absent:
            gone = True
        final = self._final(place)
        self._take(place)
        status, message, code = self._verdict(final, last, gone)
        if final is None:
            outcome = "stopped" if status == "stopped" else "failed"
            self._emit(Ended(outcome=outcome, message=message))  # type: ignore[arg-type]
        outcome_of_training = final.outcome if final else None
        message = f"{message} {self._bill(last)}".strip()
        self.run = changed(self.run, job=None, outcome=outcome_of_training)
        if final is not None and final.changes:
            self.run = changed(self.run, changes=final.changes)
        end(self.run, status, message, code)
        return code

    def _final(self, place: Path) -> RunState | None:
        """The Job's last word: its own state, unless it died before it could write one."""
        state = read_state(place)
        if state is None or state.job is None or state.job.key != self.job.key:
            return None
        return None if state.status in ("queued", "running") else state

    def _take(self, place: Path) -> None:
        """Put what was fetched where it belongs."""
        if (events := place / "events.jsonl").is_file():
            self._take_events(events.read_bytes())
        for name in SMALL:
            if name != "events.jsonl" and (place / name).is_file():
                (place / name).replace(self.run.folder / name)
        for name in FOLDERS:
            if (place / name).is_dir():
                shutil.rmtree(self.run.folder / name, ignore_errors=True)
                (place / name).rename(self.run.folder / name)
        shutil.rmtree(place, ignore_errors=True)

    def _verdict(self, final: RunState | None, last: JobState, gone: bool) -> tuple[str, str, int]:
        """Status, message and exit status of the run."""
        if final is None:
            return self._without_a_word(last, gone)
        if final.status == "finished" and not self.run.result.whole:
            where = f"Its {self.run.result.noun} is not in {self.job.repo}"
            return "failed", f"{where}; resume the run to have it written again.", 1
        message = final.message
        if final.status == "paused":
            message = "Paused before its money was spent: resume it to go on in another Job."
        return final.status, message, final.exit_status or 0

    def _without_a_word(self, last: JobState, gone: bool) -> tuple[str, str, int]:
        """What is known of a Job that left no state of its own."""
        said = f" The Hub says: {last.message.rstrip('.')}." if last.message else ""
        again = "Resume the run to go on from the last checkpoint that was sent."
        if gone:
            return (
                "failed",
                f"Its repository {self.job.repo} was deleted, and what the Job made with it.{said} "
                "Resume the run to begin again.",
                1,
            )
        if last.stage == "CANCELED":
            return "stopped", f"Its Job was cancelled.{said} {again}", 0
        if last.stage == "DELETED":
            return "failed", f"The Hub does not know its Job any more. {again}", 1
        return "failed", f"Its Job ended without a last word; its log may say why.{said} {again}", 1

    def _bill(self, last: JobState) -> str:
        """What it cost, as far as the Hub tells."""
        if not last.seconds:
            return ""
        dollars = last.seconds * self.job.dollars_per_second
        return (
            f"The Job computed for {words.duration(last.seconds)} on {self.job.flavor}: about "
            f"${dollars:.2f}."
        )

    # What is told here

    def _say(self, stage: str) -> None:
        self._emit(Stage(name=stage))

    def _emit(self, event: Event) -> None:
        with EventLog(self.run.folder / "events.jsonl") as log:
            log.emit(redact_event(event, self._token))

    def _notify(self, message: str) -> None:
        self._emit(Notice(message=message, level="warning"))

    def _message(self, message: str) -> None:
        if self.run.state.message != message:
            self.run = changed(self.run, message=message)


def _tracker_keys(run: Run, settings: Settings) -> dict[str, str]:
    """The key of the tracker that the run reports to; on a Space there is none of a visitor's."""
    name = TRACKERS.get(run.config.training_config.report_to)
    value = os.environ.get(name or "")
    return {name: value} if name and value and not settings.on_space else {}


def _lines_after(run: Run, mark: str) -> int:
    """How many lines of a Job's log stand in ours already."""
    try:
        lines = (run.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    marks = [number for number, line in enumerate(lines) if line == mark]
    return len(lines) - marks[-1] - 1 if marks else 0


if __name__ == "__main__":
    sys.exit(main())
