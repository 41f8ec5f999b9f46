"""How redundant tokens are: the error of the K clusters that stand for them, for every K at once.

Token Pooling takes downsampling as reconstruction: K tokens c shall make `sum_i min_k ||x_i - c_k||^2` small (Marin et
al., arXiv 2110.03860). Ward merges the pair that raises this error least, by the height of the merger, so that the
N - K lowest heights sum to the error of K clusters, and all N - 1 to the tokens' variance times N.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import tpkernels

# Tokens kept, as a share.
KEPT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def clusters_kept(n: int) -> list[int]:
    """K for each of KEPT, rounded as `tpkernels.TokenPool` rounds a ratio."""
    return [max(1, math.floor(share * n + 0.5)) for share in KEPT]


def errors(x: Tensor) -> Tensor:
    """Reconstruction error of x [B, N, D] [B, len(KEPT)] for each number of clusters, over that of one cluster.

    0 for tokens that are all equal.
    """
    n = x.shape[1]
    heights = tpkernels.ward(x.double(), 1).merge_heights
    error = torch.cat([heights.new_zeros(len(x), 1), heights.cumsum(1)], dim=1)
    return error[:, [n - k for k in clusters_kept(n)]] / error[:, -1:].clamp(min=torch.finfo(error.dtype).tiny)
