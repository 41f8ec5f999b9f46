"""Where a dendrogram is cut by value: below a height, or by a share of the error of one cluster.

The distance of two clusters that merge is `sqrt(2 height)`, as scipy's Ward has it. The error of the clusters that the
j lowest mergers leave is the sum of their heights (Ward, 1963), that of one cluster the sum of squares about the mean.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..problem import Samples, Spec

# Rounds go on a little above the cut, so that rounding ends none too early: what is above is not cut.
SLACK = 2.0**-16


@functools.lru_cache(64)
def highest_height(distance: float, dtype: torch.dtype) -> float:
    """The highest merge height in a dtype whose distance, taken in float64, is at most `distance`."""
    limits = torch.finfo(dtype)
    height = torch.tensor(min(distance * distance / 2, limits.max), dtype=dtype)
    top, bottom = torch.tensor(torch.inf, dtype=dtype), torch.tensor(0.0, dtype=dtype)
    while math.sqrt(2 * float(height)) > distance and height > 0:
        height = torch.nextafter(height, bottom)
    while height < limits.max and math.sqrt(2 * float(above := torch.nextafter(height, top))) <= distance:
        height = above
    return float(height)


def total_error(samples: Samples, mass: Tensor) -> Tensor:
    """`sum_i m_i ||x_i - mean||^2` [B] float64 about the mean weighted by the masses m [B, N], over valid tokens."""
    mass = mass if samples.valid is None else mass.masked_fill(~samples.valid, 0)
    share = mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
    gap = samples.x - torch.einsum("bn,bnd->bd", share, samples.x)[:, None]
    return (mass * gap.square().sum(2)).sum(1, dtype=torch.float64)


def bounds(samples: Samples, spec: Spec, mass: Tensor) -> Tensor:
    """The highest height, or the highest sum of heights, [B] float64, of the mergers that a cut by value makes."""
    if spec.cut == "error":
        return spec.bound * total_error(samples, mass)
    return torch.full_like(samples.scale, spec.bound, dtype=torch.float64)


def loosened(bound: Tensor, samples: Samples, spec: Spec) -> Tensor:
    """The bound [B] of rounds, a little above the cut's: of heights, or their sums, of weights over their largest."""
    bound = bound / samples.scale if spec.cut == "distance" else bound
    return bound * (1 + SLACK) + torch.finfo(samples.scale.dtype).tiny


def open_limit(height: Tensor, loose: Tensor, spec: Spec) -> Tensor:
    """The height [B] from which no pair needs to merge, by those made so far [B, N], +inf where none was.

    Args:
        loose: what `loosened` returns.
    """
    if spec.cut == "distance":
        return loose.to(height.dtype)
    ordered = height.sort(dim=1).values
    # New mergers only raise the sums of those above them.
    beyond = ordered.cumsum(1, dtype=torch.float64) > loose[:, None]
    return torch.where(beyond, ordered, torch.inf).amin(1)


def mergers_made(height: Tensor, bound: Tensor, samples: Samples, spec: Spec) -> Tensor:
    """How many mergers [B] int64 of heights [B, N] a cut by value makes; those not made have +inf."""
    if spec.cut == "distance":
        return (height * samples.scale[:, None] <= bound[:, None]).sum(1)
    return (height.sort(dim=1).values.cumsum(1, dtype=torch.float64) <= bound[:, None]).sum(1)
