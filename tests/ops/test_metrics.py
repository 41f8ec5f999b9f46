"""Ward of cosines, of products and of rows of distances: scipy's partitions, and Lance and Williams' update by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support import scipys
from tests.support.pooled import canonical
from tests.support.tolerances import scatter

METRICS = ("cosine", "dot", "rows", "clipped")
each_metric = pytest.mark.parametrize("metric", METRICS)
each_dissimilarity = pytest.mark.parametrize("metric", scipys.DISSIMILARITIES)


def unit(seed: int, b: int, n: int, d: int) -> Tensor:
    """Unit vectors around a few directions, rounded to float32."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(b, 6, d, generator=generator, dtype=torch.float64)
    which = torch.randint(6, (b, n, 1), generator=generator)
    x = places.gather(1, which.expand(-1, -1, d)) + 0.7 * torch.randn(b, n, d, generator=generator)
    return (x / x.norm(dim=2, keepdim=True)).float()


def sizes(seed: int) -> tuple[int, int]:
    generator = torch.Generator().manual_seed(seed)
    return int(torch.randint(3, 60, (), generator=generator)), int(torch.randint(2, 40, (), generator=generator))


def check_partitions(metric: str, seed: int) -> int:
    """The clusters are scipy's wherever its distances tell which; how many cuts were compared."""
    n, d = sizes(seed)
    x, compared = unit(seed, 2, n, d), 0
    # Distances of points come of products in float32, whose rounding is that of the largest.
    share = 1e-7 if metric == "rows" else 0
    trees = [scipys.tree(sample, metric) for sample in x]
    for k in sorted({1, 2, n // 4 + 1, n // 2, n - 1}):
        found = tpkernels.ward(x, k, metric=metric)
        for b in range(2):
            if scipys.decided(trees[b], k, share):
                compared += 1
                assert torch.equal(found.assignment[b], scipys.cut(trees[b], k)), (seed, b, k)
    return compared


@each_metric
@pytest.mark.parametrize("start", range(0, 30, 10))
def test_partitions_are_scipys(metric: str, start: int, way: str) -> None:
    # Torch's operations take ten times as long as the loops.
    problems = 10 if way == "compiled" else 2
    compared = sum(check_partitions(metric, seed) for seed in range(start, start + problems))
    assert compared > 8 * problems


@pytest.mark.slow
@each_metric
def test_partitions_are_scipys_on_many(metric: str, way: str) -> None:
    assert sum(check_partitions(metric, seed) for seed in range(1000, 2000)) > 9000


def brute_force(distance: Tensor, mass: Tensor, k: int) -> tuple[Tensor, list[float]]:
    """Labels [N] of Ward by dissimilarities [N, N] and masses [N] in float64, and the heights of its mergers.

    By Lance and Williams' update of the squared dissimilarities (1967), from which costs follow anew at every merger:
    another road than that of costs.
    """
    square, mass = distance.double().square(), mass.double().clone()
    label, there, heights = torch.arange(len(mass)), set(range(len(mass))), []
    while len(there) > k:
        cost, i, j = min(
            (float(mass[i] * mass[j] / (mass[i] + mass[j]) * square[i, j]), i, j) for i in there for j in there if i < j
        )
        heights.append(cost)
        for c in there - {i, j}:
            # scipy's squared distance of clusters of masses m is 2 m_a m_b / (m_a + m_b) d^2.
            a, b, own = mass[i], mass[j], mass[c]
            cost_c = (
                (a + own) * (a * own / (a + own)) * square[i, c]
                + (b + own) * (b * own / (b + own)) * square[j, c]
                - own * cost
            ) / (a + b + own)
            square[i, c] = square[c, i] = cost_c * (a + b + own) / ((a + b) * own)
        mass[i] += mass[j]
        there.remove(j)
        label[label == j] = i
    return canonical(label), heights


def dissimilarity(x: Tensor, metric: str) -> Tensor:
    """`1 - cos` or `1 - x . y`, as it comes or clipped, [N, N] in float64."""
    x = x.double()
    x = x / x.norm(dim=1, keepdim=True) if metric == "cosine" else x
    far = 1 - x @ x.T
    return (far.clamp(0, 2) if metric == "clipped" else far).fill_diagonal_(0)


@each_dissimilarity
@pytest.mark.parametrize("flags", ["", "weight", "mask", "weight mask"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masses_are_lance_and_williams(metric: str, flags: str, dtype: torch.dtype, way: str) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 14, 6, generator=generator) * (0.5 + torch.rand(2, 14, 1, generator=generator))
    # What is clipped is tied.
    x = (x / x.norm(dim=2, keepdim=True) if metric == "clipped" else x).to(dtype)
    weight = torch.rand(2, 14, generator=generator).to(dtype) + 0.1 if "weight" in flags else None
    mask = torch.rand(2, 14, generator=generator) < 0.7 if "mask" in flags else torch.ones(2, 14, dtype=torch.bool)
    x = x.masked_fill(~mask[..., None], torch.nan)
    for k in (1, 3, 6):
        found = tpkernels.ward(x, k, weight, mask=mask, metric=metric)
        for b in range(2):
            there = mask[b]
            mass = torch.ones(int(there.sum())) if weight is None else weight[b, there]
            label, heights = brute_force(dissimilarity(x[b, there], metric), mass, k)
            assert torch.equal(found.assignment[b, there], label)
            made = found.merge_heights[b, : len(heights)].double()
            torch.testing.assert_close(made, torch.tensor(heights).double(), rtol=1e-5, atol=1e-6)


def test_a_clipped_distance_lies_in_0_to_2(way: str) -> None:
    # Products of 3, -3 and 0.25.
    pairs = torch.tensor([[[3.0, 0], [1, 0]], [[3, 0], [-1, 0]], [[0.5, 0], [0.5, 1]]])
    assert tpkernels.linkage(pairs, metric="clipped")[:, 0, 2].tolist() == [0, 2, 0.75]
    assert tpkernels.linkage(pairs, metric="dot")[:, 0, 2].tolist() == [2, 4, 0.75]


@each_metric
def test_centers_and_loss_are_those_of_the_tokens(metric: str, way: str) -> None:
    x = 2 * unit(50, 2, 20, 5) + 1
    weight = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) + 0.1
    found = tpkernels.ward(x, 6, weight, metric=metric)
    torch.testing.assert_close(found.centers, tpkernels.cluster_mean(x, found.assignment, 6, weight))
    for b in range(2):
        expected = scatter(x[b], found.assignment[b], weight[b]) * float(weight[b].max())
        torch.testing.assert_close(float(found.loss[b]), expected, rtol=1e-5, atol=0)


@each_metric
def test_a_distance_is_the_root_of_two_heights(metric: str, way: str) -> None:
    x = unit(51, 3, 24, 6)
    mask = torch.rand(3, 24, generator=torch.Generator().manual_seed(2)) < 0.8
    table = tpkernels.linkage(x, mask=mask, metric=metric)
    heights = tpkernels.ward(x, 1, mask=mask, metric=metric).merge_heights
    torch.testing.assert_close(table[..., 2], (2 * heights.double()).sqrt(), rtol=1e-6, atol=1e-6)
    t = float(table[0, 15, 2])
    found = tpkernels.ward(x, mask=mask, metric=metric, distance_threshold=t)
    for b in range(3):
        expected = scipys.cut_at(table[b, : int(mask[b].sum()) - 1].numpy(), t)
        assert torch.equal(found.assignment[b, mask[b]], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_vectors_are_alike_and_like_nothing_else(dtype: torch.dtype, way: str) -> None:
    x = unit(52, 1, 12, 8)
    # All others point one way: they are nearer to each other than 1.
    x = x.abs()
    x[0, [2, 5, 9]] = 0
    x = x.to(dtype)
    table = tpkernels.linkage(x, metric="cosine")
    assert bool(table.isfinite().all())
    # Of the three two mergers, at distance 0.
    assert int((table[0, :, 2] == 0).sum()) == 2
    found = tpkernels.ward(x, 2, metric="cosine")
    expected = torch.ones(12, dtype=torch.int64)
    expected[[2, 5, 9]] = 0
    assert torch.equal(found.assignment[0], canonical(expected))
    # One zero vector is at distance 1 of another token: the square of that halves into the height.
    pair = torch.zeros(1, 2, 8, dtype=dtype)
    pair[0, 1, 3] = 5
    torch.testing.assert_close(tpkernels.linkage(pair, metric="cosine")[0, 0, 2], torch.tensor(1.0).double())
    assert tpkernels.ward(torch.zeros(2, 5, 3, dtype=dtype), 2, metric="cosine").assignment.isfinite().all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_tokens_are_at_distance_zero(metric: str, dtype: torch.dtype, way: str) -> None:
    x = (3 * unit(53, 2, 16, 8)).to(dtype)
    x[0, 9:13] = x[0, 2]
    x[1, ::2] = x[1, 1]
    table = tpkernels.linkage(x, metric=metric)
    equal = (table[..., 2] == 0).sum(1)
    assert equal.tolist() == [4, 8]
    found = tpkernels.ward(x, distance_threshold=0.0, metric=metric)
    assert found.n_clusters.tolist() == [12, 8]


def test_a_cosine_has_no_length(way: str) -> None:
    x = unit(54, 2, 20, 6)
    scaled = x * torch.logspace(-3, 3, 20)[:, None]
    for k in (2, 7):
        assert torch.equal(
            tpkernels.ward(x, k, metric="cosine").assignment, tpkernels.ward(scaled, k, metric="cosine").assignment
        )
    # Of unit vectors the product is the cosine.
    assert torch.equal(tpkernels.ward(x, 7, metric="dot").assignment, tpkernels.ward(x, 7, metric="cosine").assignment)


@each_metric
def test_bad_numbers_stay_in_their_sample(metric: str, way: str) -> None:
    x = unit(55, 3, 12, 5)
    clean = tpkernels.ward(x, 4, metric=metric)
    x[1, 3] = torch.nan
    found = tpkernels.ward(x, 4, metric=metric)
    assert torch.equal(found.assignment[[0, 2]], clean.assignment[[0, 2]])
    assert torch.equal(found.assignment[1], torch.arange(12) * 4 // 12)
    assert torch.equal(found.centers[[0, 2]], clean.centers[[0, 2]])


@each_metric
def test_a_layer_clusters_by_its_metric(metric: str, way: str) -> None:
    x = unit(56, 2, 18, 6)
    layer = tpkernels.TokenPool(7, metric=metric, num_prefix_tokens=0)
    tokens, info = layer(x, return_info=True)
    found = tpkernels.ward(x, 7, metric=metric)
    assert torch.equal(info.assignment, found.assignment)
    torch.testing.assert_close(tokens, found.centers)
    euclidean = tpkernels.TokenPool(7, num_prefix_tokens=0)(3 * x + 1, return_info=True)[1]
    assert not torch.equal(layer(3 * x + 1, return_info=True)[1].assignment, euclidean.assignment)
