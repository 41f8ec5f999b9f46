"""Ward's clusters of tokens that stand for several, by scipy: a token of size s is s equal tokens."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor


def kept(keep: float, count: int) -> int:
    """Patch tokens that a ratio leaves of `count`, as the docstring of `TokenPool` has it."""
    return max(1, math.floor(keep * count + 0.5))


def ward_labels(x: Tensor, sizes: Tensor, k: int) -> Tensor:
    """The cluster [N] of each token of one sample x [N, D] with sizes [N]; clusters go by their lowest token."""
    copies = np.repeat(np.arange(len(x)), sizes.long().numpy())
    found = fcluster(linkage(x.double().numpy()[copies], "ward"), k, "maxclust")
    # A token's copies merge first, at height 0.
    first = found[np.searchsorted(copies, np.arange(len(x)))].tolist()
    order = list(dict.fromkeys(first))
    return torch.tensor([order.index(label) for label in first])


def pool_patches(x: Tensor, sizes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pools patch tokens x [B, N, D] with sizes [B, N] to K: means [B, K, D], their sizes [B, K], labels [B, N]."""
    label = torch.stack([ward_labels(tokens, size, k) for tokens, size in zip(x, sizes, strict=True)])
    member = torch.nn.functional.one_hot(label, k).to(x.dtype) * sizes[..., None].to(x.dtype)
    total = member.sum(1)
    return (member / total[:, None]).mT @ x, total, label
