"""What pooling returns: to users of `TokenPool`, and to what is built on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PoolInfo(NamedTuple):
    """Which output token each input token became, and what the clusterer returned.

    assignment [B, N] int64: the output token of every input token, prefix included, -1 where it was dropped or masked
    (`unpool(y, assignment)` goes back); sizes [B, P + K] float32: original tokens that each output token stands for;
    medoids [B, K] int64, loss [B] and n_iter [B]: the clusterer's, over the pooled tokens without their prefix, None
    where the method has none; n_clusters [B] int64: the pooled tokens that there are in each sample, without the
    prefix. Output tokens beyond those are zeros of size 0.
    """

    assignment: Tensor
    sizes: Tensor
    medoids: Tensor | None
    loss: Tensor | None
    n_iter: Tensor | None
    n_clusters: Tensor | None = None


class Pooling(NamedTuple):
    """What `TokenPool.pool` returns: all of PoolInfo that needs no extra computation.

    tokens [B, P + K, D]; sizes [B, P + K], None where no sizes were given; label [B, N - P] int64, the cluster of every
    patch token; medoids [B, K] and n_iter [B], None where the method has none; n_clusters [B] int64, the pooled patch
    tokens that there are in each sample.
    """

    tokens: Tensor
    sizes: Tensor | None
    label: Tensor
    medoids: Tensor | None
    n_iter: Tensor | None
    n_clusters: Tensor


def with_prefix(label: Tensor, prefix: int) -> Tensor:
    """The output token [B, P + N] of every token, from the patch tokens' labels [B, N]: the prefix stays in place."""
    first = torch.arange(prefix, device=label.device).expand(label.shape[0], prefix)
    return torch.cat([first, torch.where(label < 0, -1, label + prefix)], 1)
