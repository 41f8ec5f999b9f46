"""The operations as the rest of the package calls them.

PyTorch and its compilers get one operation each, and so do the transforms of `torch.func`, in another wrapping. ONNX
has none of them: while a model is exported to it, what they are made of is traced instead, as far as that does not
depend on the tokens' values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import cluster as clustering
from . import cluster_mean as ops_cluster_mean
from .cpu.jit import transformed
from .gpu.launch import Results
from .precision import full_precision


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
) -> Results:
    """`ops.cluster.cluster`; its fake says what cannot be exported."""
    given = x, weight, pool_weight, mask, start, k, method, init, output, max_iter
    if torch.onnx.is_in_onnx_export() and clustering.why_not_onnx(method, init, swaps) is None:
        with full_precision(x):
            width = min(k, x.shape[1])
            how = width, method, init, output, max_iter
            return clustering.cluster_chunk(x, weight, pool_weight, mask, start, *how)
    if transformed(x):
        return clustering.Differentiable.apply(*given, backend, swaps)
    return clustering.cluster(*given, backend, swaps)


def cluster_mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """`ops.mean.cluster_mean`."""
    if torch.onnx.is_in_onnx_export():
        return ops_cluster_mean.traceable(x, label, k, weight)
    return (ops_cluster_mean.Differentiable.apply if transformed(x) else ops_cluster_mean.cluster_mean)(
        x, label, k, weight, backend
    )
