"""Where a row comes from: commit, versions, device."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from .errors import Refusal

ROOT = Path(__file__).resolve().parents[1]
# Runs write results: changes there leave the code as it is.
NOT_CODE = (":!benchmarks/results", ":!docs/benchmarks.md")


def commit(root: Path = ROOT) -> str:
    """The short commit of a checkout, "+dirty" where its code differs; TPKERNELS_COMMIT, or "unknown", without git."""
    stated = os.environ.get("TPKERNELS_COMMIT")
    if stated:
        return stated
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", ".", *NOT_CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+dirty" if changes else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def version_of(package: str) -> str:
    """The installed version of a package; "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def library_version() -> str:
    """tpkernels' version, also in a checkout that is not installed."""
    found = version_of("tpkernels")
    if found:
        return found
    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return stated.group(1) if stated else "unknown"


def cpu_name() -> str:
    """The processor's model, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", listing.read_text(), re.MULTILINE)
        model = found.group(1).strip() if found else model
    return f"{model}, {cores} cores"


def load() -> float:
    """The machine's load average over the last minute; 0 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def device_name(device: torch.device) -> str:
    """What rows call a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def facts(device: torch.device) -> dict[str, Any]:
    """What all rows of a run share: when it began, of which code and packages, on which device."""
    return {
        "run": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "library": library_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load": load(),
    }


def is_lost(device: torch.device) -> bool:
    """Whether a GPU is lost to this process: after an illegal access every call raises."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).add_(1).item()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False


def slug(name: str) -> str:
    """A device's name as a file name: lower-case letters and digits, with single hyphens between.

    Raises:
        ValueError: nothing of the name would be left.
    """
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not found:
        raise ValueError(f"device name: expected letters or digits, got {name!r}")
    return found


def find_device(name: str | None) -> torch.device:
    """The device of this name; the first GPU, or else the CPU, where name is None.

    Raises:
        Refusal: an unknown name, or a missing device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Refusal(f"--device: expected cpu, cuda or cuda:<index>, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise Refusal(f"--device: expected cpu, cuda or cuda:<index>, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Refusal(f"--device: {name} is not there, torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
