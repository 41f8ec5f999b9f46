"""How close is close: one table by dtype, and the regrets that stand in for comparing indices.

Which of two equally good clusters a token goes to depends on rounding; what a choice costs beyond the best does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tpkernels import reference


class Tolerance(NamedTuple):
    """value: of tokens and their means, relative to the largest. regret: in shares of the total variance.

    Half types are compared from the same rounded tokens: they compute in float32 and round only what they return.
    """

    value: float
    regret: float


TOLERANCES = {
    torch.float64: Tolerance(1e-12, 1e-12),
    torch.float32: Tolerance(1e-5, 1e-5),
    torch.float16: Tolerance(1e-3, 1e-5),
    torch.bfloat16: Tolerance(8e-3, 1e-5),
}


def total_variance(x: Tensor, weight: Tensor | None = None) -> float:
    """`sum_i w_i ||x_i - mu||^2` of one sample [N, D], with weights over their largest."""
    x = x.double()
    w = x.new_ones(len(x)) if weight is None else relative(weight)
    return float(reference.objective(x, (w[:, None] * x).sum(0, keepdim=True) / w.sum(), w))


def relative(weight: Tensor) -> Tensor:
    """Weights [N] over their largest; ones where all are 0."""
    weight = weight.double()
    return weight / weight.max() if len(weight) and weight.max() > 0 else torch.ones_like(weight)


def regret_limit(x: Tensor, weight: Tensor | None = None) -> float:
    """The largest regret allowed for a sample [N, D], a share of its total variance.

    Equal tokens have none; their coordinates' own rounding is allowed.
    """
    share = TOLERANCES[x.dtype].regret
    return share * total_variance(x, weight) + (share * 1e-2) ** 2 * float(x.double().square().sum())


def assignment_regret(x: Tensor, centers: Tensor, label: Tensor) -> float:
    """By how much a token of x [N, D] is farther from its centre of [K, D] than from the nearest, squared, at most."""
    sqdist = reference.pairwise_sqdist(x, centers.double())
    return float((sqdist.gather(1, label[:, None]).squeeze(1) - sqdist.amin(1)).max())


def medoid_regret(x: Tensor, label: Tensor, medoids: Tensor, weight: Tensor | None = None) -> float:
    """By how much the medoids, one of each cluster of label [N], cost more than the best members, at most.

    In any order: a medoid is a member, which names its cluster.
    """
    weight = None if weight is None else relative(weight)
    owner = label[medoids].tolist()
    assert sorted(owner) == sorted(set(label.tolist())), "every cluster has one medoid, a member of it"
    worst = 0.0
    for slot, medoid in zip(owner, medoids.tolist(), strict=True):
        members = (label == slot).nonzero().flatten().tolist()
        costs = {i: reference.medoid_cost(x, members, i, weight) for i in members}
        worst = max(worst, costs[medoid] - min(costs.values()))
    return worst


def assert_values(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None, of: Tensor | None = None) -> None:
    """Two tensors agree to the tolerance of found's dtype (or of dtype), relative to the largest expected entry.

    Args:
        of: what they are means of: those that cancel are as exact as their members, not as themselves.
    """
    assert found.shape == expected.shape
    expected = expected.detach().double()
    largest = expected if of is None else of.nan_to_num().double()
    scale = float(largest.abs().max()) if largest.numel() else 0.0
    atol = TOLERANCES[dtype or found.dtype].value * scale
    torch.testing.assert_close(found.detach().double(), expected, rtol=0, atol=atol)
