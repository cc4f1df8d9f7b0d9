"""Coming back: a run's files go to a private repository of its owner while it trains.

    backup = Backup(folder, RunNote(id, title, created), config, token, notify)
    backup.saved("checkpoints/checkpoint-20")      # returns at once
    backup.finish()                                # the last state; waits for it

    list_runs(token); fetch_run(repo, token, folder); settle(folder, home)

A thread sends; the training never waits for it. Of several checkpoints that wait, the newest is
sent. A failure is told, tried again, and never ends the run. Each commit holds one checkpoint
whole, so what is fetched can be resumed from. Checkpoints contain pickles: they are fetched only
from a private repository of the caller's own that this app has written.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phi3lora import files, words
from phi3lora.config import RunConfig
from phi3lora.data.sources import names_no_file
from phi3lora.errors import HubError, Phi3LoraError
from phi3lora.hub.access import Identity, identity
from phi3lora.hub.client import (
    Absent,
    AlreadyThere,
    HubRequest,
    explain,
    explained,
    find_repo,
    is_hub_id,
    may_write,
    with_retries,
)
from phi3lora.hub.sending import create, send
from phi3lora.hub.upload import full_name
from phi3lora.lora.result import FOLDERS, find_result
from phi3lora.redaction import redact

TAG = "phi3lora-run"
NOTE = "run.json"
HERE = "{RUN}"  # stands for the run folder's path in what is sent
LARGEST_ROWS = 2**27  # bytes of a data file that goes along
RETRY_SECONDS = (5.0, 30.0, 120.0, 600.0)
LAST_TRIES = 3
MOST_COPIES = 9  # of one run, each made by another app
# A checkpoint's files, by name; `training_args.bin` is needed by nobody and stays.
CHECKPOINT = re.compile(
    r"(?:[\w.-]+\.safetensors|[\w.-]+\.json|optimizer\.pt|scheduler\.pt|scaler\.pt|rng_state(?:_\d+)?\.pth|"
    r"chat_template\.jinja|tokenizer\.model|slices\.pt)\Z"
)
RESULT = re.compile(
    r"(?:[\w.-]+\.safetensors|[\w.-]+\.json|chat_template\.jinja|tokenizer\.model|loralib\.pt)\Z"
)
DATA_FILE = re.compile(r"(?!\.)[\w .()-]+")
STEP = re.compile(r"checkpoint-(\d+)\Z")
SMALL = ("events.jsonl", "report.json", "inputs.json")
STATE = "state.json"  # how a run stands where it computes, for whoever follows it from elsewhere
TEXTS = {".json", ".jsonl", ".md", ".yaml"}
Notify = Callable[[str], None]


@dataclass(frozen=True)
class RunNote:
    """What identifies a run anywhere; `created` is in seconds since 1970."""

    id: str
    title: str = ""
    created: float = 0.0


@dataclass(frozen=True)
class RunRepo:
    """A run's repository on the Hub, and the last step that can be resumed from."""

    repo: str
    id: str
    title: str
    created: float
    step: int | None
    finished: bool


class Backup:
    """Sends a run's files in a thread of its own.

    Args:
        folder: of the run.
        note: identifies it.
        config: of the run; `hub.repo` names the repository.
        token: its owner's.
        notify: told of failures, and when they are over.
        wait: seconds between two tries, from the first failure on.
        rows: the file that the run is trained on, to go along unless it is large.
        every: seconds after which new events are sent without a checkpoint; None for never.
    """

    def __init__(
        self,
        folder: Path,
        note: RunNote,
        config: RunConfig,
        token: str,
        notify: Notify,
        wait: tuple[float, ...] = RETRY_SECONDS,
        rows: Path | None = None,
        every: float | None = None,
    ) -> None:
        self._folder, self._note, self._config = folder, note, config
        self._every = every
        self._told = 0  # bytes of events that are on the Hub
        self._token, self._notify, self._wait, self._rows = token, notify, wait, rows
        self._changed = threading.Condition()
        self._pending: Path | None = None  # a checkpoint's links, the newest
        self._there: set[str] = set()  # names of the checkpoints on the Hub
        self._due = True  # the very first state: config and events
        self._closing = self._busy = False
        self._renewed = 0  # how often the owner has signed in again
        self._failed = False
        self._count = 0
        self.repo: str | None = None
        shutil.rmtree(folder / ".backup", ignore_errors=True)  # of a process that was killed
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"backup {note.id}")
        self._thread.start()

    def saved(self, path: str) -> None:
        """A checkpoint is whole on disk; it is kept for sending even if the training removes it.

        `path` is relative to the run folder. Never raises.
        """
        try:
            self._count += 1
            links = _link(self._folder / path, self._folder / ".backup" / str(self._count))
        except OSError as error:
            self._tell(f"Checkpoint {Path(path).name} is not backed up: {error}.")
            return
        with self._changed:
            passed_over, self._pending = self._pending, links
            self._changed.notify_all()
        if passed_over is not None:
            shutil.rmtree(passed_over, ignore_errors=True)

    def finish(self, timeout: float = 900.0) -> None:
        """Send what is there at the end, and wait for it, `timeout` seconds at most."""
        with self._changed:
            self._closing = self._due = True
            self._changed.notify_all()
        self._thread.join(timeout)
        shutil.rmtree(self._folder / ".backup", ignore_errors=True)

    def sign_in(self, token: str) -> None:
        """Go on with another token of the owner's: they signed in again. Returns at once."""
        with self._changed:
            self._token, self._renewed = token, self._renewed + 1
            self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until nothing is being sent, so many seconds at most; whether that is so."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._busy or self._due or self._pending), seconds
            )

    # In the thread

    def _work(self) -> None:
        tries = last_tries = 0
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                due = self._changed.wait_for(
                    lambda: self._due or self._pending is not None, self._every
                )
                checkpoint, self._pending = self._pending, None
                closing, self._due, self._busy = self._closing, False, True
            if not due and not self._news():
                continue
            failure = self._send(checkpoint, closing, brief=not due)
            if failure is None:
                tries = 0
                if closing:
                    return
                continue
            tries, last_tries = tries + 1, last_tries + closing
            if last_tries >= LAST_TRIES:
                self._tell(f"The run's last state is not on the Hub, only here: {failure}")
                return
            self._tell(f"The backup on the Hub waits: {failure}")
            self._wait_again(checkpoint, self._wait[min(tries, len(self._wait)) - 1])

    def _news(self) -> bool:
        """Whether events were written since the last commit."""
        return self._bytes_of_events() != self._told

    def _bytes_of_events(self) -> int:
        file = self._folder / "events.jsonl"
        return file.stat().st_size if file.is_file() else 0

    def _send(self, checkpoint: Path | None, closing: bool, brief: bool = False) -> str | None:
        """One commit; what went wrong, or None."""
        try:
            self._commit(checkpoint, closing, brief and self.repo is not None)
        except Exception as error:  # noqa: BLE001 - a backup never ends a run
            ours = isinstance(error, Phi3LoraError)
            self._failed = True
            failure = str(
                (error if ours else explain(error, HubRequest(self.repo or ""))) or repr(error)
            )
            if isinstance(error, Absent):  # deleted meanwhile: it is made anew
                self.repo = None
            return failure
        if self._failed:
            self._tell("The backup on the Hub goes on.")
        self._failed = False
        if checkpoint is not None:
            shutil.rmtree(checkpoint, ignore_errors=True)
        return None

    def _wait_again(self, checkpoint: Path | None, seconds: float) -> None:
        """Put what failed back unless something newer came; wait for that, or for the time."""
        with self._changed:
            if self._pending is None:
                self._pending = checkpoint
            elif checkpoint is not None:
                shutil.rmtree(checkpoint, ignore_errors=True)
            before = (self._pending, self._closing, self._renewed)
            self._changed.wait_for(
                lambda: (self._pending, self._closing, self._renewed) != before, seconds
            )
            self._due = True

    def _commit(self, checkpoint: Path | None, closing: bool, brief: bool) -> None:
        if self.repo is None:
            repo = ready_repo(self._config, self._note, self._token, self._tell)
            self._there = checkpoints_in(repo, self._token)
            self.repo = repo
        told = self._bytes_of_events()
        contents = self._events() if brief else self._contents(checkpoint, closing)
        name = checkpoint.name if checkpoint else None
        stale = sorted(self._there - {name}) if name else []
        send(
            self._token,
            self.repo,
            contents,
            f"Back up {name or 'the run as it stands'}",
            delete=[f"checkpoints/{old}/" for old in stale],
        )
        self._there, self._told = {name} if name else self._there, told
        if closing:
            self._squash(self.repo)

    def _squash(self, repo: str) -> None:
        """Give back what replaced checkpoints take: they stay in the history, and count."""
        from huggingface_hub import HfApi

        api = HfApi(token=self._token)
        try:
            with explained(HubRequest(repo, token=self._token, doing="write to")):
                with_retries(lambda: api.super_squash_history(repo, commit_message="Back up"))
        except HubError as error:
            self._tell(f"The backup is complete, but its older checkpoints still count: {error}")

    def _events(self) -> dict[str, bytes | Path]:
        """What changes while a run computes."""
        there = {name: self._folder / name for name in ("events.jsonl", STATE)}
        return {name: self._neutral(name, file) for name, file in there.items() if file.is_file()}

    def _contents(self, checkpoint: Path | None, closing: bool) -> dict[str, bytes | Path]:
        """Events and config, the checkpoint if there is a new one, the result once there is one."""
        newest = checkpoint.name if checkpoint else max(self._there, key=step_of, default=None)
        result = find_result(self._folder, self._config)
        done = closing and result.whole
        contents: dict[str, bytes | Path] = {}
        if checkpoint:
            place = f"checkpoints/{checkpoint.name}"
            contents |= {f"{place}/{file.name}": file for file in _files(checkpoint, CHECKPOINT)}
        if done:
            name = result.folder.name
            contents |= {f"{name}/{file.name}": file for file in _files(result.folder, RESULT)}
        return {
            **run_files(
                self._folder, self._note, self._config, self._token, self._rows, newest, done
            ),
            **{path: self._neutral(path, content) for path, content in contents.items()},
        }

    def _neutral(self, path: str, content: bytes | Path) -> bytes | Path:
        return _neutral(path, content, self._folder, self._token)

    def _tell(self, message: str) -> None:
        self._notify(redact(message, self._token))


def run_files(
    folder: Path,
    note: RunNote,
    config: RunConfig,
    token: str,
    rows: Path | None = None,
    newest: str | None = None,
    done: bool = False,
) -> dict[str, bytes | Path]:
    """What a run's repository holds beside checkpoints and result: path there → content.

    Args:
        rows: the file that the run is trained on, to go along unless it is large.
        newest: name of the checkpoint that can be resumed from.
        done: whether the result is there.
    """
    if rows:  # named without its folder, which means nothing elsewhere
        config = config.with_values({"data.path": f"data/{rows.name}"})
    contents: dict[str, bytes | Path] = {
        "README.md": _card(note, newest, done).encode(),
        NOTE: json.dumps(asdict(note)).encode(),
        "config.yaml": config.to_yaml().encode(),
    }
    for name in (*SMALL, STATE):
        if (folder / name).is_file():
            contents[name] = folder / name
    if rows and rows.is_file() and rows.stat().st_size <= LARGEST_ROWS:
        contents[f"data/{rows.name}"] = rows
    return {path: _neutral(path, content, folder, token) for path, content in contents.items()}


def _neutral(path: str, content: bytes | Path, folder: Path, token: str) -> bytes | Path:
    """Texts without the run folder's path and without tokens."""
    if Path(path).suffix not in TEXTS or path.startswith("data/"):
        return content
    if Path(path).name == "tokenizer.json":
        return content
    data = content if isinstance(content, bytes) else content.read_bytes()
    text = data.decode("utf-8", "replace")
    for place in {str(folder), str(folder.resolve())}:
        text = text.replace(place, HERE)
    return redact(text, token).encode()


def _link(checkpoint: Path, place: Path) -> Path:
    """The checkpoint's files under another folder, without a copy where the disk allows it."""
    target = place / checkpoint.name
    target.mkdir(parents=True, exist_ok=True)
    for file in _files(checkpoint, CHECKPOINT):
        try:
            (target / file.name).hardlink_to(file)
        except OSError:
            shutil.copy2(file, target / file.name)
    return target


def _files(folder: Path, allowed: re.Pattern[str]) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if allowed.match(file.name)]


def _card(note: RunNote, checkpoint: str | None, finished: bool) -> str:
    import yaml

    facts = {**asdict(note), "checkpoint": checkpoint, "finished": finished}
    values = {"tags": ["phi3lora", TAG], "phi3lora": facts}
    data = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{data}---\n# {note.title or note.id}\n\nA run of phi3lora as it stood when this was "
        "written, kept so that it can be resumed. Leave it private: its checkpoints hold pickles.\n"
    )


def step_of(checkpoint: str) -> int:
    """20 of `checkpoint-20`."""
    found = STEP.match(checkpoint)
    return int(found[1]) if found else -1


# The repository


def ready_repo(config: RunConfig, note: RunNote, token: str, notify: Notify) -> str:
    """The run's repository, made if need be.

    A sign-in writes what its own app has made, and no other. What another Space or a terminal made
    stays as it is, and the copy goes on beside it. Raises HubError.
    """
    who = identity(token)
    wanted = full_name(config.hub.repo or f"phi3lora-{note.id}", who)
    for number in range(1, MOST_COPIES + 1):
        repo = wanted if number == 1 else f"{wanted}-{number}"
        if not _is_ours(repo, who, token):
            continue
        if number > 1:
            notify(
                f"{wanted} was made by another app and cannot be written with this sign-in; the "
                f"run's copy goes on in {repo}."
            )
        return repo
    raise HubError(f"{wanted} and {MOST_COPIES - 1} copies of it cannot be written; delete some.")


def _is_ours(repo: str, who: Identity, token: str) -> bool:
    """Whether this token writes the repository, which is made where the name is free."""
    if check_run_repo(repo, who, token):
        return may_write(repo, token)
    try:
        create(token, repo, private=True, exist_ok=False)
    except AlreadyThere:  # and hidden from this sign-in
        return False
    return True


def checkpoints_in(repo: str, token: str) -> set[str]:
    from huggingface_hub import HfApi

    with explained(HubRequest(repo, token=token)):
        names = with_retries(lambda: HfApi(token=token).list_repo_files(repo))
    return {name.split("/")[1] for name in names if name.startswith("checkpoints/checkpoint-")}


def check_run_repo(repo: str, who: Identity, token: str) -> bool:
    """Whether a run's repository exists; False where the name is free.

    Raises HubError where it is somebody else's, public, or something else.
    """
    repo = full_name(repo, who)
    if repo.split("/")[0] != who.name:
        raise HubError(
            f"{repo} is not {who.name}'s own: a run is backed up to one's own account, where "
            f"nobody else writes. Choose {who.name}/{repo.split('/')[1]}."
        )
    info = find_repo("model", repo, token)
    if info is None:
        return False
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if not info.private:
        raise HubError(
            f"{repo} is public; a run is backed up to a private repository. Make it "
            "private, or choose another name."
        )
    if TAG not in (info.tags or ()) and files - {".gitattributes"}:
        raise HubError(f"{repo} holds something else than a run; choose another name.")
    return True


def list_runs(token: str) -> list[RunRepo]:
    """The caller's runs on the Hub, newest first. Raises HubError."""
    from huggingface_hub import HfApi

    who = identity(token)
    with explained(HubRequest(token=token, doing="list")):
        rows = with_retries(
            lambda: list(
                HfApi(token=token).list_models(
                    author=who.name, filter=TAG, expand=["cardData", "private", "tags"]
                )
            )
        )
    found = [run for row in rows if row.private and (run := _run_repo(row))]
    return sorted(found, key=lambda run: run.created, reverse=True)


def _run_repo(row: Any) -> RunRepo | None:
    facts = (row.card_data or {}).get("phi3lora")
    if not isinstance(facts, dict) or "id" not in facts:
        return None
    return RunRepo(
        repo=row.id,
        id=str(facts["id"]),
        title=str(facts.get("title", "")),
        created=float(facts.get("created") or 0.0),
        step=step_of(str(facts["checkpoint"])) if facts.get("checkpoint") else None,
        finished=bool(facts.get("finished")),
    )


def fetch_run(repo: str, token: str, folder: Path) -> RunNote:
    """Bring a run's files into a new folder; `settle` makes them ready to be resumed.

    Raises HubError where the repository is not the caller's own, not private, or no run's.
    """
    from huggingface_hub import HfApi

    who = identity(token)
    repo = full_name(repo, who)
    if not check_run_repo(repo, who, token):
        raise HubError(f"There is no {repo}; `phi3lora runs restore` lists your runs on the Hub.")
    api = HfApi(token=token)
    with explained(HubRequest(repo, token=token)):
        info = with_retries(lambda: api.model_info(repo))
        names = [sibling.rfilename for sibling in info.siblings or ()]
        if NOTE not in names or "config.yaml" not in names:
            raise HubError(f"{repo} holds no run: it lacks {NOTE} or config.yaml.")
        for name in _wanted(names):
            with_retries(
                lambda name=name: api.hf_hub_download(  # type: ignore[misc]
                    repo, name, revision=info.sha, local_dir=folder
                )
            )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return _note(folder / NOTE, repo)


def fetch_outcome(repo: str, token: str, folder: Path, home: Path) -> None:
    """Bring what a run that computes elsewhere has come to: events, state, report and result.

    Args:
        folder: to bring it to, new or empty.
        home: the run's own folder, which the texts then name.

    Raises HubError, Absent where the repository is gone.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with explained(HubRequest(repo, token=token)):
        info = with_retries(lambda: api.model_info(repo))
        names = [sibling.rfilename for sibling in info.siblings or ()]
        for name in names:
            if name in (*SMALL, STATE) or _is_result(name):
                with_retries(
                    lambda name=name: api.hf_hub_download(  # type: ignore[misc]
                        repo, name, revision=info.sha, local_dir=folder
                    )
                )
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    _with_own_paths(folder, home)


def fetch_events(repo: str, token: str, since: str | None = None) -> tuple[str, bytes] | None:
    """The repository's commit and the events in it; None where nothing is new since a commit.

    Raises HubError, Absent where the repository is gone.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with explained(HubRequest(repo, token=token)):
        info = with_retries(lambda: api.model_info(repo))
        names = {sibling.rfilename for sibling in info.siblings or ()}
        if info.sha in (None, since) or "events.jsonl" not in names:
            return None
        with tempfile.TemporaryDirectory(prefix="phi3lora-") as place:
            file = with_retries(
                lambda: api.hf_hub_download(
                    repo, "events.jsonl", revision=info.sha, local_dir=place
                )
            )
            return str(info.sha), Path(file).read_bytes()


def ask_to_stop(repo: str, key: str, token: str) -> None:
    """Leave word for the Job of that key that it shall save and stop. Raises HubError."""
    send(token, repo, {_stop_file(key): b"stop\n"}, "Ask the run to stop")


def asked_to_stop(repo: str, key: str, token: str) -> bool:
    """Whether such word was left. Raises HubError."""
    from huggingface_hub import HfApi

    with explained(HubRequest(repo, token=token)):
        return bool(HfApi(token=token).file_exists(repo, _stop_file(key)))


def _stop_file(key: str) -> str:
    return f"job/stop-{key}"


def _is_result(name: str) -> bool:
    folder, _, file = name.partition("/")
    return folder in FOLDERS and RESULT.match(file) is not None


def _wanted(names: list[str]) -> Iterator[str]:
    """Of a repository's files those that a run has, and nothing else."""
    for name in names:
        *folders, file = name.split("/")
        known = not folders and file in (NOTE, "config.yaml", *SMALL)
        data = folders == ["data"] and DATA_FILE.fullmatch(file) is not None
        checkpoint = (
            len(folders) == 2
            and folders[0] == "checkpoints"
            and STEP.match(folders[1]) is not None
            and CHECKPOINT.match(file) is not None
        )
        if known or data or _is_result(name) or checkpoint:
            yield name


def settle(folder: Path, home: Path) -> None:
    """Paths in fetched files, which were neutral, become those of the run's final place."""
    _with_own_paths(folder, home)
    for checkpoint in folder.glob("checkpoints/checkpoint-*"):
        _seal_again(checkpoint)
    config, _ = RunConfig.from_yaml(folder / "config.yaml")
    config = _with_own_files(config, home)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")


def _with_own_paths(folder: Path, home: Path) -> None:
    """Texts name the run's final place."""
    texts = [path for path in folder.rglob("*") if path.suffix in TEXTS]
    for path in texts:
        if path.name != "tokenizer.json" and path.parent.name != "data":
            text = path.read_text(encoding="utf-8")
            if HERE in text:
                path.write_text(text.replace(HERE, str(home)), encoding="utf-8")


def _seal_again(checkpoint: Path) -> None:
    """Seal a checkpoint whose state names its new place, if the rest is as it was."""
    sent = {file.name for file in _files(checkpoint, CHECKPOINT)}
    changed = {"trainer_state.json", *(files.sealed_names(checkpoint) - sent)}
    needed = {name for name in changed if CHECKPOINT.match(name)} - {"trainer_state.json"}
    if files.is_sealed(checkpoint) and not needed and files.damage(checkpoint, changed) is None:
        files.seal(checkpoint)


def check_portable(config: RunConfig) -> None:
    """Raises HubError where a run names files of one machine, the rows of `data.path` apart."""
    if not names_no_file(config.model.path):
        raise HubError(
            f"The base, {config.model.path!r}, is a folder of one machine; a run that computes "
            "elsewhere, or is brought back there, needs `pocket` or a base of the Hub."
        )
    if config.model.adapter is not None and not is_hub_id(config.model.adapter):
        raise HubError(
            f"The run goes on from {config.model.adapter!r}, a run or a file of one machine. Push "
            "that adapter to the Hub and name it there."
        )
    if config.grpo_config.function is not None:
        raise HubError(
            f"The run's answers are rewarded by {config.grpo_config.function!r}, code of one "
            "machine, which runs there alone and never from a copy on the Hub."
        )
    for source in config.data.more:
        if not names_no_file(source.path):
            raise HubError(
                f"The run also learns from {source.path!r}, a file of one machine, and only the "
                "rows of data.path come along. Put that file on the Hub and name it there."
            )


def _with_own_files(config: RunConfig, home: Path) -> RunConfig:
    """The config with its rows where they came along. A fetched config may be a stranger's.

    Raises HubError where it names a file of whatever machine reads it.
    """
    check_portable(config)
    folder, _, name = config.data.path.partition("/")
    if folder == "data" and DATA_FILE.fullmatch(name):
        return config.with_values({"data.path": str(home / "data" / name)})
    if not names_no_file(config.data.path):
        raise HubError(
            f"The run's data, {config.data.path!r}, is a file of the machine it comes from and "
            "is not in the backup."
        )
    return config


def check_rows(rows: Path | None) -> None:
    """Raises HubError where a run's file of rows is too large to go along."""
    if rows is not None and rows.stat().st_size > LARGEST_ROWS:
        raise HubError(
            f"{rows.name} has {words.size(rows.stat().st_size)}, and {words.size(LARGEST_ROWS)} at "
            "most go along with a run: put it on the Hub as a dataset, and name that."
        )


def _note(path: Path, repo: str) -> RunNote:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return RunNote(str(values["id"]), str(values["title"]), float(values["created"]))
    except (ValueError, KeyError, TypeError):
        raise HubError(f"{repo} holds no run: its {NOTE} cannot be read.") from None
