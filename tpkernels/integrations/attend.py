"""Attention of a patched block: with the significance where pooling needs it, proportional where sizes are given."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.attention import attention
from .packed import Packed


def attend_heads(
    q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | Packed | None, *, scores: bool, dropout: float = 0.0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention of q, k, v [B, H, N, d], or of all samples' tokens as one where they are packed.

    Args:
        sizes: [B, N] for proportional attention, 0 for no key, None for the plain one; or how the tokens are packed.
        scores: whether to return the significance; without it this is `scaled_dot_product_attention`.
        dropout: of the probabilities; the significance is that before it.

    Returns:
        the heads' outputs side by side [B, N, H d], packed where they came so; and the significance [B, N] or None.
    """
    if isinstance(sizes, Packed):
        q, k, v = (sizes.pad(one.transpose(1, 2)).transpose(1, 2) for one in (q, k, v))
        out, significance = attend_heads(q, k, v, sizes.sizes, scores=scores, dropout=dropout, scale=scale)
        return sizes.pack(out), significance
    significance = None
    if scores and dropout == 0:
        out, significance = attention(q, k, v, key_size=sizes, scale=scale)
    else:
        if scores:
            with torch.no_grad():
                _, significance = attention(q, k, v, key_size=sizes, scale=scale)
        bias = None if sizes is None else sizes.log().to(q.dtype)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).flatten(2), significance


def optional(module: Any, *names: str) -> Any:
    """Returns the first submodule that exists under one of these names, else the identity."""
    for name in names:
        found = getattr(module, name, None)
        if found is not None:
            return found
    return _same


def probability_dropped(attention: nn.Module, dropout: Any) -> float:
    """The dropout of the attention's probabilities in force, from a number or a dropout module; 0 in eval mode."""
    if not attention.training:
        return 0.0
    if isinstance(dropout, nn.Module):
        # An identity stands for none.
        dropout = getattr(dropout, "p", 0.0)
    return float(dropout or 0.0)


def _same(x: Tensor) -> Tensor:
    return x
