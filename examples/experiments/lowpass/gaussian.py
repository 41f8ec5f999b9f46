"""Softmax attention beside the Gaussian filter that it is said to be.

With `||q - k||^2 = ||q||^2 + ||k||^2 - 2 q.k` a weight of attention before its normalisation is

    exp(q.k / sqrt d) = exp(-||q - k||^2 / (2 sqrt d)) exp(||q||^2 / (2 sqrt d)) exp(||k||^2 / (2 sqrt d)),

a Gaussian of `sigma^2 = sqrt d` times a factor of the query, which the row's normalisation removes, and one of the key,
which it removes where all keys are equally long (Marin et al., arXiv 2110.03860, who normalise queries and keys).
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_rows(q: Tensor, k: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt d)` [..., N, N] of q, k [..., N, d]."""
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def gaussian_rows(q: Tensor, k: Tensor) -> Tensor:
    """`exp(-||q - k||^2 / (2 sqrt d))` over its row's sum, [..., N, N] of q, k [..., N, d]."""
    # From the differences: by way of q.k the comparison would be of a formula with itself.
    distances = torch.cdist(q, k, compute_mode="donot_use_mm_for_euclid_dist")
    weights = -distances.square() / (2 * q.shape[-1] ** 0.5)
    # The largest becomes 1, so that a row of small weights does not underflow.
    weights = (weights - weights.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def equal_norms(x: Tensor) -> Tensor:
    """Vectors [..., N, d] with their directions, all as long as the mean over N."""
    norms = x.norm(dim=-1, keepdim=True)
    return x * (norms.mean(-2, keepdim=True) / norms)


def total_variation(a: Tensor, b: Tensor) -> Tensor:
    """Half the sum of absolute differences of each row, [..., N]: 0 for equal distributions, 1 for disjoint ones."""
    return (a - b).abs().sum(-1) / 2


def compare(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    """Attention against the Gaussian filter, one number an image.

    Args:
        q: queries [B, H, N, d]. k: keys, the same.

    Returns:
        [B] each. `identity_float64` and `identity_float32`: the largest difference of any weight between softmax and
        Gaussian, both in that type, of queries and keys of equal norms. Means over heads and rows of the distance
        (total variation) from the model's own attention: `tv_gaussian` to the Gaussian filter of the same q and k,
        `tv_normalised` to attention of equal norms, `tv_uniform` to equal weights. `key_norm_cv`: the standard
        deviation of the keys' norms over their mean, averaged over heads.
    """
    found = {}
    for dtype in (torch.float32, torch.float64):
        q, k = q.to(dtype), k.to(dtype)
        q_equal, k_equal = equal_norms(q), equal_norms(k)
        filtered = softmax_rows(q_equal, k_equal)
        difference = (filtered - gaussian_rows(q_equal, k_equal)).abs()
        found[f"identity_{str(dtype).removeprefix('torch.')}"] = difference.amax((1, 2, 3)).double()
    # What follows is of the loop's last type, float64.
    attention = softmax_rows(q, k)
    uniform = torch.full_like(attention, 1 / attention.shape[-1])
    others = {"gaussian": gaussian_rows(q, k), "normalised": filtered, "uniform": uniform}
    for name, other in others.items():
        found[f"tv_{name}"] = total_variation(attention, other).mean((1, 2))
    norms = k.norm(dim=-1)
    found["key_norm_cv"] = (norms.std(-1, correction=0) / norms.mean(-1)).mean(1)
    return found
