"""Xet: the tokens for it, and the store of chunks, which is a folder of this machine.

``casUrl: local:///…`` makes hf_xet write its chunks there by itself, without a server. Each write
token gets a folder of its own, since one process at a time may open one. What a commit refers to
is put together again from a copy, by hf_xet too.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from . import access
from .routing import ReadableRepo, VisibleRepo, Who, api, flag
from .store import HubError, Repo

router = APIRouter()

SECONDS = 3600  # that a token lives
HEADER = ENTRY = 48  # bytes
LAST = b"\xff" * 32
VERIFIED, DESCRIBED = 1 << 31, 1 << 30  # flags of a file in a shard


@dataclass
class Chunks:
    """Where uploads lie. ``url`` replaces the folder: a store that is dead, or elsewhere."""

    url: str | None = None
    places: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list)

    @property
    def folders(self) -> list[Path]:
        return [Path(place.name) for place in self.places]

    def new(self) -> str:
        """A fresh store; its address."""
        if self.url:
            return self.url
        self.places.append(tempfile.TemporaryDirectory(prefix="hub-xet-"))
        return f"local://{self.folders[-1]}"

    def read(self, sha256: str, size: int) -> bytes | None:
        """A file that was uploaded, or None."""
        for folder in self.folders:
            for shard in folder.glob("xet/xorbs/shards/*.mdb"):
                if found := files_of(shard.read_bytes()).get(sha256):
                    return rebuild(folder, found, size)
        return None

    def forget(self) -> None:
        for place in self.places:
            place.cleanup()
        self.places.clear()
        self.url = None


def files_of(shard: bytes) -> dict[str, str]:
    """sha256 → Xet's own hash of each file that a shard describes."""
    found, at = {}, HEADER
    while shard[at : at + 32] != LAST:
        own, (flags, count) = shard[at : at + 32], struct.unpack_from("<II", shard, at + 32)
        at += ENTRY + ENTRY * count * (2 if flags & VERIFIED else 1)
        if flags & DESCRIBED:
            found[written(shard[at : at + 32])] = written(own)
            at += ENTRY
    return found


def written(value: bytes) -> str:
    """A hash as Xet writes it: four numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", value))


def rebuild(folder: Path, own: str, size: int) -> bytes:
    """A file from its chunks, read from a copy: the uploader may still hold the original."""
    import hf_xet

    with tempfile.TemporaryDirectory(prefix="hub-xet-copy-") as place:
        copy = Path(place)
        shutil.copytree(folder / "xet", copy / "xet")
        group = session().new_file_download_group(
            endpoint=f"local://{copy}",
            token="copy",
            token_expiry_unix_secs=int(time.time()) + SECONDS,
            token_refresh_url="http://127.0.0.1:1/never",
            token_refresh_headers={},
            custom_headers={},
            progress_callback=None,
        )
        with group:
            group.start_download_file(hf_xet.XetFileInfo(own, size), str(copy / "file"))
        return (copy / "file").read_bytes()


@cache
def session() -> Any:
    import hf_xet

    return hf_xet.XetSession()


def get_chunks(request: Request) -> Chunks:
    chunks: Chunks = request.app.state.chunks
    return chunks


def receive(request: Request, repo: Repo, lines: list[dict[str, Any]]) -> None:
    """Take what a commit refers to out of the store, as far as the repo lacks it."""
    for value in wanted(lines):
        if value["oid"] not in repo.lfs:
            data = get_chunks(request).read(value["oid"], value["size"])
            if data is not None:
                repo.lfs[value["oid"]] = data


def wanted(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (line["value"] for line in lines if line["key"] == "lfsFile")


def answer(response: Response, url: str) -> dict[str, Any]:
    expires = int(time.time()) + SECONDS
    response.headers["X-Xet-Cas-Url"] = url
    response.headers["X-Xet-Access-Token"] = "xet"
    response.headers["X-Xet-Token-Expiration"] = str(expires)
    return {"casUrl": url, "accessToken": "xet", "exp": expires}


@api(router, "/xet-write-token/{rest:path}")
async def write_token(
    request: Request, response: Response, repo: VisibleRepo, caller: Who, rest: str
) -> dict[str, Any]:
    """Raises: HubError for who may not write here, nor propose to."""
    if caller.user is None:
        raise HubError(401, "Invalid username or password.")
    if flag(request, "create_pr"):
        access.check_propose(caller, repo)
    else:
        access.check_write(caller, repo)
    return answer(response, get_chunks(request).new())


@api(router, "/xet-read-token/{rest:path}")
async def read_token(
    request: Request, response: Response, repo: ReadableRepo, rest: str
) -> dict[str, Any]:
    chunks = get_chunks(request)
    return answer(response, f"local://{chunks.folders[-1]}" if chunks.folders else chunks.new())
