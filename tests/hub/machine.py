"""The machines that Jobs run on, on loopback: each command in a process of its own.

    hub.jobs.runner = Machine(hub, tmp_path)

Not real: the image. Its `uv` is a script of ours that checks what it is told to install against
what is installed here, at those very versions, and runs the command with this Python. Nothing of
this checkout is on the way: what the command imports, it has to bring along.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .jobs import ENDED, Job

if TYPE_CHECKING:
    from .server import LoopbackHub

LOOK_SECONDS = 0.05
UV = '''#!{python}
"""`uv run [OPTIONS] COMMAND…` for an image that has everything installed already."""
import os, re, sys
from importlib import metadata

VALUED = {{"--with", "--with-requirements", "--python", "--index-strategy"}}
words, needed = sys.argv[2:], []
assert sys.argv[1] == "run", sys.argv
while words[0].startswith("-"):
    option = words.pop(0)
    value = words.pop(0) if option in VALUED else None
    if option == "--with-requirements":
        needed += [line for line in open(value).read().splitlines() if not line.startswith("-")]
    elif option not in VALUED | {{"--no-project"}}:
        sys.exit("uv: error: unexpected argument " + option)
for line in needed:
    name, _, version = line.partition("==")
    have = metadata.version(name).partition("+")[0]
    if have != version:
        sys.exit(f"uv: error: no solution found: {{line}}, there is {{have}}")
assert words[0] == "python", words
if "-m" in words and os.environ.get("MACHINE_PATH"):  # of the image, before what the Job brings
    os.environ["PYTHONPATH"] = os.environ["MACHINE_PATH"] + ":" + os.environ["PYTHONPATH"]
os.execv("{python}", ["python", *words[1:]])
'''


class Machine:
    """Runs Jobs.

    Args:
        delay: seconds that one waits for its machine.
        path: a folder of modules that the image has, found before all others.
    """

    def __init__(
        self, hub: LoopbackHub, folder: Path, delay: float = 0.0, path: Path | None = None
    ) -> None:
        self.hub, self.delay, self.path = hub, delay, path
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []
        binaries = folder / "bin"
        binaries.mkdir(parents=True, exist_ok=True)
        (binaries / "uv").write_text(UV.format(python=sys.executable))
        (binaries / "uv").chmod(0o755)

    def __call__(self, job: Job) -> None:
        """One Job from its waiting to its end."""
        self._wait(job, self.delay)
        job.start()
        if job.stage in ENDED:
            return
        deadline = time.monotonic() + float(job.spec.get("timeoutSeconds") or 1800)
        process = self._start(job)
        reader = threading.Thread(target=self._read, args=(job, process), daemon=True)
        reader.start()
        while process.poll() is None and job.stage not in ENDED:
            if time.monotonic() > deadline:
                job.end("ERROR", "Job timeout")
            time.sleep(LOOK_SECONDS)
        kill(process)  # cancelled or out of time: nobody is asked first
        process.wait()
        reader.join(5)
        code = process.returncode
        if code == 0:
            job.end("COMPLETED")
        job.end("ERROR", f"Job failed with exit code: {code}. Reason: Error")

    def _wait(self, job: Job, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and job.stage not in ENDED:
            time.sleep(LOOK_SECONDS)

    def _start(self, job: Job) -> subprocess.Popen[str]:
        place = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        process = subprocess.Popen(
            job.spec["command"],
            cwd=place,
            env=self._environment(job, place),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def _environment(self, job: Job, place: Path) -> dict[str, str]:
        """A machine's own variables, and what the Job was given; nothing of this process's."""
        return {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(place),
            "TMPDIR": str(place),
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": os.environ.get("HF_HUB_DISABLE_XET", ""),
            "OMP_NUM_THREADS": "1",
            "JOB_ID": job.id,
            "MACHINE_PATH": str(self.path or ""),
            **job.spec.get("environment", {}),
            **job.spec.get("secrets", {}),
        }

    def _read(self, job: Job, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            job.log(line.rstrip("\n"))

    def close(self) -> None:
        """End what still runs."""
        for process in self.processes:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """With everything that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
