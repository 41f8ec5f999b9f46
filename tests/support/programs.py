"""Where the checkout is, and Python programs that tests start in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def environment(root: Path = ROOT, **variables: str) -> dict[str, str]:
    """This process's environment, in which programs find the checkout and Triton interprets nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    return {**kept, "PYTHONPATH": str(root), **variables}


def run(*command: str, root: Path = ROOT, timeout: float = 900, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python program in a checkout, with its output as text."""
    env = environment(root, **variables)
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=root, capture_output=True, text=True, timeout=timeout
    )
