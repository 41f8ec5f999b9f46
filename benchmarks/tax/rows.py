"""Rows of the pooling tax: what one model cost beside its sliced and its unpooled twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import rows


@dataclass(kw_only=True)
class Row(rows.Row):
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

    KEY: ClassVar = ("model", "schedule", "b", "dtype", "mode", "method")
    TIMES: ClassVar = (
        *("p20_ms", "p50_ms", "p99_ms", "cold_ms"),
        *("tax", "tax_p20", "tax_p80", "speedup", "speedup_p20", "speedup_p80"),
    )

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
    def part(self) -> str:
        """The part of its problem that is measured together."""
        return self.mode

    @property
    def title(self) -> str:
        """The method and its model."""
        return f"{self.method}, {self.model}"


TABLE = rows.Table(Row, "tax")
