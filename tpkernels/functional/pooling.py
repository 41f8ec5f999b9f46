"""Distances, assignments and means of given clusters.

Shapes: tokens x [B, N, D], weight [B, N], mask [B, N] (True: valid).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..ops.assign import assign as _assign
from ..ops.backends import torch_primitives
from ..ops.cluster_mean import cluster_mean as _mean
from ..ops.context import compute_dtype
from ..ops.eager import distances, means


def pairwise_sqdist(
    x: Tensor, y: Tensor | None = None, *, mask: Tensor | None = None, y_mask: Tensor | None = None
) -> Tensor:
    """Squared distances between x [B, N, D] and y [B, M, D] (x itself where None).

    Args:
        mask, y_mask: bool [B, N] and [B, M], False for padding, which may hold NaN.

    Returns:
        [B, N, M] float32 (float64 for float64), at least 0, with a zero diagonal where y is None; +inf from and to
        padding. Both are centered on x's mean first, so a common offset costs no digits. Differentiable.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, or y_mask without y.
    """
    checks.tokens(x)
    checks.mask(mask, x)
    if y is not None:
        checks.like_tokens("y", y, x)
        checks.mask(y_mask, y, "y_mask", "y")
    elif y_mask is not None:
        raise ValueError("y_mask must be None without y, got a mask")
    return distances.pairwise_sqdist(x, y, mask, y_mask)


def assign(x: Tensor, centers: Tensor, mask: Tensor | None = None, *, center_mask: Tensor | None = None) -> Tensor:
    """Nearest of centers [B, K, D] to every token of x [B, N, D], as [B, N] int64.

    The lowest index wins ties; invalid tokens get -1. Never builds [B, N, K] for large N, which is done in tiles.

    Args:
        mask: bool [B, N], False for padding.
        center_mask: bool [B, K], False for padding of samples with fewer centers. A sample without any gets -1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, or no centers.
    """
    checks.centers(x, centers, mask, center_mask)
    return _assign(x, centers, mask, center_mask)


def medoid_update(x: Tensor, assignment: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """The medoid [B, k] int64 of each cluster of assignment [B, N] (-1: no cluster); -1 for an empty cluster.

    The member of least `sum_{j in C} w_j ||x_i - x_j||^2`, the lowest index on ties, in O(N D).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, k < 1, or an assignment outside -1..k-1 (seen on the CPU).
    """
    checks.clusters(x, assignment, k, weight)
    x = x.detach().to(compute_dtype(x))
    # Tokens of no cluster may hold NaN, and 0 * NaN is NaN, so they become 0.
    labelled = (assignment >= 0)[..., None]
    x = torch.where(labelled, x, 0)
    x = torch.where(labelled, x - x.sum(1, keepdim=True) / labelled.sum(1, keepdim=True).clamp(min=1), 0)
    medoids = torch_primitives(x).nearest_members(x, assignment, k, weight)
    return torch.where(medoids == x.shape[1], -1, medoids)


def cluster_mean(x: Tensor, assignment: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Weighted mean [B, k, D] of each cluster of assignment [B, N] (-1: left out), in x's dtype.

    Weights that sum to 0 count as equal ones; an empty cluster gives zeros. Differentiable in x and weight.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, k < 1, an assignment outside -1..k-1, negative weights (seen on the
            CPU).
    """
    checks.clusters(x, assignment, k, weight)
    return _mean(x, assignment, k, weight, checks.backend("auto", x, "mean"))[0]


def unpool(y: Tensor, assignment: Tensor) -> Tensor:
    """Gives every token its cluster's row of y [B, K, D]: [B, N, D], zeros where assignment [B, N] is -1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, or an assignment outside -1..K-1 (seen on the CPU).
    """
    checks.tokens(y, "y")
    checks.labels_over(assignment, y)
    checks.label_range(assignment, y.shape[1])
    return means.unpool(y, assignment)


def chamfer_loss(
    x: Tensor,
    centers: Tensor,
    weight: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    center_mask: Tensor | None = None,
) -> Tensor:
    """`sum_i w_i min_k ||x_i - c_k||^2` [B] for centers [B, K, D]: the objective of every clusterer here.

    The asymmetric Chamfer divergence from x to centers (Marin et al., arXiv 2110.03860). Differentiable in x, centers
    and weight. mask and center_mask as in `assign`: padding adds nothing.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, no centers, or negative weights (seen on the CPU).
    """
    checks.centers(x, centers, mask, center_mask)
    checks.per_token("weight", weight, x)
    return distances.objective(x, centers, _assign(x, centers, mask, center_mask), weight)
