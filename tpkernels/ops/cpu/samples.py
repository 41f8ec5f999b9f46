"""What `samples.prepare` does to tokens and weights, as a compiled loop: each sample is read once and written once."""

from __future__ import annotations

import torch
from torch import Tensor

from . import jit


def centre(
    x: Tensor, weight: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Tokens less their mean and weights over their largest, without what must not be computed with.

    Args:
        x: [B, N, D] in the dtype to compute in, of any strides.

    Returns:
        x [B, N, D], weight [B, N] or None, n_valid [B] int64, finite [B] bool, offset [B, 1, D], scale [B]; see
        `samples.Samples`.
    """
    from . import token_loops

    b, n, d = x.shape
    given = [
        x.new_empty(0, 0) if weight is None else weight.detach().to(x.dtype).contiguous(),
        torch.empty(0, 0, dtype=torch.bool) if mask is None else mask.contiguous(),
    ]
    out, offset, scale = x.new_empty(b, n, d), x.new_empty(b, 1, d), x.new_empty(b)
    relative = x.new_empty(0, 0) if weight is None else x.new_empty(b, n)
    count, finite = torch.empty(b, dtype=torch.int64), torch.empty(b, dtype=torch.bool)
    arguments = [*jit.flat(x), *given, out, relative, count, finite, offset, scale]
    jit.over_samples(token_loops.centre, arguments, b, b * n * d)
    return out, None if weight is None else relative, count, finite, offset, scale
