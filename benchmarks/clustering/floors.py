"""Floors that times are divided by: the product that distances need, and the memory that must move.

The product is measured as torch computes and stores it. A kernel that fuses it with the search for the nearest stores
nothing, and can be below it; one that leaves pairs out (bipartite matching) can be, too.
"""

from __future__ import annotations

import torch

from ..timing import dtype_bytes
from .cases import Case
from .inputs import Inputs


def product_is_gram(case: Case) -> bool:
    """Whether one N x N product of the tokens is less than N x K products for every assignment."""
    return case.method == "ward" or case.n <= (case.iters + 1) * case.k


def products(case: Case) -> int:
    """How many times `distance_product` the whole operation needs."""
    return 1 if product_is_gram(case) else case.iters + 1


def distance_product(inputs: Inputs) -> torch.Tensor:
    """The product behind the distances, in x's dtype: [B, N, N], or [B, K, N] where K is small."""
    x = inputs.x
    other = x if product_is_gram(inputs.case) else _first(inputs)
    half_norm = x.new_zeros(x.shape[0], other.shape[1], 1)
    return torch.baddbmm(half_norm, other, x.mT, alpha=-1)


def _first(inputs: Inputs) -> torch.Tensor:
    # In place of a first iteration's centers: rows of x, whose values do not matter, but which are read.
    return inputs.x[:, : inputs.case.k]


def memory_bytes(case: Case) -> int:
    """Bytes that have to move once: tokens in, pooled tokens and labels (int64) out, weights in where there are any."""
    element = dtype_bytes(case.dtype)
    tokens = case.b * (case.n + case.k) * case.d * element
    return tokens + case.b * case.n * (8 + 4 * case.weighted)


def memory_floor_ms(case: Case, gbs: float) -> float:
    """Milliseconds to move `memory_bytes` at gbs GB/s."""
    return memory_bytes(case) / gbs / 1e6
