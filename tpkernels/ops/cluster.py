"""`tpkernels::cluster`: assignment and pooled tokens of a batch in one operation (on the GPU, one launch)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .backends import regime, torch_primitives
from .cluster_mean import gradients
from .context import full_precision, may_look, transformed
from .eager.lloyd import GRAM_LIMIT
from .eager.means import source_of
from .eager.primitives import EAGER
from .eager.samples import override_plain
from .eager.segments import segment_min
from .eager.starts import start_labels
from .gpu.limits import limits_of
from .problem import Found, Primitives, Results, Samples, Spec, Tensors, allocate
from .registry import folds, operation, transformable

# Numbers in the centered tokens and Gram matrices of samples that are taken together; on a CPU they fit its cache.
CHUNK_ELEMENTS = 1 << 22
CPU_CHUNK_ELEMENTS = 1 << 21


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
            return _run(tensors, spec._replace(k=min(spec.k, x.shape[1])), EAGER)
    given = *tensors, *spec[:5], backend, spec.swaps
    return Results._make(_Differentiable.apply(*given) if transformed(x) else _operation(*given))


@operation("cluster", differentiable=True)
def _operation(
    x: Tensor, weight: Tensor | None, pool_weight: Tensor | None, mask: Tensor | None, start: Tensor | None, k: int,
    method: str, init: str, output: str, max_iter: int, backend: str, swaps: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = Tensors(x, weight, pool_weight, mask, start)
    spec = Spec(min(k, x.shape[1]), method, init, output, max_iter, swaps)
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
    k, method, init, output, max_iter, backend, swaps = (*given[5:], False)[:7]
    spec = Spec(torch.sym_min(k, given[0].shape[1]), method, init, output, max_iter, swaps)
    return Tensors(*given[:5]), spec, backend


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
    b, n, d = tensors.x.shape
    if 0 in (b, n):
        results = allocate(tensors.x, spec, totals=using.kernels)
        for one in (results.loss, results.n_iter, results.total):
            one.zero_()
        return results
    elements = CPU_CHUNK_ELEMENTS if tensors.x.device.type == "cpu" else CHUNK_ELEMENTS
    size = max(1, elements // (n * (min(n, GRAM_LIMIT) + d)))
    count = -(-b // size)
    if count == 1 or using.kernels:
        return _run(tensors, spec, using)
    whole = allocate(tensors.x, spec, totals=False)
    for first, stop in pairwise(b * i // count for i in range(count + 1)):
        part = _run(tensors.part(first, stop), spec, using)
        for all_of, one in zip(whole, part, strict=True):
            # A result that was not asked for has no rows.
            all_of[first:stop] = one
        # Free the chunk before the next one is made.
        del part, one
    return whole


def _run(tensors: Tensors, spec: Spec, using: Primitives) -> Results:
    """`run` of samples that are taken together: what was found, the rules for plain samples, pooling and the loss."""
    samples, found = _found(tensors, spec, using)
    x, k, plain = tensors.x, spec.k, samples.plain
    b, n = x.shape[:2]
    n_iter = found.n_iter if plain is None else torch.where(plain, 0, found.n_iter)
    if plain is None:
        label = samples.only_valid(found.label)
        source = label if found.source is None else found.source
    else:
        label = override_plain(samples, found.label)
        source = label if found.source is None else torch.where(plain[:, None], label, found.source)
    gathers, medoids = spec.gathers, None
    if spec.has_medoids:
        medoids = found.medoids
        medoids = using.nearest_members(samples.x, label, k, samples.weight) if medoids is None else medoids
        if plain is not None:
            index = torch.arange(n, device=x.device).expand_as(label)
            medoids = torch.where(plain[:, None], segment_min(index, label, k, n), medoids)
        medoids = torch.where(medoids == n, -1, medoids)

    wants_loss = spec.output == "center"
    loss = None if wants_loss else samples.scale.new_empty(0)
    if medoids is not None and gathers:
        source = source_of(label, medoids)
        tokens, total = using.gather(x, source, medoids)
    elif wants_loss and using.mean_and_loss is not None and source is label and found.kept is None:
        tokens, loss = using.mean_and_loss(x, label, k, tensors.pool_weight, tensors.weight)
        total = None
    else:
        source = samples.only_valid(source) if wants_loss else label
        tokens, total = using.mean(x, source, k, tensors.pool_weight)
        if wants_loss and found.kept is not None:
            tokens = _with_kept(tokens, found.kept, found.lost, samples, total)
    heights = samples.scale.new_empty(b, 0) if found.heights is None else found.heights
    loss = using.objective(x, tokens, label, tensors.weight) if loss is None else loss
    medoids = label.new_empty(b, 0) if medoids is None else medoids.contiguous()
    # Results of a registered operation must not share memory.
    source = source.clone() if source is label else source.contiguous()
    total = samples.scale.new_empty(b, 0) if total is None else total
    return Results(tokens, source, label, medoids, loss, n_iter, heights, total)


def _found(tensors: Tensors, spec: Spec, using: Primitives) -> tuple[Samples, Found]:
    samples = using.prepare(tensors.x, tensors.weight, tensors.mask, spec.k)
    if spec.method == "ward":
        return samples, using.ward(samples, spec.k)
    lloyd = using.lloyd(tensors.x, samples, start_labels(samples, spec, tensors.start, using.ward), spec)
    if using.kernels:
        # Free the centered copy before the loop, which has read what it needs of it: a slice would keep it.
        samples = samples._replace(x=samples.x.new_empty(*samples.x.shape[:2], 0))
    return samples, lloyd()


def _with_kept(tokens: Tensor, kept: Tensor, lost: Tensor | None, samples: Samples, total: Tensor | None) -> Tensor:
    """Tokens [B, K, D], but the kept center where a cluster lost its members; the padding of short samples stays 0."""
    if total is not None:
        lost = (total == 0) & (torch.arange(total.shape[1], device=total.device) < samples.k[:, None])
    elif lost is None or (may_look(tokens) and not bool(lost.any())):
        return tokens
    lost = lost if samples.plain is None else lost & ~samples.plain[:, None]
    return torch.where(lost[..., None], (kept + samples.offset).to(tokens.dtype), tokens)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, spec, ctx.backend = _typed(*inputs)
    results, weight = Results._make(output), None if spec.gathers else tensors.pool_weight
    wants = weight is not None and ctx.needs_input_grad[2]
    given = (tensors.x, results.tokens) if wants else (None, None)
    ctx.save_for_backward(results.source, weight, results.total, *given)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_ignored: Any) -> tuple[Tensor | None, ...]:
    source, weight, total, x, tokens = ctx.saved_tensors
    grad_x, grad_weight = gradients(grad, source, x, tokens, weight, total, ctx.backend)
    return grad_x, None, grad_weight if x is not None else None, *[None] * 9


folds(_operation)
_Differentiable = transformable(_operation, _setup, _backward)
