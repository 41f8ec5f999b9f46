"""K-Means (Lloyd, 1982) and alternating K-Medoids on a batch, the torch twin.

Both minimise `L = sum_i w_i min_c ||x_i - c||^2` by turns: every token goes to its nearest centre, every centre to the
place that is best for its members. Labels that are -1 start them: the labelled tokens make the first centres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..cpu import jit, lloyd, lloyd_table
from ..cpu.jit import may_look
from .means import TIE, cluster_mean, gather_tokens, moved_means, nearest_members
from .samples import Samples, canonical_order, members_of, of_cluster, only_valid, renumber

# Scores [B, K, T] of a tile of tokens stay below this many elements.
TILE_ELEMENTS = 1 << 22
# Up to so many tokens distances may be read from one Gram matrix; beyond, they are computed in each iteration.
GRAM_LIMIT = 2048
# The Gram matrix costs N^2 D and saves K-Means N K D in every assignment: up to so many tokens to a cluster it pays.
GRAM_SHARE = 6


class LloydResult(NamedTuple):
    """What a loop ends with, clusters numbered by their lowest token; for samples that are not clustered, anything.

    label [B, N] int64; source [B, N] int64, the labels of the last update; n_iter [B] int64, updates; medoid [B, K]
    int64 (K-Medoids, N where there is none) or None; lost [B, K] bool, clusters without a token in source, and kept
    [B, K, D], their centres, centred as the samples are and of no meaning elsewhere (K-Means) or None.
    """

    label: Tensor
    source: Tensor
    n_iter: Tensor
    medoid: Tensor | None = None
    lost: Tensor | None = None
    kept: Tensor | None = None


def kmeans(samples: Samples, start: Tensor, k: int, max_iter: int) -> LloydResult:
    """K-Means from the means of the labelled tokens of `start` [B, N]."""
    x = samples.x
    if jit.takes(x) and x.shape[1] <= min(GRAM_LIMIT, k * GRAM_SHARE):
        label, source, n_iter, lost, kept = lloyd.kmeans(samples, torch.bmm(x, x.mT), start, k, max_iter)
        return LloydResult(label, source, n_iter, None, lost, kept)
    dead = torch.arange(k, device=x.device) >= samples.k[:, None]
    if lloyd_table.takes(x, k):
        label, source, n_iter, centre = lloyd_table.kmeans(samples, start, k, max_iter)
    else:
        label, source, n_iter, centre = _kmeans(samples, start, k, max_iter, dead)
    order = canonical_order(label, k)
    source = renumber(source, order)
    lost = (members_of(source, k) == 0) & ~dead
    return LloydResult(renumber(label, order), source, n_iter, None, lost, of_cluster(centre, order))


def _kmeans(
    samples: Samples, start: Tensor, k: int, max_iter: int, dead: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Label, source, n_iter and centres, not yet numbered; dead [B, K] slots take no token."""
    x = samples.x
    centre, source = cluster_mean(x, start, k, samples.weight), start
    progress = _Progress(start)
    for _ in range(max_iter):
        label = only_valid(samples, nearest(x, centre, dead))
        if progress.stands_still(label):
            break
        centre = moved_means(centre, x, label, samples.weight)
        source = label
    else:
        label = only_valid(samples, nearest(x, centre, dead))
    return label, source, progress.n_iter, centre


def kmedoids(
    samples: Samples, start: Tensor, k: int, max_iter: int, gram: Tensor | None = None
) -> LloydResult:  # fmt: skip
    """K-Medoids from the medoids of the labelled tokens of `start` [B, N].

    Args:
        gram: X X^T [B, N, N] where it is there already.
    """
    x, n = samples.x, samples.x.shape[1]
    if gram is None and n <= GRAM_LIMIT:
        gram = torch.bmm(x, x.mT)
    if jit.takes(x) and gram is not None:
        label, medoid, n_iter = lloyd.kmedoids(samples, gram, start, k, max_iter, TIE[x.dtype])
        return LloydResult(label, label, n_iter, medoid)
    find = _by_distance(samples) if gram is None else _by_gram(gram, k)
    medoid = nearest_members(x, start, k, samples.weight)
    progress = _Progress(start)
    for _ in range(max_iter):
        label = own(samples, find(medoid), medoid)
        if progress.stands_still(label):
            break
        medoid = nearest_members(x, label, k, samples.weight)
    else:
        label = own(samples, find(medoid), medoid)
    order = canonical_order(label, k)
    label = renumber(label, order)
    return LloydResult(label, label, progress.n_iter, medoid.gather(1, order))


def nearest(x: Tensor, centre: Tensor, dead: Tensor) -> Tensor:
    """Slot [B, N] of the nearest centre [B, K, D], the lowest on ties; dead slots [B, K] are never nearest.

    The token's own norm is left out: it changes no arg-min. Large N is walked in tiles.
    """
    b, n, _ = x.shape
    half_norm = (centre.square().sum(-1) / 2).masked_fill(dead, torch.inf)
    if jit.takes(x):
        return lloyd.nearest(x, centre, half_norm)
    # ONNX is to take any batch: tiles would depend on it.
    tile = n if torch.onnx.is_in_onnx_export() else max(1, TILE_ELEMENTS // max(1, b * centre.shape[1]))
    slots = [
        torch.baddbmm(half_norm[:, :, None], centre, x[:, i : i + tile].mT, alpha=-1).min(1).indices
        for i in range(0, n, tile)
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
        if may_look(label) and not bool(self.moving.any()):
            return True
        self.n_iter = self.n_iter + self.moving
        return False


def _by_gram(gram: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    """Nearest medoid of every token, read from rows of the Gram matrix [B, N, N]."""
    b, n, _ = gram.shape
    half_norm = torch.cat([gram.diagonal(dim1=1, dim2=2) / 2, gram.new_full((b, 1), torch.inf)], 1)
    row = torch.arange(b, device=gram.device)[:, None] * n

    def find(medoid: Tensor) -> Tensor:
        rows = gram.view(b * n, n).index_select(0, (medoid.clamp(max=n - 1) + row).flatten()).view(b, k, n)
        return (half_norm.gather(1, medoid)[..., None] - rows).min(1).indices

    return find


def _by_distance(samples: Samples) -> Callable[[Tensor], Tensor]:
    """Nearest medoid of every token, by products with the medoids alone."""

    def find(medoid: Tensor) -> Tensor:
        return nearest(samples.x, gather_tokens(samples.x, medoid), medoid == samples.x.shape[1])

    return find


def own(samples: Samples, label: Tensor, medoid: Tensor) -> Tensor:
    """Gives every medoid its own cluster, among equal tokens too."""
    slot = torch.arange(medoid.shape[1], device=label.device).expand_as(medoid)
    # Place N takes the slots without a medoid.
    label = torch.cat([label, label[:, :1]], 1).scatter(1, medoid, slot)[:, : label.shape[1]]
    return only_valid(samples, label)
