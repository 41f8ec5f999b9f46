"""The methods of `TokenPool` on patch tokens alone: clusterers in one operation, the others by their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..names import CLUSTERERS
from ..ops.backends import torch_primitives
from ..ops.cluster import cluster
from ..ops.cluster_mean import cluster_mean
from ..ops.context import full_precision
from ..ops.eager import baselines
from ..ops.eager.samples import override_plain, prepare_uncentered
from ..ops.eager.starts import highest
from ..ops.problem import Samples, Spec, Tensors
from .results import Pooling

if TYPE_CHECKING:
    from .token_pool import TokenPool


class Patches(NamedTuple):
    """Patch tokens x [B, N, D], and what is told of them.

    score [B, N], their significance; size [B, N]; mask bool [B, N]; metric [B, N, M], for "bipartite"; k, the most that
    a sample keeps; counts [B] int64, how many each keeps; grid_size, rows and columns.
    """

    x: Tensor
    score: Tensor | None
    size: Tensor | None
    mask: Tensor | None
    metric: Tensor | None
    k: int
    counts: Tensor | None
    grid_size: tuple[int, int] | None


def pool_patches(layer: TokenPool, patches: Patches) -> Pooling:
    """Pools patch tokens as a layer says; their sizes are returned where a kernel has summed them."""
    if layer.method in CLUSTERERS:
        return _clustered(layer, patches)
    x, size = patches.x, patches.size
    with full_precision(x):
        label, samples = _baseline(layer, patches)
    k = min(patches.k, x.shape[1])
    tokens, total = cluster_mean(x, label, k, size, checks.backend(layer.backend, x, "mean"))
    return Pooling(tokens, _summed(total, size), label, None, None, samples.k)


def weight_of(layer: TokenPool, score: Tensor | None, size: Tensor | None) -> Tensor | None:
    """The clustering's weights. A significance under proportional attention already counts sizes."""
    if layer.weighted:
        return score
    return size if layer.method == "ward" else None


def _clustered(layer: TokenPool, patches: Patches) -> Pooling:
    x, score, size, mask, _, k, counts, _ = patches
    n = x.shape[1]
    init = checks.resolve_init(layer.init, n)
    if "ward" in (layer.method, init):
        checks.ward_fits(n)
    swaps = checks.resolve_refine(layer.refine, n)
    cut, bound = checks.cut(layer.distance_threshold, None, by_ward="ward" in (layer.method, init), metric=layer.metric)
    chosen = checks.backend(layer.backend, x, "swap" if swaps else layer.method, layer.metric)
    start = None
    weight = weight_of(layer, score, size)
    if init == "topk" and layer.method != "ward" and not layer.weighted and score is not None:
        # The paper's unweighted methods still start from the most significant tokens.
        score = score.nan_to_num()
        score = score if mask is None else score.masked_fill(~mask, -torch.inf)
        start, init = highest(score, min(k, n)), "given"
    mass = None if weight is None else weight.detach()
    spec = Spec(k, layer.method, init, layer.output, layer.max_iter, swaps, layer.metric, cut, bound)
    found = cluster(Tensors(x, mass, size, mask, start, counts), spec, chosen)
    summed = _summed(found.total, size) if layer.output == "mean" else None
    medoids = found.medoids if found.medoids.shape[1] else None
    return Pooling(found.tokens, summed, found.assignment, medoids, found.n_iter, found.n_clusters)


def _baseline(layer: TokenPool, patches: Patches) -> tuple[Tensor, Samples]:
    """Labels [B, N] of the methods that do not cluster, and the samples."""
    x, score, size, mask, metric, k, counts, grid_size = patches
    k = min(k, x.shape[1])
    x = x.detach()
    weight = {"topk": score, "importance": score, "bipartite": size}.get(layer.method)
    if layer.method == "bipartite":
        primitives = torch_primitives(x)
        # Without a metric the tokens are matched by themselves, and so centered first.
        prepare = primitives.prepare if metric is None else prepare_uncentered
        samples = prepare(x, weight, mask, k, counts)
        metric = None if metric is None else metric.detach()
        label = baselines.bipartite(samples, k, metric, primitives.mean, k if counts is None else 1)
    else:
        samples = prepare_uncentered(x, weight, mask, k, counts)
        if layer.method == "grid":
            label = baselines.grid(samples, grid_size)
        elif layer.method == "topk":
            label = baselines.topk(samples, k)
        elif layer.method == "importance":
            label = baselines.importance(samples, k, layer.seed)
        else:
            label = baselines.random(samples, k, layer.seed)
    return override_plain(samples, label), samples


def _summed(total: Tensor, size: Tensor | None) -> Tensor | None:
    """The clusters' sizes [B, K] where the kernel that averaged by size has summed them; None where it has not."""
    if size is None or total.shape[1] == 0 or size.requires_grad:
        return None
    # The total is minus the number of members where a cluster's sizes sum to 0.
    return total.clamp(min=0).to(size.dtype)
