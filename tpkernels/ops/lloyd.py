"""K-Means (Lloyd, 1982) and alternating K-Medoids on a batch, the torch twin.

Both minimise `L = sum_i w_i min_c ||x_i - c||^2` by turns: every token goes to its nearest centre, every centre to the
place that is best for its members. Labels that are -1 start them: the labelled tokens make the first centres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .pooling import cluster_mean, gather_tokens, nearest_members
from .samples import Samples, members_of, only_valid

# Scores [B, K, N] and Gram matrices [B, N, N] of a chunk of samples stay below this many elements.
CHUNK_ELEMENTS = 1 << 22
# Up to so many tokens K-Medoids reads its distances from one Gram matrix; beyond, it computes them in each iteration.
GRAM_LIMIT = 2048


class LloydResult(NamedTuple):
    """What a loop ends with, clusters numbered by slot.

    label [B, N] int64; centre [B, K, D] (K-Means, centred as the samples are) or None; medoid [B, K] int64
    (K-Medoids, N where there is none) or None; source [B, N] int64, the labels of the last update; n_iter [B] int64.
    """

    label: Tensor
    centre: Tensor | None
    medoid: Tensor | None
    source: Tensor
    n_iter: Tensor


def kmeans(samples: Samples, start: Tensor, k: int, max_iter: int) -> LloydResult:
    """K-Means from the means of the labelled tokens of `start` [B, N]."""
    return _in_chunks(_kmeans_chunk, samples, start, k, max_iter)


def kmedoids(samples: Samples, start: Tensor, k: int, max_iter: int) -> LloydResult:
    """K-Medoids from the medoids of the labelled tokens of `start` [B, N]."""
    return _in_chunks(_kmedoids_chunk, samples, start, k, max_iter)


def _in_chunks(
    loop: Callable[[Samples, Tensor, int, int], LloydResult], samples: Samples, start: Tensor, k: int, max_iter: int
) -> LloydResult:
    b, n, _ = samples.x.shape
    size = max(1, CHUNK_ELEMENTS // max(1, n * max(k, min(n, GRAM_LIMIT))))
    if b <= size:
        return loop(samples, start, k, max_iter)
    parts = [loop(samples.part(i, i + size), start[i : i + size], k, max_iter) for i in range(0, b, size)]

    def whole(name: str) -> Any:
        fields = [getattr(part, name) for part in parts]
        return None if fields[0] is None else torch.cat(fields)

    return LloydResult(**{name: whole(name) for name in LloydResult._fields})


def nearest(x: Tensor, centre: Tensor, dead: Tensor) -> Tensor:
    """Slot [B, N] of the nearest centre [B, K, D], the lowest on ties; dead slots [B, K] are never nearest.

    The token's own norm is left out: it changes no arg-min. Large N is walked in tiles.
    """
    b, n, _ = x.shape
    half_norm = (centre.square().sum(-1) / 2).masked_fill(dead, torch.inf)[:, :, None]
    tile = max(1, CHUNK_ELEMENTS // max(1, b * centre.shape[1]))
    slots = [
        torch.baddbmm(half_norm, centre, x[:, i : i + tile].mT, alpha=-1).min(1).indices for i in range(0, n, tile)
    ]
    return torch.cat(slots, 1) if len(slots) > 1 else slots[0]


class _Progress:
    """Counts updates, and tells when no sample of the chunk moves any more.

    Looking costs microseconds on the CPU; an accelerator would have to be waited for, so there all iterations run: a
    sample that stands still repeats itself.
    """

    def __init__(self, like: Tensor) -> None:
        self.previous = torch.full_like(like, -2)
        self.moving = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)
        self.n_iter = torch.zeros(like.shape[0], dtype=torch.int64, device=like.device)

    def stands_still(self, label: Tensor) -> bool:
        self.moving = self.moving & (label != self.previous).any(1)
        self.previous = label
        if label.device.type == "cpu" and not bool(self.moving.any()):
            return True
        self.n_iter = self.n_iter + self.moving
        return False


def _kmeans_chunk(samples: Samples, start: Tensor, k: int, max_iter: int) -> LloydResult:
    x, weight = samples.x, samples.weight
    dead = torch.arange(k, device=x.device) >= samples.k[:, None]
    centre, source = cluster_mean(x, start, k, weight), start
    progress = _Progress(start)
    for _ in range(max_iter):
        label = only_valid(samples, nearest(x, centre, dead))
        if progress.stands_still(label):
            return LloydResult(label, centre, None, source, progress.n_iter)
        centre = torch.where((members_of(label, k) > 0)[..., None], cluster_mean(x, label, k, weight), centre)
        source = label
    return LloydResult(only_valid(samples, nearest(x, centre, dead)), centre, None, source, progress.n_iter)


def _kmedoids_chunk(samples: Samples, start: Tensor, k: int, max_iter: int) -> LloydResult:
    x, weight = samples.x, samples.weight
    find = _by_gram(samples, k) if x.shape[1] <= GRAM_LIMIT else _by_distance(samples)
    medoid = nearest_members(x, start, k, weight)
    progress = _Progress(start)
    for _ in range(max_iter):
        label = _own(samples, find(medoid), medoid)
        if progress.stands_still(label):
            return LloydResult(label, None, medoid, label, progress.n_iter)
        medoid = nearest_members(x, label, k, weight)
    label = _own(samples, find(medoid), medoid)
    return LloydResult(label, None, medoid, label, progress.n_iter)


def _by_gram(samples: Samples, k: int) -> Callable[[Tensor], Tensor]:
    """Nearest medoid of every token, read from rows of the Gram matrix."""
    x = samples.x
    b, n, _ = x.shape
    gram = torch.bmm(x, x.mT)
    half_norm = torch.cat([gram.diagonal(dim1=1, dim2=2) / 2, x.new_full((b, 1), torch.inf)], 1)
    row = torch.arange(b, device=x.device)[:, None] * n

    def find(medoid: Tensor) -> Tensor:
        rows = gram.view(b * n, n).index_select(0, (medoid.clamp(max=n - 1) + row).flatten()).view(b, k, n)
        return (half_norm.gather(1, medoid)[..., None] - rows).min(1).indices

    return find


def _by_distance(samples: Samples) -> Callable[[Tensor], Tensor]:
    """Nearest medoid of every token, by products with the medoids alone."""

    def find(medoid: Tensor) -> Tensor:
        return nearest(samples.x, gather_tokens(samples.x, medoid), medoid == samples.x.shape[1])

    return find


def _own(samples: Samples, label: Tensor, medoid: Tensor) -> Tensor:
    """Gives every medoid its own cluster, among equal tokens too."""
    slot = torch.arange(medoid.shape[1], device=label.device).expand_as(medoid)
    # Place N takes the slots without a medoid.
    label = torch.cat([label, label[:, :1]], 1).scatter(1, medoid, slot)[:, : label.shape[1]]
    return only_valid(samples, label)
