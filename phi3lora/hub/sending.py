"""Send files to a repository of the Hub: large ones first, all together, then a single commit.

    commit = send(token, "ann/pirate", {"README.md": b"...", "adapter_model.safetensors": path})

A connection that breaks is tried again: files that have arrived are not sent twice, of the file
that was on its way the whole parts of 64 MB that Xet has taken. A commit that was carried out and
not answered is found, not made again. Nothing leaves that holds a token or a path of this machine.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from phi3lora.errors import HubError, Phi3LoraError
from phi3lora.hub.client import (
    HubRequest,
    Kind,
    Tell,
    Unreachable,
    explain,
    explained,
    with_retries,
)
from phi3lora.hub.xet import STALLED_SECONDS, Stalled, watched
from phi3lora.redaction import TOKEN

Progress = Callable[[float], None]  # the share that has arrived, 0 to 1
Contents = Mapping[str, bytes | Path]  # path in the repository → bytes, or the file that has them
RETRY_SECONDS = (1.0, 5.0, 20.0)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def send(
    token: str,
    repo: str,
    contents: Contents,
    message: str,
    *,
    kind: Kind = "model",
    parent: str | None = None,
    pull_request: bool = False,
    delete: Iterable[str] = (),
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Any:
    """Commit files to a repository that exists.

    Args:
        parent: the commit that this one follows; refused if somebody else was quicker.
        delete: paths or folders (ending in /) of the repository to remove.
        progress: told how much of all bytes has arrived.
        tell: told when something is waited for or tried again.

    Returns the client's CommitInfo. Raises HubError.
    """
    from huggingface_hub import CommitOperationDelete, HfApi

    api = HfApi(token=token)
    request = HubRequest(repo, kind, token=token, doing="write to")
    meter = Meter(sum(size_of(content) for content in contents.values()), progress)
    additions = _additions(contents, meter)
    wanted = {addition.path_in_repo: addition for addition in additions}
    unanswered = False  # whether a commit was sent whose answer never came

    def upload() -> None:
        with watched(meter.arrived, STALLED_SECONDS):
            api.preupload_lfs_files(
                repo, additions, repo_type=kind, create_pr=pull_request, free_memory=False
            )

    def commit() -> Any:
        nonlocal unanswered
        again, unanswered = unanswered, True
        if again and (done := _carried_out(api, repo, kind, message, wanted, pull_request)):
            return done
        gone = [CommitOperationDelete(path) for path in delete]
        return api.create_commit(
            repo,
            [*additions, *gone],
            commit_message=message,
            repo_type=kind,
            create_pr=pull_request,
            parent_commit=parent,
        )

    with explained(request):
        _reconnecting(upload, request, tell)
        done = _reconnecting(commit, request, tell)
    meter.finish()
    return done


def _carried_out(
    api: Any, repo: str, kind: Kind, message: str, wanted: Mapping[str, Any], pull_request: bool
) -> Any:
    """The commit that the Hub made without answering; None where it made none."""
    from huggingface_hub import CommitInfo

    page = HubRequest(repo, kind).page
    for pull in _own_pulls(api, repo, kind, message) if pull_request else [None]:
        revision = pull.git_reference if pull else "main"
        newest = api.list_repo_commits(repo, repo_type=kind, revision=revision)[0]
        if newest.title == message and _holds(api, repo, kind, newest.commit_id, wanted):
            return CommitInfo(
                commit_url=f"{page}/commit/{newest.commit_id}",
                commit_message=message,
                commit_description="",
                oid=newest.commit_id,
                pr_url=pull.url if pull else None,
            )
    return None


def _own_pulls(api: Any, repo: str, kind: Kind, message: str) -> list[Any]:
    pulls = api.get_repo_discussions(repo, repo_type=kind, discussion_type="pull_request")
    mine = api.whoami()["name"]
    return [pull for pull in pulls if pull.title == message and pull.author == mine]


def _holds(api: Any, repo: str, kind: Kind, commit: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a commit has every one of these files, with the same bytes."""
    found = api.get_paths_info(repo, list(wanted), repo_type=kind, revision=commit)
    there = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in found}
    return all(there.get(path) == addition._local_oid for path, addition in wanted.items())


def _reconnecting(call: Callable[[], Any], request: HubRequest, tell: Tell | None) -> Any:
    """Try again when the connection breaks; give up after a few times."""
    for wait in (*RETRY_SECONDS, None):
        try:
            return with_retries(call, tell)
        except Exception as error:
            told = error if isinstance(error, Phi3LoraError) else explain(error, request)
            again = isinstance(told, Unreachable) and not isinstance(told, Stalled)
            if wait is None or not again:
                raise
        if tell:
            tell(f"The connection broke; going on in {wait:.0f} s.")
        time.sleep(wait)
    raise AssertionError("unreachable")


class Meter:
    """How much has arrived, over all files: what was put through, or what Xet reports."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = max(total, 1)
        self._progress = progress
        self._sent: dict[str, int] = {}
        self._xet = 0

    def begin(self, path: str) -> None:
        """A file is sent from its start."""
        self._sent[path] = 0

    def add(self, path: str, count: int) -> None:
        """So many bytes more of a file have left."""
        self._sent[path] = self._sent.get(path, 0) + count
        self._tell()

    def arrived(self, count: int) -> None:
        """So many bytes have arrived through Xet."""
        self._xet = count
        self._tell()

    def finish(self) -> None:
        """All is there, whether it was sent or had been before."""
        self._sent, self._xet = {"": self._total}, 0
        self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(min(1.0, (sum(self._sent.values()) + self._xet) / self._total))


def _additions(contents: Contents, meter: Meter) -> list[Any]:
    """The client's operations, whose files count what is read from them while they are sent."""
    from huggingface_hub import CommitOperationAdd

    class Counted(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
            meter.begin(self.path_in_repo if with_tqdm else "")
            with super().as_file() as file:
                yield _counting(file, self.path_in_repo, meter) if with_tqdm else file

    return [
        Counted(path, content if isinstance(content, bytes) else str(content))
        for path, content in contents.items()
    ]


def _counting(file: Any, path: str, meter: Meter) -> Any:
    """The file, with a `read` that tells the meter."""
    read = file.read

    def counted(size: int | None = -1) -> bytes:
        data: bytes = read(size)
        meter.add(path, len(data))
        return data

    file.read = counted
    return file


def size_of(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


# What must not leave


def check_contents(contents: Contents, token: str | None, places: Iterable[Path] = ()) -> None:
    """Look through every byte for tokens, paths of this machine, and pickles.

    Args:
        places: files and folders of this machine whose paths must not be told.

    Raises HubError naming the file.
    """
    secrets = {str(place).encode() for place in places if len(place.parts) > 2}
    for path, content in contents.items():
        if path.lower().endswith(PICKLES):
            raise HubError(f"{path} is a pickle, which can run code when read; it stays here.")
        with _bytes_of(content) as data:
            if (token and data.find(token.encode()) >= 0) or (
                not path.endswith(".safetensors") and TOKEN.search(_text(data))
            ):
                raise HubError(f"{path} holds a token of the Hub; take it out, then try again.")
            if found := next((place for place in secrets if data.find(place) >= 0), None):
                raise HubError(
                    f"{path} names a folder of this machine ({found.decode()}); take it out, then "
                    "try again."
                )


@contextmanager
def _bytes_of(content: bytes | Path) -> Iterator[Any]:
    """Something with `find` over all bytes, without reading a large file into memory."""
    if isinstance(content, bytes) or content.stat().st_size == 0:
        yield content if isinstance(content, bytes) else b""
        return
    with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _text(data: Any) -> str:
    return bytes(data[:]).decode("utf-8", "replace")


def create(
    token: str,
    repo: str,
    *,
    kind: Kind = "model",
    private: bool | None = None,
    exist_ok: bool = True,
    **options: Any,
) -> str:
    """Make a repository unless it exists; its address. Raises HubError where that is refused."""
    from huggingface_hub import HfApi

    with explained(HubRequest(repo, kind, token=token, doing="create")):
        made = with_retries(
            lambda: HfApi(token=token).create_repo(
                repo, repo_type=kind, private=private, exist_ok=exist_ok, **options
            )
        )
    return str(made)
