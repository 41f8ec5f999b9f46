"""Rows of clustering that were measured, read back for plots and tables: of every case its latest run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import results
from ..results import Record
from .rows import TABLE

FACTS = {"device": "device", **results.FACTS, "package": "peers"}


@dataclass(frozen=True)
class Measured:
    """A case as it was last run on a device: its rows, of one run."""

    group: str
    case: str
    b: int
    n: int
    d: int
    k: int
    iters: int
    dtype: str
    records: tuple[Record, ...]

    @property
    def shape(self) -> str:
        """The shape as text."""
        return f"B={self.b} N={self.n} D={self.d} K={self.k}"

    def ok(self) -> list[Record]:
        """The rows that carry times."""
        return [record for record in self.records if record["status"] == "ok"]


def latest(records: Iterable[Record]) -> list[Measured]:
    """The cases, each with the rows of the last run that had it, in the order in which they first appeared."""
    grouped: dict[tuple, list[Record]] = {}
    for record in records:
        key = tuple(record[name] for name in ("group", "case", "b", "n", "d", "k", "iters", "dtype"))
        grouped.setdefault(key, []).append(record)
    return [_of_last_run(key, found) for key, found in grouped.items()]


def _of_last_run(key: tuple, records: Sequence[Record]) -> Measured:
    last = max(record["run"] for record in records)
    group, case, b, n, d, k, iters, dtype = key
    kept = tuple(record for record in records if record["run"] == last)
    return Measured(group, case, int(b), int(n), int(d), int(k), int(iters), dtype, kept)


def read(path: Path) -> list[Measured]:
    """The measured cases of a file; Refusal as `Table.read`."""
    return latest(TABLE.read(path))


def facts(measured: Sequence[Measured]) -> dict[str, str]:
    """The origin of the rows."""
    return results.facts((record for case in measured for record in case.records), FACTS)
