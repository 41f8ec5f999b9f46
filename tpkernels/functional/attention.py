"""Attention as a function."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..ops.attention import attention as _attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_size: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    need_significance: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention, and how much of it each key received; no [B, H, N, N] tensor on the GPU.

    Args:
        q, k: [B, H, N, d]. v: [B, H, N, e]. float32, float16, bfloat16 or float64, any strides.
        key_size: [B, N] >= 0, how many original tokens each key stands for: adds its log to the logits (proportional
            attention, Bolya et al., arXiv 2210.09461) and weighs queries. 0 drops the key. Has no gradient.
        mask: bool [B, N], False for padding.
        scale: of the logits; 1 / sqrt(d) where None.
        need_significance: False returns None in its place.
        backend: "auto", "torch" or "triton".

    Returns:
        What `scaled_dot_product_attention` returns, [B, H, N, e], zeros for padding and where a sample has no key; and
        the significance [B, N] in float32, `sum over heads and valid queries i of size_i softmax_ij`, without gradient,
        or None where it is not needed.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, negative sizes (seen on the CPU), or an unknown backend.
        RuntimeError: backend="triton" cannot run this call.
    """
    checks.heads(q, k, v)
    checks.scale(scale)
    checks.per_token("key_size", key_size, q[:, 0])
    checks.mask(mask, q[:, 0])
    checks.flag("need_significance", need_significance)
    widest = q if q.shape[3] > v.shape[3] else v
    chosen = checks.backend(backend, widest[:, 0], "attention")
    return _attention(q, k, v, key_size, mask, scale, need_significance, chosen)
