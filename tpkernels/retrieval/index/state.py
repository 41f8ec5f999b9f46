"""What an interrupted run leaves in a folder beside the index, from which the same command continues."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import files
from .target import Target

# Of the files, so that a later version can tell.
_VERSION = 1
_PROGRESS, _COUNTS, _LOCK = "progress.json", "counts", "lock"


@dataclass
class Totals:
    """What came of the documents so far: how many, their tokens, the vectors they became, and the sum of their errors.

    `worst` and `worst_document` are the largest error and where it is; `not_finite` counts documents with NaN or
    infinity, of which no error is taken.
    """

    documents: int = 0
    tokens: int = 0
    vectors: int = 0
    not_finite: int = 0
    error: float = 0.0
    worst: float = 0.0
    worst_document: int = -1


class State:
    """A target under way, with as much of it as is safely on disk.

    Args:
        folder: of the partial target.
        target: what becomes of it.
        settings: whatever the result depends on; a state of other settings is not continued.
    """

    def __init__(self, folder: Path, target: Target, settings: dict[str, Any]) -> None:
        self.folder, self.target, self.settings, self.totals = folder, target, settings, Totals()

    def is_placed(self) -> bool:
        """Whether an earlier run of the same call was ended after the target had got its name.

        Raises:
            ValueError: what it left is damaged, or of other settings.
            OSError: the folder cannot be read.
        """
        if not (self.folder / _PROGRESS).exists() or not os.path.lexists(self.target.path):
            return False
        self.totals, complete = self._read()
        return complete and not self.target.whole.exists()

    def begin(self, restart: bool) -> None:
        """Takes up what an earlier run left, or starts anew.

        Raises:
            ValueError: what it left is damaged, or of other settings.
            OSError: the folder cannot be read or written.
        """
        if not restart and (self.folder / _PROGRESS).exists():
            self.totals, _ = self._read()
            for path, size in self._sizes().items():
                if not path.is_file() or path.stat().st_size < size:
                    raise ValueError(f"{self.folder} is damaged: {path.name} is not whole; --restart begins anew")
                # What was written after the last commit.
                os.truncate(path, size)
            return
        # First, so that a kill in the middle doesn't leave it to tell of a target that has got its name.
        (self.folder / _PROGRESS).unlink(missing_ok=True)
        self.remove()
        self.target.begin()
        (self.folder / _COUNTS).write_bytes(b"")
        self.commit()

    def append(self, vectors: Tensor, counts: Tensor) -> None:
        """Writes the vectors [S, D] of further documents, and how many each has, int64.

        Raises:
            OSError: they cannot be written.
        """
        for path, tensor in ((self.target.file, vectors), (self.folder / _COUNTS, counts)):
            with open(path, "ab") as file:
                # By its bytes, since NumPy has no bfloat16.
                file.write(tensor.flatten().view(torch.uint8).numpy().data)

    def commit(self, complete: bool = False) -> None:
        """Makes sure that a run which is interrupted from here on is continued from here.

        Args:
            complete: the target only lacks its name.
        """
        for path in self._sizes():
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        content = {"version": _VERSION, "settings": self.settings, "totals": asdict(self.totals), "complete": complete}
        files.replace(self.folder / _PROGRESS, json.dumps(content, indent=1).encode())

    def finish(self) -> None:
        """Gives the index its name.

        Raises:
            OSError: it cannot be written.
        """
        import numpy

        self.target.finish(torch.from_numpy(numpy.fromfile(self.folder / _COUNTS, numpy.int64)))
        self.commit(complete=True)
        self.target.place()

    def remove(self) -> None:
        """Removes all that the run needed beside the index."""
        self.target.discard()
        # Of commits that were killed.
        for path in self.folder.glob(f".{_PROGRESS}.*"):
            path.unlink()
        (self.folder / _COUNTS).unlink(missing_ok=True)
        # The last to go, since it tells that the target has got its name.
        (self.folder / _PROGRESS).unlink(missing_ok=True)

    def _sizes(self) -> dict[Path, int]:
        """The files that grow, and their sizes by the totals."""
        vectors = self.totals.vectors * self.target.dim * self.target.dtype.itemsize
        return {
            self.target.file: self.target.vectors_at + vectors,
            self.folder / _COUNTS: 8 * self.totals.documents,
        }

    def _read(self) -> tuple[Totals, bool]:
        """The totals, and whether the target only lacked its name."""
        path = self.folder / _PROGRESS
        try:
            content = json.loads(path.read_bytes())
            settings, totals, complete = content["settings"], Totals(**content["totals"]), content["complete"]
            known = content["version"] == _VERSION and isinstance(settings, dict)
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known or not all(type(getattr(totals, f.name)) in (int, float) for f in fields(Totals)):
            raise ValueError(f"{path} is no state that can be continued; --restart begins anew")
        for name in self.settings | settings:
            was, now = settings.get(name), self.settings.get(name)
            if was != now:
                what = "from another input" if name == "input" else f"with {name} {was}, not {now}"
                raise ValueError(f"{self.folder} holds a run that was begun {what}; --restart drops it")
        if not 0 <= totals.documents <= self.target.documents or totals.vectors < 0:
            raise ValueError(f"{path} is damaged; --restart begins anew")
        return totals, bool(complete)


def partial_of(target: Path) -> Path:
    """The folder beside a target in which it is under way."""
    return target.with_name(f"{target.name}.partial")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder of a state, made where it is missing, for one process at a time.

    Raises:
        ValueError: another process is at it, or it is a folder of something else.
        OSError: it cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / _LOCK).exists()):
            raise ValueError(f"{folder} is in the way: it holds no state of an interrupted run") from None
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder} is in use by another process") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # Only where nothing is left that could be continued, and while no other process can take it.
            if [entry.name for entry in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
                folder.rmdir()
        lock.release()
