"""A handful of the trials of `make faults`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_few_faults_lose_nothing() -> None:
    command = [sys.executable, "-m", "tests.faults", "--short"]
    ended = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| **all** | 4 | 4 | 0 | 0 | 0 |" in ended.stdout
