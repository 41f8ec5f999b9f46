"""The reference on a batch is the reference on each sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.reference.test_baselines import directions
from tests.support.by_hand import INF, line, noise
from tpkernels import reference

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
