"""The clusterers as functions. Shapes: tokens x [B, N, D], weight [B, N], mask [B, N] (True: valid)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..names import CLUSTERERS
from ..ops import backends
from ..ops.cluster import cluster
from ..ops.problem import Spec, Tensors


class Clusters(NamedTuple):
    """What a clusterer returns, with K = min(k, N).

    assignment [B, N] int64 (-1: masked); centers [B, K, D] in x's dtype; medoids [B, K] int64 (-1: empty cluster; None
    for kmeans and ward); loss [B] float32 (float64 for float64 tokens), `sum_i w_i ||x_i - c_i||^2` of this pair;
    n_iter [B] int64, updates or Ward's rounds; merge_heights [B, N - 1], Ward's heights in ascending order, +inf for
    mergers that the k clusters did not need (None for the others): the sum of the first j is the objective of N - j
    clusters.
    """

    assignment: Tensor
    centers: Tensor
    medoids: Tensor | None
    loss: Tensor
    n_iter: Tensor
    merge_heights: Tensor | None = None


def _clusters(
    method: str, x: Tensor, k: int, weight: Tensor | None, init: str | Tensor, max_iter: int, mask: Tensor | None,
    backend: str, refine: str | None = None,
) -> Clusters:  # fmt: skip
    checks.tokens(x)
    checks.count("k", k, 1)
    checks.per_token("weight", weight, x)
    checks.mask(mask, x)
    checks.count("max_iter", max_iter, 0)
    kind = checks.resolve_init(init, x.shape[1])
    start = None
    if isinstance(init, Tensor):
        checks.init_indices(init, x, k, mask)
        start = init.to(torch.int64).expand(x.shape[0], -1)
    if "ward" in (method, kind):
        checks.ward_fits(x.shape[1])
    swaps = checks.resolve_refine(refine, x.shape[1])
    chosen = checks.backend(backend, x, "swap" if swaps else method)
    # The weights' gradient comes from the means alone.
    tensors = Tensors(x, None if weight is None else weight.detach(), weight, mask, start)
    found = cluster(tensors, Spec(k, method, kind, "center", max_iter, swaps), chosen)
    medoids = found.medoids if method == "kmedoids" else None
    heights = found.heights if method == "ward" else None
    return Clusters(found.assignment, found.tokens, medoids, found.loss, found.n_iter, heights)


def explain_backend(x: Tensor, method: str = "kmedoids") -> tuple[str, str]:
    """The backend that `backend="auto"` chooses for tokens like x [B, N, D], "torch" or "triton", and the reason.

    Args:
        method: "ward", "kmeans" or "kmedoids".

    Raises:
        TypeError: x is no float tensor.
        ValueError: x has another shape, or an unknown method.
    """
    checks.tokens(x)
    checks.one_of("method", method, CLUSTERERS)
    return backends.explain_backend(x.device, x.dtype, x.shape[2], x.shape[1], method)


def kmeans(
    x: Tensor,
    k: int,
    weight: Tensor | None = None,
    *,
    init: str | Tensor = "auto",
    max_iter: int = 5,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Clusters:
    """Weighted K-Means of every sample by Lloyd's iterations.

    Minimises `L = sum_i w_i min_c ||x_i - c||^2` (Marin et al., arXiv 2110.03860). A center is the weighted mean of its
    members; an empty cluster keeps its center and comes last; the lowest index wins every tie; clusters are numbered by
    their lowest token. A sample's iterations end when its assignment no longer changes.

    Args:
        x: tokens [B, N, D], float32, float16, bfloat16 (computed in float32) or float64, any strides.
        k: clusters, at least 1; k >= N gives every token its own.
        weight: significance [B, N] >= 0; None for equal weights.
        init: "ward", "topk" (highest weight: the paper's), "farthest", "strided", "auto" (Ward up to 4,096 tokens,
            farthest-first above) or int64 indices [K] or [B, K] of distinct tokens.
        max_iter: the most updates of a sample.
        mask: bool [B, N], False for padding, which is never chosen, pooled or counted.
        backend: "auto", "torch" or "triton".

    Returns:
        Clusters; `centers` is differentiable in x and weight with the assignment held constant.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, k or max_iter too small, negative weights (seen on the CPU), unknown init or backend,
            init indices out of range or duplicated.
        RuntimeError: backend="triton" cannot run this call.
    """
    return _clusters("kmeans", x, k, weight, init, max_iter, mask, backend)


def kmedoids(
    x: Tensor,
    k: int,
    weight: Tensor | None = None,
    *,
    init: str | Tensor = "auto",
    max_iter: int = 5,
    mask: Tensor | None = None,
    backend: str = "auto",
    refine: str | None = None,
) -> Clusters:
    """Weighted K-Medoids of every sample by alternating updates.

    As `kmeans`, with centers that are tokens: the medoid of a cluster is its member of least
    `sum_{j in C} w_j ||x_i - x_j||^2`, and always belongs to it. The paper's WK-Medoids is `init="topk"` with the
    significance as weight. Arguments and errors are those of `kmeans`; `medoids` holds the tokens' indices.

    Args:
        refine: "swap" goes on from there: a medoid is replaced by any other token wherever that lowers the loss, until
            no swap does (FasterPAM: Schubert and Rousseeuw, arXiv 2008.05171) or every token was tried 8 times; n_iter
            counts the swaps too. For up to 4,096 tokens, on the torch backend alone. From Ward's clusters the loss is
            3 to 5 % lower, in 1.2 to 1.3 times the time on a CPU. On a GPU it is not worth it at any size: some 500 N
            launches take longer than one core of a CPU (docs/results.md).
    """
    return _clusters("kmedoids", x, k, weight, init, max_iter, mask, backend, refine)


def ward(
    x: Tensor, k: int, weight: Tensor | None = None, *, mask: Tensor | None = None, backend: str = "auto"
) -> Clusters:
    """Exact Ward agglomeration of every sample, cut at k clusters.

    What scipy's `linkage(x, "ward")` with `maxclust` gives, up to ties, with the weight as mass: the pair of least
    `m_a m_b / (m_a + m_b) ||c_a - c_b||^2` merges first (Ward, 1963). Arguments and errors are those of `kmeans`; N is
    at most 4,096. Tokens in a chain (geometric spacing) need up to N - 1 rounds.
    """
    return _clusters("ward", x, k, weight, "ward", 0, mask, backend)
