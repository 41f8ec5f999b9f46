"""What the steps of a run find, one JSON object a line: on disk before anything else happens."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from .. import records
from ..rehearsal import rehearsing

FILE = "steps.jsonl"
# The step name in the supervisor's rows, one for the outcome of each step.
SUPERVISOR = "supervisor"


class Journal:
    """Appends rows of one step to the run's file; several processes may do so at once.

    Args:
        folder: of the run. step: whose rows these are.
    """

    def __init__(self, folder: Path, step: str) -> None:
        self.path, self._step = folder / FILE, step

    def tell(self, *, red: str = "", **row: Any) -> None:
        """Prints one row and writes it, flushed to the disk, so that a later hang loses nothing.

        Args:
            red: what is wrong; a row without it has nothing wrong. row: numbers and text.

        Raises:
            OSError: it cannot be written.
        """
        whole: dict[str, Any] = {"at": round(time.time(), 2), "step": self._step, **row}
        if red:
            whole["red"] = red
        if rehearsing():
            whole["rehearsal"] = True
        line = json.dumps(whole, default=str)
        print(line, flush=True)
        # Ends a line that another process was killed in.
        records.append_whole(self.path, b"\n" * _is_cut_off(self.path) + line.encode() + b"\n")


def _is_cut_off(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, in order; a line that was cut off is left out."""
    path = folder / FILE
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def count(folder: Path) -> int:
    """Rows that the steps of a run have written: in the journal, and as the harness' CSV."""
    told = sum(row["step"] != SUPERVISOR for row in read(folder))
    return told + sum(max(0, len(path.read_bytes().splitlines()) - 1) for path in folder.glob("*.csv"))
