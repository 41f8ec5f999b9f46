"""Rows of the pooling tax: what one model cost beside its sliced and its unpooled twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from . import records


@dataclass(kw_only=True)
class Row:
    """What one model did in one problem, run one way. Times are milliseconds of a forward; empty where not measured.

    run: when the run began (UTC), and load: the machine's load average then, shared by its rows. allocator: what the C
    library does with freed memory, see `memory.keep_memory`. keep, layers (0-based,
    "all") and tokens (of each sample at each block's MLP): the schedule. mode: "eager", "compiled" or "CUDA graph".
    method: "base" (unpooled), "slicing", or what pools. ward_rounds: what Ward takes on the base model's tokens at
    those layers, shared by a problem's rows. status: "ok", "skipped: ...", "wrong: ..." or "failed: ...". rounds: times
    that every model ran in turn. tax: median over the rounds of its time over the sliced model's in the same round,
    less 1 (none for base); speedup: of the base model's time over its own. p20 and p80: of those ratios. cold_ms: the
    first call, compilation included (less what a cache on disk held). peak_mb: 10^6 bytes beyond model and images.
    """

    run: str
    commit: str
    library: str
    python: str
    torch: str
    triton: str
    device: str
    runs_on: str
    threads: int
    load: float
    allocator: str
    model: str
    schedule: str
    keep: float
    layers: str
    tokens: str
    b: int
    dtype: str
    mode: str
    method: str
    status: str
    ward_rounds: float | None = None
    rounds: int = 0
    p20_ms: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    cold_ms: float | None = None
    peak_mb: float | None = None
    tax: float | None = None
    tax_p20: float | None = None
    tax_p80: float | None = None
    speedup: float | None = None
    speedup_p20: float | None = None
    speedup_p80: float | None = None

    @property
    def subject(self) -> str:
        """Who is measured."""
        return self.method

    @property
    def part(self) -> str:
        """The part of its problem that is measured together."""
        return self.mode


COLUMNS = tuple(field.name for field in fields(Row))
TIMES = (
    *("p20_ms", "p50_ms", "p99_ms", "cold_ms"),
    *("tax", "tax_p20", "tax_p80", "speedup", "speedup_p20", "speedup_p80"),
)
KEY = ("model", "schedule", "b", "dtype", "mode", "method")


def key(row: Row) -> tuple[str, ...]:
    """What tells a row from the others of its run, as text."""
    return tuple(records.text(getattr(row, name)) for name in KEY)


def red(method: str, status: str) -> bool:
    """Whether a row says that something is amiss."""
    return status.startswith(("wrong", "failed"))


def append(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, as `records.append`.

    Raises:
        ValueError: a row that is not ok carries a time.
        Refusal, OSError: as `records.append`.
    """
    for row in rows:
        if row.status != "ok" and any(getattr(row, name) is not None for name in TIMES):
            raise ValueError(f"{row.method}, {row.model}: a row that is {row.status!r} must not carry times")
    records.append(path, COLUMNS, [asdict(row) for row in rows])


def check(path: Path) -> None:
    """Raises Refusal where a file of rows is of another make or is cut off."""
    records.check(path, COLUMNS)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file as text by column; Refusal as `check`."""
    return records.read(path, COLUMNS)
