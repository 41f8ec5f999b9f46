"""What is made once for all workers of a run of pytest: fixtures of a module are made by each of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one worker fills, while the others wait for it.

    Args:
        factory: pytest's `tmp_path_factory`.
        name: of the folder.
        make: fills it; where it raises, the next worker tries again.
    """
    base = factory.getbasetemp()
    # Workers of xdist have a folder each in one that they share.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
