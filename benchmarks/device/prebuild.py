"""Compiles, without a GPU, what the steps need on one, through the launcher's own path, and packs Triton's cache.

A cache's keys hold for one Triton, one release of Python and one torch: an environment of the GPU machine's versions is
made where this process has others.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from ..environment import ROOT, version_of
from ..errors import Refusal
from . import cache

# The versions of the machine with the GPU, and what its GPU is.
PYTHON, TORCH, TRITON = "3.12", "2.11.0", "3.6.0"
TARGET = "sm_90"
ENVIRONMENTS = ROOT / "runs"


def main(path: Path, python: str | None) -> int:
    """Compiles and packs; 0 where all of it compiled.

    Args:
        path: of the packed cache. python: of the release PYTHON, which an environment is made with if need be.
    """
    if _versions() != (PYTHON, TORCH, TRITON):
        command = [str(_environment(python)), "-m", "benchmarks", "device", "--prebuild", str(path.absolute())]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise Refusal("TRITON_INTERPRET: expected to be unset where kernels are compiled, got 1")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[cache.VARIABLE] = folder
        began = time.monotonic()
        count = _compile()
        kept = cache.pack(Path(folder), path)
        seconds = time.monotonic() - began
        size = path.stat().st_size / 1e6
    print(f"{count} launches, {kept} kernels for {TARGET} in {seconds:.0f} s; {path}, {size:.1f} MB")
    return 0


def _versions() -> tuple[str, str, str]:
    major, minor, *_ = platform.python_version_tuple()
    return f"{major}.{minor}", version_of("torch").split("+")[0], version_of("triton")


def _environment(python: str | None) -> Path:
    """The Python of an environment with the right versions, made where it is missing."""
    folder = ENVIRONMENTS / f"prebuild-{PYTHON}-{TORCH}-{TRITON}"
    made = folder / "bin" / "python"
    if (folder / "complete").exists():
        return made
    base = python or shutil.which(f"python{PYTHON}")
    if base is None:
        raise Refusal(
            f"--python: expected Python {PYTHON}, torch {TORCH} and Triton {TRITON} here, or a Python {PYTHON} to make "
            f"such an environment with; got {', '.join(_versions())} and no python{PYTHON} on the path"
        )
    print(f"making {folder}: torch {TORCH} takes some minutes and 3 GB", flush=True)
    subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
    packages = [f"torch=={TORCH}", f"triton=={TRITON}", "numpy"]
    subprocess.run([str(made), "-m", "pip", "install", "-q", *packages], check=True)
    (folder / "complete").touch()
    return made


def _compile() -> int:
    """Compiles every launch that the steps' calls make, as a device would; returns their number."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from tools.compile_gate import launchers, launches
    from tools.compile_gate.targets import TARGETS

    from .facts import triton_key
    from .problems import calls

    target = TARGETS[TARGET]
    driver.set_active(_no_device(target))
    print(f"triton_key {triton_key()}", flush=True)
    count = 0
    for call in calls():
        with launches.recording(target) as kept:
            launchers.make(call, launches.meta)
        began = time.monotonic()
        for kernel, args, kwargs in kept:
            JITFunction.run(kernel, *args, grid=(1,), warmup=True, **kwargs)
        count += len(kept)
        print(f"{time.monotonic() - began:6.1f} s  {call.name}", flush=True)
    return count


def _no_device(target: Any) -> Any:
    """A driver that reports the target GPU and has none."""
    import torch
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget(target.backend, target.arch, target.limits.warp)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int | None = None) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

    return Driver()
