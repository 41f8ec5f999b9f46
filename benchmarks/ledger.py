"""The rows of one run: on disk as soon as they are known, and none of them twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .rows import Row, Table


class Ledger:
    """What a run has written to its device's file; without a file only what it has found.

    Args:
        table: what a row is, and what makes it another one.
        show: a row as the terminal shows it.
    """

    def __init__(
        self,
        table: Table | None = None,
        path: Path | None = None,
        run: str = "",
        show: Callable[[Any], str] | None = None,
    ) -> None:
        self._table, self.path, self._run, self._show = table, path, run, show
        self._statuses: dict[tuple[str, ...], str] = {}

    def load(self) -> None:
        """Takes note of what other processes have written for the same run."""
        if self.path is None or not self.path.exists() or not self.path.stat().st_size:
            return
        for record in self._table.read(self.path):
            if record["run"] == self._run:
                self._statuses[tuple(record[name] for name in self._table.row.KEY)] = record["status"]

    def add(self, rows: Sequence[Row]) -> None:
        """Writes rows, all of them or none."""
        if self._table is None or not rows:
            return
        if self.path is not None:
            self._table.append(self.path, rows)
        for row in rows:
            self._statuses[self._table.key(row)] = row.status
            if self._show is not None:
                print(self._show(row), flush=True)

    def has(self, row: Row) -> bool:
        """Whether this run has written the row of this subject in this case."""
        return self._table is not None and self._table.key(row) in self._statuses

    def __len__(self) -> int:
        return len(self._statuses)

    @property
    def red(self) -> int:
        """How many rows were wrong or failed."""
        return sum(self._table.row.red(key[-1], status) for key, status in self._statuses.items())
