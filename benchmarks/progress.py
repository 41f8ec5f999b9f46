"""The progress of a process, in a file that outlives it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

# All records have one length, so that each overwrites the one before.
SIZE = 1024


@dataclass(frozen=True)
class Place:
    """Where a process is.

    unit: the index of the case or problem, -1 before the first. subject: what runs in it, "" for none. step: in words.
    count: of steps so far. ended: whether the process came to its end.
    """

    unit: int = -1
    subject: str = ""
    step: str = ""
    count: int = 0
    ended: bool = False


class Progress:
    """Notes where its process is; without a file only in memory.

    A note is one short write into the page cache, which a killed process leaves behind.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.place = Place()
        self._handle = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)

    def begin(self, unit: int) -> None:
        """A case or problem begins."""
        self._set(unit, "", "")

    def __call__(self, subject: str, step: str = "") -> None:
        """A step of a subject begins; with "" a step of none."""
        self._set(self.place.unit, subject, step)

    def end(self) -> None:
        """All is done."""
        self._set(self.place.unit, "", "", ended=True)

    def _set(self, unit: int, subject: str, step: str, ended: bool = False) -> None:
        self.place = Place(unit, subject, step, self.place.count + 1, ended)
        if self._handle is not None:
            os.pwrite(self._handle, json.dumps(asdict(self.place)).encode().ljust(SIZE), 0)


def read(path: Path) -> Place:
    """The last place that was noted; the one before the first case where none was."""
    text = path.read_bytes().strip() if path.exists() else b""
    return Place(**json.loads(text)) if text else Place()
