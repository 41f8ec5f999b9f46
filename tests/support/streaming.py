"""The streaming kernels and their torch twin on a problem, and how the two are compared."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from tests.support.launches import Spy
from tests.support.marks import CUDA, DEVICE
from tests.support.tolerances import assert_same_labels, assert_values
from tpkernels.ops import cluster
from tpkernels.ops.eager.primitives import EAGER
from tpkernels.ops.gpu import streaming
from tpkernels.ops.problem import Results, Spec, Tensors

METHODS = ("kmeans", "kmedoids")
NAMES = {
    "means": ("chunk_mean_kernel", "segment_mean_kernel", "cluster_mean_backward_kernel"),
    "halves": ("split_tokens_kernel",),
    "assign": ("assign_kernel",),
    "medoids": ("member_cost_kernel", "medoid_kernel", "medoid_centres_kernel"),
}
FEW = settings(max_examples=6)


def run(
    x: Tensor,
    k: int,
    method: str,
    output: str = "center",
    init: str | Tensor = "strided",
    max_iter: int = 3,
    weight: Tensor | None = None,
    pool_weight: Tensor | None = None,
    mask: Tensor | None = None,
    counts: Tensor | None = None,
    cut: str = "count",
    bound: float = 0.0,
    twin: bool = False,
) -> Results:
    """The streaming kernels, or their torch twin, on the device; the results on the CPU."""
    *there, own = [None if t is None else t.to(DEVICE) for t in (weight, pool_weight, mask, counts)]
    start = init.to(DEVICE) if isinstance(init, Tensor) else None
    name = "given" if isinstance(init, Tensor) else init
    here = x if x.device.type == DEVICE else x.to(DEVICE)
    spec = Spec(min(k, x.shape[1]), method, name, output, max_iter, cut=cut, bound=bound)
    found = cluster.run(Tensors(here, *there, start, own), spec, EAGER if twin else streaming.STREAMING)
    return Results(*(field.cpu() for field in found))


def assert_same(one: Results, two: Results, samples: slice | list[int] = slice(None)) -> None:
    """Bitwise equality, of some samples only."""
    for name, a, b in zip(Results._fields, one, two, strict=True):
        assert torch.allclose(a[samples], b[samples], rtol=0, atol=0, equal_nan=True), name


def assert_alike(one: Results, two: Results, x: Tensor, weight: Tensor) -> None:
    """What two kernels make of a problem: the same bits in the interpreter, the same up to ties on a GPU."""
    if not CUDA:
        assert_same(one, two)
        return
    same = assert_same_labels(one.assignment, two.assignment, x, weight)
    for name in ("source", "medoids"):
        assert torch.equal(getattr(one, name)[same], getattr(two, name)[same]), name
    assert_values(one.tokens[same], two.tokens[same])
    assert_values(one.total[same], two.total[same])


def assert_total(total: Tensor, source: Tensor, weight: Tensor | None) -> None:
    """The sums of the members' weights; minus their number where these are 0; 0 without members."""
    b, k = total.shape
    for sample in range(b):
        for slot in range(k):
            members = source[sample] == slot
            count, mass = int(members.sum()), 0.0
            if count:
                mass = count if weight is None else float(weight[sample, members].double().sum())
            expected = mass if mass > 0 else -count
            assert abs(float(total[sample, slot]) - expected) <= 1e-5 * abs(expected)


def spy(monkeypatch: pytest.MonkeyPatch, run: bool = True) -> list[Spy.Launch]:
    """Watches every streaming kernel; without `run` they are only counted."""
    launches: list[Spy.Launch] = []
    for module, names in NAMES.items():
        kernels = importlib.import_module(f"tpkernels.kernels.streaming.{module}")
        for name in names:
            monkeypatch.setattr(kernels, name, Spy(getattr(kernels, name), launches, run))
    return launches
