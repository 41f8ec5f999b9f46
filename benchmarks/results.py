"""Rows that were measured, read back for plots and tables: of every case its latest run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import rows

QUICK = "-quick"
# What else than clustering has files of its own beside it.
KINDS = ("tax", "attention")
Record = dict[str, str]
NUMBERS = ("p50_ms", "graph_p50_ms", "peak_mb", "over_floor", "objective_ratio", "floor_ms")


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


def number(record: Record, column: str) -> float | None:
    """A column as a number; None where it was not measured."""
    return float(record[column]) if record[column] else None


def time_ms(record: Record) -> float:
    """The time that is compared: of the captured graph where there is one, else the call's."""
    return float(record["graph_p50_ms"] or record["p50_ms"])


def file_name(device: str, quick: bool = False, kind: str = "") -> str:
    """A file of results by its device's slug; quick runs have their own, for their times are of other cases.

    Args:
        kind: of KINDS; "" for clustering.
    """
    return f"{device}{f'-{kind}' if kind else ''}{QUICK if quick else ''}.csv"


def files(folder: Path, quick: bool = False, kind: str = "") -> list[Path]:
    """The files of one kind of results in a folder, quick runs' or the others'."""

    def is_one(stem: str) -> bool:
        named = stem.removesuffix(QUICK)
        kinds = [other for other in KINDS if named.endswith(f"-{other}")]
        return stem.endswith(QUICK) is quick and kinds == ([kind] if kind else [])

    return sorted(path for path in folder.glob("*.csv") if is_one(path.stem))


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
    """The measured cases of a file; Refusal as `rows.read`."""
    return latest(rows.read(path))


def facts(measured: Sequence[Measured]) -> dict[str, str]:
    """What the rows came from; several values are joined."""
    records = [record for case in measured for record in case.records]

    def values(column: str) -> str:
        return ", ".join(sorted({record[column] for record in records if record[column]}))

    names = {
        "device": "device",
        "threads": "CPU threads",
        "load": "load before",
        "commit": "commit",
        "python": "Python",
        "torch": "torch",
        "triton": "Triton",
        "package": "peers",
    }
    found = {title: values(column) for column, title in names.items()}
    found["run"] = ", ".join(sorted({record["run"][:10] for record in records}))
    return {title: value for title, value in found.items() if value}
