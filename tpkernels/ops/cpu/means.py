"""What `pooling.py` computes, as compiled loops over one sample at a time: one pass over the tokens, no temporaries."""

from __future__ import annotations

import torch
from torch import Tensor

from . import jit


def cluster_mean(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """`pooling.cluster_mean` of tokens x [B, N, D] of any strides, in the dtype to compute in."""
    return _write_means(x.new_empty(x.shape[0], k, x.shape[2]), x, label, weight, False)


def moved_means(centre: Tensor, x: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`pooling.moved_means` of tokens x [B, N, D] of any strides, in the dtype to compute in."""
    return _write_means(centre.clone(memory_format=torch.contiguous_format), x, label, weight, True)


def _write_means(out: Tensor, x: Tensor, label: Tensor, weight: Tensor | None, keeps: bool) -> Tensor:
    from . import token_loops

    b, n, d = x.shape
    weight = x.new_ones(b, n) if weight is None else weight.to(x.dtype).contiguous()
    arguments = [*jit.flat(x), weight, _within(label, out.shape[1]), out, keeps]
    jit.over_samples(token_loops.means, arguments, b, b * n * d)
    return out


def nearest_members(x: Tensor, label: Tensor, k: int, weight: Tensor | None, tie: float) -> Tensor:
    """`pooling.nearest_members`; costs are tied up to a factor of 1 + tie."""
    from . import lloyd_loops

    b, n, d = x.shape
    out = torch.empty(b, k, dtype=torch.int64)
    weight = x.new_ones(b, n) if weight is None else weight.to(x.dtype).contiguous()
    arguments = [x.contiguous(), weight, _within(label, k), out, tie]
    jit.over_samples(lloyd_loops.nearest_members, arguments, b, 2 * b * n * d)
    return out


def objective(x: Tensor, centre: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`distances.objective`, without a gradient; x and centre [B, K, D] in the dtype to compute in."""
    from . import token_loops

    b, n, d = x.shape
    out = x.new_empty(b)
    weight = x.new_ones(b, n) if weight is None else weight.to(x.dtype).contiguous()
    arguments = [*jit.flat(x), weight, _within(label, centre.shape[1]), centre.contiguous(), out]
    jit.over_samples(token_loops.losses, arguments, b, b * n * d)
    return out


def _within(label: Tensor, k: int) -> Tensor:
    """Labels as the loops want them: these would write wherever a label points."""
    highest = int(label.max()) if label.numel() else -1
    if highest >= k:
        raise IndexError(f"label: expected -1 to {k - 1}, got {highest}")
    return label.contiguous()
