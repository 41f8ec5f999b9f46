"""Cuts of Ward's dendrogram by value: scipy's clusters below a distance, and the most mergers within an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tpkernels
from tests.support import scipys
from tests.support.pooled import canonical

LLOYDS = ("kmeans", "kmedoids")


def draw(seed: int, *, weighted: bool = False, masked: bool = False) -> dict[str, Any]:
    """Three samples of up to 40 tokens in float64 around a few places, with weights and masks anywhere."""
    generator = torch.Generator().manual_seed(seed)
    n, d = (int(torch.randint(2, top, (), generator=generator)) for top in (41, 9))
    places = 3 * torch.randn(3, 5, d, generator=generator)
    which = torch.randint(5, (3, n, 1), generator=generator)
    x = places.gather(1, which.expand(-1, -1, d)) + torch.randn(3, n, d, generator=generator)
    weight = torch.rand(3, n, generator=generator) + 0.05 if weighted else None
    mask = torch.rand(3, n, generator=generator) < 0.7 if masked else None
    if mask is not None:
        mask[:, 0] = True
        x = x.masked_fill(~mask[..., None], torch.nan)
    return {"x": x.double(), "weight": weight if weight is None else weight.double(), "mask": mask}


def valid(problem: dict[str, Any], b: int) -> Tensor:
    """Which tokens of a sample are there."""
    return torch.ones(len(problem["x"][b]), dtype=torch.bool) if problem["mask"] is None else problem["mask"][b]


def between(distances: np.ndarray, share: float) -> float:
    """A threshold between two distances of a dendrogram, or below or above all."""
    steps = np.concatenate([[0], distances, [1.5 * distances[-1]]]) if len(distances) else np.array([1.0, 2.0])
    place = min(int(share * (len(steps) - 1)), len(steps) - 2)
    return float(steps[place] + steps[place + 1]) / 2


def check_distances(seed: int) -> None:
    """At thresholds between the distances of the first sample, all have the clusters that scipy has."""
    problem = draw(seed, masked=seed % 2 == 1)
    trees = []
    for b in range(3):
        there = problem["x"][b, valid(problem, b)]
        trees.append(scipys.tree(there) if len(there) > 1 else np.empty((0, 4)))
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        t = between(trees[0][:, 2], share)
        found = tpkernels.ward(**problem, distance_threshold=t)
        for b in range(3):
            label = found.assignment[b, valid(problem, b)]
            expected = scipys.cut_at(trees[b], t) if len(trees[b]) else torch.zeros_like(label)
            assert torch.equal(label, expected)
            assert int(found.n_clusters[b]) == int(expected.max()) + 1


@pytest.mark.parametrize("seed", range(8))
def test_a_distance_is_scipys(seed: int, way: str) -> None:
    check_distances(seed)


@pytest.mark.slow
def test_a_distance_is_scipys_on_many(way: str) -> None:
    for seed in range(100, 1100):
        check_distances(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flags", ["", "weighted", "masked", "weighted masked"])
def test_a_distance_of_the_dendrogram_is_within(flags: str, dtype: torch.dtype, way: str) -> None:
    """Exactly at a merger it is made; a little below it is not."""
    problem = draw(7, weighted="weighted" in flags, masked="masked" in flags)
    problem = {name: one if one is None or one.dtype == torch.bool else one.to(dtype) for name, one in problem.items()}
    tables = tpkernels.linkage(**problem).numpy()
    lengths = [int(valid(problem, b).sum()) for b in range(3)]
    for t in tables[0, : lengths[0] - 1 : 3, 2]:
        for threshold in (float(t), float(np.nextafter(t, 0))):
            found = tpkernels.ward(**problem, distance_threshold=threshold)
            for b, n in enumerate(lengths):
                expected = scipys.cut_at(tables[b, : n - 1], threshold)
                assert torch.equal(found.assignment[b, valid(problem, b)], expected)


def test_a_distance_of_zero_merges_equal_tokens_alone(way: str) -> None:
    x = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    x[0, 12:16] = x[0, 3]
    x[1] = 1.5
    found = tpkernels.ward(x, distance_threshold=0.0)
    assert found.n_clusters.tolist() == [16, 1]
    assert torch.equal(found.assignment[0, 12:16], found.assignment[0, 3].expand(4))


def test_weights_count_as_they_come(way: str) -> None:
    problem = draw(3, weighted=True)
    heavy = {**problem, "weight": 100 * problem["weight"]}
    # Between distances: rounding of the weights' products decides nothing.
    t = between(tpkernels.linkage(**problem)[0, :, 2].numpy(), 0.7)
    found, scaled = tpkernels.ward(**problem, distance_threshold=t), tpkernels.ward(**heavy, distance_threshold=10 * t)
    assert torch.equal(found.assignment, scaled.assignment)
    same = tpkernels.ward(**heavy, distance_threshold=t)
    assert bool((same.n_clusters >= found.n_clusters).all()) and bool((same.n_clusters > found.n_clusters).any())
    # A share of the error has no unit.
    found, scaled = tpkernels.ward(**problem, max_error=0.21), tpkernels.ward(**heavy, max_error=0.21)
    assert torch.equal(found.assignment, scaled.assignment)


def check_errors(seed: int) -> None:
    """The loss is within the share of that of one cluster, and with one cluster fewer it would not be."""
    problem = draw(seed, weighted=seed % 2 == 1, masked=seed % 3 == 1)
    for error in (0.02, 0.1, 0.35, 0.8):
        found, one = tpkernels.ward(**problem, max_error=error), tpkernels.ward(**problem, k=1)
        assert bool((found.loss <= error * one.loss * (1 + 1e-9) + 1e-12).all())
        fewer = tpkernels.ward(**problem, k=(found.n_clusters - 1).clamp(min=1))
        above = fewer.loss > error * one.loss * (1 - 1e-9)
        assert bool((above | (found.n_clusters == 1)).all())
        # And it is that many clusters of the same dendrogram.
        assert torch.equal(found.assignment, tpkernels.ward(**problem, k=found.n_clusters).assignment)


@pytest.mark.parametrize("seed", range(8))
def test_an_error_is_the_largest_cut_within(seed: int, way: str) -> None:
    check_errors(seed)


@pytest.mark.slow
def test_an_error_is_the_largest_cut_within_on_many(way: str) -> None:
    for seed in range(100, 1100):
        check_errors(seed)


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_without_variance_there_is_one_cluster(value: float, way: str) -> None:
    x = torch.full((2, 9, 3), value)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, ::2] = False
    for error in (0.0, 0.5):
        found = tpkernels.ward(x, max_error=error, mask=mask)
        assert found.n_clusters.tolist() == [1, 1]
        assert torch.equal(found.assignment, torch.where(mask, 0, -1))


CUTS = [{"distance_threshold": 2.0}, {"max_error": 0.2}]
each_cut = pytest.mark.parametrize("cut", CUTS, ids=lambda cut: next(iter(cut)))


@each_cut
@pytest.mark.parametrize("method", ["ward", *LLOYDS])
def test_k_is_the_most_that_remain(method: str, cut: dict[str, float], way: str) -> None:
    problem = draw(9, weighted=True, masked=True)
    function = getattr(tpkernels, method)
    free = function(**problem, **cut).n_clusters
    n_valid = problem["mask"].sum(1)
    assert bool((free < n_valid).all()) and bool((free > 1).all())
    n = problem["x"].shape[1]
    for k in (1, 2, torch.tensor([1, 40, 3]), n, n + 9):
        found = function(**problem, k=k, **cut)
        assert torch.equal(found.n_clusters, torch.minimum(free, torch.as_tensor(k)))
        # Values never narrow the results.
        assert found.centers.shape[1] == min(int(torch.as_tensor(k).max()), n)
        beyond = torch.arange(found.centers.shape[1]) >= found.n_clusters[:, None]
        assert bool((found.centers[beyond] == 0).all())
        assert found.medoids is None or bool((found.medoids[beyond] == -1).all())
    assert function(**problem, **cut).centers.shape[1] == n
    assert function(**problem, k_max=5, **cut).centers.shape[1] == 5
    assert torch.equal(function(**problem, k_max=5, **cut).n_clusters, free.clamp(max=5))


@each_cut
@pytest.mark.parametrize("init", ["ward", "auto"])
@pytest.mark.parametrize("method", LLOYDS)
def test_iterations_start_from_as_many_clusters(method: str, init: str, cut: dict[str, float], way: str) -> None:
    problem = draw(11, weighted=True, masked=True)
    start = tpkernels.ward(**problem, **cut)
    found = getattr(tpkernels, method)(**problem, init=init, **cut)
    assert torch.equal(found.n_clusters, start.n_clusters)
    assert bool((found.loss <= start.loss * (1 + 1e-9)).all()) or method == "kmedoids"
    own = getattr(tpkernels, method)(**problem, k=start.n_clusters, init=init)
    assert torch.equal(found.assignment, own.assignment)


@each_cut
@pytest.mark.parametrize("method", ["ward", *LLOYDS])
def test_a_bad_sample_is_split_into_what_k_allows(method: str, cut: dict[str, float], way: str) -> None:
    problem = draw(13, masked=True)
    there = problem["mask"][1].nonzero().flatten()
    problem["x"][1, there[2]] = torch.nan
    n = len(there)
    function = getattr(tpkernels, method)
    for k, expected in ((None, n), (3, 3), (torch.tensor([1, 4, 2]), 4), (99, n)):
        found = function(**problem, k=k, **cut)
        assert int(found.n_clusters[1]) == expected and int(found.n_iter[1]) == 0
        assert torch.equal(found.assignment[1, there], torch.arange(n) * expected // n)
    clean = function(**{**problem, "x": problem["x"].nan_to_num()}, **cut)
    for b in (0, 2):
        assert torch.equal(function(**problem, **cut).assignment[b], clean.assignment[b])


@each_cut
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 1, 3), (2, 5, 0)])
def test_empty_shapes(shape: tuple[int, int, int], cut: dict[str, float], way: str) -> None:
    found = tpkernels.ward(torch.ones(shape), **cut)
    b, n, d = shape
    assert found.centers.shape == (b, n, d) and found.n_clusters.tolist() == [min(n, 1)] * b
    assert found.assignment.tolist() == [[0] * n] * b
    mask = torch.zeros(b, n, dtype=torch.bool)
    assert tpkernels.ward(torch.ones(shape), mask=mask, **cut).n_clusters.tolist() == [0] * b


@each_cut
def test_heights_end_at_the_cut(cut: dict[str, float], way: str) -> None:
    problem = draw(15, weighted=True)
    found = tpkernels.ward(**problem, **cut)
    made = found.merge_heights.isfinite().sum(1)
    assert torch.equal(made, problem["x"].shape[1] - found.n_clusters)
    heights = torch.where(found.merge_heights.isfinite(), found.merge_heights, 0)
    # Ward's heights are what the objective rose by (weights are above the floor).
    torch.testing.assert_close(heights.sum(1), found.loss)
    assert torch.equal(canonical(found.assignment[0]), found.assignment[0])
