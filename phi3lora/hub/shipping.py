"""This very package, for a machine that has nothing but uv: its code, and what it needs.

    send(token, repo, files(), ...)        job/phi3lora.zip, job/requirements.txt
    command(repo, commit)                  fetches them and starts the run; holds no secret

The machine gets the versions of the libraries that this one has, so that a run gives the same
there, and can be resumed.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from phi3lora.hub.space import PACKAGE, SUFFIXES, TORCH_INDEX

FOLDER = "job"
CODE, NEEDED = "phi3lora.zip", "requirements.txt"
SINCE = (1980, 1, 1, 0, 0, 0)  # the time of every file in the zip: the same code, the same bytes
PYTHON = "3.12"
# Pages and what only they need stay here.
NOT_NEEDED = {"gradio", "spaces"}
_NAME = re.compile(r"[A-Za-z0-9._-]+")
# Run by the Job in a Python that has huggingface_hub alone; the token is in its environment.
BEGIN = f"""
import os, sys, tempfile, time, zipfile
began = time.time()
from huggingface_hub import snapshot_download
repo, commit = sys.argv[1:]
place = tempfile.mkdtemp(prefix="phi3lora-")
snapshot_download(repo, revision=commit, allow_patterns="{FOLDER}/*", local_dir=place)
place += "/{FOLDER}"
zipfile.ZipFile(place + "/{CODE}").extractall(place)
os.environ.update(PYTHONPATH=place, PHI3LORA_JOB_BEGAN=str(began))
needed = ["--with-requirements", place + "/{NEEDED}", "--index-strategy", "unsafe-best-match"]
uv = ["uv", "run", "--no-project", "--python", "{PYTHON}", *needed]
os.chdir(place)
os.execvp("uv", [*uv, "python", "-m", "phi3lora.runs.remote", repo])
"""


def command(repo: str, commit: str) -> tuple[str, ...]:
    """What a Job is told to run: the code of that very commit, on the run in that repository."""
    uv = ("uv", "run", "--no-project", "--python", PYTHON, "--with", "huggingface_hub>=2,<3")
    return (*uv, "python", "-c", BEGIN, repo, commit)


def files(*extras: str) -> dict[str, bytes | Path]:
    """Path in the repository → content.

    Args:
        extras: packages that the run needs beside ours, such as a tracker.
    """
    return {f"{FOLDER}/{CODE}": code(), f"{FOLDER}/{NEEDED}": needed(*extras)}


def code() -> bytes:
    """The package and its examples as a zip, the same bytes for the same code."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in _sources():
            archive.writestr(zipfile.ZipInfo(name, SINCE), path.read_bytes())
    return packed.getvalue()


def _sources() -> Iterator[tuple[str, Path]]:
    """Name in the zip, file. In a checkout the examples stand beside the package."""
    beside = PACKAGE.parent / "examples"
    folders = [PACKAGE] if (PACKAGE / "examples").is_dir() else [PACKAGE, beside]
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(PACKAGE.parent)
            hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
            if path.is_file() and path.suffix in SUFFIXES and not hidden:
                yield inside.as_posix(), path


def needed(*extras: str) -> bytes:
    """The libraries at the versions that are installed here, and where PyTorch's build is found.

    A build's own mark, such as `+cpu`, is left out: the machine takes the one for its driver.
    """
    lines = [f"--extra-index-url {TORCH_INDEX}"]
    for line in (*requirements(), *extras):
        found = _NAME.match(line)
        if found and (name := found[0]) not in NOT_NEEDED:
            lines.append(f"{name}=={metadata.version(name).partition('+')[0]}")
    return ("\n".join(lines) + "\n").encode()


def requirements() -> list[str]:
    """What this package needs: of the checkout's file, else as its wheel says."""
    file = PACKAGE.parent / "requirements.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line[:1] not in ("#", "-", "")]
    return [line for line in metadata.requires("phi3lora") or () if "extra ==" not in line]
