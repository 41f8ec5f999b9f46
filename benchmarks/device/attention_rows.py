"""Rows of timed attention: this library's kernels and `scaled_dot_product_attention` on the same heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .. import records

KIND = "attention"


@dataclass(kw_only=True)
class Row:
    """One provider on heads [B, H, N, D]. Times are milliseconds of the whole call; empty where not measured.

    run to load: as in `rows.Row`. provider: "tpkernels triton" or "torch SDPA". significance: whether it also tells
    what every key received. status: "ok" or "wrong: ...". error: of the output, relative to float64. p20, p50: by
    events, launch cost included; graph_p50_ms: of a captured graph, without it.
    """

    run: str
    commit: str
    library: str
    python: str
    torch: str
    triton: str
    device: str
    threads: int
    load: float
    provider: str
    significance: bool
    dtype: str
    b: int
    h: int
    n: int
    d: int
    status: str
    error: float | None = None
    repeats: int = 0
    p20_ms: float | None = None
    p50_ms: float | None = None
    graph_p50_ms: float | None = None


COLUMNS = tuple(field.name for field in fields(Row))


def append(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to a file, as `records.append`."""
    records.append(path, COLUMNS, [asdict(row) for row in rows])


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file as text by column; Refusal where it is of another make or cut off."""
    return records.read(path, COLUMNS)
