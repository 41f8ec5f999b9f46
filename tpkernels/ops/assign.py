"""`tpkernels::assign`: the nearest center of every token."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import torch_primitives
from .context import compute_dtype, full_precision
from .registry import folds, operation


def assign(x: Tensor, centers: Tensor, mask: Tensor | None = None, center_mask: Tensor | None = None) -> Tensor:
    """Index [B, N] of the nearest of centers [B, K, D] to every token, the lowest on ties; -1 where masked.

    Masked centers are no one's nearest; a sample without centers has -1 for all.
    """
    return _operation(x.detach(), centers.detach(), mask, center_mask)


@operation("assign")
def _operation(x: Tensor, centers: Tensor, mask: Tensor | None, center_mask: Tensor | None) -> Tensor:
    if x.shape[0] == 0 or x.shape[1] == 0:
        return torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    dtype = compute_dtype(x)
    x, centers = x.to(dtype), centers.to(dtype)
    if center_mask is None:
        offset = centers.mean(1, keepdim=True)
        dead = torch.zeros(centers.shape[:2], dtype=torch.bool, device=x.device)
    else:
        centers = centers.masked_fill(~center_mask[..., None], 0)
        offset = centers.sum(1, keepdim=True) / center_mask.sum(1).clamp(min=1)[:, None, None]
        dead = ~center_mask
    with full_precision(x):
        label = torch_primitives(x).nearest(x - offset, centers - offset, dead)
    if center_mask is not None:
        label = label.masked_fill(dead.all(1, keepdim=True), -1)
    return label if mask is None else label.masked_fill(~mask, -1)


@torch.library.register_fake(_operation)
def _(x: Tensor, centers: Tensor, mask: Tensor | None, center_mask: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.int64)


folds(_operation)
