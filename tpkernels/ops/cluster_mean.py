"""`tpkernels::cluster_mean`: the weighted mean of each cluster's tokens, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import torch_primitives
from .context import compute_dtype, full_precision, transformed
from .eager.primitives import EAGER
from .eager.segments import member_weight, of_cluster
from .gpu import means
from .registry import folds, operation, transformable


def cluster_mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """Means [B, K, D], and what the shares of a cluster's members are taken of, [B, K] float32 ([B, 0] from torch).

    The total is the sum of the weights; minus the number of members where that is 0 and they count equally.
    """
    if torch.onnx.is_in_onnx_export():
        with full_precision(x):
            return EAGER.mean(x, label, k, weight)[0], _no_total(x)
    return (_Differentiable.apply if transformed(x) else _operation)(x, label, k, weight, backend)


@operation("cluster_mean", differentiable=True)
def _operation(x: Tensor, label: Tensor, k: int, weight: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        return means.cluster_mean(x, label, k, weight)
    with full_precision(x):
        return torch_primitives(x).mean(x, label, k, weight)[0], _no_total(x)


def _no_total(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], 0, dtype=torch.float32)


@torch.library.register_fake(_operation)
def _(x: Tensor, label: Tensor, k: int, weight: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    total = x.new_empty(x.shape[0], k, dtype=torch.float32) if backend == "triton" else _no_total(x)
    return x.new_empty(x.shape[0], k, x.shape[2]), total


@operation("cluster_mean_backward")
def cluster_mean_backward(
    grad: Tensor, label: Tensor, x: Tensor | None, mean: Tensor | None, weight: Tensor | None, total: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the means that `cluster_mean` made with this total: to x and, with x and mean given, to weight."""
    if backend == "triton":
        return means.cluster_mean_backward(grad, label, x, mean, weight, total)
    with full_precision(grad):
        return mean_backward_torch(grad, label, x, mean, weight)


@torch.library.register_fake(cluster_mean_backward)
def _(grad: Tensor, label: Tensor, x: Tensor | None, mean: Any, weight: Tensor | None, *_given: Any) -> Any:
    wants = x is not None and weight is not None
    grad_weight = grad.new_empty(label.shape, dtype=weight.dtype) if wants and weight is not None else grad.new_empty(0)
    return grad.new_empty(*label.shape, grad.shape[2]), grad_weight


def mean_backward_torch(
    grad: Tensor, label: Tensor, x: Tensor | None, mean: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`dL/dx_i = w_i / W_c g_c` and `dL/dw_i = g_c . (x_i - mu_c) / W_c`; 0 for label -1 and where W_c was 0."""
    dtype = compute_dtype(grad)
    k = grad.shape[1]
    if k == 0:
        zero = grad.new_zeros(*label.shape, grad.shape[2])
        return zero, zero.new_zeros(label.shape if x is not None and weight is not None else (0,))
    shared, total = member_weight(weight, label, k, dtype)
    inside = label >= 0
    total = of_cluster(total, label).clamp(min=torch.finfo(dtype).tiny)
    share = torch.where(inside, shared / total, 0)
    wide = of_cluster(grad.to(dtype), label)
    grad_x = torch.where(inside[..., None], wide * share[..., None], 0).to(grad.dtype)
    if x is None or mean is None or weight is None:
        return grad_x, grad.new_empty(0)
    gap = torch.where(inside[..., None], x.to(dtype) - of_cluster(mean.to(dtype), label), 0)
    # Where all weights are 0 the members count equally, so the mean does not depend on the weights.
    live = inside & (weight.to(dtype) == shared)
    grad_weight = torch.where(live, (wide * gap).sum(-1) / total, 0)
    return grad_x, grad_weight.to(weight.dtype)


def gradients(
    grad: Tensor, label: Tensor, x: Tensor | None, mean: Tensor | None, weight: Tensor | None, total: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`cluster_mean_backward`; in a transform of `torch.func`, which may go on differentiating, as torch operations."""
    if transformed(grad):
        return mean_backward_torch(grad, label, x, mean, weight)
    return cluster_mean_backward(grad.contiguous(), label, x, mean, weight, total, backend)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, label, _, weight, ctx.backend = inputs
    mean, total = output
    wants = weight is not None and ctx.needs_input_grad[3]
    ctx.save_for_backward(label, weight, total, *((x, mean) if wants else (None, None)))
    ctx.mark_non_differentiable(total)


def _backward(ctx: Any, grad: Tensor, _total: Tensor) -> tuple[Tensor | None, ...]:
    label, weight, total, x, mean = ctx.saved_tensors
    grad_x, grad_weight = gradients(grad, label, x, mean, weight, total, ctx.backend)
    return grad_x, None, None, grad_weight if x is not None else None, None


folds(_operation)
_Differentiable = transformable(_operation, _setup, _backward)
