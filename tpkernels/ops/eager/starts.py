"""Initial centers: k distinct tokens of every sample, as labels that name them and leave the others at -1."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Samples, Spec
from .segments import stable_order


def labels_of(indices: Tensor, n: int, k: Tensor) -> Tensor:
    """Labels [B, N] that give the s-th lowest index of each sample the label s.

    Indices beyond the first k[b] of a sample are ignored, and so are those of no token, as of padding that was cut off.

    Args:
        indices: [B, K] int64, distinct, in order of preference.
        n: tokens.
        k: [B] int64, how many of each row count.
    """
    b, width = indices.shape
    slot = torch.arange(width, device=indices.device)
    # Column n collects the ignored indices.
    chosen = torch.zeros(b, n + 1, dtype=torch.bool, device=indices.device)
    counts = (slot < k[:, None]) & (indices >= 0) & (indices < n)
    chosen = chosen.scatter(1, torch.where(counts, indices, n), True)[:, :n]
    return torch.where(chosen, chosen.cumsum(1) - 1, -1)


def _masked(samples: Samples, score: Tensor) -> Tensor:
    return score if samples.valid is None else score.masked_fill(~samples.valid, -torch.inf)


def highest(score: Tensor, k: int) -> Tensor:
    """Indices [B, k] of the highest scores [B, N], the lower index on ties."""
    return stable_order(score, descending=True)[:, :k]


def topk(samples: Samples, k: int) -> Tensor:
    """The k tokens of highest weight (the paper's start)."""
    x = samples.x
    weight = samples.weight if samples.weight is not None else x.new_ones(x.shape[:2])
    return highest(_masked(samples, weight), k)


def strided(samples: Samples, k: int) -> Tensor:
    """Evenly spaced valid tokens: the `floor(s * count / k)`-th of them for s in 0..k-1."""
    n = samples.x.shape[1]
    slot = torch.arange(k, device=samples.x.device)
    wanted = slot * samples.n_valid[:, None] // samples.k.clamp(min=1)[:, None]
    wanted = wanted.clamp(max=max(n - 1, 0))
    if samples.valid is None:
        return wanted
    by_rank = stable_order((~samples.valid).long())
    return by_rank.gather(1, wanted)


def farthest(samples: Samples, k: int) -> Tensor:
    """Farthest-first traversal (Gonzalez, 1985), weighted.

    First the token of largest `w_i ||x_i - mu||^2`, then that of largest `w_i min_c ||x_i - x_c||^2` over the tokens
    not chosen yet. One step a center: the steps depend on each other, samples do not.
    """
    x, weight = samples.x, samples.weight
    b, n, d = x.shape
    ones = x.new_ones(b, n)
    mass = ones if weight is None else torch.where(weight.sum(1, keepdim=True) > 0, weight, ones)
    if samples.valid is not None:
        mass = mass.masked_fill(~samples.valid, 0)
    mean = torch.einsum("bn,bnd->bd", mass, x) / mass.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    w = ones if weight is None else weight
    least = (x - mean[:, None]).square().sum(-1)
    norm = x.square().sum(-1)
    chosen = torch.zeros(b, n, dtype=torch.bool, device=x.device)
    picks = []
    for step in range(k):
        score = _masked(samples, (w * least).masked_fill(chosen, -1))
        pick = score.argmax(1, keepdim=True)
        picks.append(pick)
        chosen = chosen.scatter(1, pick, True)
        center = x.gather(1, pick[..., None].expand(b, 1, d))
        sqdist = (norm + norm.gather(1, pick) - 2 * torch.bmm(x, center.mT).squeeze(-1)).clamp(min=0)
        least = sqdist if step == 0 else torch.minimum(least, sqdist)
    return torch.cat(picks, 1) if picks else torch.empty(b, 0, dtype=torch.int64, device=x.device)


STARTS = {"topk": topk, "strided": strided, "farthest": farthest}


def start_labels(samples: Samples, spec: Spec, given: Tensor | None) -> Tensor:
    """Labels [B, N] of single tokens that a loop starts from; `given` [B, K] for "given"."""
    indices = given if spec.init == "given" else STARTS[spec.init](samples, spec.k)
    if indices is None:
        raise ValueError('start must be given with init="given"')
    return samples.only_valid(labels_of(indices[:, : spec.k], samples.x.shape[1], samples.k))
