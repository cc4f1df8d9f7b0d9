"""Send files to a repository of the Hub: large ones first and one by one, then a single commit.

    commit = send(token, "ann/pirate", {"README.md": b"...", "adapter_model.safetensors": path})

A connection that breaks is tried again; what has arrived is not sent twice, neither then nor when
the same files are sent another day. Nothing leaves that holds a token or a path of this machine.
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

    def upload() -> None:
        for addition in additions:
            if not addition._is_uploaded:
                meter.begin(addition.path_in_repo)
                api.preupload_lfs_files(
                    repo, [addition], repo_type=kind, create_pr=pull_request, free_memory=False
                )
                meter.finish(addition.path_in_repo, addition.upload_info.size)

    def commit() -> Any:
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
        return _reconnecting(commit, request, tell)


def _reconnecting(call: Callable[[], Any], request: HubRequest, tell: Tell | None) -> Any:
    """Try again when the connection breaks; give up after a few times."""
    for wait in (*RETRY_SECONDS, None):
        try:
            return with_retries(call, tell)
        except Exception as error:
            told = error if isinstance(error, Phi3LoraError) else explain(error, request)
            if wait is None or not isinstance(told, Unreachable):
                raise
        if tell:
            tell(f"The connection broke; going on in {wait:.0f} s.")
        time.sleep(wait)
    raise AssertionError("unreachable")


class Meter:
    """Adds up what has arrived, over all files."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = max(total, 1)
        self._progress = progress
        self._sent: dict[str, int] = {}

    def begin(self, path: str) -> None:
        """A file is sent from its start."""
        self._sent[path] = 0

    def add(self, path: str, count: int) -> None:
        """So many bytes more have left."""
        self._sent[path] = self._sent.get(path, 0) + count
        self._tell()

    def finish(self, path: str, size: int) -> None:
        """All of a file is there, whether it was sent or had been before."""
        self._sent[path] = size
        self._tell()

    def _tell(self) -> None:
        if self._progress:
            self._progress(min(1.0, sum(self._sent.values()) / self._total))


def _additions(contents: Contents, meter: Meter) -> list[Any]:
    """The client's operations, whose files count what is read from them while they are sent."""
    from huggingface_hub import CommitOperationAdd

    class Counted(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
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
    """Bytes."""
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
    token: str, repo: str, *, kind: Kind = "model", private: bool | None = None, **options: Any
) -> str:
    """Make a repository unless it exists; its address. Raises HubError where that is refused."""
    from huggingface_hub import HfApi

    with explained(HubRequest(repo, kind, token=token, doing="create")):
        made = with_retries(
            lambda: HfApi(token=token).create_repo(
                repo, repo_type=kind, private=private, exist_ok=True, **options
            )
        )
    return str(made)
