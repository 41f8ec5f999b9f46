"""Members of clusters as sorted lists, one sample at a time: their shares, means and medoids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..eager.means import TIE
from .jit import jit, over_samples
from .tokens import out_of_range


def nearest_members(x: Tensor, label: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """`eager.means.nearest_members`."""
    out = torch.empty(len(x), k, dtype=torch.int64)
    weight = x.new_ones(x.shape[:2]) if weight is None else weight.detach().to(x.dtype).contiguous()
    arguments = [x.detach().contiguous(), weight, label.contiguous(), out, TIE[x.dtype]]
    try:
        over_samples(write_medoids, arguments, len(x), 2 * x.numel())
    except IndexError:
        raise out_of_range(label, k) from None
    return out


@jit
def sort_members(label: Any, k: int, order: Any, begin: Any) -> None:
    """Members of cluster c ascending in order[begin[c]:begin[c + 1]]; begin holds k + 1 places, label -1 none."""
    begin[: k + 1] = 0
    for i in range(len(label)):
        if label[i] >= k:
            raise IndexError
        if label[i] >= 0:
            begin[label[i] + 1] += 1
    for c in range(k):
        begin[c + 1] += begin[c]
    for i in range(len(label)):
        if label[i] >= 0:
            order[begin[label[i]]] = i
            begin[label[i]] += 1
    for c in range(k, 0, -1):
        begin[c] = begin[c - 1]
    begin[0] = 0


@jit
def add(share: Any, row: Any, total: Any) -> None:
    """Adds share times row to total."""
    for j in range(len(total)):
        total[j] += share * row[j]


@jit
def sqdist(a: Any, b: Any) -> Any:
    """||a - b||^2."""
    total = a.dtype.type(0)
    for j in range(len(a)):
        total += (a[j] - b[j]) * (a[j] - b[j])
    return total


@jit
def shares(weight: Any, members: Any, share: Any) -> None:
    """What each member counts of its cluster; all alike where the weights sum to 0."""
    mass, one = weight.dtype.type(0), weight.dtype.type(1)
    for place in range(len(members)):
        mass += weight[members[place]]
    for place in range(len(members)):
        share[place] = weight[members[place]] / mass if mass > 0 else one / weight.dtype.type(len(members))


@jit
def weighted_mean(rows: Any, weight: Any, members: Any, share: Any, mean: Any) -> None:
    """Writes the mean of the members' rows, and what each counts in it."""
    shares(weight, members, share)
    mean[:] = 0
    for place in range(len(members)):
        add(share[place], rows[members[place]], mean)


@jit
def medoid_of(x: Any, weight: Any, members: Any, tie: float, share: Any, mean: Any) -> int:
    """The member nearest to the weighted mean, the lowest of those that are tied."""
    slack = x.dtype.type(1) + x.dtype.type(tie)
    if len(members) == 1:
        return members[0]
    if len(members) == 2:
        # Two members' costs are in the ratio of the squared weights of the other one; equal tokens cost 0.
        a, b = members[0], members[1]
        return b if weight[b] > weight[a] * np.sqrt(slack) and sqdist(x[a], x[b]) > 0 else a
    weighted_mean(x, weight, members, share, mean)
    least = x.dtype.type(np.inf)
    for place in range(len(members)):
        share[place] = sqdist(x[members[place]], mean)
        least = min(least, share[place])
    for place in range(len(members)):
        if share[place] <= least * slack:
            return members[place]
    return members[0]


@jit
def write_medoids(x: Any, weights: Any, labels: Any, out: Any, tie: float, first: int, last: int) -> None:
    """`nearest_members`."""
    n, d = x.shape[1:]
    k = out.shape[1]
    order, begin = np.empty(n, np.int64), np.empty(k + 1, np.int64)
    share, mean = np.empty(n, x.dtype), np.empty(d, x.dtype)
    for s in range(first, last):
        sort_members(labels[s], k, order, begin)
        for c in range(k):
            members = order[begin[c] : begin[c + 1]]
            out[s, c] = medoid_of(x[s], weights[s], members, tie, share, mean) if len(members) > 0 else n
