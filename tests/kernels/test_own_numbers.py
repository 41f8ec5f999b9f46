"""Kernels whose samples each have their own number of clusters: by counts, by a distance, by a share of the error.

A sample's numbers are those of a call of its own with a common k, to the last bit, and those of the torch backend.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.marks import CUDA, DEVICE, FOR_GPU, KERNELS, sized
from tests.support.resident import NAMES, PAIRS, spy
from tests.support.strategies import make
from tests.support.tolerances import assert_same_labels, assert_values, total_variance
from tpkernels.ops.gpu import resident
from tpkernels.ops.problem import Results

cluster = torch.ops.tpkernels.cluster.default

pytestmark = KERNELS
# What a result has a row of for each cluster, and what stands there beyond a sample's own.
ROWS = {"tokens": 0, "medoids": -1, "total": 0}
QUICK = (("ward", "ward"), *sized((("kmeans", "given"),), gpu=()))


def quick(case: Any, is_quick: bool = False) -> Any:
    """A case of a test; unless told otherwise a slow one, and none for a GPU."""
    marks = [] if is_quick else [pytest.mark.slow, pytest.mark.skipif(FOR_GPU, reason="another kernel to compile")]
    return pytest.param(case, id="-".join(map(str, case)), marks=marks)


def run(
    x: Tensor, k: int, method: str = "ward", weight: Tensor | None = None, mask: Tensor | None = None,
    counts: Tensor | None = None, start: Tensor | None = None, *, init: str = "ward", output: str = "center",
    metric: str = "euclidean", cut: str = "count", bound: float = 0.0, backend: str = "triton",
) -> Results:  # fmt: skip
    """Clusters and pools with one weight; the results on the CPU."""
    x, weight, mask, start, counts = (
        None if tensor is None else tensor.to(DEVICE) for tensor in (x, weight, mask, start, counts)
    )
    how = counts, metric, cut, bound
    found = cluster(x, weight, weight, mask, start, k, method, init, output, 3, backend, False, *how)
    return Results._make(result.cpu() for result in found)


def assert_own_calls(found: Results, counts: Tensor, *, alone: list[Results]) -> None:
    """Each sample's results are those of its own call with `n_clusters` clusters, and nothing stands beyond them."""
    for b, one in enumerate(alone):
        k = int(counts[b])
        assert found.n_clusters[b] == one.n_clusters[0]
        for name, whole, part in zip(Results._fields, found, one, strict=True):
            if name in ROWS and whole.shape[1]:
                assert torch.equal(whole[b, :k], part[0]), name
                assert bool((whole[b, k:] == ROWS[name]).all()), name
            elif whole.numel():
                assert torch.equal(whole[b], part[0]), name
            else:
                assert not part.numel(), name


@pytest.mark.parametrize("pair", [quick(pair, pair in QUICK) for pair in PAIRS])
def test_counts_are_calls_of_their_own(pair: tuple[str, str]) -> None:
    """With weights and a mask by turns, from every start; and the torch backend's."""
    method, init = pair
    place = PAIRS.index(pair)
    b, n, k = 3, sized(21, gpu=33), 11
    x, _, weight, mask = make(place, b, n, 5, k, weighted=place % 2 == 0, masked=place % 3 == 0)
    counts = torch.tensor([4, 11, 1])
    start = None
    if init == "given":
        score = torch.rand(b, n, generator=torch.Generator().manual_seed(place)) + (0 if mask is None else 2 * mask)
        start = score.argsort(1, descending=True)[:, :k]
    output = ("center", "mean", "medoid")[place % 3]
    options = {"init": init, "output": output}
    found = run(x, k, method, weight, mask, counts, start, **options)
    assert found.n_clusters.tolist() == [4, 11, 1]
    twin = run(x, k, method, weight, mask, counts, start, **options, backend="torch")
    assert torch.equal(found.n_clusters, twin.n_clusters)
    same = assert_same_labels(found.assignment, twin.assignment, x, weight)
    assert torch.equal(found.medoids[same], twin.medoids[same])
    assert_values(found.tokens[same], twin.tokens[same])
    if CUDA:
        return
    alone = []
    for i in range(b):
        part, many = slice(i, i + 1), int(counts[i])
        w, m, s = (None if one is None else one[part] for one in (weight, mask, start))
        alone.append(run(x[part], many, method, w, m, None, None if s is None else s[:, :many], **options))
    assert_own_calls(found, counts, alone=alone)


def test_counts_of_every_size() -> None:
    """More than there are tokens, none below 1, none above k; samples with bad numbers and without a token."""
    n = sized(17, gpu=33)
    x = torch.randn(6, n, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(6, n, dtype=torch.bool)
    mask[1, 3:], mask[2] = False, False
    x[3, 5, 1] = torch.nan
    counts = torch.tensor([-7, 5, 4, 5, 8, 1 << 40])
    for method in sized(("ward", "kmeans", "kmedoids"), gpu=("ward",)):
        found = run(x, 9, method, None, mask, counts)
        assert found.n_clusters.tolist() == [1, 3, 0, 5, 8, 9]
        assert found.assignment[1, :3].tolist() == [0, 1, 2] and bool((found.assignment[2] == -1).all())
        assert found.assignment[3].tolist() == [i * 5 // n for i in range(n)]
        assert [int(label.max()) for label in found.assignment] == [0, 2, -1, 4, 7, 8]
        twin = run(x, 9, method, None, mask, counts, backend="torch")
        assert torch.equal(found.n_clusters, twin.n_clusters)
        good = [0, 1, 2, 4, 5]
        same = assert_same_labels(found.assignment[good], twin.assignment[good], x[good])
        assert_values(found.tokens[good][same], twin.tokens[good][same])


def dendrogram(x: Tensor, weight: Tensor | None, mask: Tensor | None, metric: str = "euclidean") -> Tensor:
    """All heights [B, N - 1] in ascending order."""
    return run(x, 1, "ward", weight, mask, metric=metric).heights


@pytest.mark.parametrize(
    "case", [quick(("euclidean", True, True), True), quick(("cosine", False, False)), quick(("dot", True, False))]
)
def test_a_distance_cuts_where_the_heights_say(case: tuple[str, bool, bool]) -> None:
    metric, weighted, masked = case
    n = sized(23, gpu=33)
    x, _, weight, mask = make(3, 3, n, 4, 1, weighted=weighted, masked=masked)
    weight = None if weight is None else 7 * weight
    valid = torch.full((3,), n) if mask is None else mask.sum(1)
    heights = dendrogram(x, weight, mask, metric)
    known = heights[0][heights[0].isfinite()].double()
    middle = math.sqrt(2 * float(known[len(known) // 2]))
    for t in sized((0.0, middle), gpu=(middle,)):
        made = ((2 * heights.double()).sqrt() <= t).sum(1)
        for most in sized((n, 5), gpu=(15,)):
            left = torch.minimum(valid - made, torch.full_like(valid, most)).clamp(min=0)
            found = run(x, most, "ward", weight, mask, metric=metric, cut="distance", bound=t)
            assert torch.equal(found.n_clusters, left)
            expected = run(x, most, "ward", weight, mask, left, metric=metric)
            for name in ("assignment", "heights", "tokens", "loss", "total"):
                assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize(
    "case", [quick(("plain",), True), *(quick((kind,)) for kind in ("weighted", "masked", "half"))]
)
def test_an_error_cuts_where_the_sums_say(case: tuple[str]) -> None:
    (kind,) = case
    n = sized(23, gpu=33)
    x, _, weight, mask = make(4, 3, n, 4, 1, weighted=kind == "weighted", zeros=True, masked=kind == "masked")
    x = (x + 5).half() if kind == "half" else x
    heights = dendrogram(x, weight, mask)
    sums = heights.double().cumsum(1)
    there = torch.ones(3, n, dtype=torch.bool) if mask is None else mask
    largest = torch.ones(3) if weight is None else weight.amax(1).where(weight.amax(1) > 0, 1)
    mass = torch.ones(3, n) if weight is None else (weight / largest[:, None]).clamp(min=1e-6)
    mass = torch.where((mass.amax(1) > 1e-6)[:, None], mass, 1)
    total = torch.tensor([total_variance(x[b][there[b]].double(), mass[b][there[b]]) for b in range(3)])
    # `total_variance` has weights over the largest, which masses are.
    total = total.double() * largest
    for share in sized((0.0, 0.3, 0.999), gpu=(0.05, 0.4)):
        made = (sums <= share * total[:, None] * (1 + 1e-6)).sum(1)
        fewer = (sums <= share * total[:, None] * (1 - 1e-6)).sum(1)
        found = run(x, n, "ward", weight, mask, cut="error", bound=share)
        left = found.n_clusters
        assert bool((there.sum(1) - made <= left).all()) and bool((left <= there.sum(1) - fewer).all())
        twin = run(x, n, "ward", weight, mask, cut="error", bound=share, backend="torch")
        assert torch.equal(left, twin.n_clusters) or CUDA
        expected = run(x, n, "ward", weight, mask, left)
        for name in ("assignment", "heights", "tokens", "loss", "total"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_equal_tokens_are_one_cluster_of_any_cut() -> None:
    row = torch.randn(5, generator=torch.Generator().manual_seed(1))
    x = row.expand(2, sized(20, gpu=33), 5)
    for cut, bound in sized((("distance", 0.0), ("error", 0.0), ("error", 0.5)), gpu=(("error", 0.0),)):
        found = run(x, 7, cut=cut, bound=bound)
        assert found.n_clusters.tolist() == [1, 1] and bool((found.assignment == 0).all())
        assert_values(found.tokens[:, :1], row.expand(2, 1, 5))
        assert bool((found.tokens[:, 1:] == 0).all())


@pytest.mark.parametrize(
    "case", [quick((method, cut)) for cut in ("distance", "error") for method in ("kmeans", "kmedoids")]
)
def test_lloyds_iterations_from_a_cut(case: tuple[str, str]) -> None:
    """They go on with the clusters that the cut leaves, in the order and with the bits of a count."""
    method, cut = case
    n, bound = sized(24, gpu=33), {"distance": 0.3, "error": 0.1}[cut]
    x, _, weight, mask = make(5, 3, n, 4, 1, weighted=True, masked=True)
    x[2, 3, 1] = torch.inf
    counts = torch.tensor([n, 6, 5])
    mask[2] = True
    found = run(x, n, method, weight, mask, counts, cut=cut, bound=bound)
    tree = run(x, n, "ward", weight, mask, counts, cut=cut, bound=bound)
    assert torch.equal(found.n_clusters, tree.n_clusters) and found.n_clusters[2] == 5
    assert found.n_clusters[1] <= 6 < found.n_clusters[0] < mask[0].sum()
    expected = run(x, n, method, weight, mask, tree.n_clusters)
    for name, one, two in zip(Results._fields, found, expected, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=0, equal_nan=True), name
    twin = run(x, n, method, weight, mask, counts, cut=cut, bound=bound, backend="torch")
    assert torch.equal(found.n_clusters, twin.n_clusters) or CUDA
    assert_same_labels(found.assignment, twin.assignment, x.nan_to_num(posinf=0), weight)


def test_300_documents_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their lengths and numbers of clusters are, and whatever cuts."""
    launches = spy(monkeypatch, run=False)
    length = torch.arange(300) % 61 + 3
    mask = torch.arange(64) < length[:, None]
    x = torch.zeros(300, 64, 8)
    for cut, bound in (("count", 0.0), ("distance", 1.0), ("error", 0.1)):
        launches.clear()
        run(x, 32, "ward", None, mask, (length + 1) // 2, cut=cut, bound=bound)
        assert [one.name for one in launches] == NAMES[1]
    monkeypatch.setattr(resident, "splits", lambda *_: True)
    launches.clear()
    run(x, 32, "ward", None, mask, (length + 1) // 2)
    assert [one.name for one in launches] == NAMES[4]
