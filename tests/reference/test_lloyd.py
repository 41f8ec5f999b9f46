"""The reference's starts, K-Means and K-Medoids: by hand, brute force, and the rules at the edges."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.support.by_hand import INF, INITS, canonical, close, line, noise, weights
from tpkernels import reference


def best_medoids(x: Tensor, k: int, weight: Tensor | None = None) -> float:
    """The least objective over all sets of K tokens."""
    sets = itertools.combinations(range(len(x)), k)
    return min(float(reference.objective(x, x[list(chosen)], weight)) for chosen in sets)


def test_starts_by_hand():
    x, w = line(0, 1, 2, 10, 11), weights(1, 5, 2, 5, 2)
    # Highest weights 5, 5, then 2 at the lower index.
    assert reference.start_indices(x, 3, w, "topk").tolist() == [1, 2, 3]
    # floor(0 * 5 / 3), floor(5 / 3), floor(10 / 3).
    assert reference.start_indices(x, 3, w, "strided").tolist() == [0, 1, 3]
    assert reference.start_indices(x, 3, w, torch.tensor([4, 0, 2])).tolist() == [0, 2, 4]
    # mu = 24 / 5 = 4.8: scores 23.04, 14.44, 7.84, 27.04, 38.44: token 4. Then 121, 100, 81, 1: token 0.
    # Then 1, 4, 1 of tokens 1, 2, 3: token 2.
    assert reference.start_indices(x, 3, None, "farthest").tolist() == [0, 2, 4]
    # mu = (0 + 5 + 4 + 50 + 22) / 15 = 5.4: scores 29.16, 96.8, 23.12, 105.8, 62.72: token 3. Then 100, 405, 128, 2: 1.
    assert reference.start_indices(x, 2, w, "farthest").tolist() == [1, 3]
    # Ward: {0, 1, 2}, {10, 11}; medoids 1 and, on a tie, 10.
    assert reference.start_indices(x, 2, None, "ward").tolist() == [1, 3]


def test_starts_without_anything_to_choose_by():
    x = torch.full((4, 2), 3.3, dtype=torch.float64)
    for init in ("topk", "farthest"):
        assert reference.start_indices(x, 3, None, init).tolist() == [0, 1, 2]
    assert reference.start_indices(noise(0, 4, 2), 3, torch.zeros(4), "farthest").tolist() == [0, 1, 2]


@pytest.mark.parametrize("init", ["random", [0, 0], [0, 5], [-1, 0], [0, 1, 2]])
def test_bad_starts(init):
    with pytest.raises(ValueError, match="init"):
        reference.kmeans(noise(0, 5, 2), 2, init=init)


def test_kmeans_by_hand():
    x = line(0, 1, 5, 6)
    # Start 0, 1: labels 0 1 1 1, means 0 and 4; labels 0 0 1 1, means 1/2 and 11/2; labels stand still.
    found = reference.kmeans(x, 2, init=torch.tensor([0, 1]))
    assert found.assignment.tolist() == [0, 0, 1, 1]
    close(found.centers, [[0.5], [5.5]])
    close(found.loss, 1)
    assert found.n_iter == 2
    assert found.medoids.tolist() == [0, 2]
    # One update: centers 0 and 4, then a last assign: 0 + 1 + 1 + 4.
    once = reference.kmeans(x, 2, init=torch.tensor([0, 1]), max_iter=1)
    assert once.assignment.tolist() == [0, 0, 1, 1]
    close(once.centers, [[0], [4]])
    close(once.loss, 6)
    assert once.n_iter == 1
    # None: the start itself, 0 + 0 + 16 + 25.
    close(reference.kmeans(x, 2, init=torch.tensor([0, 1]), max_iter=0).loss, 41)


def test_weighted_kmeans_by_hand():
    # Start 0, 10: labels 0 0 1, means (0 + 3 * 4) / 4 = 3 and 10; loss 9 + 3 * 1.
    found = reference.kmeans(line(0, 4, 10), 2, weights(1, 3, 7), init=torch.tensor([0, 2]))
    close(found.centers, [[3], [10]])
    close(found.loss, 12)
    assert found.n_iter == 1
    assert found.medoids.tolist() == [1, 2]


def test_kmedoids_by_hand():
    x = line(0, 1, 2, 10, 11, 12)
    # Start 0, 1: labels 0 1 1 1 1 1; the mean of 1 2 10 11 12 is 7.2: medoid 10. Labels 0 0 0 1 1 1: medoids 1 and 11.
    found = reference.kmedoids(x, 2, init=torch.tensor([0, 1]))
    assert found.assignment.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.medoids.tolist() == [1, 4]
    close(found.centers, [[1], [11]])
    close(found.loss, 4)
    assert found.n_iter == 2
    # Labels after the first update already are the last ones; medoids 0 and 10 cost 1 + 4 + 1 + 4.
    once = reference.kmedoids(x, 2, init=torch.tensor([0, 1]), max_iter=1)
    assert once.medoids.tolist() == [0, 3]
    close(once.loss, 10)


def test_weighted_kmedoids_by_hand():
    # One cluster, w = 1, 1, 6: costs 1 + 6 * 9 = 55, 1 + 6 * 4 = 25, 9 + 4 = 13.
    found = reference.kmedoids(line(0, 1, 3), 1, weights(1, 1, 6))
    assert found.medoids.tolist() == [2]
    close(found.loss, 13)


def test_clusters_are_numbered_by_their_lowest_token():
    # Slots 0 and 1 start at tokens 1 and 2, but token 0 belongs to slot 1.
    x = line(10, 0, 10, 0)
    for method in (reference.kmeans, reference.kmedoids):
        found = method(x, 2, init=torch.tensor([1, 2]))
        assert found.assignment.tolist() == [0, 1, 0, 1]
        close(found.centers, [[10], [0]])
    assert found.medoids.tolist() == [0, 1]


def test_kmeans_empty_cluster():
    # Slots at 0 and 0: all tokens fall to slot 0, mean 5/3; slot 1 keeps 0 and wins the two zeros.
    x, start = line(0, 0, 5), torch.tensor([0, 1])
    once = reference.kmeans(x, 2, init=start, max_iter=1)
    assert once.assignment.tolist() == [0, 0, 1]
    close(once.centers, [[0], [5 / 3]])
    close(once.loss, (10 / 3) ** 2)
    found = reference.kmeans(x, 2, init=start)
    close(found.centers, [[0], [5]])
    assert found.loss == 0 and found.n_iter == 2
    # Nothing ever fills the second: it keeps its center, comes last and has no medoid.
    empty = reference.kmeans(torch.full((3, 1), 0.1), 2, init=start)
    assert empty.assignment.tolist() == [0, 0, 0]
    assert empty.medoids.tolist() == [0, -1]
    assert torch.equal(empty.centers, torch.full((2, 1), 0.1).double())
    assert empty.n_iter == 1


def test_kmedoids_has_no_empty_clusters():
    found = reference.kmedoids(torch.full((5, 2), 0.1), 3, init="topk")
    # Every token is nearest to slot 0, but tokens 1 and 2 keep theirs.
    assert found.assignment.tolist() == [0, 1, 2, 0, 0]
    assert found.medoids.tolist() == [0, 1, 2]
    assert found.loss == 0


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("method", [reference.kmeans, reference.kmedoids])
def test_zero_weights(method, init):
    x = noise(3, 10, 2)
    # All zero: clusters as with equal weights of their members, and an objective of 0.
    found = method(x, 3, torch.zeros(10), init=init)
    assert found.loss == 0
    assert canonical(found.assignment) == found.assignment.tolist()
    # Tokens of weight 0 do not pull: one cluster of tokens 0 and 1 only.
    w = weights(1, 3, *[0] * 8)
    close(reference.kmeans(x, 1, w, init=init).centers[0], 0.25 * x[0] + 0.75 * x[1])
    assert reference.kmedoids(x, 1, w, init=init).medoids.tolist() == [
        int(((x - 0.25 * x[0] - 0.75 * x[1]) ** 2).sum(1).argmin())
    ]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_kmedoids_against_all_medoid_sets(init, k):
    for seed in range(6):
        x, w = noise(seed, 8, 2), noise(seed + 10, 8).abs().round(decimals=1)
        for weight in (None, w):
            found = reference.kmedoids(x, k, weight, init=init, max_iter=20)
            assert found.loss >= best_medoids(x, k, weight) - 1e-12
            close(found.loss, reference.objective(x, x[found.medoids], weight))
            # Fixed point: each medoid is the best member of its cluster.
            assert reference.update_medoids(x, found.assignment, k, weight).tolist() == found.medoids.tolist()


def test_kmedoids_of_one_cluster_is_the_optimum():
    for seed in range(10):
        x, w = noise(seed, 9, 3), noise(seed + 10, 9).abs()
        close(reference.kmedoids(x, 1, w).loss, best_medoids(x, 1, w))


@pytest.mark.parametrize("init", ["ward", "farthest"])
def test_separable_groups_are_found(init):
    corners = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], dtype=torch.float64)
    x = (corners[:, None] + noise(5, 3, 3, 2)).transpose(0, 1).reshape(9, 2)
    for weight in (None, noise(6, 9).abs() + 0.5):
        found = reference.kmedoids(x, 3, weight, init=init)
        assert found.assignment.tolist() == [0, 1, 2] * 3
        close(found.loss, best_medoids(x, 3, weight))
        assert reference.kmeans(x, 3, weight, init=init).assignment.tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("method", [reference.kmeans, reference.kmedoids])
def test_the_objective_never_rises(method, init):
    for seed in range(4):
        x, w = noise(seed, 20, 3), noise(seed + 10, 20).abs()
        w[::4] = 0
        x[5:8] = x[0]
        for weight in (None, w):
            losses = [float(method(x, 6, weight, init=init, max_iter=t).loss) for t in range(6)]
            assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_as_many_clusters_as_tokens(n):
    x, w = noise(n, n, 3), torch.zeros(n)
    for k in (n, n + 3):
        for found in (reference.ward(x, k, w), reference.kmeans(x, k, w), reference.kmedoids(x, k, w)):
            assert found.assignment.tolist() == found.medoids.tolist() == list(range(n))
            assert torch.equal(found.centers, x)
            assert found.loss == 0 and found.n_iter == 0
        assert reference.ward(x, k).merge_heights.tolist() == [INF] * (n - 1)
        for baseline in reference.BASELINES:
            assert baseline(x, k).tolist() == list(range(n))


def test_one_cluster():
    x = line(0, 1, 5)
    for found in (reference.ward(x, 1), reference.kmeans(x, 1, init="strided")):
        assert found.assignment.tolist() == [0, 0, 0]
        close(found.centers, [[2]])
        assert found.medoids.tolist() == [1]
        close(found.loss, 4 + 1 + 9)
    for baseline in (reference.grid, reference.bipartite):
        assert baseline(x, 1).tolist() == [0, 0, 0]
