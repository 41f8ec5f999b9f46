"""`tpkernels::cluster`: assignment and pooled tokens of a batch in one operation (on the GPU, one launch)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from .backends import regime
from .cluster_mean import gradients
from .cpu import jit, means
from .cpu.jit import may_look
from .eager.distances import objective
from .eager.lloyd import GRAM_LIMIT, LloydResult, kmeans, kmedoids
from .eager.means import cluster_mean, gather_tokens, nearest_members, source_of
from .eager.samples import Samples, only_valid, prepare, segment_min, settle
from .eager.starts import start_labels
from .eager.swap import swap
from .eager.ward import ward
from .gpu import resident, streaming
from .gpu.launch import Results
from .gpu.limits import limits_of
from .precision import compute_dtype, full_precision
from .tracing import differentiable, folds

# Centred tokens and Gram matrices of a chunk of samples together stay below this many elements, on a CPU for its cache.
CHUNK_ELEMENTS = 1 << 22
CPU_CHUNK_ELEMENTS = 1 << 21
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
    swaps: bool = False,
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
        swaps: refine K-Medoids by swaps, for which there is the torch backend alone.

    Returns:
        tokens [B, K, D] in x's dtype, source [B, N] (the labels that tokens were averaged over, -1 for none),
        assignment [B, N] (-1 where masked), medoids [B, K] (-1 where none; [B, 0] if nothing asks for them),
        loss [B] (of "center", else [0]), n_iter [B], merge_heights [B, N - 1] ([B, 0] but for Ward), total [B, K]: what
        the shares of the members of `source` are taken of, as `ops.mean.cluster_mean` has it ([B, 0] from torch).
    """
    k = min(k, x.shape[1])
    with full_precision(x):
        if backend == "torch":
            return _cluster_torch(x, weight, pool_weight, mask, start, k, method, init, output, max_iter, swaps)
        return _kernels(x, method)(x, weight, pool_weight, mask, start, k, method, init, output, max_iter)


def _kernels(x: Tensor, method: str) -> Callable[..., Results]:
    """Which launcher takes a call."""
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
    swaps: bool = False,
) -> Results:
    """The torch twin; arguments and results are those of `cluster`, with k <= N."""
    b, n, d = x.shape
    if 0 in (b, n):
        return _empty(x, k, method, output)
    elements = CPU_CHUNK_ELEMENTS if x.device.type == "cpu" else CHUNK_ELEMENTS
    size = max(1, elements // (n * (min(n, GRAM_LIMIT) + d)))
    count = -(-b // size)
    how = k, method, init, output, max_iter, swaps
    if count == 1:
        return cluster_chunk(x, weight, pool_weight, mask, start, *how)
    whole: Results | None = None
    for i, j in pairwise(b * i // count for i in range(count + 1)):
        some, pool_some, there, first = (
            None if tensor is None else tensor[i:j] for tensor in (weight, pool_weight, mask, start)
        )
        part = cluster_chunk(x[i:j], some, pool_some, there, first, *how)
        if whole is None:
            whole = cast(Results, tuple(one.new_empty(b if len(one) else 0, *one.shape[1:]) for one in part))
        for all_of, one in zip(whole, part, strict=True):
            all_of[i:j] = one
        # Not beside the next chunk's.
        del part, one
    return cast(Results, whole)


def why_not_onnx(method: str, init: str, swaps: bool) -> str | None:
    """Why a call cannot be exported to ONNX; None if it can."""
    if "ward" not in (method, init) and not swaps:
        return None
    what = 'refine="swap"' if swaps else "Ward" if method == "ward" else 'init="ward"'
    return (
        f"{what} cannot be exported to ONNX: the tokens' values decide how often it loops. kmeans and kmedoids with "
        f'init="topk", "farthest" or "strided" can, and topk, importance, random, grid and bipartite'
    )


def _empty(x: Tensor, k: int, method: str, output: str) -> Results:
    """The results where there are no samples or no tokens."""
    b, n, d = x.shape
    label = torch.empty(b, n, dtype=torch.int64, device=x.device)
    wide = x.new_empty(0, dtype=compute_dtype(x))
    return (
        x.new_empty(b, k, d),
        label,
        label.clone(),
        label.new_empty(b, k if _has_medoids(method, output) else 0),
        wide.new_zeros(b if output == "center" else 0),
        label.new_zeros(b),
        wide.new_empty(b, max(n - 1, 0) if method == "ward" else 0),
        wide.new_empty(b, 0),
    )


def cluster_chunk(
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
    swaps: bool = False,
) -> Results:
    """`_cluster_torch` of samples that are taken together: torch operations alone, where no value may be looked at."""
    looks = may_look(x)
    samples = prepare(x, weight, mask, k, looks=looks)
    heights, nothing = samples.x.new_empty(x.shape[0], 0), samples.rank.new_empty(x.shape[0], 0)
    plain = None if looks and not bool(samples.plain.any()) else samples.plain
    medoids = lost = kept = None
    if method == "ward":
        label, n_iter, heights = ward(samples, k)
        label = source = only_valid(samples, label) if plain is None else settle(samples, label)
    else:
        first = start_labels(samples, k, init, start)
        label, source, n_iter, medoids, lost, kept = _loop(samples, first, k, method, max_iter, swaps)
        label = only_valid(samples, label)
        if plain is not None:
            label = settle(samples, label)
            n_iter = torch.where(plain, 0, n_iter)
            source = torch.where(plain[:, None], label, source)

    if _has_medoids(method, output):
        medoids = nearest_members(samples.x, label, k, samples.weight) if medoids is None else medoids
        if plain is not None:
            index = torch.arange(x.shape[1], device=x.device).expand_as(label)
            medoids = torch.where(plain[:, None], segment_min(index, label, k, x.shape[1]), medoids)
        medoids = torch.where(medoids == x.shape[1], -1, medoids)
    if medoids is not None and (output == "medoid" or (output == "center" and method == "kmedoids")):
        source = source_of(label, medoids)
        # The mean of one token is that token.
        tokens = cluster_mean(x, source, k) if jit.takes(samples.x) else gather_tokens(x, medoids)
    elif output == "center":
        source = only_valid(samples, source)
        tokens = cluster_mean(x, source, k, pool_weight)
        if lost is not None and kept is not None and not (looks and not bool(lost.any())):
            # A cluster that lost its members keeps its centre; the padding of short samples stays zero.
            lost = lost if plain is None else lost & ~plain[:, None]
            tokens = torch.where(lost[..., None], (kept + samples.offset).to(x.dtype), tokens)
    else:
        source = label
        tokens = cluster_mean(x, label, k, pool_weight)
    loss = _loss(x, tokens, label, weight) if output == "center" else heights.new_empty(0)
    found = nothing if medoids is None else medoids.contiguous()
    source = source.clone() if source is label else source.contiguous()
    return tokens, source, label, found, loss, n_iter, heights, loss.new_empty(x.shape[0], 0)


def _loop(samples: Samples, start: Tensor, k: int, method: str, max_iter: int, swaps: bool) -> LloydResult:
    if method == "kmeans":
        return kmeans(samples, start, k, max_iter)
    if not swaps:
        return kmedoids(samples, start, k, max_iter)
    gram = torch.bmm(samples.x, samples.x.mT)
    return swap(samples, gram, kmedoids(samples, start, k, max_iter, gram))


def _loss(x: Tensor, tokens: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    dtype = compute_dtype(x)
    wide = x.to(dtype)
    if jit.takes(wide):
        return means.objective(wide, tokens.to(dtype), label, weight)
    return objective(x, tokens, label, weight)


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
    swaps: bool = False,
) -> Results:
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(why_not_onnx(method, init, swaps) or "ONNX is exported to from torch.export(strict=False)")
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
    grad_x, grad_weight = gradients(grad, source, x, tokens, weight, total, ctx.backend)
    return grad_x, None, grad_weight if x is not None else None, *[None] * 9


cluster.register_autograd(_backward, setup_context=_setup)
folds(cluster)
Differentiable = differentiable(cluster, _setup, _backward)
