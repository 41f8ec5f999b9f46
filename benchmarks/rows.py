"""Rows as CSV: one file a device, only ever appended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from . import records

OUT_OF_MEMORY = "failed: out of memory"


@dataclass(kw_only=True)
class Row:
    """What one provider did in one case. Times are milliseconds of the whole call; empty where not measured.

    run: when the run began (UTC), and load: the machine's load average then, shared by its rows. runs_on: cpu or cuda,
    where the provider computes. status: "ok", "skipped: ...", "wrong: ..." or "failed: ...". p20, p50, p99: warm, over
    `repeats`. graph_p50_ms: of a captured CUDA graph, launch cost left out. cold_ms: the first call, compilation
    included (less what a cache on disk held). peak_mb: 10^6 bytes beyond the inputs. objective: mean of the samples
    that were checked. objective_ratio: to the reference's. floor_ms: on a CPU the measured product of the distances,
    on a GPU the larger of that and of memory_floor_ms. over_floor: p50 (graph_p50 where there is one) over it.
    """

    run: str
    commit: str
    library: str
    python: str
    torch: str
    triton: str
    package: str = ""
    device: str
    runs_on: str
    threads: int
    load: float
    group: str
    case: str
    provider: str
    solves: str
    method: str
    init: str
    weighted: bool
    tokens: str
    dtype: str
    b: int
    n: int
    d: int
    k: int
    iters: int
    status: str
    repeats: int = 0
    p20_ms: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    graph_p50_ms: float | None = None
    cold_ms: float | None = None
    peak_mb: float | None = None
    launches: int | None = None
    objective: float | None = None
    objective_ratio: float | None = None
    product_floor_ms: float | None = None
    memory_floor_ms: float | None = None
    floor_ms: float | None = None
    over_floor: float | None = None
    note: str = ""

    @property
    def subject(self) -> str:
        """Who is measured."""
        return self.provider

    @property
    def part(self) -> str:
        """The part of its case that is measured together: all of it."""
        return ""


COLUMNS = tuple(field.name for field in fields(Row))
TIMES = ("p20_ms", "p50_ms", "p99_ms", "graph_p50_ms", "cold_ms", "over_floor")
KEY = ("group", "case", "b", "n", "d", "k", "iters", "dtype", "provider")


def key(row: Row) -> tuple[str, ...]:
    """What tells a row from the others of its run, as text."""
    return tuple(records.text(getattr(row, name)) for name in KEY)


def red(provider: str, status: str) -> bool:
    """Whether a row says that something is amiss; memory that another package ran out of is its own affair."""
    if status.startswith(OUT_OF_MEMORY):
        return provider.startswith("tpkernels")
    return status.startswith(("wrong", "failed"))


def append(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, as `records.append`.

    Raises:
        ValueError: a row that is not ok carries a time.
        Refusal, OSError: as `records.append`.
    """
    for row in rows:
        if row.status != "ok" and any(getattr(row, name) is not None for name in TIMES):
            raise ValueError(f"{row.provider}, {row.case}: a row that is {row.status!r} must not carry times")
    records.append(path, COLUMNS, [asdict(row) for row in rows])


def check(path: Path) -> None:
    """Raises Refusal where a file of rows is of another make or is cut off."""
    records.check(path, COLUMNS)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file as text by column; Refusal as `check`."""
    return records.read(path, COLUMNS)
