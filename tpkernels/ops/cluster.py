"""`tpkernels::cluster`: assignment and pooled tokens of a batch in one operation (on the GPU, one launch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import resident, streaming
from .backends import regime
from .distances import objective
from .launching import Results
from .limits import limits_of
from .lloyd import kmeans, kmedoids
from .mean import cluster_mean_backward
from .pooling import cluster_mean, gather_tokens, nearest_members, source_of
from .precision import full_precision
from .samples import canonical_order, members_of, only_valid, prepare, renumber, segment_min, settle
from .starts import start_labels
from .ward import ward

OUTPUTS = ("center", "mean", "medoid")


@torch.library.custom_op("tpkernels::cluster", mutates_args=())
def cluster(
    x: Tensor,
    weight: Tensor | None,
    pool_weight: Tensor | None,
    mask: Tensor | None,
    start: Tensor | None,
    k: int,
    method: str,
    init: str,
    output: str,
    max_iter: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Clusters x [B, N, D] and pools it.

    Args:
        x: [B, N, D] float.
        weight: [B, N], what the clustering weighs tokens with; None for equal weights.
        pool_weight: [B, N], what `"mean"` (and Ward's and K-Means' `"center"`) averages with; None for equal weights.
        mask: [B, N] bool, True for tokens that are there.
        start: [B, K] int64 initial tokens where init is "given".
        k: at least 1; K = min(k, N) is the width of the results.
        output: "center" (Lloyd's centres, Ward's means, the medoids), "mean" or "medoid" of the final clusters.

    Returns:
        tokens [B, K, D] in x's dtype, source [B, N] (the labels that tokens were averaged over, -1 for none),
        assignment [B, N] (-1 where masked), medoids [B, K] (-1 where none; [B, 0] if nothing asks for them),
        loss [B] (of "center", else [0]), n_iter [B], merge_heights [B, N - 1] ([B, 0] but for Ward), total [B, K]: what
        the shares of the members of `source` are taken of, as `ops.mean.cluster_mean` has it ([B, 0] from torch).
    """
    k = min(k, x.shape[1])
    with full_precision(x):
        return _way(x, method, backend)(x, weight, pool_weight, mask, start, k, method, init, output, max_iter)


def _way(x: Tensor, method: str, backend: str) -> Callable[..., Results]:
    """What runs a call."""
    if backend == "torch":
        return _cluster_torch
    return resident.cluster if regime(x.shape[1], method, limits_of(x.device)) == "resident" else streaming.cluster


def _cluster_torch(
    x: Tensor,
    weight: Tensor | None,
    pool_weight: Tensor | None,
    mask: Tensor | None,
    start: Tensor | None,
    k: int,
    method: str,
    init: str,
    output: str,
    max_iter: int,
) -> Results:
    """The torch twin; arguments and results are those of `cluster`, with k <= N."""
    samples = prepare(x, weight, mask, k)
    nothing = samples.rank.new_empty(x.shape[0], 0)
    if 0 in (x.shape[0], x.shape[1]):
        empty = samples.rank
        heights = samples.x.new_empty(x.shape[0], max(x.shape[1] - 1, 0) if method == "ward" else 0)
        no_medoids = empty.new_empty(x.shape[0], k if _has_medoids(method, output) else 0)
        loss = samples.x.new_zeros(x.shape[0] if output == "center" else 0)
        return (
            x.new_empty(x.shape[0], k, x.shape[2]),
            empty.clone(),
            empty.clone(),
            no_medoids,
            loss,
            empty.sum(1),
            heights,
            loss.new_empty(x.shape[0], 0),
        )

    heights, kept = samples.x.new_empty(x.shape[0], 0), None
    medoids: Tensor | None = None
    if method == "ward":
        label, n_iter, heights = ward(samples, k)
        source = label
    else:
        loop = {"kmeans": kmeans, "kmedoids": kmedoids}[method]
        end = loop(samples, start_labels(samples, k, init, start), k, max_iter)
        n_iter = torch.where(samples.plain, 0, end.n_iter)
        order = canonical_order(end.label, k)
        label, source = renumber(end.label, order), renumber(end.source, order)
        medoids = None if end.medoid is None else end.medoid.gather(1, order)
        if end.centre is not None:
            kept = end.centre.gather(1, order[..., None].expand_as(end.centre)) + samples.offset
    label = settle(samples, label)
    source = torch.where(samples.plain[:, None], label, source)

    if _has_medoids(method, output):
        medoids = nearest_members(samples.x, label, k, samples.weight) if medoids is None else medoids
        index = torch.arange(x.shape[1], device=x.device).expand_as(label)
        medoids = torch.where(samples.plain[:, None], segment_min(index, label, k, x.shape[1]), medoids)
        medoids = torch.where(medoids == x.shape[1], -1, medoids)
    if medoids is not None and (output == "medoid" or (output == "center" and method == "kmedoids")):
        source = source_of(label, medoids)
        tokens = gather_tokens(x, medoids)
    elif output == "center":
        source = only_valid(samples, source)
        tokens = cluster_mean(x, source, k, pool_weight)
        if kept is not None:
            # A cluster that lost its members keeps its centre; the padding of short samples stays zero.
            lost = (members_of(source, k) == 0) & (torch.arange(k, device=x.device) < samples.k[:, None])
            tokens = torch.where(lost[..., None], kept.to(x.dtype), tokens)
    else:
        source = label
        tokens = cluster_mean(x, label, k, pool_weight)
    loss = objective(x, tokens, label, weight) if output == "center" else samples.x.new_empty(0)
    found = nothing if medoids is None else medoids.contiguous()
    source = source.clone() if source is label else source.contiguous()
    return tokens, source, label, found, loss, n_iter, heights, loss.new_empty(x.shape[0], 0)


def _has_medoids(method: str, output: str) -> bool:
    return method == "kmedoids" or output == "medoid"


@cluster.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    pool_weight: Tensor | None,
    mask: Tensor | None,
    start: Tensor | None,
    k: int,
    method: str,
    init: str,
    output: str,
    max_iter: int,
    backend: str,
) -> Results:
    b, n, d = x.shape
    k = torch.sym_min(k, n)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    label = x.new_empty(b, n, dtype=torch.int64)
    return (
        x.new_empty(b, k, d),
        label,
        torch.empty_like(label),
        label.new_empty(b, k if _has_medoids(method, output) else 0),
        x.new_empty(b if output == "center" else 0, dtype=dtype),
        label.new_empty(b),
        x.new_empty(b, torch.sym_max(n - 1, 0) if method == "ward" else 0, dtype=dtype),
        x.new_empty(b, k if backend == "triton" else 0, dtype=dtype),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    x, _, pool_weight, *_rest = inputs
    tokens, source, total = output[0], output[1], output[7]
    ctx.backend, kind = inputs[10], inputs[8]
    gathers = kind == "medoid" or (kind == "center" and inputs[6] == "kmedoids")
    weight = None if gathers else pool_weight
    wants = weight is not None and ctx.needs_input_grad[2]
    ctx.save_for_backward(source, weight, total, *((x, tokens) if wants else (None, None)))
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_ignored: Any) -> tuple[Tensor | None, ...]:
    source, weight, total, x, tokens = ctx.saved_tensors
    grad_x, grad_weight = cluster_mean_backward(grad.contiguous(), source, x, tokens, weight, total, ctx.backend)
    return grad_x, None, grad_weight if x is not None else None, *[None] * 8


cluster.register_autograd(_backward, setup_context=_setup)
