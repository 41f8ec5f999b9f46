"""Clustering and pooling as functions. Shapes: tokens x [B, N, D], weight [B, N], mask [B, N] (True: there)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .ops.attention import attention as _attention
from .ops.backends import CLUSTERERS
from .ops.backends import explain_backend as _explain_backend
from .ops.dispatch import cluster
from .ops.dispatch import cluster_mean as _cluster_mean
from .ops.eager import distances, means
from .ops.precision import compute_dtype

# Beyond so many tokens Ward's N x N costs are too many.
WARD_TOKENS = 4096
INITS = ("auto", "ward", "topk", "farthest", "strided")
REFINEMENTS = ("swap",)


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


def resolve_init(init: str | Tensor, n: int) -> str:
    """The start that `init` means for n tokens: "auto" is Ward up to 4,096 tokens, farthest-first above."""
    if isinstance(init, Tensor):
        return "given"
    checks.one_of("init", init, INITS)
    return init if init != "auto" else "ward" if n <= WARD_TOKENS else "farthest"


def resolve_refine(refine: str | None, n: int) -> bool:
    """Whether K-Medoids of n tokens is refined by swaps."""
    if refine is None:
        return False
    checks.one_of("refine", refine, REFINEMENTS)
    if n > WARD_TOKENS:
        raise ValueError(f'refine="swap" takes up to {WARD_TOKENS} tokens a sample, got {n}')
    return True


def _clusters(
    method: str,
    x: Tensor,
    k: int,
    weight: Tensor | None,
    init: str | Tensor,
    max_iter: int,
    mask: Tensor | None,
    backend: str,
    refine: str | None = None,
) -> Clusters:
    checks.tokens(x)
    checks.count("k", k, 1)
    checks.per_token("weight", weight, x)
    checks.mask(mask, x)
    checks.count("max_iter", max_iter, 0)
    kind = resolve_init(init, x.shape[1])
    start = None
    if isinstance(init, Tensor):
        checks.init_indices(init, x, k, mask)
        start = init.to(torch.int64).expand(x.shape[0], -1)
    if "ward" in (method, kind):
        ward_fits(x.shape[1])
    swaps = resolve_refine(refine, x.shape[1])
    chosen = checks.backend(backend, x, "swap" if swaps else method)
    plain = None if weight is None else weight.detach()
    tokens, _, assignment, medoids, loss, n_iter, heights, _ = cluster(
        x, plain, weight, mask, start, k, method, kind, "center", max_iter, chosen, swaps
    )
    return Clusters(
        assignment,
        tokens,
        medoids if method == "kmedoids" else None,
        loss,
        n_iter,
        heights if method == "ward" else None,
    )


def explain_backend(x: Tensor, method: str = "kmedoids") -> tuple[str, str]:
    """What `backend="auto"` takes to cluster tokens like x [B, N, D], "torch" or "triton", and the reason.

    Args:
        method: "ward", "kmeans" or "kmedoids".

    Raises:
        TypeError: x is no float tensor.
        ValueError: x has another shape, or an unknown method.
    """
    checks.tokens(x)
    checks.one_of("method", method, CLUSTERERS)
    return _explain_backend(x.device, x.dtype, x.shape[2], x.shape[1], method)


def ward_fits(n: int) -> None:
    """Raises ValueError where N tokens are too many for Ward's N x N costs."""
    if n > WARD_TOKENS:
        raise ValueError(
            f'Ward takes up to {WARD_TOKENS} tokens a sample, got {n}; use kmeans or kmedoids with init="farthest", '
            f'"topk" or "strided"'
        )


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

    Minimises `L = sum_i w_i min_c ||x_i - c||^2` (Marin et al., arXiv 2110.03860). A centre is the weighted mean of its
    members; an empty cluster keeps its centre and comes last; the lowest index wins every tie; clusters are numbered by
    their lowest token. A sample ends when its assignment stands still.

    Args:
        x: tokens [B, N, D], float32, float16, bfloat16 (computed in float32) or float64, any strides.
        k: clusters, at least 1; k >= N gives every token its own.
        weight: significance [B, N] >= 0; None for equal weights.
        init: "ward", "topk" (highest weight: the paper's), "farthest", "strided", "auto" (Ward up to 4,096 tokens,
            farthest-first above) or int64 indices [K] or [B, K] of distinct tokens.
        max_iter: at most so many updates.
        mask: bool [B, N], False for padding, which is never chosen, pooled or counted.
        backend: "auto", "torch" or "triton".

    Returns:
        Clusters; `centers` is differentiable in x and weight with the assignment held constant.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, k or max_iter too small, negative weights (seen on the CPU), unknown init or backend,
            init indices out of range or duplicated.
        RuntimeError: backend="triton" cannot take the call.
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

    As `kmeans`, with centres that are tokens: the medoid of a cluster is its member of least
    `sum_{j in C} w_j ||x_i - x_j||^2`, and always belongs to it. The paper's WK-Medoids is `init="topk"` with the
    significance as weight. Arguments and errors are those of `kmeans`; `medoids` holds the tokens' indices.

    Args:
        refine: "swap" goes on from there: a medoid is given up for any other token wherever that lowers the loss, until
            no swap does (FasterPAM: Schubert and Rousseeuw, arXiv 2008.05171) or every token was tried 8 times; n_iter
            counts the swaps too. For up to 4,096 tokens; torch alone, which on a GPU takes N small steps a pass.
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


def pairwise_sqdist(
    x: Tensor, y: Tensor | None = None, *, mask: Tensor | None = None, y_mask: Tensor | None = None
) -> Tensor:
    """Squared distances between x [B, N, D] and y [B, M, D] (x itself where None).

    Args:
        mask, y_mask: bool [B, N] and [B, M], False for padding, which may hold anything.

    Returns:
        [B, N, M] float32 (float64 for float64), at least 0, with a zero diagonal where y is None; +inf from and to
        padding. Both are centred on x's mean first, so a common offset costs no digits. Differentiable.

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

    The lowest index wins ties; masked tokens get -1. Never builds [B, N, K] for large N: tokens are walked in tiles.

    Args:
        mask: bool [B, N], False for padding.
        center_mask: bool [B, K], False for centres that are none, such as those that a short sample's end with. A
            sample without any gets -1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, or no centers.
    """
    checks.tokens(x)
    checks.like_tokens("centers", centers, x)
    checks.count("the number of centers", centers.shape[1], 1)
    checks.mask(mask, x)
    checks.mask(center_mask, centers, "center_mask", "centers")
    return distances.assign(x, centers, mask, center_mask)


def medoid_update(x: Tensor, assignment: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """The medoid [B, k] int64 of each cluster of assignment [B, N] (-1: no cluster); -1 for an empty cluster.

    The member of least `sum_{j in C} w_j ||x_i - x_j||^2`, the lowest index on ties, in O(N D).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, k < 1, or an assignment outside -1..k-1 (seen on the CPU).
    """
    checks.tokens(x)
    checks.labels(assignment, x)
    checks.count("k", k, 1)
    checks.label_range(assignment, k)
    checks.per_token("weight", weight, x)
    x = x.detach().to(compute_dtype(x))
    # Tokens of no cluster may hold anything.
    there = (assignment >= 0)[..., None]
    x = torch.where(there, x, 0)
    x = torch.where(there, x - x.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1), 0)
    medoids = means.nearest_members(x, assignment, k, weight)
    return torch.where(medoids == x.shape[1], -1, medoids)


def cluster_mean(x: Tensor, assignment: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Weighted mean [B, k, D] of each cluster of assignment [B, N] (-1: left out), in x's dtype.

    Weights that sum to 0 count as equal ones; an empty cluster gives zeros. Differentiable in x and weight.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, k < 1, an assignment outside -1..k-1, negative weights (seen on the
            CPU).
    """
    checks.tokens(x)
    checks.labels(assignment, x)
    checks.count("k", k, 1)
    checks.label_range(assignment, k)
    checks.per_token("weight", weight, x)
    return _cluster_mean(x, assignment, k, weight, checks.backend("auto", x, "mean"))[0]


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
    and weight. mask and center_mask are `assign`'s: padding counts nothing.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, no centers, or negative weights (seen on the CPU).
    """
    checks.tokens(x)
    checks.like_tokens("centers", centers, x)
    checks.count("the number of centers", centers.shape[1], 1)
    checks.per_token("weight", weight, x)
    checks.mask(mask, x)
    checks.mask(center_mask, centers, "center_mask", "centers")
    return distances.chamfer_loss(x, centers, weight, mask, center_mask)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_size: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    need_significance: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention, and how much of it each key received; no [B, H, N, N] tensor on the GPU.

    Args:
        q, k: [B, H, N, d]. v: [B, H, N, e]. float32, float16, bfloat16 or float64, any strides.
        key_size: [B, N] >= 0, how many original tokens each key stands for: adds its log to the logits (proportional
            attention, Bolya et al., arXiv 2210.09461) and weighs queries. 0 drops the key. A constant.
        mask: bool [B, N], False for padding.
        scale: of the logits; 1 / sqrt(d) where None.
        need_significance: False for what `scaled_dot_product_attention` returns and no more.
        backend: "auto", "torch" or "triton".

    Returns:
        What `scaled_dot_product_attention` returns, [B, H, N, e], zeros for padding and where a sample has no key; and
        the significance [B, N] in float32, `sum over heads and valid queries i of size_i softmax_ij`, without gradient,
        or None where it is not needed.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, negative sizes (seen on the CPU), or an unknown backend.
        RuntimeError: backend="triton" cannot take the call.
    """
    checks.heads(q, k, v)
    checks.scale(scale)
    checks.per_token("key_size", key_size, q[:, 0])
    checks.mask(mask, q[:, 0])
    checks.flag("need_significance", need_significance)
    widest = q if q.shape[3] > v.shape[3] else v
    chosen = checks.backend(backend, widest[:, 0], "attention")
    return _attention(q, k, v, key_size, mask, scale, need_significance, chosen)
