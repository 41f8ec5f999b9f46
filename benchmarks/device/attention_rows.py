"""Rows of timed attention: this library's kernels and `scaled_dot_product_attention` on the same heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import rows


@dataclass(kw_only=True)
class Row(rows.Row):
    """One provider on heads [B, H, N, D]. Times are milliseconds of the whole call; empty where not measured.

    device to load: as in `clustering.rows.Row`. provider: "tpkernels triton" or "torch SDPA". significance: whether it
    also returns what every key received. status: "ok" or "wrong: ...". error: of the output, relative to float64. p20,
    p50: by events, launch cost included; graph_p50_ms: of a captured graph, without it.
    """

    KEY: ClassVar = ("b", "h", "n", "d", "dtype", "significance", "provider")
    TIMES: ClassVar = ("p20_ms", "p50_ms", "graph_p50_ms")

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


TABLE = rows.Table(Row, "attention")
