"""Cases, planted providers and rows of the clustering benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.clustering import providers
from benchmarks.clustering.cases import Case
from benchmarks.clustering.inputs import Inputs
from benchmarks.clustering.providers import Provider
from benchmarks.clustering.rows import TABLE as rows
from benchmarks.clustering.rows import Row

CPU = torch.device("cpu")
SMALL = {
    "ward": Case("ward", 3, 30, 12, 9, iters=0, weighted=False),
    "kmedoids": Case("kmedoids", 3, 30, 12, 9),
    "kmeans": Case("kmeans", 3, 30, 12, 9),
}


class Planted(Provider):
    """Does to the torch backend's labels what a test asks for."""

    name = "planted"

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change, self.calls = change, 0

    def prepare(self, inputs: Inputs) -> Callable[[], Tensor]:
        right = providers.Library("torch").prepare(inputs)

        def call() -> Tensor:
            self.calls += 1
            return self.change(right())

        return call


def row(**changes: object) -> Row:
    """A row of a K-Means that went well."""
    case = SMALL["kmeans"]
    plain = Row(
        run="2031-01-01T00:00:00+00:00", commit="abc", library="1", python="3", torch="2", triton="3", device="Box, 2",
        runs_on="cpu", threads=2, load=0.25, group="kernels", case=case.name, provider="tpkernels torch", solves="it",
        method="kmeans", init="topk", weighted=True, tokens="structured", dtype="float32", b=3, n=30, d=12, k=9,
        iters=5, status="ok", repeats=5, p20_ms=1.0, p50_ms=2.0, p99_ms=3.0, cold_ms=9.0, peak_mb=4.0,
        objective=7.0, objective_ratio=1.0, product_floor_ms=1.0, floor_ms=1.0, over_floor=2.0,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def skipped(**changes: object) -> Row:
    """A row without times."""
    return row(**{"status": "skipped: it rains", **dict.fromkeys(rows.row.TIMES), **changes})
