"""Softmax attention that also says how much attention each key received: the scores that SDPA does not return.

`out_i = sum_j p_ij v_j`, `significance_j = sum_heads sum_i size_i p_ij` (PoWER-BERT, Goyal et al., arXiv 2001.08950)
with `p_ij = softmax_j(scale q_i . k_j + log size_j)` (proportional attention: Bolya et al., arXiv 2210.09461).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import compute_dtype, full_precision

# Probabilities that exist at a time: few enough for a CPU's cache.
CHUNK_ELEMENTS = 1 << 19


def attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_size: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention in chunks of heads, and of queries where one head is too large; plain torch, differentiable in q, k, v.

    Half types compute in float32. Without gradients no more than a chunk of the N x N probabilities exists at a time;
    autograd keeps every chunk for the backward pass.

    Args:
        q, k: [B, H, N, d]. v: [B, H, N, d_v].
        key_size: [B, N] >= 0, a constant; weighs keys and queries. 0 drops the key. None for ones.
        mask: bool [B, N], False for padding, which may hold anything: dropped as keys, not counted as queries.
        scale: of the logits; 1 / sqrt(d) where None.

    Returns:
        out [B, H, N, d_v] in q's dtype, zeros for masked queries and where a sample has no keys; significance [B, N]
        float32, without gradient, which sums to H times the sizes' sum.
    """
    b, h, n, d = q.shape
    dtype = compute_dtype(q)
    query_size, bias, alive = _sizes_and_bias(key_size, mask, dtype)
    if mask is not None:
        # Padding may hold NaN, which times a probability of 0 would stay NaN.
        q, k, v = (tensor.masked_fill(~mask[:, None, :, None], 0) for tensor in (q, k, v))
    # Autocast would take the products back to half precision.
    with full_precision(q):
        scaled = (q.to(dtype) * (d**-0.5 if scale is None else scale)).reshape(b * h, n, d)
        keys = k.to(dtype).reshape(b * h, n, d).transpose(1, 2)
        values = v.to(dtype).reshape(b * h, n, v.shape[3])
        out, received = _chunked(scaled, keys, values, _per_head(bias, h), _per_head(query_size, h))
    out = out.view(b, h, n, v.shape[3])
    significance = received.view(b, h, n).sum(1)
    if alive is not None:
        out = torch.where(alive[:, None, :, None], out, 0)
        significance = torch.where(alive, significance, 0)
    return out.to(q.dtype), significance.float()


def _sizes_and_bias(
    key_size: Tensor | None, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Weights of the queries [B, N], what is added to their logits [B, N], and the tokens whose rows count [B, N]."""
    if key_size is not None:
        size = key_size.detach().to(dtype)
        size = size if mask is None else torch.where(mask, size, 0)
    elif mask is not None:
        size = mask.to(dtype)
    else:
        return None, None, None
    bias = size.log()
    # A row of -inf has no softmax. Samples without keys get one that does not matter: their rows are zeroed.
    any_key = (size > 0).any(1, keepdim=True)
    bias = torch.where(any_key, bias, 0)
    alive = any_key.expand_as(size) if mask is None else any_key & mask
    return size, bias, alive


def _per_head(values: Tensor | None, heads: int) -> Tensor | None:
    """A row vector for every head: [B, N] to [B * H, 1, N]."""
    if values is None:
        return None
    b, n = values.shape
    return values[:, None].expand(b, heads, n).reshape(b * heads, 1, n)


def _chunked(
    q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, query_size: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention of q [G, N, d], keys [G, d, N], values [G, N, d_v] and what each key received, [G, N]."""
    groups, n, _ = q.shape
    rows = max(1, min(n, CHUNK_ELEMENTS // max(n, 1)))
    # The number of samples is no constant to a compiler: it gets them all in one part.
    parts = [slice(None)]
    if not torch.compiler.is_compiling():
        step = max(1, CHUNK_ELEMENTS // max(rows * n, 1))
        parts = [slice(first, first + step) for first in range(0, max(groups, 1), step)]
    outs, sums = [], []
    for part in parts:
        out: list[Tensor] = []
        total = torch.zeros((), dtype=q.dtype, device=q.device)
        for row in range(0, max(n, 1), rows):
            query = q[part, row : row + rows]
            logits = torch.bmm(query, keys[part]) if bias is None else torch.baddbmm(bias[part], query, keys[part])
            probability = logits.softmax(-1)
            out.append(torch.bmm(probability, values[part]))
            constant = probability.detach()
            if query_size is None:
                received = constant.sum(1)
            else:
                received = torch.bmm(query_size[part, :, row : row + rows], constant).squeeze(1)
            total = total + received
        outs.append(out[0] if len(out) == 1 else torch.cat(out, 1))
        sums.append(total)
    return torch.cat(outs), torch.cat(sums)
