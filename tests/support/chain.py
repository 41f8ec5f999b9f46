"""States of K-Means and K-Medoids that follow from each other, by the reference's steps."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tests.support.strategies import Problem
from tests.support.tolerances import (
    TOLERANCES,
    assignment_regret,
    medoid_regret,
    regret_limit,
)
from tpkernels import Clusters, reference


def pick(found: Clusters, b: int) -> Clusters:
    return Clusters(*(None if field is None else field[b] for field in found))


def assert_state(x: Tensor, found: Clusters, weight: Tensor | None) -> None:
    """One sample's assignment is the nearest center, its loss is that of the pair, a medoid is in its own cluster."""
    assert assignment_regret(x, found.centers, found.assignment) <= regret_limit(x)
    if found.medoids is not None:
        assert found.assignment[found.medoids].tolist() == list(range(len(found.medoids)))
        assert torch.equal(found.centers, x[found.medoids])
    loss = float(reference.objective(x, found.centers, weight, found.assignment))
    scale = 1.0 if weight is None else float(weight.max())
    assert abs(float(found.loss) - loss) <= scale * regret_limit(x)


def assert_means(x: Tensor, weight: Tensor | None, before: Clusters, after: Clusters) -> None:
    """The centers of `after` are those that the reference makes of the assignment of `before`."""
    assert same_centers(x, after.centers, reference.update_means(x, before.assignment, before.centers, weight))


def same_centers(x: Tensor, found: Tensor, expected: Tensor) -> bool:
    """The same centers of a sample x, in any order: equal tokens may start each other's empty clusters."""
    sqdist = reference.pairwise_sqdist(expected, found.double())
    limit = x.shape[1] * (TOLERANCES[x.dtype].value * float(x.double().abs().max())) ** 2
    return float(sqdist.amin(1).max()) <= limit and float(sqdist.amin(0).max()) <= limit


def assert_chain(problem: Problem, start: Tensor, states: list[Clusters], b: int) -> None:
    """states[t], after at most t updates from the start's tokens, follow from each other for sample b."""
    x, weight = problem.x[b], None if problem.weight is None else problem.weight[b]
    steps = [pick(state, b) for state in states]
    assert steps[0].n_iter == 0
    if steps[0].medoids is None:
        assert same_centers(x, steps[0].centers, x[start[b]].double())
    else:
        assert steps[0].medoids.sort().values.tolist() == start[b].sort().values.tolist()
    assert_state(x, steps[0], weight)
    for t, (before, after) in enumerate(itertools.pairwise(steps)):
        if after.n_iter <= t:
            # The assignment stood still: nothing has changed.
            assert after.n_iter == before.n_iter
            assert torch.equal(after.assignment, before.assignment) and torch.equal(after.centers, before.centers)
            continue
        assert_state(x, after, weight)
        if after.medoids is None:
            assert_means(x, weight, before, after)
        else:
            assert medoid_regret(x, before.assignment, after.medoids, weight) <= regret_limit(x, weight)
        scale = 1.0 if weight is None else float(weight.max())
        assert after.loss <= before.loss + scale * regret_limit(x)
