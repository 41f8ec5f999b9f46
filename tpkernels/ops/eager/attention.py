"""Softmax attention that also says how much attention each key received: the scores that SDPA does not return.

`out_i = sum_j p_ij v_j`, `significance_j = sum_heads sum_i size_i p_ij` (PoWER-BERT, Goyal et al., arXiv 2001.08950)
with `p_ij = softmax_j(scale q_i . k_j + log size_j)` (proportional attention: Bolya et al., arXiv 2210.09461).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..context import compute_dtype, full_precision, may_look, transformed

# Probabilities held at a time: they fit a CPU's last-level cache, in rows enough for an efficient product.
CHUNK_ELEMENTS = 1 << 20
LEAST_ROWS = 64
# A CPU takes several samples together only while they are small: the heads of a large one need no copy.
CPU_SAMPLE_ELEMENTS = 1 << 16


def attention_torch(
    q: Tensor, k: Tensor, v: Tensor, key_size: Tensor | None = None, mask: Tensor | None = None,
    scale: float | None = None, need_significance: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """SDPA, and the significance from a chunk of probabilities at a time; differentiable in q, k, v through out.

    Without gradients one pass over the chunks gives both. With them, out is SDPA's, whose backward pass keeps no
    probabilities either, and the significance costs the logits again. Half types compute in float32, except where
    nothing but out is wanted: that is SDPA in the type it is given.

    Arguments and results are those of `tpkernels.attention`. q, k and v strided as a packed projection leaves them are
    as good as contiguous. The significance sums to H times the sum of the sizes.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    size, bias, alive = _sizes_and_bias(key_size, mask, compute_dtype(q))
    if mask is not None:
        # Padding may hold NaN, which times a probability of 0 would stay NaN.
        q, k, v = (tensor.masked_fill(~mask[:, None, :, None], 0) for tensor in (q, k, v))
    differentiable = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    # Autocast would take the products back to half precision.
    with full_precision(q):
        if not need_significance:
            return _without_dead(_sdpa(q, k, v, bias, scale), alive, differentiable), None
        # A compiler sees the loop over samples as one operation: their number may be unknown to it.
        attend = _attend(q)
        if differentiable:
            dtype = compute_dtype(q)
            out = _sdpa(q.to(dtype), k.to(dtype), v.to(dtype), bias, scale).to(q.dtype)
            significance = attend(q.detach(), k.detach(), v.detach()[..., :0], size, bias, scale)[1]
        else:
            out, significance = attend(q, k, v, size, bias, scale)
    if alive is not None:
        significance = torch.where(alive, significance, 0)
    return _without_dead(out, alive, differentiable), significance


def _attend(q: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    if torch.onnx.is_in_onnx_export() or transformed(q):
        return attention_at_once
    return torch.ops.tpkernels.attention_chunks if torch.compiler.is_compiling() else attention_chunks


def _sizes_and_bias(
    key_size: Tensor | None, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Weights of the queries [B, N], what is added to their logits [B, N], and the tokens whose rows count [B, N].

    None for what changes nothing.
    """
    if key_size is not None:
        size = key_size.detach().to(dtype)
        size = size if mask is None else torch.where(mask, size, 0)
    elif mask is not None:
        size = mask.to(dtype)
    else:
        return None, None, None
    bias = size.log()
    # The softmax of a row of -inf is NaN: samples without keys get a bias of 0, and their rows are zeroed after.
    any_key = (size > 0).any(1, keepdim=True)
    bias = torch.where(any_key, bias, 0)
    alive = any_key.expand_as(size) if mask is None else any_key & mask
    # On a CPU the test costs little and may save a pass over out.
    return size, bias, None if may_look(alive) and bool(alive.all()) else alive


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """`scaled_dot_product_attention` with bias [B, N] of the keys."""
    if bias is not None:
        # Only the CPU's kernel takes a bias finer than q, and log(size) in a half type would move the sizes by 1 %.
        bias = (bias if q.device.type == "cpu" else bias.to(q.dtype))[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def _without_dead(out: Tensor, alive: Tensor | None, differentiable: bool) -> Tensor:
    """Zeros in the rows of out [B, H, N, d_v] that do not count; in place where autograd does not need out as it is."""
    if alive is None:
        return out
    dead = ~alive[:, None, :, None]
    return out.masked_fill(dead, 0) if differentiable else out.masked_fill_(dead, 0)


@torch.no_grad()
def attention_chunks(
    q: Tensor, k: Tensor, v: Tensor, query_size: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Out [B, H, N, d_v] in q's dtype and significance [B, N] float32 of query sizes [B, N] and key biases [B, N].

    Every [samples, H, rows, N] of probabilities is made in the same memory, so the next begins with a warm cache.
    """
    b, h, n, _ = q.shape
    dtype, d_v = compute_dtype(q), v.shape[3]
    out = empty_out(v, q.dtype)
    significance = torch.zeros(b, n, dtype=dtype, device=q.device)
    if not significance.numel():
        return out, significance.float()
    rows = min(n, max(LEAST_ROWS, CHUNK_ELEMENTS // (h * n)))
    together = CPU_SAMPLE_ELEMENTS if q.device.type == "cpu" else CHUNK_ELEMENTS
    samples = min(b, max(1, together // (h * rows * n)))
    memory = torch.empty(samples * h * rows * n, dtype=dtype, device=q.device)
    parts = [_split(tensor, samples, b) for tensor in (q, k, v, out, significance, query_size, bias)]
    for queries, keys, values, outs, received, sizes, biases in zip(*parts, strict=True):
        s = len(keys)
        keys = keys.to(dtype).reshape(s * h, n, -1).transpose(1, 2)
        values = values.to(dtype).reshape(s * h, n, d_v)
        for row, query in zip(range(0, n, rows), queries.split(rows, 2), strict=True):
            m = query.shape[2]
            p = memory[: s * h * m * n].view(s * h, m, n)
            of_sample = p.view(s, h * m, n)
            if biases is not None:
                of_sample.copy_(biases[:, None])
            # beta=0 leaves what was there before unread, NaN included.
            p.baddbmm_(query.to(dtype).reshape(s * h, m, -1), keys, beta=0 if biases is None else 1, alpha=scale)
            torch.softmax(p, -1, out=p)
            if d_v:
                outs[:, :, row : row + m] = torch.bmm(p, values).view(s, h, m, d_v)
            if sizes is None:
                received += of_sample.sum(1)
            else:
                weight = sizes[:, None, row : row + m].expand(s, h, m).reshape(s, 1, h * m)
                received += torch.bmm(weight, of_sample).squeeze(1)
    return out, significance.float()


def attention_at_once(
    q: Tensor, k: Tensor, v: Tensor, query_size: Tensor | None, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`attention_chunks` as torch operations, all probabilities at a time: for ONNX and `torch.func`."""
    dtype = compute_dtype(q)
    logits = scale * (q.to(dtype) @ k.to(dtype).mT)
    p = (logits if bias is None else logits + bias[:, None, None]).softmax(-1)
    weighted = p if query_size is None else p * query_size[:, None, :, None]
    return (p @ v.to(dtype)).to(q.dtype), weighted.sum((1, 2)).float()


def _split(tensor: Tensor | None, samples: int, b: int) -> Sequence[Tensor | None]:
    """Views of so many samples of the b at a time."""
    return [None] * -(-b // samples) if tensor is None else tensor.split(samples)


def empty_out(v: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, N, d_v] of memory laid out [B, N, H, d_v], as SDPA returns it: heads join without a copy."""
    b, h, n, d_v = v.shape
    return torch.empty(b, n, h, d_v, dtype=dtype, device=v.device).transpose(1, 2)
