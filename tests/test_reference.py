"""The reference's own checks: examples worked by hand, brute force, scipy, and the rules at the edges."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from tpkernels import reference

INF = math.inf
INITS = ["ward", "topk", "farthest", "strided"]


def line(*values: float) -> Tensor:
    """Tokens on a line, [N, 1] float64."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def weights(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: object) -> None:
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def canonical(labels: object) -> list[int]:
    """Labels renumbered by first appearance."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(label), len(seen)) for label in labels]


def best_medoids(x: Tensor, k: int, weight: Tensor | None = None) -> float:
    """The least objective over all sets of K tokens."""
    sets = itertools.combinations(range(len(x)), k)
    return min(float(reference.objective(x, x[list(chosen)], weight)) for chosen in sets)


# Single steps


def test_pairwise_sqdist_by_hand():
    # (0,0)-(3,4): 9 + 16 = 25; (0,0)-(0,1): 1; (3,4)-(0,1): 9 + 9 = 18.
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    close(reference.pairwise_sqdist(x), [[0, 25, 1], [25, 0, 18], [1, 18, 0]])
    close(reference.pairwise_sqdist(x, x[:1]), [[0], [25], [1]])


def test_assign_takes_the_lowest_slot_on_a_tie():
    # Token 2 is at distance 2 from both centres, token 5 at distance 1 from the second.
    assert reference.assign_tokens(line(2, 5), line(0, 4)).tolist() == [0, 1]
    assert reference.assign_tokens(line(2, 5), line(4, 0)).tolist() == [0, 0]


def test_a_medoid_stays_in_its_own_cluster():
    # Tokens 0 and 1 are the same point: by distance alone both belong to slot 0.
    x, medoids = line(7, 7, 9), torch.tensor([0, 1])
    assert reference.assign_tokens(x, x[medoids]).tolist() == [0, 0, 0]
    assert reference.assign_to_medoids(x, medoids).tolist() == [0, 1, 0]


def test_cluster_mean_by_hand():
    x, labels = line(1, 3, 10, 20, 99), torch.tensor([0, 0, 1, 1, -1])
    # (1 + 3) / 2 and (10 + 20) / 2; no members: 0; label -1 counts nowhere.
    close(reference.cluster_mean(x, labels, 3), [[2], [15], [0]])
    # (1 * 1 + 3 * 3) / 4 = 2.5; weights that sum to 0: the plain mean 15.
    close(reference.cluster_mean(x, labels, 3, weights(1, 3, 0, 0, 5)), [[2.5], [15], [0]])


def test_cluster_mean_has_gradients_for_tokens_and_weights():
    x, w = noise(0, 6, 2).requires_grad_(), (noise(1, 6).abs() + 0.1).requires_grad_()
    labels = torch.tensor([0, 1, 0, -1, 1, 1])
    assert torch.autograd.gradcheck(lambda a, b: reference.cluster_mean(a, labels, 2, b), (x, w))


def test_equal_tokens_average_to_themselves():
    # 0.1 + 0.1 + 0.1 is not 3 * 0.1 in floating point.
    x = line(0.1, 0.1, 0.1)
    assert torch.equal(reference.cluster_mean(x, torch.zeros(3, dtype=torch.int64), 1), x[:1])


def test_update_means_keeps_an_empty_cluster():
    close(reference.update_means(line(1, 3), torch.tensor([1, 1]), line(42, 0)), [[42], [2]])


def test_medoid_cost_and_update_by_hand():
    x = line(0, 1, 5)
    # cost(0) = 1 + 25 = 26; cost(1) = 1 + 16 = 17; cost(5) = 25 + 16 = 41.
    assert [reference.medoid_cost(x, [0, 1, 2], i) for i in range(3)] == [26, 17, 41]
    together = torch.zeros(3, dtype=torch.int64)
    assert reference.update_medoids(x, together, 1).tolist() == [1]
    # w = 1, 1, 9: cost(0) = 1 + 9 * 25 = 226; cost(1) = 1 + 9 * 16 = 145; cost(5) = 25 + 16 = 41.
    w = weights(1, 1, 9)
    assert [reference.medoid_cost(x, [0, 1, 2], i, w) for i in range(3)] == [226, 145, 41]
    assert reference.update_medoids(x, together, 1, w).tolist() == [2]
    # Weights of 0 are equal weights; an empty cluster has no medoid; a pair ties, the lower token wins.
    assert reference.update_medoids(x, together, 1, weights(0, 0, 0)).tolist() == [1]
    assert reference.update_medoids(line(0, 1), torch.tensor([1, 1]), 2).tolist() == [-1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_the_medoid_is_the_member_nearest_to_the_weighted_mean(seed):
    x, w = noise(seed, 9, 3), noise(seed + 50, 9).abs()
    labels = torch.arange(9) % 2
    medoids = reference.update_medoids(x, labels, 2, w)
    for slot, mean in enumerate(reference.cluster_mean(x, labels, 2, w)):
        members = (labels == slot).nonzero().flatten()
        nearest = members[((x[members] - mean) ** 2).sum(1).argmin()]
        assert medoids[slot] == nearest


def test_objective_and_chamfer_by_hand():
    x, centers, w = line(0, 2, 5), line(1, 5), weights(1, 2, 4)
    # To the nearest: 1 + 1 + 0 = 2, weighted 1 + 2 = 3; with labels 0, 1, 0: 1 + 2 * 9 + 4 * 16 = 83.
    close(reference.chamfer_loss(x, centers), 2)
    close(reference.objective(x, centers, w), 3)
    close(reference.objective(x, centers, w, torch.tensor([0, 1, 0])), 83)


def test_unpool_by_hand():
    y = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    close(reference.unpool(y, torch.tensor([1, -1, 0, 1])), [[3, 4], [0, 0], [1, 2], [3, 4]])


# Ward


def test_ward_by_hand():
    # {0, 1}: 1/2 * 1 = 1/2, centre 1/2. With 3: 2/3 * (5/2)^2 = 25/6, centre 4/3 (3 and 10: 49/2).
    # With 10: 3/4 * (26/3)^2 = 169/3.
    x = line(0, 1, 3, 10)
    two = reference.ward(x, 2)
    assert two.assignment.tolist() == [0, 0, 0, 1]
    close(two.centers, [[4 / 3], [10]])
    assert two.medoids.tolist() == [1, 3]
    close(two.merge_heights, [1 / 2, 25 / 6, INF])
    # Each merger raises the objective by its cost: 1/2 + 25/6 = 14/3 = (4/3)^2 + (1/3)^2 + (5/3)^2.
    close(two.loss, 14 / 3)
    assert two.n_iter == 2
    close(reference.ward(x, 2, full=True).merge_heights, [1 / 2, 25 / 6, 169 / 3])
    assert reference.ward(x, 2, full=True).assignment.tolist() == [0, 0, 0, 1]


def test_weighted_ward_by_hand():
    # Unweighted: {0, 2}: 1/2 * 4 = 2 is below {2, 4.5}: 1/2 * 6.25 = 3.125.
    x = line(0, 2, 4.5)
    assert reference.ward(x, 2).assignment.tolist() == [0, 0, 1]
    # m = 1, 0.01, 0.01: {0, 2}: 0.01 / 1.01 * 4 = 0.0396; {2, 4.5}: 0.005 * 6.25 = 0.03125 is lower.
    found = reference.ward(x, 2, weights(100, 1, 1))
    assert found.assignment.tolist() == [0, 1, 1]
    close(found.merge_heights, [0.03125, INF])
    # Heights are in units of the largest weight: 100 * 0.03125 = 2 * 1.25^2.
    close(found.loss, 3.125)


def test_ward_floors_the_masses():
    # m = 1, 1e-6, 1e-6: {0, 1}: ~1e-6 * 1; {1, 3}: 5e-7 * 4 = 2e-6. Both tokens of weight 0 are free in the objective.
    found = reference.ward(line(0, 1, 3), 2, weights(1, 0, 0))
    assert found.assignment.tolist() == [0, 0, 1]
    close(found.merge_heights, [1e-6 / (1 + 1e-6), INF])
    close(found.centers, [[0], [3]])
    assert found.loss == 0


def test_ward_settles_ties_by_xor():
    # 0-1 and 1-2 both cost 1/2 here; on tokens 1, 2, 3 the pairs are (1, 2): XOR 3 and (2, 3): XOR 1.
    assert reference.ward(line(100, 0, 1, 2), 3).assignment.tolist() == [0, 1, 2, 2]
    # Equal XOR: (0, 1) before (2, 3).
    assert reference.ward(line(0, 1, 2, 3), 3).assignment.tolist() == [0, 0, 1, 2]
    assert reference.ward(line(0, 1, 2, 3), 2).assignment.tolist() == [0, 0, 1, 1]


def test_ward_on_equal_tokens():
    # All costs 0. Least XOR first: (0, 1), (2, 3), (4, 5), (6, 7) at XOR 1; then (0, 2), (4, 6) at XOR 2; then (0, 4).
    x = torch.full((8, 3), 0.1, dtype=torch.float64)
    assert reference.ward(x, 4).assignment.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert reference.ward(x, 3).assignment.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert reference.ward(x, 2).assignment.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert reference.ward(x, 2, full=True).merge_heights.tolist() == [0] * 7
    assert reference.ward(x, 2).loss == 0


@pytest.mark.parametrize(("n", "dim"), [(2, 1), (7, 2), (20, 5), (33, 3)])
def test_ward_is_scipys(n, dim):
    x = noise(n, n, dim)
    tree = linkage(x.numpy(), "ward")
    # scipy's height is sqrt(2 cost) for masses of 1.
    close(reference.ward(x, 1, full=True).merge_heights, tree[:, 2] ** 2 / 2)
    for k in range(1, n + 1):
        found = reference.ward(x, k)
        labels = torch.tensor(canonical(fcluster(tree, k, "maxclust")))
        assert found.assignment.tolist() == labels.tolist()
        expected = reference.objective(x, reference.cluster_mean(x, labels, k), None, labels)
        torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=1e-12)
        # Every merger's height is its rise of the objective.
        torch.testing.assert_close(found.loss, found.merge_heights[: n - k].sum(), rtol=1e-9, atol=1e-12)


def twice(x: Tensor, w: Tensor) -> tuple[Tensor, list[int]]:
    """Tokens of weight 2 written twice, and the first copy of each."""
    rows = [i for i, value in enumerate(w.tolist()) for _ in range(int(value))]
    return x[rows], [rows.index(i) for i in range(len(x))]


@pytest.mark.parametrize("seed", range(4))
def test_weight_two_is_the_token_twice(seed):
    x, w = noise(seed, 12, 3), weights(*([1, 2, 2, 1] * 3))
    copies, first = twice(x, w)
    for k in (1, 2, 5, 9, 11):
        a, b = reference.ward(x, k, w), reference.ward(copies, k)
        assert a.assignment.tolist() == b.assignment[first].tolist()
        close(a.loss, b.loss)
        close(a.centers, b.centers)
        # The copies merge at height 0; then the heights are the same in units of max w = 2.
        close(2 * a.merge_heights[: 12 - k], b.merge_heights[len(copies) - 12 : len(copies) - k])
        for method in (reference.kmeans, reference.kmedoids):
            start = torch.arange(k)
            a, b = method(x, k, w, init=start), method(copies, k, init=torch.tensor(first)[start])
            assert a.assignment.tolist() == canonical(b.assignment[first])
            close(a.loss, b.loss)


# Starts


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


# K-Means and K-Medoids


def test_kmeans_by_hand():
    x = line(0, 1, 5, 6)
    # Start 0, 1: labels 0 1 1 1, means 0 and 4; labels 0 0 1 1, means 1/2 and 11/2; labels stand still.
    found = reference.kmeans(x, 2, init=torch.tensor([0, 1]))
    assert found.assignment.tolist() == [0, 0, 1, 1]
    close(found.centers, [[0.5], [5.5]])
    close(found.loss, 1)
    assert found.n_iter == 2
    assert found.medoids.tolist() == [0, 2]
    # One update: centres 0 and 4, then a last assign: 0 + 1 + 1 + 4.
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
    # Nothing ever fills the second: it keeps its centre, comes last and has no medoid.
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


# Baselines


def test_topk_by_hand():
    x = line(0, 0, 0, 0, 0)
    # 3 and 9, then the first of the two 2s; kept tokens in raster order.
    assert reference.topk(x, 3, weights(1, 2, 9, 2, 3)).tolist() == [-1, 0, 1, -1, 2]
    assert reference.topk(x, 2).tolist() == [0, 1, -1, -1, -1]


def test_uniform_is_splitmix64():
    # (1, -1) hashes 0x9E3779B97F4A7C15, the first state of SplitMix64 from seed 0; its published output is known.
    assert reference.uniform(1, -1) == ((0xE220A8397B1DCDAF >> 12) + 0.5) / 2**52
    values = [reference.uniform(seed, i) for seed in range(40) for i in range(50)]
    assert min(values) > 0 and max(values) < 1 and len(set(values)) == 2000
    # Mean 1/2 within four standard errors, sqrt(1 / 12 / 2000) = 0.0065.
    assert abs(sum(values) / 2000 - 0.5) < 0.026


def test_importance_draws_in_proportion_to_the_weights():
    x, w = torch.zeros(4, 1), weights(1, 2, 5, 0)
    drawn = Counter(reference.importance(x, 1, w, seed=seed).tolist().index(0) for seed in range(2000))
    # Standard errors below sqrt(0.25 / 2000) = 0.011.
    for token, expected in enumerate([1 / 8, 2 / 8, 5 / 8, 0]):
        assert abs(drawn[token] / 2000 - expected) < (0.045 if expected else 1e-9)
    assert all(reference.importance(x, 3, w, seed=seed).tolist() == [0, 1, 2, -1] for seed in range(20))
    # Weights of 0 only: the lowest tokens.
    assert reference.importance(x, 2, torch.zeros(4)).tolist() == [0, 1, -1, -1]


def test_random_reads_neither_tokens_nor_weights():
    labels = [reference.random(noise(seed, 9, 2), 4, noise(seed, 9).abs(), seed=7).tolist() for seed in range(3)]
    assert labels[0] == labels[1] == labels[2]
    assert [label for label in labels[0] if label >= 0] == [0, 1, 2, 3]
    assert len({tuple(reference.random(noise(0, 9, 2), 4, seed=seed).tolist()) for seed in range(20)}) > 10


def test_grid_by_hand():
    x = torch.zeros(16, 1)
    # Bands nearest to sqrt(4 * 4 / 4) = 2, two cells each: quadrants.
    assert reference.grid(x, 4).tolist() == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2
    # sqrt(5) = 2.24: two bands, of 5 // 2 = 2 and 3 cells; columns 0..3 times 3 // 4 = 0 0 1 2.
    assert reference.grid(x, 5).tolist() == [0, 0, 1, 1] * 2 + [2, 2, 3, 4] * 2
    # 2 x 3, sqrt(2 * 2 / 3) = 1.15: one band of two cells; columns 0..2 times 2 // 3 = 0 0 1.
    assert reference.grid(x[:6], 2, grid_size=(2, 3)).tolist() == [0, 0, 1] * 2
    # No square: a strip, i * 4 // 6.
    assert reference.grid(x[:6], 4).tolist() == [0, 0, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="grid_size"):
        reference.grid(x, 4, grid_size=(3, 5))


def test_grid_fills_every_cell_in_order():
    for h, w in itertools.product(range(1, 8), repeat=2):
        for k in range(1, h * w + 1):
            labels = reference.grid(torch.zeros(h * w, 1), k, grid_size=(h, w)).tolist()
            assert canonical(labels) == labels and max(labels) == k - 1


def directions(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_bipartite_by_hand():
    # Sources 0, 88, 40 degrees, destinations 10 and 80. Best: 0 -> 10 (10 apart), 88 -> 80 (8), 40 -> 10 (30).
    x = directions(0, 10, 88, 80, 40)
    assert reference.bipartite(x, 4).tolist() == [0, 1, 2, 2, 3]
    assert reference.bipartite(x, 3).tolist() == [0, 0, 1, 1, 2]
    assert reference.bipartite(x, 2).tolist() == [0, 0, 1, 1, 0]
    # All three sources merge, then the two that are left.
    assert reference.bipartite(x, 1).tolist() == [0] * 5
    # The length does not count, the metric does.
    assert reference.bipartite(x * line(1, 9, 2, 7, 3), 4).tolist() == [0, 1, 2, 2, 3]
    assert reference.bipartite(noise(0, 5, 3), 4, metric=x).tolist() == [0, 1, 2, 2, 3]


def test_bipartite_ties_and_sizes():
    # Equal tokens: every source has destination 1; sources 0, 2 merge first.
    assert reference.bipartite(directions(0, 0, 0, 0, 0), 3).tolist() == [0, 0, 0, 1, 2]
    # Round one: 0 -> 10, 40 -> 50, 82 -> 88 degrees. Round two: one of the outer clusters joins the middle one, at 45.
    x = directions(0, 10, 40, 50, 82, 88)
    assert reference.bipartite(x, 3).tolist() == [0, 0, 1, 1, 2, 2]
    # Sizes 1, 9 put the first cluster near 9 degrees, 36 from the middle, nearer than the last one's 40.
    assert reference.bipartite(x, 2, weights(1, 9, 1, 1, 1, 1)).tolist() == [0, 0, 0, 0, 1, 1]
    # Sizes 9, 1 put it near 1 degree, 44 from the middle.
    assert reference.bipartite(x, 2, weights(9, 1, 1, 1, 1, 1)).tolist() == [0, 0, 1, 1, 1, 1]


# Attention


def test_attention_by_hand():
    q, k, v = torch.zeros(1, 2, 1), torch.ones(1, 2, 1), torch.tensor([[[0.0], [8.0]]])
    # Equal logits: halves. Two queries give each key 1.
    out, significance = reference.attention(q, k, v)
    close(out, [[[4], [4]]])
    close(significance, [1, 1])
    # Sizes 1 and 3: shares 1/4 and 3/4, and the queries count 1 + 3.
    out, significance = reference.attention(q, k, v, torch.tensor([1.0, 3.0]))
    close(out, [[[6], [6]]])
    close(significance, [1, 3])
    # Key 0 is ignored, by size or by mask; a masked query says nothing.
    for options in ({"key_size": torch.tensor([0.0, 1.0])}, {"mask": torch.tensor([False, True])}):
        out, significance = reference.attention(q, k, v, **options)
        close(out, [[[0 if "mask" in options else 8], [8]]])
        close(significance, [0, 1])
    out, significance = reference.attention(q, k, v, mask=torch.zeros(2, dtype=torch.bool))
    assert out.abs().sum() == 0 and significance.abs().sum() == 0


def test_attention_is_softmax_attention():
    q, k, v = noise(0, 3, 2, 7, 4)
    mask = torch.tensor([True] * 5 + [False] * 2)
    size = noise(1, 7).abs() + 0.1
    out, significance = reference.attention(q, k, v, size, mask, scale=0.3)
    bias = size.log().masked_fill(~mask, -INF).expand(7, 7)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)
    close(out[:, mask], expected[:, mask])
    assert out[:, ~mask].abs().sum() == 0
    # Each valid query hands out its size once a head.
    close(significance.sum(), 2 * size[:5].sum())
    close(reference.attention(q, k, v)[0], torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert not reference.attention(q.requires_grad_(), k, v)[1].requires_grad


def test_a_token_of_size_two_attends_as_two_tokens():
    q, k, v = noise(2, 3, 2, 4, 3)
    rows = [0, 1, 1, 2, 3]
    out, significance = reference.attention(q, k, v, weights(1, 2, 1, 1))
    copies, counted = reference.attention(q[:, rows], k[:, rows], v[:, rows])
    close(out, copies[:, [0, 1, 3, 4]])
    close(significance, [counted[0], counted[1] + counted[2], counted[3], counted[4]])


# Batches


METHODS = [reference.ward, reference.kmeans, reference.kmedoids, *reference.BASELINES]
DRAWN = (reference.importance, reference.random)


@pytest.mark.parametrize("method", METHODS)
def test_batched_is_each_sample_alone(method):
    x, w = noise(0, 3, 9, 2), noise(1, 3, 9).abs()
    found = reference.batched(method, x, 4, w)
    for b in range(3):
        alone = method(x[b], 4, w[b])
        if isinstance(alone, Tensor):
            assert torch.equal(found[b], alone)
        else:
            for field, value in zip(found, alone, strict=True):
                assert (field is None and value is None) or torch.equal(field[b], value)


@pytest.mark.parametrize("method", METHODS)
def test_batched_leaves_masked_tokens_out(method):
    x, w = noise(0, 3, 9, 2), noise(1, 3, 9).abs()
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, [0, 4, 5]] = False
    mask[1, 2:] = False
    mask[2] = False
    x[~mask], w[~mask] = math.nan, INF
    found = reference.batched(method, x, 4, w, mask)
    labels = found if isinstance(found, Tensor) else found.assignment
    assert (labels[~mask] == -1).all()
    places = {"places": mask[0].nonzero().flatten().tolist()} if method in DRAWN else {}
    alone = method(x[0, mask[0]], 4, w[0, mask[0]], **places)
    assert torch.equal(labels[0, mask[0]], alone if isinstance(alone, Tensor) else alone.assignment)
    assert labels[1, :2].tolist() == [0, 1]
    if isinstance(found, Tensor):
        return
    valid = mask[0].nonzero().flatten()
    assert torch.equal(found.medoids[0], valid[alone.medoids])
    assert found.medoids[1:].tolist() == [[0, 1, -1, -1], [-1] * 4]
    assert torch.equal(found.centers[1, :2], x[1, :2])
    assert found.centers[1, 2:].abs().sum() == 0 and found.centers[2].abs().sum() == 0
    assert found.loss[1:].tolist() == [0, 0] and found.n_iter[1:].tolist() == [0, 0]
    if method is reference.ward:
        assert found.merge_heights.shape == (3, 8)
        assert torch.equal(found.merge_heights[0, :5], alone.merge_heights)
        assert (found.merge_heights[1:] == INF).all()


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
@pytest.mark.parametrize("method", METHODS)
def test_batched_splits_a_sample_that_is_not_finite(method, value):
    x, w = noise(0, 4, 7, 2), noise(1, 4, 7).abs()
    clean = reference.batched(method, x, 3, w)
    x[1, 6, 0], w[2, 0] = value, abs(value)
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[2, 3] = False
    found = reference.batched(method, x, 3, w, mask)
    labels = found if isinstance(found, Tensor) else found.assignment
    # rank * 3 // 7 and, with one token masked, rank * 3 // 6.
    assert labels[1].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert labels[2].tolist() == [0, 0, 1, -1, 1, 2, 2]
    untouched = clean if isinstance(clean, Tensor) else clean.assignment
    assert torch.equal(labels[[0, 3]], untouched[[0, 3]])
    if not isinstance(found, Tensor):
        assert found.loss.isfinite().tolist() == [True, False, False, True]
        assert found.n_iter[1] == 0
        # Medoids are members all the same.
        assert labels[1][found.medoids[1]].tolist() == [0, 1, 2]
        assert labels[2][found.medoids[2]].tolist() == [0, 1, 2]
    if method is reference.kmedoids:
        assert torch.equal(found.centers[1], x[1, found.medoids[1]])


def test_batched_starts_and_metric_count_all_tokens():
    x = torch.stack([line(0, 99, 1, 5, 6), line(0, 99, 1, 5, 6)])
    mask = torch.tensor([[True, False, True, True, True]] * 2)
    start = torch.tensor([[0, 2], [3, 4]])
    found = reference.batched(reference.kmedoids, x, 2, None, mask, init=start, max_iter=0)
    assert found.medoids.tolist() == [[0, 2], [3, 4]]
    # From 5 and 6, every other token is nearest to 5.
    assert found.assignment.tolist() == [[0, -1, 1, 1, 1], [0, -1, 0, 0, 1]]
    shared = reference.batched(reference.kmedoids, x, 2, None, mask, init=start[0], max_iter=0)
    assert shared.medoids.tolist() == [[0, 2]] * 2
    metric = torch.stack([directions(0, 5, 90, 45, 80)] * 2)
    # Valid: 0, 90, 45, 80 degrees; sources 0 and 45, destinations 90 and 80: 45 -> 80 is the closest.
    assert reference.batched(reference.bipartite, x, 3, None, mask, metric=metric).tolist() == [[0, -1, 1, 2, 2]] * 2


def test_batched_draws_by_the_place_of_a_token():
    x, mask = torch.zeros(2, 9, 1), torch.ones(2, 9, dtype=torch.bool)
    whole = reference.batched(reference.random, x, 5, seed=3)
    assert torch.equal(whole[0], whole[1])
    # Without a token that was dropped anyway, the draw is the same.
    mask[1, int((whole[1] == -1).nonzero()[0])] = False
    assert torch.equal(reference.batched(reference.random, x, 5, None, mask, seed=3), whole)


def test_batched_grid_is_a_strip_where_tokens_are_masked():
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[1, [3, 7, 8, 12, 13, 14, 15]] = False
    labels = reference.batched(reference.grid, torch.zeros(2, 16, 1), 4, None, mask, grid_size=(4, 4))
    assert labels[0].tolist() == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2
    # Nine are left, though no square of them: rank * 4 // 9.
    assert labels[1].tolist() == [0, 0, 0, -1, 1, 1, 2, -1, -1, 2, 3, 3, -1, -1, -1, -1]


def test_batched_shapes_at_the_edges():
    empty = reference.batched(reference.ward, torch.zeros(0, 5, 3), 2)
    assert [tuple(field.shape) for field in empty] == [(0, 5), (0, 2, 3), (0, 2), (0,), (0,), (0, 4)]
    assert reference.batched(reference.topk, torch.zeros(0, 5, 3), 2).shape == (0, 5)
    more = reference.batched(reference.kmeans, noise(0, 2, 3, 4), 9)
    assert more.centers.shape == (2, 3, 4) and more.medoids.tolist() == [[0, 1, 2]] * 2
