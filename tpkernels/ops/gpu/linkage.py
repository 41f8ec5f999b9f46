"""Launches of the kernels that write Ward's dendrograms: one for a batch, four where programs share samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Tensors
from . import resident
from .launch import on_device, power_of_two


def linkage(x: Tensor, weight: Tensor | None, mask: Tensor | None, metric: str) -> Tensor:
    """The dendrograms [B, max(N - 1, 0), 4] float64 of `ops.linkage`.

    Args:
        x: tokens [B, N, D]. weight: masses [B, N], or None for equal ones. mask: valid tokens [B, N], or None.
        metric: "euclidean", "cosine", "dot" or "clipped".
    """
    from ...kernels.resident import codes
    from ...kernels.resident.launch import linkage_kernel, merge_kernel, tree_kernel

    b, n, _ = x.shape
    tree = x.new_empty(b, max(n - 1, 0), 4, dtype=torch.float64)
    if tree.numel() == 0:
        return tree
    tensors = Tensors(x, weight, None, mask)
    # Ward pooled to means is what has no second matrix.
    codes_of = {"method": codes.METHODS["ward"], "init": codes.INITS["topk"], "output": codes.OUTPUTS["mean"]}
    made = resident.plan(x, 1, "ward", codes_of, 0, power_of_two(n, 16))
    given, steps = resident.inputs(tensors)
    kind = resident.kind_of(tensors, codes_of, metric, "count")
    room, shape, tile, options = made.room, made.shape, made.tile, made.options
    with on_device(x):
        if not made.split:
            linkage_kernel[(made.places,)](given, tree, room, shape, steps, b, n, kind, tile, **options)
            return tree
        for first in range(0, b, made.places):
            samples = first, min(made.places, b - first)
            resident.gram_matrices(given, made, steps, samples, n, 1, kind)
            merge_kernel[(samples[1],)](given, room, shape, steps, first, n, kind, tile, **options)
            tree_kernel[(samples[1],)](given, tree, room, shape, steps, first, n, kind, tile, **options)
    return tree
