"""`tpkernels::cluster`: assignment and pooled tokens of a batch in one operation (on the GPU, one launch)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import regime, torch_primitives
from .batches import of_rows, slices
from .cluster_mean import gradients
from .context import compute_dtype, full_precision, may_look, transformed
from .eager.cuts import highest_height
from .eager.means import source_of
from .eager.primitives import EAGER
from .gpu.limits import limits_of
from .labelling import Labelled, label_parts, label_tokens
from .problem import Primitives, Results, Spec, Tensors, allocate
from .registry import folds, operation, transformable

# Swaps, metric, cut and bound, and the operation's last arguments.
_USUAL = tuple(Spec._field_defaults.values())
_DEFAULTS = _USUAL[0], None, *_USUAL[1:]


def cluster(tensors: Tensors, spec: Spec, backend: str) -> Results:
    """Clusters the tokens and pools them; k may be above N, K = min(k, N) is the width of the results.

    PyTorch and its compilers get one operation, the transforms of `torch.func` the same in another wrapping. ONNX knows
    neither: what they are made of is traced instead, as far as that does not depend on the tokens' values.
    """
    x = tensors.x
    # To ask ONNX takes microseconds, and what it exports is traced.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if traced and torch.onnx.is_in_onnx_export() and why_not_onnx(spec) is None:
        with full_precision(x):
            spec = spec._replace(k=min(spec.k, x.shape[1]))
            return _pooled(tensors, spec, EAGER, label_tokens(tensors, spec, EAGER))
    given: tuple[Any, ...] = (*tensors[:5], *spec[:5], backend)
    # Arguments that are handed over cost more than defaults.
    if tensors.counts is not None or spec[5:] != _USUAL:
        given += spec.swaps, tensors.counts, *spec[6:]
    return Results._make(_Differentiable.apply(*given) if transformed(x) else _operation(*given))


@operation("cluster", differentiable=True)
def _operation(
    x: Tensor, weight: Tensor | None, pool_weight: Tensor | None, mask: Tensor | None, start: Tensor | None, k: int,
    method: str, init: str, output: str, max_iter: int, backend: str, swaps: bool = False,
    counts: Tensor | None = None, metric: str = "euclidean", cut: str = "count", bound: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = Tensors(x, weight, pool_weight, mask, start, counts)
    bound = highest_height(bound, compute_dtype(x)) if cut == "distance" else bound
    spec = Spec(min(k, x.shape[1]), method, init, output, max_iter, swaps, metric, cut, bound)
    chosen = torch_primitives(x) if backend == "torch" else None
    with full_precision(x):
        if chosen is None and regime(x.shape[1], x.shape[2], method, limits_of(x.device)) == "resident":
            from .gpu import resident

            return tuple(resident.cluster(tensors, spec))  # type: ignore[return-value]
        if chosen is None:
            from .gpu import streaming

            chosen = streaming.STREAMING
        return tuple(run(tensors, spec, chosen))  # type: ignore[return-value]


@torch.library.register_fake(_operation)
def _(*given: Any) -> tuple[Tensor, ...]:
    tensors, spec, backend = _typed(*given)
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(why_not_onnx(spec) or "ONNX is exported to from torch.export(strict=False)")
    return tuple(allocate(tensors.x, spec, totals=backend == "triton"))


def _typed(*given: Any) -> tuple[Tensors, Spec, str]:
    """The operation's flat arguments as a problem with k <= N, and the backend."""
    # What has its default may be left out.
    given = *given, *_DEFAULTS[len(given) - 11 :]
    k, method, init, output, max_iter, backend, swaps, counts, *how = given[5:]
    x, weight, pool_weight, mask, start = given[:5]
    spec = Spec(torch.sym_min(k, x.shape[1]), method, init, output, max_iter, swaps, *how)
    return Tensors(x, weight, pool_weight, mask, start, counts), spec, backend


def why_not_onnx(spec: Spec) -> str | None:
    """Why a call cannot be exported to ONNX; None if it can."""
    if not spec.runs_ward and not spec.swaps:
        return None
    what = 'refine="swap"' if spec.swaps else "Ward" if spec.method == "ward" else 'init="ward"'
    return (
        f"{what} cannot be exported to ONNX: the tokens' values decide how often it loops. kmeans and kmedoids with "
        f'init="topk", "farthest" or "strided" can, and topk, importance, random, grid and bipartite'
    )


def run(tensors: Tensors, spec: Spec, using: Primitives) -> Results:
    """The operation from a backend's primitives, for k <= N, some samples at a time where memory or a cache asks it."""
    x = tensors.x
    b, n, _ = x.shape
    if 0 in (b, n):
        results = allocate(x, spec, totals=using.kernels)
        for one in (results.loss, results.n_iter, results.total, results.n_clusters):
            one.zero_()
        return results
    if using.kernels:
        return _pooled(tensors, spec, using, label_tokens(tensors, spec, using))
    found = label_parts(tensors, spec, using)
    pieces = slices(x) if x.dtype != compute_dtype(x) or not using.pools_at_once else [slice(0, b)]
    if len(pieces) == 1:
        return _pooled(tensors, spec, using, found)
    whole = allocate(x, spec, totals=False)
    for rows in pieces:
        part = _pooled(of_rows(tensors, rows), spec, using, of_rows(found, rows))
        for all_of, one in zip(whole, part, strict=True):
            # A result that was not asked for has no rows.
            all_of[rows] = one
        # Free the part before the next one is made.
        del part, one
    return whole


def _pooled(tensors: Tensors, spec: Spec, using: Primitives, found: Labelled) -> Results:
    """The results of samples that are labelled: their pooled tokens and the loss."""
    x, k, label, source, medoids = tensors.x, spec.k, found.label, found.source, found.medoids
    wants_loss = spec.output == "center"
    none = x.new_empty(0, dtype=compute_dtype(x))
    loss = None if wants_loss else none
    if medoids is not None and spec.gathers:
        source = source_of(label, medoids)
        tokens, total = using.gather(x, source, medoids)
    elif wants_loss and using.mean_and_loss is not None and source is None and found.kept is None:
        tokens, loss = using.mean_and_loss(x, label, k, tensors.pool_weight, tensors.weight)
        total = None
    else:
        source = source if wants_loss else None
        tokens, total = using.mean(x, label if source is None else source, k, tensors.pool_weight)
        if wants_loss and found.kept is not None:
            tokens = _with_kept(tokens, found, total)
    loss = using.objective(x, tokens, label, tensors.weight) if loss is None else loss
    # Results of a registered operation must not share memory.
    source = label.clone() if source is None else source.contiguous()
    b = x.shape[0]
    return Results(
        tokens, source, label, label.new_empty(b, 0) if medoids is None else medoids.contiguous(), loss, found.n_iter,
        none.new_empty(b, 0) if found.heights is None else found.heights,
        none.new_empty(b, 0) if total is None else total, found.n_clusters,
    )  # fmt: skip


def _with_kept(tokens: Tensor, found: Labelled, total: Tensor | None) -> Tensor:
    """Tokens [B, K, D], but the kept center where a cluster lost its members; the padding of short samples stays 0."""
    lost = found.lost
    if total is not None:
        lost = (total == 0) & (torch.arange(total.shape[1], device=total.device) < found.n_clusters[:, None])
    elif lost is None or (may_look(tokens) and not bool(lost.any())):
        return tokens
    assert lost is not None and found.kept is not None and found.offset is not None
    lost = lost if found.plain is None else lost & ~found.plain[:, None]
    return torch.where(lost[..., None], (found.kept + found.offset).to(tokens.dtype), tokens)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, spec, ctx.backend = _typed(*inputs)
    ctx.count = len(inputs)
    results, weight = Results._make(output), None if spec.gathers else tensors.pool_weight
    wants = weight is not None and ctx.needs_input_grad[2]
    given = (tensors.x, results.tokens) if wants else (None, None)
    ctx.save_for_backward(results.source, weight, results.total, *given)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_ignored: Any) -> tuple[Tensor | None, ...]:
    source, weight, total, x, tokens = ctx.saved_tensors
    grad_x, grad_weight = gradients(grad, source, x, tokens, weight, total, ctx.backend)
    return grad_x, None, grad_weight if x is not None else None, *[None] * (ctx.count - 3)


folds(_operation)
_Differentiable = transformable(_operation, _setup, _backward)
