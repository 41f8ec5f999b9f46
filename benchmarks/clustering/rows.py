"""Rows of clustering: what one provider did in one case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import rows

OUT_OF_MEMORY = "failed: out of memory"


@dataclass(kw_only=True)
class Row(rows.Row):
    """What one provider did in one case. Times are milliseconds of the whole call; empty where not measured.

    run: when the run began (UTC), and load: the machine's load average then, shared by its rows. runs_on: cpu or cuda,
    where the provider computes. status: "ok", "skipped: ...", "wrong: ..." or "failed: ...". p20, p50, p99: warm, over
    `repeats`. graph_p50_ms: of a captured CUDA graph, launch cost left out. cold_ms: the first call, compilation
    included (less what a cache on disk held). peak_mb: 10^6 bytes beyond the inputs. objective: mean of the samples
    that were checked. objective_ratio: to the reference's. floor_ms: on a CPU the measured product of the distances,
    on a GPU the larger of that and of memory_floor_ms. over_floor: p50 (graph_p50 where there is one) over it.
    """

    KEY: ClassVar = ("group", "case", "b", "n", "d", "k", "iters", "dtype", "provider")
    TIMES: ClassVar = ("p20_ms", "p50_ms", "p99_ms", "graph_p50_ms", "cold_ms", "over_floor")

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
    def title(self) -> str:
        """The provider and its case."""
        return f"{self.provider}, {self.case}"

    @staticmethod
    def red(subject: str, status: str) -> bool:
        """Whether a row of this status is a fault; another package that runs out of memory is none."""
        if status.startswith(OUT_OF_MEMORY):
            return subject.startswith("tpkernels")
        return rows.Row.red(subject, status)


TABLE = rows.Table(Row)
