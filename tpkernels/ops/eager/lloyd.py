"""K-Means (Lloyd, 1982) and alternating K-Medoids, as operations on the whole batch.

Both minimise `L = sum_i w_i min_c ||x_i - c||^2` by turns: every token goes to its nearest center, every center to the
place that is best for its members. Labels that are -1 start them: the labelled tokens make the first centers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..context import may_look
from ..problem import Found, Samples, Spec
from .means import cluster_mean, gather_tokens, moved_means, nearest_members
from .segments import canonical_order, members_of, of_cluster, renumber
from .swap import own, swap

# Scores [B, K, T] of a tile of tokens stay below this many elements.
TILE_ELEMENTS = 1 << 22
# Up to so many tokens distances may be read from one Gram matrix; beyond, they are computed in each iteration.
GRAM_LIMIT = 2048


class Steps(NamedTuple):
    """What iterations are made of, as the functions of the same names here and in `means` compute it."""

    nearest: Callable[[Tensor, Tensor, Tensor], Tensor]
    cluster_mean: Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
    moved_means: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    nearest_members: Callable[[Tensor, Tensor, int, Tensor | None], Tensor]


def lloyd(_: Tensor, samples: Samples, start: Tensor, spec: Spec) -> Callable[[], Found]:
    """The iterations of a method from labels [B, N], to be run by a call."""
    if spec.method == "kmeans":
        return partial(kmeans, samples, start, spec, EAGER_STEPS)
    return partial(kmedoids, samples, start, spec, EAGER_STEPS)


def kmeans(samples: Samples, start: Tensor, spec: Spec, steps: Steps) -> Found:
    """K-Means from the means of the labelled tokens of `start` [B, N]."""
    x, k = samples.x, spec.k
    dead = torch.arange(k, device=x.device) >= samples.k[:, None]
    center, source = steps.cluster_mean(x, start, k, samples.weight), start
    progress = _Progress(start)
    for _ in range(spec.max_iter):
        label = samples.only_valid(steps.nearest(x, center, dead))
        if progress.stands_still(label):
            break
        center = steps.moved_means(center, x, label, samples.weight)
        source = label
    else:
        label = samples.only_valid(steps.nearest(x, center, dead))
    return numbered(samples, label, source, progress.n_iter, center)


def numbered(samples: Samples, label: Tensor, source: Tensor, n_iter: Tensor, center: Tensor) -> Found:
    """What K-Means found, from labels and centers [B, K, D] that are not numbered yet."""
    k = center.shape[1]
    order = canonical_order(label, k)
    source = renumber(source, order)
    lost = (members_of(source, k) == 0) & (torch.arange(k, device=label.device) < samples.k[:, None])
    return Found(renumber(label, order), n_iter, source, kept=of_cluster(center, order), lost=lost)


def kmedoids(samples: Samples, start: Tensor, spec: Spec, steps: Steps) -> Found:
    """K-Medoids from the medoids of the labelled tokens of `start` [B, N]."""
    x, n, k = samples.x, samples.x.shape[1], spec.k
    gram = torch.bmm(x, x.mT) if n <= GRAM_LIMIT or spec.swaps else None
    find = _by_distance(samples, steps) if gram is None else _by_gram(gram, k)
    medoid = steps.nearest_members(x, start, k, samples.weight)
    progress = _Progress(start)
    for _ in range(spec.max_iter):
        label = own(samples, find(medoid), medoid)
        if progress.stands_still(label):
            break
        medoid = steps.nearest_members(x, label, k, samples.weight)
    else:
        label = own(samples, find(medoid), medoid)
    order = canonical_order(label, k)
    medoid = medoid.gather(1, order)
    found = Found(renumber(label, order), progress.n_iter, medoids=medoid)
    return swap(samples, gram, found, medoid) if spec.swaps and gram is not None else found


def nearest(x: Tensor, center: Tensor, dead: Tensor) -> Tensor:
    """Slot [B, N] of the nearest center [B, K, D], the lowest on ties; dead slots [B, K] are never nearest.

    The token's own norm is left out: it changes no arg-min. Large N is walked in tiles.
    """
    b, n, _ = x.shape
    half_norm = (center.square().sum(-1) / 2).masked_fill(dead, torch.inf)
    # No tiles in ONNX: their number would depend on the batch.
    tile = n if torch.onnx.is_in_onnx_export() else max(1, TILE_ELEMENTS // max(1, b * center.shape[1]))
    slots = [
        torch.baddbmm(half_norm[:, :, None], center, x[:, i : i + tile].mT, alpha=-1).min(1).indices
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


def _by_distance(samples: Samples, steps: Steps) -> Callable[[Tensor], Tensor]:
    """Nearest medoid of every token, by products with the medoids alone."""

    def find(medoid: Tensor) -> Tensor:
        return steps.nearest(samples.x, gather_tokens(samples.x, medoid), medoid == samples.x.shape[1])

    return find


EAGER_STEPS = Steps(nearest, cluster_mean, moved_means, nearest_members)
