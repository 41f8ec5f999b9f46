"""A padded batch of documents pooled in one clustering call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import cluster_mean, ward
from ..ops.context import compute_dtype
from .budget import Budget
from .presets import Rules


class Pooled(NamedTuple):
    """vectors [B, M, D], zeros behind a document's own; lengths, how many those are; labels [B, N] int64, the row that
    each token became, -1 for padding.
    """

    vectors: Tensor
    lengths: list[int]
    labels: Tensor


def pool_batch(
    x: Tensor, mask: Tensor | None, lengths: list[int], budget: Budget, rules: Rules, backend: str
) -> Pooled:  # fmt: skip
    """Pools documents x [B, N, D] of so many tokens, which stand where mask [B, N] says, or all in front where None."""
    b, n, d = x.shape
    if 0 in (b, n):
        return Pooled(x.new_empty(b, 0, d), [0] * b, torch.empty(b, n, dtype=torch.int64, device=x.device))
    p, place = rules.protected, torch.arange(n, device=x.device)
    if mask is None:
        rank = place.expand(b, n)
        there = place < torch.tensor(lengths, device=x.device)[:, None]
    else:
        rank, there = mask.cumsum(1) - 1, mask
    others = None if p == 0 and min(lengths) == n else there & (rank >= p)

    found, clusters = _cluster(x, others, lengths, budget, rules, backend)
    widest = max(clusters)
    means = found.centers[:, :widest]
    if rules.normalize:
        if x.dtype != compute_dtype(x) and widest:
            # From means that are not rounded yet.
            means = cluster_mean(x.to(compute_dtype(x)), found.assignment, widest)
        means = unit(means).to(x.dtype)
    if p == 0:
        return Pooled(means, clusters, found.assignment)

    kept = _first(x, there & (rank < p), rank, p)
    kept = unit(kept).to(x.dtype) if rules.normalize == "all" else kept
    before = [min(p, length) for length in lengths]
    total = [one + other for one, other in zip(before, clusters, strict=True)]
    own = torch.tensor(clusters, device=x.device)[:, None]
    if rules.protected_at == "start":
        vectors = torch.cat([kept, means], 1)
        labels = torch.where(rank < p, rank, found.assignment + p)
    else:
        vectors = _behind(means, kept, own)
        labels = torch.where(rank < p, rank + own, found.assignment)
    return Pooled(vectors[:, : max(total)], total, labels.masked_fill(~there, -1))


def unit(vectors: Tensor) -> Tensor:
    """vectors [..., D] at length 1, half types in float32; zero vectors stay zero."""
    return F.normalize(vectors.to(compute_dtype(vectors)), dim=-1)


def _cluster(
    x: Tensor, others: Tensor | None, lengths: list[int], budget: Budget, rules: Rules, backend: str
) -> tuple[Any, list[int]]:  # fmt: skip
    """Ward's clusters of tokens `others` [B, N], all where None, and how many each document has."""
    how: dict[str, Any] = {"mask": others, "metric": rules.distance, "backend": backend}
    if budget.counts:
        clusters = [budget.clusters(length, min(rules.protected, length), rules) for length in lengths]
        # Without tokens there is no cluster, whatever is asked for.
        wanted = [max(1, count) for count in clusters]
        return ward(x, torch.tensor(wanted, device=x.device), k_max=max(wanted), **how), clusters
    how[budget.name] = budget.value
    found = ward(x, **how)
    assert found.n_clusters is not None
    counts = zip(found.n_clusters.tolist(), lengths, strict=True)
    return found, [count if length > rules.protected else 0 for count, length in counts]


def _first(x: Tensor, there: Tensor, rank: Tensor, count: int) -> Tensor:
    """The first tokens [B, count, D] of x [B, N, D], zeros behind those that are there [B, N]."""
    b, n = there.shape
    place = torch.arange(n, device=x.device).expand(b, n)
    # The last column takes all that are none of them.
    taken = place.new_full((b, count + 1), n).scatter(1, torch.where(there, rank, count), place)[:, :count]
    return _rows_at(x, taken.clamp(max=n - 1)).masked_fill((taken == n)[..., None], 0)


def _behind(means: Tensor, kept: Tensor, own: Tensor) -> Tensor:
    """The rows of kept [B, p, D] behind each sample's own number [B, 1] of means [B, K, D]; the rest is zeros."""
    k, p = means.shape[1], kept.shape[1]
    row = torch.arange(k + p, device=means.device)
    # The padding of the means moves behind, too.
    places = torch.where(row < own, row, torch.where(row < own + p, k + row - own, row - p))
    return _rows_at(torch.cat([means, kept], 1), places)


def _rows_at(x: Tensor, places: Tensor) -> Tensor:
    """The rows [B, W, D] of x [B, N, D] at places [B, W]."""
    b, n, d = x.shape
    # Whole rows: to gather by places of every channel takes three times as long.
    flat = places + n * torch.arange(b, device=places.device)[:, None]
    return x.flatten(0, 1).index_select(0, flat.flatten()).view(*places.shape, d)
