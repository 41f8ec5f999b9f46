"""The clusterers as functions. Shapes: tokens x [B, N, D], weight [B, N], mask [B, N] (True: valid)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..names import CLUSTERERS, METRICS
from ..ops import backends
from ..ops.cluster import cluster
from ..ops.problem import Spec, Tensors


class Clusters(NamedTuple):
    """What a clusterer returns, for at most K clusters a sample.

    K is min(k_max, N) where k_max is given, else min(k, N) for an int, min(largest k, N) for a tensor, N without k.

    assignment [B, N] int64 (-1: masked); centers [B, K, D] in x's dtype; medoids [B, K] int64 (-1: empty cluster; None
    for kmeans and ward); loss [B] float32 (float64 for float64 tokens), `sum_i w_i ||x_i - c_i||^2` of this pair;
    n_iter [B] int64, updates or Ward's rounds; merge_heights [B, N - 1], Ward's heights in ascending order, +inf for
    mergers that were not made (None for the others): with the Euclidean metric the sum of the first j is the objective
    of N - j clusters; n_clusters [B] int64, the clusters that there are in each sample, without members or not. Rows
    beyond those are no clusters: their center is 0, their medoid -1, and no token is assigned to them.
    """

    assignment: Tensor
    centers: Tensor
    medoids: Tensor | None
    loss: Tensor
    n_iter: Tensor
    merge_heights: Tensor | None = None
    n_clusters: Tensor | None = None


def _clusters(
    method: str, x: Tensor, k: int | Tensor | None, weight: Tensor | None, init: str | Tensor, max_iter: int,
    k_max: int | None, cuts: tuple[float | None, float | None], mask: Tensor | None, backend: str,
    refine: str | None = None, metric: str = "euclidean",
) -> Clusters:  # fmt: skip
    checks.tokens(x)
    checks.one_of("metric", metric, METRICS)
    kind = checks.resolve_init(init, x.shape[1])
    cut, value = checks.cut(*cuts, by_ward="ward" in (method, kind), metric=metric)
    width, counts = checks.clusters_wanted(k, k_max, x, by_value=cut != "count")
    checks.per_token("weight", weight, x)
    checks.mask(mask, x)
    checks.count("max_iter", max_iter, 0)
    start = None
    if isinstance(init, Tensor):
        checks.init_indices(init, x, width, mask, counts)
        start = init.to(torch.int64).expand(x.shape[0], -1)
    if "ward" in (method, kind):
        checks.ward_fits(x.shape[1])
    swaps = checks.resolve_refine(refine, x.shape[1])
    chosen = checks.backend(backend, x, "swap" if swaps else method, metric)
    # The weights' gradient comes from the means alone.
    tensors = Tensors(x, None if weight is None else weight.detach(), weight, mask, start, counts)
    found = cluster(tensors, Spec(width, method, kind, "center", max_iter, swaps, metric, cut, value), chosen)
    medoids = found.medoids if method == "kmedoids" else None
    heights = found.heights if method == "ward" else None
    return Clusters(found.assignment, found.tokens, medoids, found.loss, found.n_iter, heights, found.n_clusters)


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
    k: int | Tensor | None = None,
    weight: Tensor | None = None,
    *,
    init: str | Tensor = "auto",
    max_iter: int = 5,
    k_max: int | None = None,
    distance_threshold: float | None = None,
    max_error: float | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Clusters:
    """Weighted K-Means of every sample by Lloyd's iterations.

    Minimises `L = sum_i w_i min_c ||x_i - c||^2` (Marin et al., arXiv 2110.03860). A center is the weighted mean of its
    members; an empty cluster keeps its center and comes last; the lowest index wins every tie; clusters are numbered by
    their lowest token. A sample's iterations end when its assignment no longer changes.

    Args:
        x: tokens [B, N, D], float32, float16, bfloat16 (computed in float32) or float64, any strides.
        k: clusters, at least 1: an int for all samples, or int64 [B] for each. k >= N gives every token its own. None
            beside a cut by value; with one, k is the most that may remain.
        weight: significance [B, N] >= 0; None for equal weights.
        init: "ward", "topk" (highest weight: the paper's), "farthest", "strided", "auto" (Ward up to 4,096 tokens,
            farthest-first above) or int64 indices [K] or [B, K] of distinct tokens, of which each sample takes its
            first k.
        max_iter: the most updates of a sample.
        k_max: the width K of the results, at least every k. Where a tensor k cannot be looked at (torch.compile, a CUDA
            graph) it must be given; on a GPU it spares the wait for its largest, and k counts as at most k_max, unseen.
        distance_threshold: with Ward's start, its dendrogram is cut at this distance instead: mergers of
            `sqrt(2 merge height) <= distance_threshold` are made, as by scipy's `fcluster(Z, t, "distance")`. Heights
            count weights as they come.
        max_error: in [0, 1), with Ward's start: as many mergers are made as raise the weighted sum of squares within
            clusters to at most this share of that about the sample's mean.
        mask: bool [B, N], False for padding, which is never chosen, pooled or counted.
        backend: "auto", "torch" or "triton".

    Returns:
        Clusters; `centers` is differentiable in x and weight with the assignment held constant. A sample with NaN or
        infinity is not clustered: its tokens are split in order, into k clusters also under a cut by value.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape; k too small or above k_max (a tensor's: seen on the CPU); neither k nor a cut by
            value, or two cuts; a threshold out of range, or without Ward's start; max_iter too small, negative weights
            (seen on the CPU), unknown init or backend, init indices out of range or duplicated.
        RuntimeError: backend="triton" cannot run this call.
    """
    cuts = distance_threshold, max_error
    return _clusters("kmeans", x, k, weight, init, max_iter, k_max, cuts, mask, backend)


def kmedoids(
    x: Tensor,
    k: int | Tensor | None = None,
    weight: Tensor | None = None,
    *,
    init: str | Tensor = "auto",
    max_iter: int = 5,
    k_max: int | None = None,
    distance_threshold: float | None = None,
    max_error: float | None = None,
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
    cuts = distance_threshold, max_error
    return _clusters("kmedoids", x, k, weight, init, max_iter, k_max, cuts, mask, backend, refine)


def ward(
    x: Tensor,
    k: int | Tensor | None = None,
    weight: Tensor | None = None,
    *,
    k_max: int | None = None,
    distance_threshold: float | None = None,
    max_error: float | None = None,
    metric: str = "euclidean",
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Clusters:
    """Exact Ward agglomeration of every sample, cut at k clusters, or by value.

    What scipy's `linkage(x, "ward")` with `maxclust` gives, up to ties, with the weight as mass: the pair of least
    `m_a m_b / (m_a + m_b) ||c_a - c_b||^2` merges first (Ward, 1963). Arguments and errors are those of `kmeans`; N is
    at most 4,096. Tokens in a chain (geometric spacing) need up to N - 1 rounds.

    Args:
        metric: "euclidean"; "cosine", Ward by Lance and Williams' update of `(1 - cos)^2`, as scipy's for the condensed
            matrix of `1 - cos` (a zero vector is at 1 to all others and at 0 to other zero vectors); "dot", the same of
            `(1 - x . y)^2` of the tokens as they come; "clipped", where `1 - x . y` is clipped to [0, 2] first; or
            "rows", Ward of the rows of the square matrix of `1 - x . y` as points, on the torch backend alone. Centers
            stay means of the tokens, and `loss` their objective; a distance is `sqrt(2 merge height)` for all, but
            heights sum to the loss with "euclidean" alone, which `max_error` needs.
    """
    cuts = distance_threshold, max_error
    return _clusters("ward", x, k, weight, "ward", 0, k_max, cuts, mask, backend, metric=metric)
