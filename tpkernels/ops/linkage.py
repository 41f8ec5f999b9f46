"""`tpkernels::linkage`: Ward's whole dendrogram, in scipy's format."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import torch_primitives
from .batches import parts
from .context import full_precision
from .eager.linkage import no_mergers
from .eager.metrics import rows
from .problem import Primitives, Tensors
from .registry import folds, operation


def linkage(x: Tensor, weight: Tensor | None, mask: Tensor | None, metric: str, backend: str) -> Tensor:
    """Rows [B, N - 1, 4] float64 of the mergers of tokens x [B, N, D]; see `eager.linkage`. Without gradient."""
    return _operation(x.detach(), None if weight is None else weight.detach(), mask, metric, backend)


@operation("linkage")
def _operation(x: Tensor, weight: Tensor | None, mask: Tensor | None, metric: str, backend: str) -> Tensor:
    if x.shape[0] == 0 or x.shape[1] < 2:
        return no_mergers(x)
    if backend == "triton":
        from .gpu.linkage import linkage

        return linkage(x, weight, mask, metric)
    using, tensors, table = torch_primitives(x), Tensors(x, weight, mask=mask), no_mergers(x)
    with full_precision(x):
        for part in parts(tensors):
            table[part.rows, : part.width - 1] = _of_part(part.of(tensors), metric, using)
    return table


def _of_part(tensors: Tensors, metric: str, using: Primitives) -> Tensor:
    samples = using.prepare(tensors.x, tensors.weight, tensors.mask, 1, centers=metric == "euclidean")
    return using.linkage(rows(samples) if metric == "rows" else samples, metric)


@torch.library.register_fake(_operation)
def _(x: Tensor, weight: Tensor | None, mask: Tensor | None, metric: str, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], torch.sym_max(x.shape[1] - 1, 0), 4, dtype=torch.float64)


folds(_operation)
