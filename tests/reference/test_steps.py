"""The reference's single steps, by hand and by brute force."""

from __future__ import annotations

import pytest
import torch

from tests.support.by_hand import close, line, noise, weights
from tpkernels import reference


def test_pairwise_sqdist_by_hand():
    # (0,0)-(3,4): 9 + 16 = 25; (0,0)-(0,1): 1; (3,4)-(0,1): 9 + 9 = 18.
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    close(reference.pairwise_sqdist(x), [[0, 25, 1], [25, 0, 18], [1, 18, 0]])
    close(reference.pairwise_sqdist(x, x[:1]), [[0], [25], [1]])


def test_assign_takes_the_lowest_slot_on_a_tie():
    # Token 2 is at distance 2 from both centers, token 5 at distance 1 from the second.
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
