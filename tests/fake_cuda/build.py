"""Compile `hooks.cpp` against the installed torch, and load it: before torch is imported.

build(Path("/tmp/hooks.so")); load(Path("/tmp/hooks.so"))
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path


def compiler() -> str | None:
    """A C++ compiler of this machine."""
    return next((found for name in ("g++", "clang++") if (found := shutil.which(name))), None)


def build(target: Path) -> None:
    """The library; about ten seconds. Raises CalledProcessError with the compiler's words."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    includes = [torch / "include", torch / "include/torch/csrc/api/include"]
    command = [str(compiler()), "-shared", "-fPIC", "-std=c++20", "-O0", "-w"]
    command += [f"-I{folder}" for folder in includes]
    command += [str(Path(__file__).with_name("hooks.cpp")), f"-L{torch / 'lib'}"]
    command += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}", "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def load(library: Path) -> None:
    """One device from now on, in this process."""
    assert "torch" not in sys.modules, "torch reads the registry when it is imported"
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
