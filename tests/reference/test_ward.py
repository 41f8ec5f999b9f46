"""The reference's Ward: by hand, scipy's, ties, weights."""

from __future__ import annotations

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from tests.support.by_hand import INF, canonical, close, line, noise, weights
from tpkernels import reference


def test_ward_by_hand():
    # {0, 1}: 1/2 * 1 = 1/2, center 1/2. With 3: 2/3 * (5/2)^2 = 25/6, center 4/3 (3 and 10: 49/2).
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
